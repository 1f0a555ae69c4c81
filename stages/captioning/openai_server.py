"""Captions from any server that implements OpenAI's chat API: vLLM, SGLang, llama.cpp, a cloud.

A server may be slow, overloaded, restarting or gone, so requests are retried. A request that fails
while others are answered is its clip's error; a server that answers no request stops the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Annotated, Any, ClassVar

import aiohttp
from annotated_types import Ge, Gt

from curation.config import ConfigError
from curation.json_text import parse_object
from curation.progress import format_duration
from curation.stage import Needs, RunContext, Unavailable
from curation.texts import clean_outside_text
from stages.captioning.adaptive_limit import AdaptiveLimit
from stages.captioning.chat_api import (
    MAX_ERROR_BYTES,
    MAX_LIST_BYTES,
    NoRedirects,
    auth_headers,
    check_url,
    image_part,
    max_reply_bytes,
    parse_completion,
    parse_retry_after,
    redirect_error,
)
from stages.captioning.conversation import Completion, Request
from stages.captioning.vlm import VlmCaptioner

# HTTP status codes
OVERLOADED = (429, 503)  # the server takes fewer requests than it gets
RETRYABLE = (*OVERLOADED, 408, 409, 425, 500, 502, 504)
INVALID_REQUEST = (400, 422)  # perhaps for its schema, which not every server knows
FATAL = (401, 403, 404)  # the key, the address or the model is wrong, for every request

MAX_ERROR_SHOWN_CHARS = 200  # of what a server answers
MAX_LONE_FAILURES = 5  # of one request while others are answered
MAX_BACKOFF_FACTOR = 60  # times backoff_s
ERROR_SHOWN_AFTER_S, SILENCE_SHOWN_AFTER_S = 2.0, 10.0  # of no answer, with and without an error


class RequestRefused(Exception):
    """The server will not answer this request."""


@dataclass(frozen=True)
class _Reply:
    status: int = 0  # of HTTP; 0: no complete reply
    body: bytes = b""
    error: str = ""  # where the body does not explain the failure
    retry_after_s: float = 0.0  # the server asks to wait
    is_too_large: bool = False  # an answer of more bytes than the limit, which are not read

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400


@dataclass
class OpenAICaptioner(VlmCaptioner):
    """A client of a chat server."""

    url: str | None = None  # address of the API, with its version: http://HOST:8000/v1
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key, if one is needed
    max_clips_in_flight: Annotated[int, Ge(1)] = 64  # per worker
    workers: Annotated[int, Ge(1)] = 1  # processes that send requests
    timeout_s: Annotated[float, Gt(0)] = 300.0  # of one request
    max_outage_s: Annotated[float, Gt(0)] = 900.0  # without any answer for so long, the run stops
    backoff_s: Annotated[float, Gt(0)] = 1.0  # wait after a failure; doubles with each further one

    captioner: ClassVar[str] = "openai"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.url = self.url.rstrip("/") if self.url else None

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, max_concurrency=self.max_clips_in_flight, max_workers=self.workers)

    def api_key(self) -> str | None:
        """The server's key from this machine's environment; None where it is not set."""
        return os.environ.get(self.api_key_env) or None

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        self._key, self._structured = context.api_key, True
        self._session: Any = None
        self._requests_in_flight = 0
        self._last_answer_s = 0.0  # to any request; while none is in flight: meaningless
        self._last_error: str | None = None  # since then

    def check(self) -> None:
        """Raises ConfigError where the server is missing or does not serve the model."""
        if not self.url:
            raise ConfigError(
                "caption.openai.url: expected the server's address, found none; set "
                "caption.openai.url=http://HOST:8000/v1"
            )
        check_url(self.url, self.api_key_env)
        served = self._served_models(self.url)
        if not self.model or (served and self.model not in served):
            raise ConfigError(
                f"caption.openai.model is {self.model or 'not given'}; {self.url} serves "
                f"{', '.join(served[:10]) or 'models that it does not list'}"
            )
        super().check()

    def _served_models(self, url: str) -> list[str]:
        """Names of the server's models; empty where it does not list them. Raises ConfigError."""
        request = urllib.request.Request(f"{url}/models", headers=auth_headers(self.api_key()))
        opener = urllib.request.build_opener(NoRedirects)
        try:
            with opener.open(request, timeout=min(self.timeout_s, 30)) as reply:
                models = parse_object(reply.read(MAX_LIST_BYTES))["data"]
            return [str(model["id"]) for model in models]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConfigError(
                    f"{url} answers {error.code}: set the environment variable {self.api_key_env} "
                    "(caption.openai.api_key_env) to a valid key"
                ) from None
            if 300 <= error.code < 400:
                location = error.headers.get("Location")
                raise ConfigError(redirect_error(f"{url}/models", error.code, location)) from None
            return []
        except (ValueError, KeyError, TypeError):
            return []
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error) or type(error).__name__
            name = self.model or "MODEL"
            raise ConfigError(
                f"no caption server at {url} ({reason}); start one: vllm serve {name} --port 8000, "
                "and give caption.openai.url=http://HOST:8000/v1"
            ) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> None:
        """Creates what belongs to the running event loop."""
        self._limit = AdaptiveLimit(self.max_clips_in_flight)
        self._session = aiohttp.ClientSession(
            # Decompressed bytes have no limit, so compression is neither asked for nor undone.
            headers=auth_headers(self._key) | {"Accept-Encoding": "identity"},
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            trust_env=True,  # proxies, as in `check`
            connector=aiohttp.TCPConnector(limit=0),
        )

    def wait_reason(self) -> str | None:
        silence_s = time.monotonic() - self._last_answer_s
        shown_after_s = ERROR_SHOWN_AFTER_S if self._last_error else SILENCE_SHOWN_AFTER_S
        if not self._requests_in_flight or silence_s < shown_after_s:
            return None
        waiting = f"{self.url} has {self._requests_in_flight} requests"
        return (
            f"{self._last_error or waiting}; no answer for {format_duration(silence_s)}; the run "
            "continues when one arrives, and otherwise stops in about "
            f"{format_duration(max(0.0, self.max_outage_s - silence_s))}"
        )

    async def complete(self, request: Request) -> Completion:
        if self._session is None:
            self._open_session()
        if not self._requests_in_flight:
            self._last_answer_s, self._last_error = time.monotonic(), None
        self._requests_in_flight += 1
        try:
            return await self._complete_with_retries(request)
        finally:
            self._requests_in_flight -= 1

    async def _complete_with_retries(self, request: Request) -> Completion:
        started_s = failed_s = time.monotonic()
        failures, lone_failures, structured = 0, 0, self._structured
        while True:
            async with self._limit:
                sent_s = time.monotonic()
                limit = max_reply_bytes(request.max_tokens)
                reply = await self._post(self._body(request, structured), limit)
            if reply.is_too_large:
                completion: Completion | None = Completion(
                    "", fault=f"too long: a reply of more than {limit} bytes"
                )
            else:
                completion = parse_completion(reply.body) if reply.status == 200 else None
            if completion is not None:
                self._limit.increase()
                self._last_answer_s, self._last_error = time.monotonic(), None
                self._structured = structured
                return completion
            if reply.status in INVALID_REQUEST and structured:
                structured = False  # a request that is invalid for another cause fails again
                continue
            error = self._error_of(reply)
            if reply.status in FATAL or reply.is_redirect:
                raise Unavailable(error)
            if reply.status not in (0, 200, *RETRYABLE):
                raise RequestRefused(error)
            if reply.status in OVERLOADED:
                self._limit.decrease(sent_s)
            elif self._last_answer_s > failed_s:  # others were answered: the server works
                lone_failures += 1
            self._last_error = error
            failures, failed_s = failures + 1, time.monotonic()
            if lone_failures >= MAX_LONE_FAILURES:
                raise RequestRefused(
                    f"{error}, {MAX_LONE_FAILURES} times, while others are answered"
                )
            wait_s = self.backoff_s * min(2 ** min(failures, 10), MAX_BACKOFF_FACTOR)
            wait_s *= random.uniform(0.5, 1)
            left_s = self.max_outage_s - (failed_s - max(started_s, self._last_answer_s))
            if wait_s > left_s:
                error = f"{error}; no request answered for {self.max_outage_s:g} s"
                if reply.status in (0, *OVERLOADED, 502, 504):
                    raise Unavailable(f"{error}. The same command resumes the run")
                raise RequestRefused(error)  # the server is there, and can't answer this request
            await asyncio.sleep(max(wait_s, min(reply.retry_after_s, left_s)))

    async def _post(self, body: bytes, max_bytes: int) -> _Reply:
        url = f"{self.url}/chat/completions"
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as reply:
                if 300 <= reply.status < 400:
                    location = reply.headers.get("Location")
                    return _Reply(reply.status, error=redirect_error(url, reply.status, location))
                limit = max_bytes if reply.status == 200 else MAX_ERROR_BYTES
                text = b""
                async for chunk in reply.content.iter_chunked(1 << 16):
                    text += chunk
                    if len(text) > limit:
                        break
                retry_after_s = parse_retry_after(reply.headers.get("Retry-After"))
                is_too_large = reply.status == 200 and len(text) > limit and b"{" in text[:100]
                return _Reply(reply.status, text[:limit], "", retry_after_s, is_too_large)
        except TimeoutError:
            return _Reply(error=f"no reply within {self.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _Reply(error=f"{type(error).__name__}: {error}")

    def _body(self, request: Request, structured: bool) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.to_chat(image_part),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if structured:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body).encode()

    def _error_of(self, reply: _Reply) -> str:
        """One line of bounded length, without the key: a server may repeat it."""
        if reply.is_redirect:
            return reply.error
        text = reply.error or reply.body.decode(errors="replace")
        if self._key:
            text = text.replace(self._key, "…")
        answers = f"answers {reply.status}" if reply.status else "does not answer"
        text = clean_outside_text(" ".join(text.split()), MAX_ERROR_SHOWN_CHARS)
        return f"{self.url} {answers}: {text}"
