"""The hash of a file's bytes, for files that may be copies of each other."""

from __future__ import annotations

from dataclasses import dataclass

from curation.stage import Needs, Row, Stage
from curation.storage import compute_sha256, local_copy
from curation.video.container import check_file


@dataclass
class HashFile(Stage):
    reads = ("video",)
    writes = ("sha256",)
    needs = Needs(cpus=1)

    def process(self, rows: list[Row]) -> list[Row]:
        hashed = []
        for row in rows:
            with local_copy(row["video"], row.get("bytes")) as path:
                check_file(path)
                hashed.append(row | {"sha256": compute_sha256(path)})
        return hashed
