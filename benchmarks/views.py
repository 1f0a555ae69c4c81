"""How well `seam_share` and `screen_share` find what is not one camera view, and their cost.

    python -m benchmarks.views [--half development|figures] [--errors]

Reads the labelled videos of labels/videos.jsonl and labels/views.jsonl in LONGTAKE_LABELLED. An
example is a span of one label, at most 15 s; one view counts per take, of the files of views.jsonl
per file. It is rejected if a score is above its rule in the default policy. Drawn footage (games,
animation) counts apart: it has the flat colours and straight lines of a screen. Rates have 95 %
Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_videos import HALVES, LABELS, present, real_videos
from benchmarks.shots import wilson
from curation import config
from curation.policy import decide
from curation.video.reader import Reader
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.meters.key_frame_scores import key_frame_scores
from stages.meters.key_frames import KeyFrames
from stages.meters.seams import Seams
from tests.support.paths import REPOSITORY

VIEW_LABELS = LABELS.with_name("views.jsonl")
MIN_S, MAX_S = 4.0, 15.0  # of an example
MARGIN_S = 0.1  # left out at both ends of a label
KEY_FRAMES = 5  # of an example, as a clip has
SCORES = ("seam_share", "screen_share")
DRAWN = ("animation", "game", "game trailer")  # values of `kind` in videos.jsonl


@dataclass(frozen=True)
class Example:
    start_s: float
    end_s: float
    kind: str  # split, collage, screen; of one view: camera or drawn


def labelled_files(half: str) -> Iterator[tuple[Path, list[Example]]]:
    for path, video in present(real_videos(half)):
        labels = [(view["first"], view["last"], view["kind"]) for view in video.views]
        one_view = "drawn" if video.kind in DRAWN else "camera"
        labels += [(first, end, one_view) for first, end in video.one_view_takes]
        spans = [(a / video.fps + MARGIN_S, b / video.fps - MARGIN_S, k) for a, b, k in labels]
        yield path, [Example(a, min(b, a + MAX_S), k) for a, b, k in spans if b - a >= MIN_S]
    folder = Path(os.environ.get("LONGTAKE_LABELLED", ""))
    for line in VIEW_LABELS.read_text().splitlines():
        label = json.loads(line)
        path = folder / (label["sha256"] + Path(label["path"]).suffix.lower())
        if label["half"] == half and path.is_file():
            kind = "camera" if label["view"] == "one" else label["view"]
            yield path, [Example(0.0, MAX_S, kind)]


@dataclass
class Cost:
    """CPU seconds of all files."""

    decoding: float = 0.0
    seams: float = 0.0
    screens: float = 0.0


def score_file(path: Path, examples: list[Example], cost: Cost) -> list[dict[str, float | None]]:
    seams, key_frames = Seams(), KeyFrames()
    key_frames.start()
    with Reader(str(path)) as reader:
        seams.start(reader.header.info())
        frames, last_s = reader.frames(), max(e.end_s for e in examples)
        started = time.process_time()
        for t_s, planes in frames:
            decoded = time.process_time()
            cost.decoding += decoded - started
            seams.process_frame(t_s, planes)
            cost.seams += time.process_time() - decoded
            key_frames.process_frame(t_s, planes)
            started = time.process_time()
            if t_s > last_s:
                break
    scores = []
    for example in examples:
        span = example.start_s, example.end_s
        step = (span[1] - span[0]) / KEY_FRAMES
        found = (key_frames.nearest(span[0] + (i + 0.5) * step, *span) for i in range(KEY_FRAMES))
        jpegs = [nearest[0][1] for nearest in found if nearest]
        started = time.process_time()
        seam_share = seams.score(*span)
        scored = time.process_time()
        screen_share = key_frame_scores(jpegs)["screen_share"]
        cost.seams += scored - started
        cost.screens += time.process_time() - scored
        scores.append({**seam_share, "screen_share": screen_share})
    return scores


def format_rate(rejected: list[bool]) -> str:
    """Counts, and the rate with its 95 % Wilson interval."""
    hits, count = sum(rejected), len(rejected)
    low, high = wilson(hits, count)
    return f"{hits:4} of {count:3}   {hits / count:.3f} ({low:.3f} to {high:.3f})"


def format_range(values: list[float]) -> str:
    """Median, least and largest value."""
    values = sorted(values)
    return f"{values[len(values) // 2]:.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=HALVES, default="figures")
    parser.add_argument("--errors", action="store_true", help="a line per wrong decision")
    args = parser.parse_args()
    policy = config.load(Settings, str(REPOSITORY / DEFAULT_CONFIG), []).select.policy
    rules = type(policy)({name: policy[name] for name in SCORES})
    cost, errors = Cost(), []
    results: dict[str, list[tuple[dict[str, float | None], bool]]] = defaultdict(list)
    for path, examples in labelled_files(args.half):
        if not examples:
            continue
        for example, scores in zip(examples, score_file(path, examples, cost), strict=True):
            if scores["seam_share"] is None:
                continue
            reasons = decide(scores, rules)
            results[example.kind].append((scores, bool(reasons)))
            if bool(reasons) == (example.kind in ("camera", "drawn")):
                shown = ", ".join(f"{name} {scores[name]:.2f}" for name in SCORES)
                errors.append(f"{example.kind} {path.name[:8]} {example.start_s:.0f} s: {shown}")
    print("kind      rejected   rate (95 % interval)    " + "  ".join(SCORES) + ": median, range")
    for kind, rows in sorted(results.items()):
        ranges = (format_range([scores[name] or 0.0 for scores, _ in rows]) for name in SCORES)
        rate = format_rate([rejected for _, rejected in rows])
        print(f"{kind:8} {rate}   {'   '.join(ranges)}")
    print(
        f"CPU: decoding {cost.decoding:.1f} s; seams {cost.seams / max(cost.decoding, 1e-9):.3f}, "
        f"all scores of key frames {cost.screens / max(cost.decoding, 1e-9):.3f} x decoding"
    )
    if args.errors:
        print("\n".join(errors))


if __name__ == "__main__":
    main()
