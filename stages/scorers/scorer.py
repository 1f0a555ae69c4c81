"""The contract of a scorer: a model that scores batches of clips from their stored images."""

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
from curation.weights import download_command, locate_weights

FramePair = tuple[np.ndarray, np.ndarray, float]  # two images, the seconds between them


@dataclass
class ClipImages:
    """A clip's stored images, RGB uint8 (h, w, 3), read when they are first used."""

    clip: dict[str, Any]
    read: Callable[[str], bytes]  # `Folder.read` of the ledger

    @cached_property
    def key_frames(self) -> list[np.ndarray]:
        """One per segment. Raises ValueError if one was not stored, DamagedFrame if one has
        changed."""
        return [self._read(s, "key_frame") for s in self.clip["segments"]]

    @property
    def frame_pairs(self) -> list[FramePair]:
        """Each key frame and the frame shortly after it, where one was stored."""
        return [
            (frame, self._read(s, "next_frame"), s["next_frame_s"] - s["key_frame_s"])
            for frame, s in zip(self.key_frames, self.clip["segments"], strict=True)
            if s.get("next_frame") is not None
        ]

    def _read(self, segment: dict[str, Any], column: str) -> np.ndarray:
        return cv2.cvtColor(read_image(self.read, segment, column), cv2.COLOR_BGR2RGB)


class Scorer:
    """`prepare` runs in CPU threads while `score` runs on the device, for a batch of clips."""

    weights: str | None  # null: this scorer is off
    needs_frame_pairs = False  # it reads the frames shortly after the key frames

    @property
    def writes(self) -> tuple[str, ...]:
        """Its columns, declared in curation/records.py."""
        raise NotImplementedError

    def weight_files(self) -> dict[str, tuple[str | None, str]]:
        """Setting -> its value, and the URL or the command that downloads the file."""
        raise NotImplementedError

    def setup(self, paths: dict[str, Path], device: str) -> None:
        """Loads the weights. device: "cuda" or "cpu"."""
        raise NotImplementedError

    def prepare(self, images: ClipImages) -> Any:
        """Returns a clip's input to `score`. Raises ValueError where it has none."""
        raise NotImplementedError

    def score(self, prepared: list[Any]) -> list[dict[str, Any]]:
        """Returns a value per column for each clip, None where it is not measurable."""
        raise NotImplementedError


def find_weight_files(scorer: Scorer, name: str) -> dict[str, Path]:
    """Setting -> its file on this machine. Raises PlanError with all that are missing."""
    found, missing = {}, []
    for field, (value, source) in scorer.weight_files().items():
        setting = f"score.models.{name}.{field}"
        try:
            if value is None:
                command = download_command(source, "FILE")
                raise PlanError(f"{setting} is not set; get the file with\n  {command}")
            found[field] = locate_weights(value, setting, source)
        except PlanError as error:
            missing.append(str(error))
    if missing:
        raise PlanError("\n".join(missing))
    return found
