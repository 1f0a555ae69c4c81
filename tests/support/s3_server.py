"""An S3 server on this machine, and a bucket in it."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

from curation.urls import file_system


@contextmanager
def s3_bucket(name: str = "bucket") -> Iterator[tuple[str, str]]:
    """Yields HOST:PORT of the server, and the options of URLs in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "{}:{}".format(*server.get_host_and_port())
        options = url_options(address)
        create_bucket(name, options)
        yield address, options
    finally:  # its thread would keep the process alive
        server.stop()


def url_options(address: str) -> str:
    return f"endpoint_override={urllib.parse.quote(address, safe='')}&scheme=http"


def create_bucket(name: str, options: str) -> None:
    fs, _ = file_system(f"s3://{name}?{options}&allow_bucket_creation=true")
    fs.create_dir(name)
