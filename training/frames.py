"""The frames of a clip that the network is trained on, decoded from its mp4 and resized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import torch
from torch import Tensor

from curation.config import ConfigError
from curation.errors import UserError
from curation.orientation import Orientation, read_orientation
from curation.records import SPAN_TOLERANCE_S
from training.config import Reader, Size


class BadData(UserError):
    """A dataset or a clip in it can't be used."""


def check_reader(reader: Reader) -> None:
    """Raises ConfigError if the package of the reader is not installed."""
    if reader == "decord":
        try:
            import decord  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"data.reader is decord, which can't be imported ({error}): "
                "pip install -e '.[decord]'"
            ) from None


def sample_frames(
    mp4: bytes, clip_s: float, num_frames: int, size: Size, reader: Reader = "pyav"
) -> Tensor:
    """(frames, height, width, 3) uint8 RGB: frame i is what the clip shows in the middle of the
    i-th of `size.frames` equal parts of its time. BadData where fewer than `num_frames` decode.
    reader: decord decodes only the frames that these depend on, see `_sample_by_decord`."""
    if not 0 < clip_s < math.inf:
        raise BadData(f"its length is {clip_s} s; expected more than 0")
    if reader == "decord":
        sampled_by_decord = _sample_by_decord(mp4, clip_s, num_frames, size)
        if sampled_by_decord is not None:
            return sampled_by_decord
    part_s = clip_s / size.frames
    sampled: list[np.ndarray] = []
    previous, count = None, 0
    try:
        for t_s, frame, pixel_aspect in _decode(mp4):
            # sampling times before this frame show the previous one
            due = min(size.frames, math.ceil((t_s - SPAN_TOLERANCE_S) / part_s - 0.5))
            if previous is not None and due > len(sampled):
                sampled += [resize_and_crop(*previous, size)] * (due - len(sampled))
            previous, count = (frame, pixel_aspect), count + 1
    except av.FFmpegError as error:
        raise BadData(f"its mp4 can't be decoded after frame {count}: {error}") from error
    if previous is None or count < num_frames:
        raise BadData(f"{count} of {num_frames} frames can be decoded")
    sampled += [resize_and_crop(*previous, size)] * (size.frames - len(sampled))
    return torch.from_numpy(np.stack(sampled))


def read_shape(mp4: bytes) -> tuple[int, int, float]:
    """Width and height as shown, px, and seconds. BadData where it has no frame."""
    try:
        _, frame, pixel_aspect = next(_decode(mp4))
        with av.open(BytesIO(mp4), "r") as file:
            stream = file.streams.video[0]
            seconds = (
                float(stream.duration * stream.time_base)
                if stream.duration and stream.time_base
                else (file.duration or 0) / av.time_base
            )
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise BadData(f"its mp4 can't be decoded: {str(error) or 'it has no frame'}") from error
    width = round(frame.width * (pixel_aspect if pixel_aspect > 0 else 1))
    shape = (width, frame.height)
    return *(shape[::-1] if read_orientation(frame).swaps_sides else shape), seconds


def _sample_by_decord(mp4: bytes, clip_s: float, num_frames: int, size: Size) -> Tensor | None:
    """As `sample_frames`; equal where pictures keep their size, and scaled from RGB where they do
    not. None where decord's frames are not those of PyAV: it counts stored frames that an edit list
    hides, turns some pictures, and rounds 10 bits in another way."""
    from decord import DECORDError, VideoReader

    try:
        _, first, pixel_aspect = next(_decode(mp4))
        is_plain = first.format.name in ("yuv420p", "yuvj420p")
        if not is_plain or read_orientation(first) != Orientation():
            return None
        video = VideoReader(BytesIO(mp4), num_threads=1)
        if len(video) != num_frames:
            return None
        times = video.get_frame_timestamp(range(num_frames))[:, 0]
        middles = (np.arange(size.frames) + 0.5) * clip_s / size.frames
        shown = np.searchsorted(times - times[0] - SPAN_TOLERANCE_S, middles, "right") - 1
        sampled: list[np.ndarray] = []
        for i, number in enumerate(shown):
            if i and number == shown[i - 1]:
                sampled.append(sampled[-1])
                continue
            picture = video[number].asnumpy()
            if pixel_aspect != 1 or picture.shape[:2] != (size.height, size.width):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                picture = resize_and_crop(frame, pixel_aspect, size)
            sampled.append(picture)
    except (av.FFmpegError, DECORDError, RuntimeError, StopIteration) as error:
        text = str(error).strip().splitlines() or ["it has no frame"]
        raise BadData(f"its mp4 can't be decoded by decord: {text[0]}") from error
    return torch.from_numpy(np.stack(sampled))


def _decode(mp4: bytes) -> Iterator[tuple[float, av.VideoFrame, Fraction]]:
    """Frames with their time, s from the first frame, and their pixels' width over height."""
    with av.open(BytesIO(mp4), "r") as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1  # one per reading process
        first = None
        for frame in file.decode(stream):
            if frame.time is None:
                raise BadData("a frame has no time")
            first = frame.time if first is None else first
            yield frame.time - first, frame, stream.sample_aspect_ratio or Fraction(1)


def resize_and_crop(frame: av.VideoFrame, pixel_aspect: Fraction, size: Size) -> np.ndarray:
    """(height, width, 3) uint8 RGB: as shown, scaled to cover the size, cropped to its middle.
    pixel_aspect: a pixel's width over its height."""
    orientation = read_orientation(frame)
    wide, high = size.width, size.height
    if orientation.swaps_sides:
        wide, high = high, wide
    square_width = float(frame.width * (pixel_aspect if pixel_aspect > 0 else 1))
    scale = max(wide / square_width, high / frame.height)
    w, h = max(wide, round(square_width * scale)), max(high, round(frame.height * scale))
    # one thread: in a forked process PyAV 19 waits for its thread pool for ever
    whole = frame.reformat(w, h, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    left, top = (w - wide) // 2, (h - high) // 2
    return np.ascontiguousarray(orientation.apply(whole[top : top + high, left : left + wide]))
