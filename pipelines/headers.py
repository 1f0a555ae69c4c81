"""Estimates from the headers of some videos: no video is decoded beyond its first frame."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.isolate import Isolated
from curation.stage import BadVideo, PlanError, TransientError
from curation.video.reader import probe
from curation.video_files import local_copy
from pipelines.settings import Settings
from stages.captioning.vlm import VlmCaptioner
from stages.scorers.scorer import find_weight_files

BOOTSTRAP_DRAWS = 1000
RANGE_PERCENTILES = (10, 90)
MAX_HEADERS = 200
HEADER_TIMEOUT_S = 10.0
MAX_TIME_S = 25.0  # of reading headers; a video in a store is fetched whole
# docs/measurements/cost.md: 35.7 CPU-s for 686 s of 720p and 1080p, the slower of two runs
CPU_S_PER_VIDEO_S = 0.052
STORED_FRAME_BYTES = 30_000  # JPEG with a long side of 768 px


@dataclass(frozen=True)
class Estimate:
    """An estimate for the whole input, with the range that 8 of 10 such trials would give."""

    low: float
    value: float
    high: float

    def __str__(self) -> str:
        numbers = (self.low, self.value, self.high)
        low, value, high = (f"{v:,.4g}" if v < 1e4 else f"{v:,.0f}" for v in numbers)
        return f"{value} ({low} to {high})"


def estimate_total(amounts: np.ndarray, sizes: np.ndarray, total: float) -> Estimate:
    """The total amount of all videos by the ratio estimator, the range by bootstrap over videos.

    amounts, sizes: (V,) of the trial's videos.  total: the size of all. If the trial has all videos
    the range is one value.
    """
    value = amounts.sum() / sizes.sum() * total
    if sizes.sum() >= total:
        return Estimate(value, value, value)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (BOOTSTRAP_DRAWS, len(sizes)))
    ratios = amounts[drawn].sum(1) / sizes[drawn].sum(1) * total
    low, high = np.percentile(ratios, RANGE_PERCENTILES)
    return Estimate(float(low), float(value), float(high))


def read_facts(path: str) -> dict[str, Any]:
    """Codec, size as shown and length of a local video. Raises BadVideo."""
    header = probe(path)
    return {
        "codec": header.codec,
        "size": [header.width, header.height],
        "duration_s": header.header_duration_s,
    }


def sample_headers(listed: pa.Table) -> list[dict[str, Any]]:
    """`read_facts` of up to MAX_HEADERS videos, drawn at random, with their `bytes` and `error`.

    Stops after MAX_TIME_S. A child process reads the files.
    """
    count = min(MAX_HEADERS, listed.num_rows)
    order = np.random.default_rng(0).permutation(listed.num_rows)[:count]
    found: list[dict[str, Any]] = []
    until = time.monotonic() + MAX_TIME_S
    with Isolated(read_facts, timeout_s=HEADER_TIMEOUT_S) as read:
        for row in listed.take(order).to_pylist():
            if found and time.monotonic() > until:
                break
            facts = {"bytes": max(row["bytes"], 1), "error": None, "duration_s": None}
            try:
                with local_copy(row["video"]) as path:
                    facts |= read(path)
            except (BadVideo, TransientError) as error:
                facts["error"] = str(error)
            found.append(facts)
    return found


def header_report(settings: Settings, listed: pa.Table) -> str:
    """Returns the estimates from the listing, the headers of some videos and the settings, as
    text."""
    found = sample_headers(listed)
    readable = [facts for facts in found if facts["error"] is None]
    total = float(np.maximum(listed["bytes"].to_numpy(), 1).sum())
    lines = [
        f"listing: {listed.num_rows:,} videos, {total / 1e9:,.4g} GB; headers of {len(found)} "
        "read, in brackets the range of 8 in 10 such samples"
    ]
    failed = np.array([facts["error"] is not None for facts in found], float)
    lines.append(
        f"headers not readable {estimate_total(failed, np.ones(len(found)), listed.num_rows)}"
    )
    if not readable:
        return "\n".join([*lines, *_weights(settings)])
    sizes = np.array([facts["bytes"] for facts in found], float)

    def of(amounts: list[float]) -> Estimate:
        return estimate_total(np.array(amounts, float), sizes, total)

    decode = settings.score.decode
    seconds = [facts["duration_s"] or 0.0 for facts in found]
    clips = of([float(s // decode.clip_s) for s in seconds])
    frames = decode.segments * (1 + decode.frame_samples)
    lines += [
        f"hours of video       {of([s / 3600 for s in seconds])}",
        f"clips, at most       {clips}   of {decode.clip_s:g} s, without shorter ones; takes "
        "and the policy leave fewer",
        f"sizes                {_shares(f'{w}x{h}' for w, h in (f['size'] for f in readable))}",
        f"codecs               {_shares(facts['codec'] for facts in readable)}",
        f"CPU hours to score   {of([s * CPU_S_PER_VIDEO_S / 3600 for s in seconds])}   at the rate "
        "of docs/measurements/cost.md for 720p and 1080p",
        f"GB on disk, at most  {clips.value * frames * STORED_FRAME_BYTES / 1e9:,.4g} of stored "
        f"frames and {total / 1e9 * (2 if settings.export.presto else 1):,.4g} of shards"
        f"{' and presto/' if settings.export.presto else ''}, if each video is kept whole",
    ]
    unknown = sum(facts["duration_s"] is None for facts in readable)
    if unknown:
        lines.append(f"{unknown} of these headers have no length: they count as 0 h")
    return "\n".join([*lines, *_weights(settings), *_not_measured()])


def _shares(values: Any) -> str:
    counts = Counter(values)
    return ", ".join(f"{value} {n / counts.total():.0%}" for value, n in counts.most_common(5))


def _weights(settings: Settings) -> list[str]:
    """The files and models that the run loads, with their sizes."""
    lines = []
    for name, scorer in settings.score.models.enabled_scorers().items():
        try:
            files = find_weight_files(scorer, name)
        except PlanError as error:
            lines.append(f"weights of {name}: {error}")
            continue
        for field, path in files.items():
            size = path.stat().st_size / 1e6
            lines.append(f"weights of {name}.{field}: {path}, {size:,.4g} MB")
    captioner = settings.caption.chosen
    if isinstance(captioner, VlmCaptioner):
        lines.append(f"captions by {captioner.model or 'no model yet: name one'}")
    else:
        lines.append("captions by measurements: no weights")
    return lines


def _not_measured() -> list[str]:
    return [
        "not measured: takes, what the policy keeps and this machine's speed (a trial measures "
        "them: plan.videos), duplicates among all videos, the speed of the storage and of a "
        "caption server, the disk that encodes take"
    ]
