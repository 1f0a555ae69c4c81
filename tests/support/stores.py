"""Object stores on this machine: an S3 and a Google server, and buckets in them."""

from __future__ import annotations

import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer

from tests.support.paths import REPOSITORY


@dataclass
class Bucket:
    """A bucket and the options of its URLs."""

    store: str  # s3://name
    name: str
    options: str
    fs: pafs.FileSystem

    def url(self, path: str) -> str:
        return f"{self.store}/{urllib.parse.quote(path, safe='/*')}?{self.options}"

    def put(self, path: str, data: bytes = b"x") -> None:
        with self.fs.open_output_stream(f"{self.name}/{path}", compression=None) as stream:
            stream.write(data)

    def put_folder(self, path: str, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():  # no newline: the server's own limit
                name = str(file.relative_to(folder)).replace("\n", " ")
                self.put(f"{path}/{name}", file.read_bytes())

    def files(self, path: str) -> dict[str, int]:
        """Time of last change, by path."""
        found = self.fs.get_file_info(
            pafs.FileSelector(f"{self.name}/{path}", recursive=True, allow_not_found=True)
        )
        return {f.path: f.mtime_ns for f in found if f.type == pafs.FileType.File}

    def table(self, path: str) -> list[dict]:
        return pq.read_table(f"{self.name}/{path}", filesystem=self.fs).to_pylist()


@contextmanager
def run_server(scheme: str) -> Iterator[str]:
    """Yields HOST:PORT. scheme: s3 or gs."""
    if scheme == "s3":
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        try:
            yield "{}:{}".format(*moto.get_host_and_port())
        finally:  # its thread would keep the process alive
            moto.stop()
        return
    command = [sys.executable, REPOSITORY / "tests/support/gcs_server.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def create_bucket(scheme: str, address: str, name: str) -> Bucket:
    options = "endpoint_override=" + urllib.parse.quote(address, safe="") + "&scheme=http"
    store, creation = f"s3://{name}", "allow_bucket_creation=true"
    if scheme == "gs":
        store, creation = f"gs://anonymous@{name}", "project_id=test"
        options += "&retry_limit_seconds=3"
    fs, _ = pafs.FileSystem.from_uri(f"{store}?{creation}&{options}")
    fs.create_dir(name)
    return Bucket(store, name, options, fs)
