"""The `ffmpeg` program of the system, as a reader that shares no code with ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="no ffmpeg program to decode the exported clips with"
)


def decode(path: Path, width: int, height: int) -> np.ndarray:
    """(T, height, width, 3) RGB: every frame that the file shows. Fails for another size."""
    probe = "ffprobe -v error -select_streams v -of csv=p=0 -show_entries stream=width,height"
    size = subprocess.run([*probe.split(), path], capture_output=True, check=True, text=True)
    assert size.stdout.split() == [f"{width},{height}"]
    read, write = (
        "ffmpeg -v error -nostdin -i",
        "-fps_mode passthrough -f rawvideo -pix_fmt rgb24 -",
    )
    done = subprocess.run([*read.split(), path, *write.split()], capture_output=True, check=True)
    assert not done.stderr, done.stderr.decode()
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
