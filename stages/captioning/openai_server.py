"""Captions from any server that speaks OpenAI's chat API: vLLM, SGLang, llama.cpp, a cloud.

A server may be slow, full, restarted or gone. A request is repeated until it is answered; what one
clip can't get while others do is that clip's error; a server that answers nobody stops the run.
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
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Annotated, Any, ClassVar
from urllib.parse import urljoin, urlsplit

import aiohttp
from annotated_types import Ge, Gt

from curation.config import ConfigError
from curation.progress import duration
from curation.stage import Needs, RunContext, Unavailable
from curation.texts import harmless
from stages.captioning.conversation import Picture, Request
from stages.captioning.vlm import Said, Vlm

FULL = (429, 503)  # the server takes fewer requests than it gets
PASSING = (*FULL, 408, 409, 425, 500, 502, 504)  # may be answered another time
CLOSED = (401, 403, 404)  # key, rights, address or model: no clip's fault
TRIES = 5  # at a request that fails while others are answered
LONGEST_PAUSE = 60  # times the first
MAX_ANSWER = 4 << 20  # bytes
TOLD_S, QUIET_S = 2.0, 10.0  # silence that is told of: after an error, without one


class Refused(Exception):
    """The server won't answer this request."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would send the API key to an address not asked for."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None  # `open` then raises HTTPError

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class Room:
    """How many requests a server takes: fewer after `full`, slowly more after each answer."""

    def __init__(self, most: int) -> None:
        self.limit, self._most, self._cut_s = float(most), most, 0.0
        self._places, self._closed = asyncio.Semaphore(most), 0  # places that are not given out

    async def __aenter__(self) -> None:
        await self._places.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._closed < self._most - int(self.limit):
            self._closed += 1
        else:
            self._places.release()

    def full(self, since_s: float) -> None:
        """A request sent at since_s was turned away; those sent together count as one."""
        if since_s >= self._cut_s:
            self._cut_s = time.monotonic()
            self.limit = max(1.0, self.limit * 0.7)

    def took(self) -> None:
        self.limit = min(float(self._most), self.limit + 1 / self.limit)
        while self._closed > self._most - int(self.limit):
            self._closed -= 1
            self._places.release()


@dataclass
class OpenAI(Vlm):
    """A client of a chat server."""

    url: str | None = None  # of the API, its version included: http://HOST:8000/v1
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key, if it takes one
    clips_in_flight: Annotated[int, Ge(1)] = 64  # at once, of each worker
    workers: Annotated[int, Ge(1)] = 1  # processes that talk to the server
    timeout_s: Annotated[float, Gt(0)] = 300.0  # for one answer
    patience_s: Annotated[float, Gt(0)] = 900.0  # without an answer to anyone; then the run stops
    pause_s: Annotated[float, Gt(0)] = 1.0  # after a failure; it doubles with each

    captioner: ClassVar[str] = "openai"

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/") if self.url else None

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, max_concurrency=self.clips_in_flight, max_workers=self.workers)

    def api_key(self) -> str | None:
        """The server's key from this machine's environment; None where it is not set."""
        return os.environ.get(self.api_key_env) or None

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        self._key, self._structured = context.api_key, True
        self._session: Any = None
        self._under_way = 0  # requests
        self._quiet_since_s = 0.0  # no answer to anyone
        self._trouble: str | None = None  # the last, since then

    def check(self) -> None:
        """The server is there and has the model."""
        if not self.url:
            raise ConfigError("caption.openai.url: expected the server's, http://HOST:8000/v1")
        _check_url(self.url, self.api_key_env)
        served = self._served(self.url)
        if not self.model or (served and self.model not in served):
            raise ConfigError(
                f"caption.openai.model is {self.model or 'not given'}; {self.url} serves "
                f"{', '.join(served[:10]) or 'what it does not tell'}"
            )
        super().check()

    def _served(self, url: str) -> list[str]:
        """Names of the server's models; none where it doesn't list them."""
        request = urllib.request.Request(f"{url}/models", headers=_headers(self.api_key()))
        try:
            opener = urllib.request.build_opener(_NoRedirects)
            with opener.open(request, timeout=min(self.timeout_s, 30)) as answer:
                listed = json.loads(answer.read(MAX_ANSWER))
            return [str(one["id"]) for one in listed["data"]]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConfigError(
                    f"{url} answers {error.code}: set the environment variable {self.api_key_env} "
                    "(caption.openai.api_key_env) to a key that it takes"
                ) from None
            if 300 <= error.code < 400:
                raise ConfigError(
                    _redirected(f"{url}/models", error.code, error.headers.get("Location"))
                ) from None
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

    def _open(self) -> None:
        """What belongs to the running loop."""
        self._room = Room(self.clips_in_flight)
        self._session = aiohttp.ClientSession(
            headers=_headers(self._key),
            timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            trust_env=True,  # proxies, as `check` uses them
            connector=aiohttp.TCPConnector(limit=0),
        )

    def wait_reason(self) -> str | None:
        """The server, once its silence is longer than an answer should take."""
        quiet_s = time.monotonic() - self._quiet_since_s
        if not self._under_way or quiet_s < (TOLD_S if self._trouble else QUIET_S):
            return None
        return (
            f"{self._trouble or f'{self.url} is asked {self._under_way} things'}; no answer for "
            f"{duration(quiet_s)}; goes on by itself when one comes, else gives up in about "
            f"{duration(max(0.0, self.patience_s - quiet_s))}"
        )

    async def say(self, request: Request) -> Said:
        if self._session is None:
            self._open()
        if not self._under_way:
            self._quiet_since_s, self._trouble = time.monotonic(), None
        self._under_way += 1
        try:
            return await self._answer_to(request)
        finally:
            self._under_way -= 1

    async def _answer_to(self, request: Request) -> Said:
        since_s = failed_s = time.monotonic()
        failures, to_blame, structured = 0, 0, self._structured
        while True:
            async with self._room:
                sent_s = time.monotonic()
                status, found, after_s = await self._post(self._body(request, structured))
            if status == 200 and (said := _said(found)) is not None:
                self._room.took()
                self._quiet_since_s, self._trouble = time.monotonic(), None
                self._structured = structured
                return said
            if status == 400 and structured:
                structured = False  # it may not know schemas; if that is not why, it says so again
                continue
            trouble = f"{self.url} answers {status or 'nothing'}: {_words(found)}"
            if 300 <= status < 400:
                raise Unavailable(found)
            if status in CLOSED:
                raise Unavailable(trouble)
            if status and status != 200 and status not in PASSING:
                raise Refused(trouble)
            if status in FULL:
                self._room.full(sent_s)
            elif self._quiet_since_s > failed_s:  # others were answered since: it is not the server
                to_blame += 1
            self._trouble = trouble
            failures, failed_s = failures + 1, time.monotonic()
            if to_blame >= TRIES:
                raise Refused(f"{trouble}, {TRIES} times, while others are answered")
            pause_s = self.pause_s * min(2 ** min(failures, 10), LONGEST_PAUSE)
            pause_s = max(pause_s * random.uniform(0.5, 1), after_s)
            if failed_s - max(since_s, self._quiet_since_s) + pause_s > self.patience_s:
                gone = f"{trouble}; no answer to anyone for {self.patience_s:g} s"
                if status in (0, *FULL, 502, 504):
                    raise Unavailable(f"{gone}. The same command goes on from here")
                raise Refused(gone)  # it is there, and can't do this
            await asyncio.sleep(pause_s)

    async def _post(self, body: bytes) -> tuple[int, Any, float]:
        """Status (0: no answer), what came, and the seconds that the server asks to wait."""
        url = f"{self.url}/chat/completions"
        head = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                url, data=body, headers=head, allow_redirects=False
            ) as answer:
                if 300 <= answer.status < 400:
                    location = answer.headers.get("Location")
                    return answer.status, _redirected(url, answer.status, location), 0.0
                text = b""
                async for chunk in answer.content.iter_chunked(1 << 16):
                    text += chunk
                    if len(text) > MAX_ANSWER:
                        return 0, f"more than {MAX_ANSWER} bytes", 0.0
                return answer.status, text, _seconds(answer.headers.get("Retry-After"))
        except TimeoutError:
            return 0, f"nothing within {self.timeout_s:g} s", 0.0
        except (aiohttp.ClientError, OSError) as error:
            return 0, f"{type(error).__name__}: {error}", 0.0

    def _body(self, request: Request, structured: bool) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.as_chat(_image_url),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if structured:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body).encode()


def _check_url(url: str, api_key_env: str) -> None:
    """An address and nothing secret: it is shown. Raises ConfigError."""
    expected = "caption.openai.url: expected the server's, http://HOST:8000/v1"
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        whole = False
    if "@" in url or "?" in url or "#" in url:
        raise ConfigError(
            f"{expected}, without name, password or query; a key is taken from the environment "
            f"variable {api_key_env} (caption.openai.api_key_env)"
        )
    if not whole or not url.isprintable() or " " in url:
        raise ConfigError(f"{expected}; found {url!r:.80}")


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _redirected(url: str, status: int, location: str | None) -> str:
    """An error for a redirect: where it leads, without anything secret or unprintable."""
    try:
        parts = urlsplit(urljoin(url, location or ""))
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        location, target = None, ""
    for path in ("/models", "/chat/completions"):
        target = target.removesuffix(path)
    target = harmless(target.encode("ascii", "backslashreplace").decode(), 200)
    if not location or not target:
        return f"{url} answers {status}, a redirect without a valid address"
    return (
        f"{url} answers {status}, a redirect to {target}; redirects are not followed, because the "
        "API key and the key frames would go there: if you trust that address, set "
        "caption.openai.url to it"
    )


def _image_url(picture: Picture) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": picture.url}}


def _said(found: Any) -> Said | None:
    """The answer in a reply's body; None where it is not a reply."""
    try:
        reply = json.loads(found)
        text = reply["choices"][0]["message"]["content"]
        used = reply.get("usage") or {}
        counts = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Said(text or "", *counts) if isinstance(text, str | None) else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _words(found: Any) -> str:
    """What a server said, for an error: one line, not too long."""
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return " ".join(text.split())[:200]


def _seconds(after: str | None) -> float:
    """A Retry-After header: seconds, or a date."""
    if not after:
        return 0.0
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return 0.0
