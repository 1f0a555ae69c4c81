"""The local page of an output, served as `longtake browse` does, and requests to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from curation.storage import Folder
from pipelines.browse.audit_marks import AuditSettings
from pipelines.browse.server import Address, Page, bind, make_server


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class LocalPage:
    address: Address

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.address.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        **headers: str | None,
    ) -> Answer:
        """headers: with `_` for `-`; None: not sent. Without them, those that the page sends."""
        given: dict[str, str | None] = {
            "Host": self.host,
            "X_Longtake_Token": self.address.token,
            "Origin": f"http://{self.host}" if method == "POST" else None,
            "Content_Type": "application/json" if body is not None else None,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        for name, value in (given | headers).items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.send(body or b"")
        found = connection.getresponse()
        headers_found = {name.lower(): value for name, value in found.getheaders()}
        answer = Answer(found.status, headers_found, found.read())
        connection.close()
        return answer

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, content: Any, **headers: str | None) -> Answer:
        return self.request("POST", path, json.dumps(content).encode(), **headers)


@contextmanager
def local_page(
    out: str, other: str | None = None, audit: AuditSettings | None = None
) -> Iterator[LocalPage]:
    folder = Folder(other) if other is not None else None
    page = Page(Folder(out), folder, "Ada", audit)
    address = bind(0)
    server = make_server(page, address)
    thread = threading.Thread(target=lambda: server.run(sockets=[address.socket]), daemon=True)
    thread.start()
    until_s = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < until_s, "the server did not start"
        time.sleep(0.01)
    yield LocalPage(address)
    server.should_exit = True
    thread.join(30)
