"""The contract of a meter: it computes numbers for each frame, then the scores of any span.

To add one: a subclass in a file of its own, its columns in curation/records.py, and a field of
`DecodePass` that holds it (docs/extending.md).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, ClassVar

from curation.video.frames import FrameProcessor


def spans_near(
    spans: Sequence[tuple[float, float]], start_s: float, end_s: float
) -> Sequence[tuple[float, float]]:
    """Those of increasing spans that may overlap [start_s, end_s): a video may have thousands."""
    first = max(0, bisect.bisect_left(spans, (start_s,)) - 1)
    return spans[first : bisect.bisect_left(spans, (end_s,))]


class Meter(FrameProcessor):
    writes: ClassVar[tuple[str, ...]] = ()  # columns of a clip, declared in curation/records.py
    after_prefilter: ClassVar[bool] = False  # costly: scores only clips that pass the prefilter

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        """The clip's columns, of its frames in [start_s, end_s). None: not measurable."""
        raise NotImplementedError

    def score_segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """Numbers of one segment of a clip, named as in `curation.records.SEGMENT`."""
        return {}
