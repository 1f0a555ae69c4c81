"""How well cuts and gradual transitions are found in files with exact labels, in one run.

    python -m benchmarks.shots_on_files real [--half figures] [--detectors learned content …]
    python -m benchmarks.shots_on_files edits FOLDER [--detectors …]

`real`: the videos of benchmarks/labels that lie in LONGTAKE_LABELLED. `edits`: the films that
`python -m benchmarks.edits FOLDER` drew. A hard cut is found within TOLERANCE frames, a gradual
transition by anything that lies in it or within GRADUAL_TOLERANCE frames of it. What is found
outside all of these is false; in spans that the labels call uncertain nothing counts. Rates have
95 % Wilson intervals. `takes` counts what is false inside takes, per minute of them. CPU is a
detector's own time over that of decoding, in one run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.real_videos import present, real_videos
from curation.stage import BadVideo
from curation.video.planes import chroma_image
from curation.video.reader import Reader
from stages.decode_pass import DecodePass
from stages.shots.detector import Detector, Transitions

TOLERANCE = 2  # frames
GRADUAL_TOLERANCE = 4
PEERS = {
    "content": "ContentDetector",
    "adaptive": "AdaptiveDetector",
    "hash": "HashDetector",
    "histogram": "HistogramDetector",
}


@dataclass
class Case:
    """A file and what is true of it. Frames are numbered in order of presentation."""

    path: Path
    kind: str
    condition: str
    cuts: dict[int, str]  # first frame after each -> its kind
    gradual: list[tuple[int, int, str]]  # first and last frame, kind
    uncertain: list[tuple[int, int]]


@dataclass
class Tally:
    found: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    false_cuts: int = 0
    false_gradual: int = 0
    minutes: float = 0.0
    decode_s: float = 0.0
    own_s: float = 0.0
    errors: list[str] = field(default_factory=list)  # one line per false or missed transition


def real_cases(half: str) -> list[Case]:
    return [
        Case(
            path,
            "real",
            video.kind,
            {cut["frame"]: cut["kind"] for cut in video.cuts},
            [(span["first"], span["last"], span["kind"]) for span in video.gradual],
            [(span["first"], span["last"]) for span in video.uncertain],
        )
        for path, video in present(real_videos(half))
    ]


def edited_cases(folder: Path) -> list[Case]:
    cases = []
    for line in (folder / "edits.jsonl").read_text().splitlines():
        row = json.loads(line)
        case = Case(folder / row["file"], row["kind"], row["condition"], {}, [], [])
        for t in row["transitions"]:
            if t["kind"] == "unseen":
                case.uncertain.append((t["first"] - 1, t["last"] + 2))
            elif t["first"] > t["last"]:
                case.cuts[t["first"]] = t["kind"]
            else:
                case.gradual.append((t["first"], t["last"], t["kind"]))
        cases.append(case)
    return cases


def own(detector: Detector) -> Callable[[Path], tuple[Transitions, np.ndarray, float, float]]:
    detector.setup()

    def detect(path: Path) -> tuple[Transitions, np.ndarray, float, float]:
        own_s = 0.0
        started = time.process_time()
        with Reader(str(path)) as reader:
            detector.start(reader.header.info())
            try:
                for t_s, planes in reader.frames():
                    before = time.process_time()
                    if detector.reads_chroma:
                        planes.chroma = chroma_image(planes)
                    detector.process_frame(t_s, planes)
                    own_s += time.process_time() - before
            except BadVideo:
                pass  # damaged: judged up to there
            before = time.process_time()
            found = detector.transitions()
            own_s += time.process_time() - before
            times = reader.times_s
        return found, times, time.process_time() - started - own_s, own_s

    return detect


def peer(name: str) -> Callable[[Path], tuple[Transitions, np.ndarray, float, float]]:
    """A detector of PySceneDetect at its defaults, on the file, as its users run it."""

    def detect(path: Path) -> tuple[Transitions, np.ndarray, float, float]:
        import av
        import scenedetect

        started = time.process_time()
        scenes = scenedetect.detect(str(path), getattr(scenedetect, PEERS[name])(), backend="pyav")
        spent_s = time.process_time() - started
        started = time.process_time()
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or 0)
            times = sorted(f.pts * base for f in container.decode(stream) if f.pts is not None)
        decode_s = time.process_time() - started
        cuts = [float(scene[0].seconds) for scene in scenes[1:]]
        start = times[0] if times else 0.0
        found = Transitions([t - start for t in cuts], [])
        return found, np.array(times) - start, decode_s, max(0.0, spent_s - decode_s)

    return detect


def judge(case: Case, found: Transitions, times: np.ndarray, tally: Tally) -> None:
    def frame(t_s: float) -> int:
        return int(np.searchsorted(times, t_s - 1e-3))

    cuts = [frame(t) for t in found.cuts_s]
    spans = [(frame(a), frame(b)) for a, b in found.gradual]
    used_cuts: set[int] = set()
    used_spans: set[int] = set()
    for at, kind in case.cuts.items():
        near = [i for i, cut in enumerate(cuts) if abs(cut - at) <= TOLERANCE]
        wide = [i for i, (a, b) in enumerate(spans) if a - TOLERANCE <= at <= b + TOLERANCE]
        used_cuts.update(near)
        used_spans.update(wide)
        _count(tally, kind, case, bool(near or wide), at)
    for first, last, kind in case.gradual:
        a, b = first - GRADUAL_TOLERANCE, last + GRADUAL_TOLERANCE
        near = [i for i, cut in enumerate(cuts) if a <= cut <= b]
        wide = [i for i, (x, y) in enumerate(spans) if x <= b and y >= a]
        used_cuts.update(near)
        used_spans.update(wide)
        _count(tally, f"gradual: {kind}", case, bool(near or wide), first)
    unclear = [(a - TOLERANCE, b + TOLERANCE) for a, b in case.uncertain]
    for i, cut in enumerate(cuts):
        if i not in used_cuts and not any(a <= cut <= b for a, b in unclear):
            tally.false_cuts += 1
            tally.errors.append(f"false cut {cut} {case.path.name} {case.kind} {case.condition}")
    for i, (x, y) in enumerate(spans):
        if i not in used_spans and not any(x <= b and y >= a for a, b in unclear):
            tally.false_gradual += 1
            tally.errors.append(f"false gradual {x}-{y} {case.path.name} {case.condition}")
    if len(times) > 1:
        tally.minutes += float(times[-1] - times[0]) / 60


def _count(tally: Tally, kind: str, case: Case, hit: bool, at: int) -> None:
    keys = {kind, "all gradual" if kind.startswith("gradual") else "all hard cuts"}
    if case.kind != "real":
        keys.add(f"condition: {case.condition}")
    for key in keys:
        row = tally.found[key]
        row[0] += hit
        row[1] += 1
    if not hit:
        tally.errors.append(f"missed {kind} {at} {case.path.name} {case.condition}")


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (E. B. Wilson, 1927)."""
    if not count:
        return 0.0, 1.0
    z, p = 1.96, hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (p * (1 - p) / count + z * z / (4 * count**2)) ** 0.5
    return centre - half, centre + half


def show(name: str, tally: Tally) -> None:
    hits, count = tally.found.get("all hard cuts", [0, 0])
    precision = hits / max(1, hits + tally.false_cuts)
    recall = hits / max(1, count)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    print(f"\n## {name}")
    print(
        f"hard cuts: F1 {f1:.3f}, precision {precision:.3f}, recall {recall:.3f}; false cuts "
        f"{tally.false_cuts}, false gradual {tally.false_gradual} in {tally.minutes:.1f} min; "
        f"CPU {tally.own_s:.1f} s = {tally.own_s / max(1e-9, tally.decode_s):.2f} x decoding"
    )
    for kind, (hits, count) in sorted(tally.found.items()):
        low, high = wilson(hits, count)
        print(f"  {kind:34} {hits:4} of {count:4}  {hits / count:.3f} ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("real", "edits"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--half", choices=("development", "figures"), default="figures")
    parser.add_argument("--detectors", nargs="+", default=["residual", "learned", *PEERS])
    parser.add_argument("--errors", action="store_true", help="a line per false or missed one")
    args = parser.parse_args()
    cases = real_cases(args.half) if args.task == "real" else edited_cases(args.folder)
    tallies = {name: Tally() for name in args.detectors}
    ours = DecodePass().detectors
    detectors = {name: own(ours[name]) if name in ours else peer(name) for name in args.detectors}
    for case in cases:
        for name, detect in detectors.items():
            found, times, decode_s, own_s = detect(case.path)
            judge(case, found, times, tallies[name])
            tallies[name].decode_s += decode_s
            tallies[name].own_s += own_s
    for name, tally in tallies.items():
        show(name, tally)
        if args.errors:
            print("\n".join(f"    {line}" for line in tally.errors))


if __name__ == "__main__":
    main()
