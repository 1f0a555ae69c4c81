"""A proxy before a store's server, which fails as it is set to."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress

UNAVAILABLE = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 59\r\n\r\n<Error><Code>SlowDown</Code><Message>later</Message></Error>"
)
SLOW_S = 1.0
REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) [^ ]+ HTTP")
DATA_REQUEST = re.compile("GET [^?]+ ")
LIST_REQUEST = re.compile("GET [^ ]+list-type=")
CONDITION = re.compile(rb"If-(None-)?Match: [^\r]*\r\n", re.I)


class Proxy:
    """Passes bytes on between clients and the server. `fault` may be set at any time: "503",
    "slow", "cut" (connections end in the middle of an answer), "cut data" (they end within the
    header of an answer with the data of an object), "cut list" (one connection ends within the
    header of a list), "unconditional" (the server gets no condition of a request) or nothing.
    `requests`: the first lines of all, to `HTTP`."""

    def __init__(self, server: str) -> None:
        """server: HOST:PORT."""
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault = ""
        self.faults_done = 0
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            for source, target, is_answer in ((client, server, False), (server, client, True)):
                given = (source, target, is_answer)
                threading.Thread(target=self._pass_on, args=given, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if not is_answer:
                    self.requests += [line.decode() for line in REQUEST.findall(data)]
                fault = self.fault
                self.faults_done += bool(fault)
                if fault == "503" and not is_answer:
                    source.sendall(UNAVAILABLE)
                    source.shutdown(socket.SHUT_WR)
                    source.settimeout(SLOW_S)
                    while source.recv(65536):
                        pass  # of an open request: closed now, it would not get the answer
                    return
                if fault == "unconditional" and not is_answer:
                    data = CONDITION.sub(b"", data)
                if fault == "slow" and not is_answer:
                    time.sleep(SLOW_S)
                cut = {"cut data": DATA_REQUEST, "cut list": LIST_REQUEST}.get(fault)
                if cut and is_answer and cut.match(self.requests[-1]):
                    if fault == "cut list":
                        self.fault = ""
                    target.sendall(data[: data.lower().index(b"content-length")])
                    return
                if fault == "cut" and is_answer:
                    target.sendall(data[: len(data) // 2])
                    return
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
