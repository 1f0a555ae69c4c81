"""An object of any size in a store, of which no byte is kept: moto holds objects in memory several
times, and reads all of one for each part that is asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.s3_server import url_options

PIECE = bytes(1 << 20)


@contextmanager
def object_of_zeros(size: int) -> Iterator[str]:
    """Yields the s3:// URL of an object of so many bytes."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def do_HEAD(self) -> None:
            self._send_head(200, size)

        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            self._send_head(206, last + 1 - first, f"bytes {first}-{last}/{size}")
            for at in range(first, last + 1, len(PIECE)):
                self.wfile.write(PIECE[: last + 1 - at])

        def _send_head(self, status: int, length: int, part: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
            self.send_header("ETag", '"zeros"')
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"s3://bucket/film.mp4?{url_options(f'127.0.0.1:{server.server_port}')}"
        server.shutdown()
