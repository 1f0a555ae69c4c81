"""A chat server on a real socket: it checks the requests, and fails as a test asks it to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

# Number of a request, from 0 -> its fault: an HTTP status, one of the names in `_respond`, or
# nothing
ChooseFault = Callable[[int], str]


@dataclass(frozen=True)
class ChatRequest:
    """One request as the server parsed it."""

    system: str
    images: tuple[str, ...]  # SHA-256 of each image's bytes, in order
    texts: tuple[str, ...]  # of the user's message, in order
    part_types: str  # "iiiiit": its images and texts in order
    body: dict[str, Any]

    @property
    def question(self) -> str:
        return self.texts[-1]


@dataclass
class ChatServer:
    """`with ChatServer(answer) as server: server.url`. answer: the model's text for a request."""

    answer: Callable[[ChatRequest], str]
    choose_fault: ChooseFault = lambda number: ""
    delay_s: float = 0.05  # of a request whose fault is `slow`
    models: tuple[str, ...] = ("tiny",)
    key: str | None = None
    schema_status: int = 200  # of the answer to a request with a schema

    requests: list[ChatRequest] = field(default_factory=list)  # that were answered
    protocol_errors: list[str] = field(default_factory=list)  # of the requests
    statuses: Counter[int] = field(default_factory=Counter)
    port: int = 0
    _in_flight: int = 0
    _received: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ChatServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not self.protocol_errors, self.protocol_errors

    def start(self) -> None:
        """Listens; after `stop`, at the same port again."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Closes all connections and the port."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _has_wrong_key(self, request: web.Request) -> bool:
        return self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}"

    async def _list_models(self, request: web.Request) -> web.Response:
        if self._has_wrong_key(request):
            return web.json_response({"error": "wrong key"}, status=401)
        return web.json_response({"object": "list", "data": [{"id": m} for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        try:
            response = await self._respond(request)
            self.statuses[response.status] += 1
            return response
        finally:
            self._in_flight -= 1

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        number, self._received = self._received, self._received + 1
        body = await request.json()
        fault = self.choose_fault(number)
        if self._has_wrong_key(request):
            return web.json_response({"error": "wrong key"}, status=401)
        if fault.isdigit():
            headers = {"Retry-After": "0.01"} if fault in ("429", "503") else {}
            return web.json_response({"error": "no"}, status=int(fault), headers=headers)
        if fault == "disconnect":
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if fault == "slow":
            await asyncio.sleep(self.delay_s)
        if "response_format" in body and self.schema_status != 200:
            error = {"error": "response_format: not known"}
            return web.json_response(error, status=self.schema_status)
        if fault == "no JSON":
            return web.Response(text="<html>Bad gateway</html>")
        if fault == "no choices":
            return web.json_response({"choices": []})
        try:
            parsed = parse_request(body)
            text = self.answer(parsed)
        except Exception as error:
            self.protocol_errors.append(f"{type(error).__name__}: {error}")
            return web.json_response({"error": str(error)}, status=422)
        if fault == "refusal":
            text = "I'm sorry, I can't see it."
        elif fault == "truncated answer":
            text = text[: len(text) // 2]
        self.requests.append(parsed)
        reply = json.dumps(
            {
                "choices": [{"message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5},
            }
        )
        if fault == "partial reply":
            response = web.StreamResponse(headers={"Content-Length": str(len(reply))})
            await response.prepare(request)
            await response.write(reply[:20].encode())
            request.transport.abort()  # type: ignore[union-attr]
            return response
        return web.Response(text=reply, content_type="application/json")


def parse_request(body: dict[str, Any]) -> ChatRequest:
    """Raises where the body is not a request of the chat API."""
    assert body["model"], "no model"
    assert body["max_tokens"] > 0
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert [part["type"] for part in system["content"]] == ["text"]
    images, texts, part_types = [], [], ""
    for part in user["content"]:
        if part["type"] == "text":
            texts.append(part["text"])
            part_types += "t"
        else:
            head, data = part["image_url"]["url"].split(",")
            assert head == "data:image/jpeg;base64"
            jpeg = base64.b64decode(data, validate=True)
            assert jpeg[:2] == b"\xff\xd8", "no JPEG"
            images.append(hashlib.sha256(jpeg).hexdigest())
            part_types += "i"
    return ChatRequest(system["content"][0]["text"], tuple(images), tuple(texts), part_types, body)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)
