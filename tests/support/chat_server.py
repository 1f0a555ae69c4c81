"""A chat server on a real socket: it checks what it is sent, and gives trouble when told to."""

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

Trouble = Callable[[int], str]  # number of a request, from 0 -> what happens to it; "" nothing


@dataclass(frozen=True)
class Asked:
    """One request as the server understood it."""

    system: str
    pictures: tuple[str, ...]  # SHA-256 of each image's bytes, in order
    texts: tuple[str, ...]  # the texts of the user's turn, in order
    parts: str  # "iiiiit": its images and texts in order
    body: dict[str, Any]

    @property
    def question(self) -> str:
        return self.texts[-1]


@dataclass
class ChatServer:
    """`with ChatServer(answer) as server: server.url`. answer: what a model says of a request."""

    answer: Callable[[Asked], str]
    trouble: Trouble = lambda number: ""
    slow_s: float = 0.05
    models: tuple[str, ...] = ("tiny",)
    key: str | None = None
    structured: bool = True  # it takes a response_format

    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what was against the protocol
    statuses: Counter[int] = field(default_factory=Counter)
    port: int = 0
    most: int = 0  # requests that were under way at once
    _now: int = 0
    _number: int = 0

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
        assert not self.wrong, self.wrong

    def start(self) -> None:
        """Listens; after `stop`, at the same port again."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Ends all connections and listens no more."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _locked(self, request: web.Request) -> bool:
        return self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}"

    async def _models(self, request: web.Request) -> web.Response:
        if self._locked(request):
            return web.json_response({"error": "who are you?"}, status=401)
        return web.json_response({"object": "list", "data": [{"id": m} for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            response = await self._answered(request)
            self.statuses[response.status] += 1
            return response
        finally:
            self._now -= 1

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        number, self._number = self._number, self._number + 1
        body = await request.json()
        trouble = self.trouble(number)
        if self._locked(request):
            return web.json_response({"error": "who are you?"}, status=401)
        if trouble.isdigit():
            head = {"Retry-After": "0.01"} if trouble in ("429", "503") else {}
            return web.json_response({"error": "no"}, status=int(trouble), headers=head)
        if trouble == "cut":
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if trouble == "slow":
            await asyncio.sleep(self.slow_s)
        if "response_format" in body and not self.structured:
            return web.json_response({"error": "response_format: not known"}, status=400)
        if trouble == "no JSON":
            return web.Response(text="<html>Bad gateway</html>")
        if trouble == "no answer in it":
            return web.json_response({"choices": []})
        try:
            asked = understood(body)
            text = self.answer(asked)
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return web.json_response({"error": str(error)}, status=422)
        if trouble == "wrong":
            text = "I'm sorry, I can't see it."
        elif trouble == "broken off":
            text = text[: len(text) // 2]
        self.asked.append(asked)
        reply = json.dumps(
            {
                "choices": [{"message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5},
            }
        )
        if trouble == "half":
            response = web.StreamResponse(headers={"Content-Length": str(len(reply))})
            await response.prepare(request)
            await response.write(reply[:20].encode())
            request.transport.abort()  # type: ignore[union-attr]
            return response
        return web.Response(text=reply, content_type="application/json")


def understood(body: dict[str, Any]) -> Asked:
    """The request's parts. Raises where it is no request of the chat API."""
    assert body["model"], "no model"
    assert body["max_tokens"] > 0
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert [part["type"] for part in system["content"]] == ["text"]
    pictures, texts, parts = [], [], ""
    for part in user["content"]:
        if part["type"] == "text":
            texts.append(part["text"])
            parts += "t"
        else:
            head, data = part["image_url"]["url"].split(",")
            assert head == "data:image/jpeg;base64"
            jpeg = base64.b64decode(data, validate=True)
            assert jpeg[:2] == b"\xff\xd8", "no JPEG"
            pictures.append(hashlib.sha256(jpeg).hexdigest())
            parts += "i"
    return Asked(system["content"][0]["text"], tuple(pictures), tuple(texts), parts, body)


def wait_until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)
