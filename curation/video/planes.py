"""From the decoder's frame to the small planes that meters see, and to the colour picture itself.

The luma is shrunk by averaging every stored pixel: sampling only some of them aliases, which
reads as motion in grass and gravel. It goes in steps of two, which the CPU does fast: on 1080p that
takes a third of the time of averaging 6 x 6 at once.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

from curation.stage import BadVideo
from curation.video.frames import Planes

LIMITED, FULL = 1, 2  # AVCOL_RANGE_MPEG (16..235), AVCOL_RANGE_JPEG (0..255)
BT709, BT601 = 1, 5  # ffmpeg's numbers for the matrices (SWS_CS_ITU709, SWS_CS_ITU601)
RGB, UNSPECIFIED, BT2020 = 0, 2, 9


class Source(NamedTuple):
    """What `colour` needs of a frame: the decoder's frame, and the turn that shows it upright."""

    frame: av.VideoFrame
    rotation: int  # degrees clockwise


class Layout(NamedTuple):
    """How luma lies in a pixel format's memory, where it can be read as it is."""

    bits: int
    shift: int  # from the stored number to 8 bit: stored >> shift
    grey: bool
    full_range: bool | None  # what the format itself says


@cache
def layout_of(pix_fmt: str) -> Layout | None:
    """None for a format that swscale must convert first (RGB, palettes, big endian, packed)."""
    found = re.fullmatch(r"yuva?(j?)(?:420|422|440|444)p(9|10|12|14|16)?(?:le)?", pix_fmt)
    if found:
        bits = int(found[2] or 8)
        return Layout(bits, bits - 8, False, True if found[1] else None)
    if found := re.fullmatch(r"gray(9|10|12|14|16)?(?:le)?", pix_fmt):
        bits = int(found[1] or 8)
        return Layout(bits, bits - 8, True, None)
    if pix_fmt in ("nv12", "nv21"):
        return Layout(8, 0, False, None)
    if pix_fmt == "p010le":  # ten bits, stored in the upper ones of sixteen
        return Layout(16, 8, False, None)
    return None


def reduce_frame(frame: av.VideoFrame, by: int, rotation: int) -> Planes:
    """One frame's planes divided by `by`, 8 bit, full range, turned upright."""
    source = Source(frame, rotation)
    layout = layout_of(frame.format.name)
    plane = frame.planes[0]
    if layout is None or plane.line_size <= 0:
        frame = convert(frame, frame.width, frame.height, "yuvj420p")
        layout, plane = layout_of("yuvj420p"), frame.planes[0]
        assert layout is not None
    y = _eight_bit(shrink(_array(plane, frame.width, frame.height, layout), by), layout)
    if not _is_full(frame, layout):  # luma 16..235 to 0..255 (BT.601, BT.709)
        y = cv2.addWeighted(y, 255 / 219, y, 0, -16 * 255 / 219)
    return Planes(_turn(y, rotation) if rotation else y, source)


def shrink(plane: np.ndarray, by: int) -> np.ndarray:
    """Means of `by` x `by` pixels; a rest at the right and bottom is left out. plane: (H, W)."""
    height, width = plane.shape[0] // by, plane.shape[1] // by
    plane = plane[: height * by, : width * by]
    while by % 2 == 0:
        by //= 2
        plane = cv2.resize(plane, (width * by, height * by), interpolation=cv2.INTER_AREA)
    if by in (3, 5):  # of the means around all pixels one in by x by: half of INTER_AREA's time
        plane = np.ascontiguousarray(cv2.blur(plane, (by, by))[by // 2 :: by, by // 2 :: by])
    elif by > 1:
        plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
    return plane


def colour(planes: Planes, long_side: int) -> np.ndarray:
    """The frame itself, upright, in its own colours: BGR uint8 (h, w, 3), never enlarged."""
    frame, rotation = planes.source
    scale = min(1.0, long_side / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    picture = convert(frame, width, height, "bgr24").to_ndarray()
    return _turn(picture, rotation) if rotation else picture


def convert(frame: av.VideoFrame, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """swscale with the frame's own matrix and range; a matrix left unsaid is BT.709 for HD."""
    matrix = frame.colorspace
    if matrix in (UNSPECIFIED, RGB):
        matrix = BT709 if max(frame.width, frame.height) >= 1280 or frame.height >= 720 else BT601
    layout = layout_of(frame.format.name)
    full = layout is not None and _is_full(frame, layout)
    try:
        return frame.reformat(
            width,
            height,
            pix_fmt,
            src_colorspace=matrix,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
            interpolation="AREA",
            threads=1,
        )
    except (av.FFmpegError, ValueError) as error:
        raise BadVideo(f"pixel format {frame.format.name} can't be converted") from error


def _is_full(frame: av.VideoFrame, layout: Layout) -> bool:
    """Grey video is full range unless it says otherwise, as swscale takes it; colour is limited."""
    if layout.full_range is not None:
        return layout.full_range
    return frame.color_range == FULL or (frame.color_range != LIMITED and layout.grey)


def _array(plane: Any, width: int, height: int, layout: Layout) -> np.ndarray:
    """(height, width) view of the memory of one of the frame's planes, without its padding."""
    flat = np.frombuffer(plane, np.uint8 if layout.bits == 8 else np.uint16)
    per_line = plane.line_size // flat.itemsize
    return flat[: per_line * height].reshape(height, per_line)[:, :width]


def _eight_bit(plane: np.ndarray, layout: Layout) -> np.ndarray:
    return plane if layout.bits == 8 else (plane >> layout.shift).astype(np.uint8)


def _turn(picture: np.ndarray, degrees: int) -> np.ndarray:
    """Clockwise by 90, 180 or 270 degrees."""
    how = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    return cv2.rotate(picture, how[degrees])
