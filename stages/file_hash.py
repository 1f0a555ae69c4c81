"""The hash of a file's bytes, for files that may be copies of each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from curation.stage import BadVideo, Needs, Row, Stage
from curation.storage import fetched


@dataclass
class HashFile(Stage):
    reads = ("video",)
    writes = ("sha256",)
    needs = Needs(cpus=1)

    def process(self, rows: list[Row]) -> list[Row]:
        hashed = []
        for row in rows:
            with fetched(row["video"]) as path:
                hashed.append(row | {"sha256": sha256_of(path)})
        return hashed


def sha256_of(path: str) -> str:
    """The hash as 64 hex digits. Raises BadVideo where the file can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise BadVideo(f"can't be read: {e.strerror}") from None
