"""Where the repository and the labelled real videos are."""

import csv
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS") or REPOSITORY.parent / "shared/videos")


def labelled_takes(*prefixes: str) -> list[Path]:
    """The labelled videos whose names begin with one of these; there are some."""
    with open(VIDEOS / "labels.csv", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    found = [VIDEOS / name for name in names if name.startswith(prefixes)]
    assert found
    return found
