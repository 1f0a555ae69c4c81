"""Answers only requests of this machine's browser that hold the token.

Without these checks any web page that the user visits could send requests to the port (cross-site
requests), or read answers through a name that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import hmac
import json
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = b"x-longtake-token"
MAX_BODY_BYTES = 256 << 10
OPEN_PATHS = ("/", "/browse.js", "/browse.css")  # they hold no data of the output
TOKEN_IN_URL = ("/media/", "/frames/")  # <video> and <img> can send no header
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Guard:
    """Refuses requests before any handler gets them, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        try:
            self._check(scope)
            body = await _read_body(scope, receive)
        except Refused as refused:
            await _answer(send_with_headers, refused)
            return
        unread = [body]

        async def receive_body() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, receive_body, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise Refused(421, "this page is served at 127.0.0.1 and localhost alone")
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and path in OPEN_PATHS:
            return  # also by a link of another site: it holds the token or is of no use
        given = dict(headers)
        if given.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            raise Refused(403, "the request comes from another site")
        origin = given.get(b"origin")
        if origin is not None and origin not in self._origins:
            raise Refused(403, "the request comes from another site")
        token = given.get(TOKEN_HEADER, b"")
        if method in ("GET", "HEAD") and path.startswith(TOKEN_IN_URL) and not token:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            token = query.get("token", [""])[0].encode("latin-1", "replace")
        if not hmac.compare_digest(token, self._token):
            raise Refused(403, "the token is missing or wrong; open the address that was printed")
        if method not in ("GET", "HEAD"):
            if origin is None:
                raise Refused(403, "the request has no origin")
            if given.get(b"content-type", b"").split(b";")[0] != b"application/json":
                raise Refused(415, "expected JSON")


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """Returns the body of a request. Raises Refused if it is longer than MAX_BODY_BYTES."""
    if scope["method"] in ("GET", "HEAD"):
        return b""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"a request has at most {MAX_BODY_BYTES} bytes")
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
