"""What a scorer with weights is: it looks at the stored pictures of many clips at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.images import read_image
from curation.stage import PlanError
from curation.weights import command, located

Pair = tuple[np.ndarray, np.ndarray, float]  # two pictures, the seconds between them


@dataclass
class Seen:
    """A clip's stored pictures, each read when first asked for: RGB uint8 (h, w, 3)."""

    clip: dict[str, Any]
    read: Callable[[str], bytes]  # of the ledger's files

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """The key frame of each segment. Raises ValueError where one is missing or broken."""
        return [self._picture(s, "key_frame") for s in self.clip["segments"]]

    @property
    def pairs(self) -> list[Pair]:
        """Each key frame and the one stored shortly after it, where there is one."""
        return [
            (frame, self._picture(s, "next_frame"), s["next_frame_s"] - s["key_frame_s"])
            for frame, s in zip(self.frames, self.clip["segments"], strict=True)
            if s.get("next_frame") is not None
        ]

    def _picture(self, segment: dict[str, Any], which: str) -> np.ndarray:
        return cv2.cvtColor(read_image(self.read, segment, which), cv2.COLOR_BGR2RGB)


class Scorer:
    """`prepare` runs on threads of the CPU, ahead; `score` on the device, many clips at a time."""

    weights: str | None  # null: this scorer is off
    reads_pairs = False  # it needs the frames shortly after the key frames

    @property
    def writes(self) -> tuple[str, ...]:
        """Its columns, declared in curation/records.py."""
        raise NotImplementedError

    def files(self) -> dict[str, tuple[str | None, str]]:
        """Setting -> the weights it names, and the command that gets them."""
        raise NotImplementedError

    def setup(self, paths: dict[str, Path], device: str) -> None:
        """Loads the weights. device: "cuda" or "cpu"."""
        raise NotImplementedError

    def prepare(self, seen: Seen) -> Any:
        """A clip's input. Raises ValueError where it has none."""
        raise NotImplementedError

    def score(self, prepared: list[Any]) -> list[dict[str, Any]]:
        """A value per column for each clip, None where it has no meaning."""
        raise NotImplementedError


def find_files(scorer: Scorer, name: str) -> dict[str, Path]:
    """The scorer's files on this machine. Raises PlanError, with all that are missing."""
    found, missing = {}, []
    for setting, (value, get) in scorer.files().items():
        what = f"score.models.{name}.{setting}"
        try:
            if value is None:
                raise PlanError(f"{what} is not set; get the file with\n  {command(get, 'FILE')}")
            found[setting] = located(value, what, get)
        except PlanError as error:
            missing.append(str(error))
    if missing:
        raise PlanError("\n".join(missing))
    return found
