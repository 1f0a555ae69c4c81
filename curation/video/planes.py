"""Makes reduced luma planes and colour images from the decoder's frames.

The luma is reduced by averaging every stored pixel: sampling only some of them aliases, which looks
like motion in grass and gravel. It goes in steps of two, for which OpenCV has fast code: on 1080p
that takes a third of the time of averaging 6 x 6 in one step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.geometry import Geometry

# Colour ranges (16..235 and 0..255) and matrices, by FFmpeg's AVColorRange and AVColorSpace.
# swscale's own constants for the matrices BT.709 and BT.601 have the same numbers.
LIMITED_RANGE, FULL_RANGE = 1, 2
RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 5
MIN_HD_WIDTH, MIN_HD_HEIGHT = 1280, 720  # px: from here on an unspecified matrix is BT.709
CHROMA_SIZE = (64, 36)  # px, width and height
MAX_WAITING_PX = 4_000_000  # of frames that wait for their chroma: two in 1080p
MIN_FETCHED_PX = 1 << 20  # of a frame: a smaller one is still in the core's cache


class SourceFrame(NamedTuple):
    """The decoder's frame, and how it is shown: `Planes.source`."""

    frame: av.VideoFrame
    geometry: Geometry


class LumaLayout(NamedTuple):
    """How luma is stored in a pixel format that needs no conversion."""

    bits: int
    shift: int  # from the stored number to 8 bit: stored >> shift
    grey: bool
    full_range: bool | None  # None: the format does not determine it


@cache
def luma_layout(pix_fmt: str) -> LumaLayout | None:
    """None for a format that swscale must convert first (RGB, palettes, big endian, packed)."""
    found = re.fullmatch(r"yuva?(j?)(?:420|422|440|444)p(9|10|12|14|16)?(?:le)?", pix_fmt)
    if found:
        bits = int(found[2] or 8)
        return LumaLayout(bits, bits - 8, False, True if found[1] else None)
    if found := re.fullmatch(r"gray(9|10|12|14|16)?(?:le)?", pix_fmt):
        bits = int(found[1] or 8)
        return LumaLayout(bits, bits - 8, True, None)
    if pix_fmt in ("nv12", "nv21"):
        return LumaLayout(8, 0, False, None)
    if pix_fmt == "p010le":  # ten bits, stored in the upper ones of sixteen
        return LumaLayout(16, 8, False, None)
    return None


def reduce_frame(frame: av.VideoFrame, by: int, geometry: Geometry) -> Planes:
    """The luma of the picture as shown, its size divided by `by`, 8 bit, full range."""
    source = SourceFrame(frame, geometry)
    layout = luma_layout(frame.format.name)
    plane = frame.planes[0]
    if layout is None or plane.line_size <= 0:
        frame = convert(frame, frame.width, frame.height, "yuvj420p")
        layout, plane = luma_layout("yuvj420p"), frame.planes[0]
        assert layout is not None
    size = frame.width, frame.height
    luma = _plane_array(plane, *size, layout)
    _fetch(luma, frame)
    cropped = geometry.cut(luma, *size)
    width, height = geometry.square_size(*size)
    if cropped.shape == (height, width):
        y = reduce_plane(cropped, by)
    else:
        y = cv2.resize(cropped, (width // by, height // by), interpolation=cv2.INTER_AREA)
    y = _to_8_bit(y, layout)
    if not _is_full_range(frame, layout):  # luma 16..235 to 0..255 (BT.601, BT.709)
        y = cv2.addWeighted(y, 255 / 219, y, 0, -16 * 255 / 219)
    return Planes(np.ascontiguousarray(geometry.orientation.apply(y)), source)


def with_chroma(frames: Iterator[tuple[float, Planes]]) -> Iterator[tuple[float, Planes]]:
    """The frames and their times, with `Planes.chroma`.

    It is computed for several frames in a row, so that its code stays in the CPU's caches: a fifth
    less time than after each frame.
    """
    waiting: list[tuple[float, Planes]] = []
    for t_s, planes in frames:
        waiting.append((t_s, planes))
        frame = planes.source.frame
        if len(waiting) * frame.width * frame.height >= MAX_WAITING_PX:
            yield from _add_chroma(waiting)
            waiting = []
    yield from _add_chroma(waiting)


def _add_chroma(frames: list[tuple[float, Planes]]) -> list[tuple[float, Planes]]:
    for _, planes in frames:
        planes.chroma = chroma_image(planes)
    return frames


def chroma_image(planes: Planes) -> np.ndarray | None:
    """(36, 64, 2) uint8: Cb and Cr, full range, upright; None of a grey frame."""
    frame, geometry = planes.source
    size = frame.width, frame.height
    layout = luma_layout(frame.format.name)
    if layout is None:
        frame, layout = convert(frame, *CHROMA_SIZE, "yuvj444p"), luma_layout("yuvj444p")
        assert layout is not None
    if layout.grey:
        return None
    channels = []
    for channel in _chroma_arrays(frame, layout):
        _fetch(channel, frame)
        channels.append(_halve_to(geometry.cut(channel, *size), CHROMA_SIZE))
    # The mean colour of each part; halving first is fast.
    small = cv2.merge(channels)
    small = _to_8_bit(cv2.resize(small, CHROMA_SIZE, interpolation=cv2.INTER_AREA), layout)
    if not _is_full_range(frame, layout):  # chroma 16..240 to 0..255
        small = cv2.convertScaleAbs(small, alpha=255 / 224, beta=128 - 128 * 255 / 224)
    small = geometry.orientation.apply(small)
    if small.shape[:2] != CHROMA_SIZE[::-1]:
        small = cv2.resize(small, CHROMA_SIZE, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small)


def _chroma_arrays(frame: av.VideoFrame, layout: LumaLayout) -> list[np.ndarray]:
    """Cb and Cr, (h, w) each, or both in one (h, w, 2) array."""
    if frame.format.name not in ("nv12", "nv21", "p010le"):
        return [_plane_array(p, p.width, p.height, layout) for p in frame.planes[1:3]]
    plane = frame.planes[1]
    both = _plane_array(plane, 2 * plane.width, plane.height, layout)
    both = both.reshape(plane.height, plane.width, 2)
    return [both[:, :, ::-1] if frame.format.name == "nv21" else both]


def _fetch(plane: np.ndarray, frame: av.VideoFrame) -> None:
    """Reads a plane of a large frame once, line by line, which brings it into the cache. The
    reduction reads two lines at once: alone it takes 0.25 ms on 1080p, after this both 0.18 ms."""
    if frame.width * frame.height >= MIN_FETCHED_PX:
        cv2.norm(plane, cv2.NORM_L1)


def _halve_to(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Halves a plane, (h, w) or (h, w, 2), as long as it stays at least as large as `size`."""
    while plane.shape[1] >= 2 * size[0] and plane.shape[0] >= 2 * size[1]:
        half = plane.shape[1] // 2, plane.shape[0] // 2
        plane = cv2.resize(plane[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA)
    return plane


def reduce_plane(plane: np.ndarray, by: int) -> np.ndarray:
    """Means of `by` x `by` pixels; the remainder at the right and bottom is left out.

    plane: (H, W).
    """
    height, width = plane.shape[0] // by, plane.shape[1] // by
    plane = plane[: height * by, : width * by]
    while by % 2 == 0:
        by //= 2
        plane = cv2.resize(plane, (width * by, height * by), interpolation=cv2.INTER_AREA)
    if by in (3, 5):  # the mean around each pixel, then one in by x by: half of INTER_AREA's time
        plane = np.ascontiguousarray(cv2.blur(plane, (by, by))[by // 2 :: by, by // 2 :: by])
    elif by > 1:
        plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
    return plane


def bgr_image(planes: Planes, long_side: int) -> np.ndarray:
    """(h, w, 3) BGR uint8: the source frame as shown, in its own colours, never enlarged."""
    frame, geometry = planes.source
    size = geometry.shown_size(frame.width, frame.height)
    scale = min(1.0, long_side / max(size))
    return image_of_size(planes, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def image_of_size(planes: Planes, width: int, height: int, pix_fmt: str = "bgr24") -> np.ndarray:
    """(height, width, 3) uint8: the source frame as shown, scaled to this size."""
    frame, geometry = planes.source
    if geometry.orientation.swaps_sides:
        width, height = height, width
    cropped = geometry.cropped_size(frame.width, frame.height)
    size = round(width * frame.width / cropped[0]), round(height * frame.height / cropped[1])
    if frame.interlaced_frame and not geometry.is_single_field:
        # The first field alone: both together show combs where something moves.
        field = convert(frame, size[0], frame.height, pix_fmt).to_ndarray()[::2]
        scaling = cv2.INTER_AREA if size[1] < len(field) else cv2.INTER_LINEAR
        whole = cv2.resize(field, size, interpolation=scaling)
    else:
        whole = convert(frame, *size, pix_fmt).to_ndarray()
    image = geometry.cut(whole, frame.width, frame.height)
    return np.ascontiguousarray(geometry.orientation.apply(image))


def convert(frame: av.VideoFrame, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """Converts with swscale, by the frame's own matrix and range; an unspecified matrix is BT.709
    for HD, else BT.601."""
    matrix = frame.colorspace
    if matrix in (UNSPECIFIED, RGB):
        is_hd = max(frame.width, frame.height) >= MIN_HD_WIDTH or frame.height >= MIN_HD_HEIGHT
        matrix = BT709 if is_hd else BT601
    layout = luma_layout(frame.format.name)
    full = layout is not None and _is_full_range(frame, layout)
    try:
        return frame.reformat(
            width,
            height,
            pix_fmt,
            src_colorspace=matrix,
            src_color_range=FULL_RANGE if full else LIMITED_RANGE,
            dst_color_range=FULL_RANGE,
            interpolation="AREA",
            threads=1,
        )
    except (av.FFmpegError, ValueError) as error:
        raise BadVideo(f"pixel format {frame.format.name} can't be converted") from error


def _is_full_range(frame: av.VideoFrame, layout: LumaLayout) -> bool:
    """Of an unspecified range, grey video is full and colour limited, as in swscale."""
    if layout.full_range is not None:
        return layout.full_range
    return frame.color_range == FULL_RANGE or (frame.color_range != LIMITED_RANGE and layout.grey)


def _plane_array(plane: Any, width: int, height: int, layout: LumaLayout) -> np.ndarray:
    """(height, width) view of the memory of one of the frame's planes, without its padding."""
    flat = np.frombuffer(plane, np.uint8 if layout.bits == 8 else np.uint16)
    per_line = plane.line_size // flat.itemsize
    return flat[: per_line * height].reshape(height, per_line)[:, :width]


def _to_8_bit(plane: np.ndarray, layout: LumaLayout) -> np.ndarray:
    return plane if layout.bits == 8 else (plane >> layout.shift).astype(np.uint8)
