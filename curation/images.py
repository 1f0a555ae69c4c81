"""Images as files in memory, and reading the frames of clips that the decode pass stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np

from curation.stage import BadVideo, Row
from curation.urls import is_inside

RESCORE = "score with retry_failed=true scores the video again"  # the fix of every DamagedFrame


class DamagedFrame(BadVideo):
    """A stored frame is missing or is not the one that was scored. The clip itself may be good:
    no score becomes null because of it."""


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Returns the bytes of a JPEG file. image: (h, w) grey or (h, w, 3) BGR, uint8."""
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return jpeg.tobytes()


def encode_png(image: np.ndarray) -> bytes:
    done, png = cv2.imencode(".png", image)
    assert done
    return png.tobytes()


def decode_image(data: bytes, name: str, mode: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Returns (h, w, 3) uint8 BGR, or what `mode` asks for. Raises DamagedFrame with `name`."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        image = None
    if image is None:
        raise DamagedFrame(f"{name} is not a readable image; {RESCORE}")
    return image


def shrink(image: np.ndarray, max_side_px: int) -> np.ndarray:
    """Returns the image with a long side of at most `max_side_px`."""
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def stored_image_name(segment: Row, column: str = "key_frame") -> str:
    """Returns the name in the ledger. Raises ValueError where no such image was stored."""
    name = segment.get(column)
    if name is None:
        what = column.replace("_", " ")
        raise ValueError(f"no {what} was stored for the segment at {segment['start_s']:.1f} s")
    return name


def read_image(read: Callable[[str], bytes], segment: Row, column: str = "key_frame") -> np.ndarray:
    """Returns (h, w, 3) uint8 BGR. read: `Folder.read` of the ledger. Raises ValueError where no
    such image was stored, DamagedFrame."""
    name = stored_image_name(segment, column)
    sha256 = segment.get(f"{column}_sha256")
    return decode_image(read_verified(read, name, sha256), name)


def read_verified(read: Callable[[str], bytes], name: str, sha256: str | None) -> bytes:
    """Returns the file's bytes. Raises DamagedFrame where they are not those that were scored.

    sha256: None where it is not known.
    """
    if not is_inside(name):
        raise DamagedFrame(f"{name} is outside the ledger; {RESCORE}")
    try:
        data = read(name)
    except FileNotFoundError:
        raise DamagedFrame(f"{name} is missing; {RESCORE}") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise DamagedFrame(
            f"{name} is not the frame that was scored (sha256 {found[:12]}…, expected "
            f"{str(sha256)[:12]}…); {RESCORE}"
        )
    return data
