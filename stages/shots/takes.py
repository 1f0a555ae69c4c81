"""Derives takes from cuts and transitions, and places clips in takes.

Times are seconds from the video's first frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np

from curation.records import SPAN_TOLERANCE_S

Span = tuple[float, float]

TIME_TOLERANCE_S = 1e-3  # the coarsest clock of a container (Matroska): closer times are equal
# Clips that overlap by less than the tolerance of `is_in_span` share no frame.
FRAME_TOLERANCE_S = SPAN_TOLERANCE_S / 2


def find_takes(
    cuts_s: Sequence[float],
    gradual: Sequence[Span],
    times_s: np.ndarray,
    end_s: float,
    guard_frames: int = 2,
) -> list[Span]:
    """The takes, each from its first frame's time to its last frame's end.

    cuts_s: time of the first frame after each cut.  gradual: first and last frame of each
    transition; its frames belong to no take.  times_s: (T,) time of each frame, increasing.
    end_s: end of the last frame.
    `guard_frames` more are left out on both sides of each, none at the ends of the video.
    """
    frames = len(times_s)
    bounds = np.append(times_s, max(end_s, times_s[-1]) if frames else end_s)
    gaps = [(_first_at(times_s, cut), _first_at(times_s, cut)) for cut in cuts_s]
    gaps += [(_first_at(times_s, start), _first_at(times_s, end) + 1) for start, end in gradual]
    takes, first = [], 0
    for start, stop in [*sorted(gaps), (frames, frames)]:
        last = start - (guard_frames if start < frames else 0)
        if last > first:
            takes.append((float(bounds[first]), float(bounds[last])))
        resumed = stop + guard_frames if 0 < stop < frames else stop
        first = max(first, resumed)
    return takes


def place_clips(
    take: Span,
    clip_s: float,
    max_clip_s: float,
    key_times_s: np.ndarray,
    frame_times_s: np.ndarray,
) -> list[Span]:
    """As many clips as fit, evenly placed. Each starts on a frame, on a keyframe if possible.

    clip_s: shortest length.  max_clip_s: longest; above clip_s, fewer and longer clips fill the
    take.  key_times_s: (K,) times of keyframe packets.  frame_times_s: (T,) times of all frames.
    Both increase.
    """
    length_s = take[1] - take[0]
    first, stop = np.searchsorted(frame_times_s, np.array(take) - FRAME_TOLERANCE_S)
    # The end of the last frame is rounded to the container's clock, and no frame follows.
    latest_end_s = take[1] + (TIME_TOLERANCE_S if stop == len(frame_times_s) else FRAME_TOLERANCE_S)
    most = floor((latest_end_s - take[0]) / clip_s)
    if most == 0:
        return []
    starts_s = frame_times_s[first:stop]
    is_key = _are_keyframes(starts_s, key_times_s)
    fewest = max(1, ceil((length_s - TIME_TOLERANCE_S) / max(clip_s, max_clip_s)))
    for count in range(min(fewest, most) if max_clip_s > clip_s else most, 0, -1):
        each_s = min(max(clip_s, max_clip_s), max(clip_s, length_s / count))
        # A clip starts on a frame, so it cannot always start where the one before it ends: try
        # shorter clips, then fewer.
        for piece_s in (each_s, max(clip_s, each_s - _longest_gap(starts_s))):
            spans = _place(take, latest_end_s, piece_s, count, starts_s, is_key)
            if spans:
                return spans
    return []


def _place(
    take: Span,
    latest_end_s: float,
    piece_s: float,
    count: int,
    starts_s: np.ndarray,
    is_key: np.ndarray,
) -> list[Span]:
    """`count` spans of `piece_s`, or none where they do not fit.

    latest_end_s: of the last span.  starts_s: (T,) times of the take's frames.  is_key: (T,) bool.
    """
    # The last frame at which each clip can start, from the last clip backwards.
    latest, bound_s = [], latest_end_s
    for _ in range(count):
        at = int(np.searchsorted(starts_s, bound_s - piece_s, side="right")) - 1
        if at < 0:
            return []
        latest.append(at)
        bound_s = float(starts_s[at]) + FRAME_TOLERANCE_S
    gap_s = max(0.0, take[1] - take[0] - count * piece_s) / (count + 1)
    spans: list[Span] = []
    free_s = take[0]
    for number, last in enumerate(reversed(latest)):
        first = int(np.searchsorted(starts_s, free_s - FRAME_TOLERANCE_S))
        if first > last:
            return []
        choices = np.arange(first, last + 1)
        if is_key[choices].any():
            choices = choices[is_key[choices]]
        ideal_s = take[0] + gap_s * (number + 1) + piece_s * number
        start_s = float(starts_s[choices[np.argmin(np.abs(starts_s[choices] - ideal_s))]])
        spans.append((start_s, start_s + piece_s))
        free_s = start_s + piece_s
    return spans


def _are_keyframes(starts_s: np.ndarray, key_times_s: np.ndarray) -> np.ndarray:
    """(T,) bool: frames whose packet is a keyframe."""
    if not len(key_times_s):
        return np.zeros(len(starts_s), bool)
    after = np.searchsorted(key_times_s, starts_s).clip(0, len(key_times_s) - 1)
    nearest_s = key_times_s[np.stack([after, after - 1])]
    nearest = np.abs(nearest_s - starts_s).min(0)
    return nearest < TIME_TOLERANCE_S


def _longest_gap(times_s: np.ndarray) -> float:
    return float(np.diff(times_s).max()) if len(times_s) > 1 else 0.0


def _first_at(times_s: np.ndarray, t_s: float) -> int:
    """Index of the first frame at or after t_s."""
    return int(np.searchsorted(times_s, t_s - TIME_TOLERANCE_S))
