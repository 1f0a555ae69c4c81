"""How well cuts and gradual transitions are found, by all detectors in one run.

    python -m benchmarks.shots [--real | --unseen | --edits | --compressed] [--half figures]
                               [--films 1] [--conditions static …] [--detectors learned …]
                               [--errors]

Without a choice: the labelled videos (LONGTAKE_VIDEOS). --real: the videos of benchmarks/labels
that lie in LONGTAKE_LABELLED; --unseen: those of unseen.jsonl that lie there. --edits: films with
exactly known transitions (benchmarks/edits.py). --compressed: takes, and films edited from them, at
low bit rates (benchmarks/shots_compressed.py).

A hard cut is found by a cut within CUT_TOLERANCE frames or by a gradual transition around it; a
gradual transition by anything in it or within GRADUAL_TOLERANCE frames of it. What is found outside
all of these is false; in spans that the labels call uncertain nothing counts. Rates have 95 %
Wilson intervals. A take counts as in one piece where nothing false is found in it. Where a detector
scores clips, the rules of configs/local.yaml on these scores are applied to the takes in one piece,
and to the spans of missed transitions. CPU is a detector's own time over that of decoding;
TransNetV2 runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from benchmarks import edits
from benchmarks.labelled_videos import read_labels
from benchmarks.real_videos import MIN_TAKE_S, RealVideo, present, real_videos, unseen_videos
from benchmarks.shots_compressed import compressed_videos
from curation import config
from curation.policy import Policy, decide
from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.planes import with_chroma
from curation.video.reader import Reader
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.decode_pass import FRAMES_PER_BATCH, DecodePass
from stages.shots.detector import Detector, Transitions
from tests.support.paths import VIDEOS

CUT_TOLERANCE = 2  # frames
GRADUAL_TOLERANCE = 4
DEFAULT_DETECTORS = ("learned", "content", "adaptive", "hash", "histogram")


@dataclass
class Case:
    """A file and what is true of it: numbers of frames, or seconds where `in_seconds`."""

    path: Path
    group: str  # what it is counted under, in addition to all
    cuts: dict[float, str]  # the first frame after each -> its kind
    gradual: list[tuple[float, float, str]]  # first and last frame, kind
    takes: list[tuple[float, float]]
    uncertain: list[tuple[float, float]] = field(default_factory=list)
    in_seconds: bool = False


@dataclass
class Tally:
    found: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    false_cuts: int = 0
    false_gradual: int = 0
    false_in_takes: int = 0
    own_s: float = 0.0
    errors: list[str] = field(default_factory=list)  # one line per false or missed transition


# ---------------------------------------------------------------- cases


def labelled_cases() -> Iterator[Case]:
    for path, labels in read_labels(VIDEOS):
        gradual = [(a, b, "gradual") for a, b in labels.gradual]
        yield Case(path, "labelled", labels.cuts, gradual, labels.takes, in_seconds=True)


def real_cases(videos: Iterable[RealVideo]) -> Iterator[Case]:
    for path, video in present(videos):
        takes = [t for t in video.one_view_takes if t[1] - t[0] >= MIN_TAKE_S * video.fps]
        yield Case(
            path,
            video.kind,
            {cut["frame"]: cut["kind"] for cut in video.cuts},
            [(span["first"], span["last"], span["kind"]) for span in video.gradual],
            [(first, end - 1) for first, end in takes],
            [(span["first"], span["last"]) for span in video.uncertain],
        )


def edited_cases(half: str, films: int, conditions: Sequence[str]) -> Iterator[Case]:
    with TemporaryDirectory() as folder:
        for film in edits.films(Path(folder), half, 1, films, conditions):
            path = Path(folder) / film.file
            case = Case(path, film.condition, {}, [], [])
            for t in film.transitions:
                if t.kind == "unseen":
                    case.uncertain.append((t.first - 1, t.last + 2))
                elif t.first > t.last:
                    case.cuts[t.first] = t.kind
                else:
                    case.gradual.append((t.first, t.last, t.kind))
            if not film.transitions:
                case.takes.append((0, film.frames - 1))
            yield case
            path.unlink()


def compressed_cases() -> Iterator[Case]:
    for name, path, labels in compressed_videos(VIDEOS):
        whole = [] if labels.cuts else [(0.0, float("inf"))]
        yield Case(path, name, labels.cuts, [], whole, in_seconds=True)


# ---------------------------------------------------------------- runs


def run(cases: Iterable[Case], detectors: dict[str, Detector]) -> tuple[dict[str, Tally], Tally]:
    """A tally per detector; and one of what was given: minutes by group, decoding's CPU time."""
    tallies = {name: Tally() for name in detectors}
    for detector in detectors.values():
        detector.setup()
    policy = config.load(Settings, DEFAULT_CONFIG, ["input=-", "output=-"]).select.policy
    given = Tally()
    minutes: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for case in cases:
        try:
            times, decode_s = detect(case.path, detectors, tallies)
        except BadVideo as error:
            print(f"{case.path.name} is left out: {error}")
            continue
        given.own_s += decode_s
        if len(times) < 2:
            continue
        for key in ("all", case.group):
            minutes[key][0] += float(times[-1] - times[0]) / 60
            minutes[key][1] += sum(in_minutes(case, span, times) for span in case.takes)
        for name, detector in detectors.items():
            started = time.process_time()
            found = detector.transitions()
            tallies[name].own_s += time.process_time() - started
            rules = policy.without(policy.keys() - {*detector.writes})
            judge(case, found, times, tallies[name], detector, rules)
    for key, (all_minutes, of_takes) in minutes.items():
        print(f"{key}: {all_minutes:.1f} minutes, {of_takes:.1f} of them in takes")
    given.found["minutes in takes"] = [round(minutes["all"][1] * 1000), 1000]
    return tallies, given


def detect(
    path: Path, detectors: dict[str, Detector], tallies: dict[str, Tally]
) -> tuple[np.ndarray, float]:
    """Passes all frames to all detectors, in batches as in the decode pass; the frames' times and
    the CPU seconds of decoding. The chroma belongs to each detector that reads it.
    """
    own_s, read_s = 0.0, 0.0

    def read() -> Iterator[tuple[float, Planes]]:
        """Up to where the file is damaged. Adds the CPU seconds to `read_s`."""
        nonlocal read_s
        frames, frame = reader.frames(), None
        while True:
            before = time.process_time()
            with suppress(BadVideo):
                frame = next(frames, None)
            read_s += time.process_time() - before
            if frame is None:
                return
            yield frame
            frame = None

    reads_chroma = [name for name, detector in detectors.items() if detector.reads_chroma]
    started = time.process_time()
    with Reader(str(path)) as reader:
        for detector in detectors.values():
            detector.start(reader.header.info())
        frames = with_chroma(read()) if reads_chroma else read()
        opened_s = time.process_time() - started
        while batch := list(islice(frames, FRAMES_PER_BATCH)):
            for name, detector in detectors.items():
                before = time.process_time()
                for t_s, planes in batch:
                    detector.process_frame(t_s, planes)
                spent_s = time.process_time() - before
                tallies[name].own_s += spent_s
                own_s += spent_s
        chroma_s = time.process_time() - started - opened_s - read_s - own_s
        for name in reads_chroma:
            tallies[name].own_s += chroma_s
        return reader.times_s, opened_s + read_s


def judge(
    case: Case,
    found: Transitions,
    times: np.ndarray,
    tally: Tally,
    detector: Detector,
    rules: Policy,
) -> None:
    """Counts what of a case is found, and what is false.

    rules: on the detector's scores.
    """

    def frame(t_s: float) -> int:
        return int(np.searchsorted(times, t_s - 1e-3))

    def number(of_case: float) -> int:
        return frame(of_case) if case.in_seconds else int(of_case)

    def is_rejected(first: int, last: int) -> bool:
        start_s, end_s = (float(times[np.clip(i, 0, len(times) - 1)]) for i in (first, last))
        return bool(decide(detector.score(start_s, end_s), rules))

    cuts = [frame(t) for t in found.cuts_s]
    spans = [(frame(a), frame(b)) for a, b in found.gradual]
    true = {(number(at), number(at), CUT_TOLERANCE): kind for at, kind in case.cuts.items()}
    true |= {
        (number(a), number(b), GRADUAL_TOLERANCE): f"gradual: {kind}" for a, b, kind in case.gradual
    }
    used: set[tuple[int, int]] = set()
    missed: list[tuple[int, int]] = []
    found_spans = [(cut, cut) for cut in cuts] + spans
    for (first, last, tolerance), kind in true.items():
        near = [s for s in found_spans if s[0] <= last + tolerance and s[1] >= first - tolerance]
        used.update(near)
        every = "all gradual" if kind.startswith("gradual") else "all hard cuts"
        for key in (kind, every, f"in: {case.group}"):
            count(tally, key, bool(near))
        if not near:
            missed.append((first, last))
            if rules:
                rejected = is_rejected(first - tolerance, last + tolerance)
                count(tally, "missed ones that the rules reject", rejected)
            tally.errors.append(f"missed {kind} {first} {case.path.name} {case.group}")
    unclear = [(number(a) - CUT_TOLERANCE, number(b) + CUT_TOLERANCE) for a, b in case.uncertain]
    takes = [(number(min(a, 1e9)), number(min(b, 1e9))) for a, b in case.takes]
    false = [
        span
        for span in found_spans
        if span not in used and not any(span[0] <= b and span[1] >= a for a, b in unclear)
    ]
    count_false(case, false, takes, tally)
    for a, b in takes:
        whole = not any(first <= b and last >= a for first, last in false)
        count(tally, "takes in one piece", whole)
        if whole and rules:
            rejected = is_rejected(a + CUT_TOLERANCE, b - CUT_TOLERANCE)
            count(tally, "takes in one piece that the rules reject", rejected)
    fps = (len(times) - 1) / max(float(times[-1] - times[0]), 1e-9)
    bounds = [(0, 0), *sorted(found_spans), (len(times), len(times))]
    for (_, start), (end, _) in pairwise(bounds):
        if end - start >= MIN_TAKE_S * fps:
            hides = any(start <= first and last <= end for first, last in missed)
            count(tally, "found takes without a missed transition", not hides)


def count_false(
    case: Case, false: list[tuple[int, int]], takes: list[tuple[int, int]], tally: Tally
) -> None:
    """false, takes: first and last frame of each."""
    for first, last in false:
        is_gradual = first != last
        tally.false_gradual += is_gradual
        tally.false_cuts += not is_gradual
        tally.false_in_takes += any(first <= b and last >= a for a, b in takes)
        tally.found[f"false in: {case.group}"][0] += 1
        kind = "gradual" if is_gradual else "cut"
        tally.errors.append(f"false {kind} {first}-{last} {case.path.name} {case.group}")


def count(tally: Tally, key: str, is_hit: bool) -> None:
    tally.found[key][0] += is_hit
    tally.found[key][1] += 1


def in_minutes(case: Case, span: tuple[float, float], times: np.ndarray) -> float:
    if case.in_seconds:
        return (min(span[1], float(times[-1])) - span[0]) / 60
    first, last = (min(int(number), len(times) - 1) for number in span)
    return float(times[last] - times[first]) / 60


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (E. B. Wilson, 1927)."""
    if not count:
        return 0.0, 1.0
    z, p = 1.96, hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (p * (1 - p) / count + z * z / (4 * count**2)) ** 0.5
    return centre - half, centre + half


def show(name: str, tally: Tally, given: Tally) -> None:
    hits, count = tally.found.get("all hard cuts", [0, 0])
    precision = hits / max(1, hits + tally.false_cuts)
    recall = hits / max(1, count)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    minutes = given.found["minutes in takes"][0] / 1000
    print(
        f"\n## {name}\nhard cuts: F1 {f1:.3f}, precision {precision:.3f}, recall {recall:.3f}; "
        f"false cuts {tally.false_cuts}, false gradual {tally.false_gradual}; in takes "
        f"{tally.false_in_takes} = {tally.false_in_takes / max(minutes, 1e-9):.2f} a minute; "
        f"CPU {tally.own_s / max(1e-9, given.own_s):.2f} x decoding"
    )
    for kind, (hits, count) in sorted(tally.found.items()):
        low, high = wilson(hits, count)
        rate = f"of {count:4}  {hits / count:.3f} ({low:.3f} to {high:.3f})" if count else ""
        print(f"  {kind:41} {hits:4} {rate}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--real", action="store_true", help="the videos of benchmarks/labels")
    which.add_argument("--unseen", action="store_true", help="those of labels/unseen.jsonl")
    which.add_argument("--edits", action="store_true", help="films with exactly known transitions")
    which.add_argument("--compressed", action="store_true", help="at low bit rates (20 minutes)")
    parser.add_argument("--half", choices=("development", "figures"), default="figures")
    parser.add_argument("--films", type=int, default=1, help="of each kind and condition")
    parser.add_argument(
        "--conditions", nargs="+", choices=edits.CONDITIONS, default=edits.CONDITIONS
    )
    known = DecodePass().detectors
    parser.add_argument("--detectors", nargs="+", choices=known, default=DEFAULT_DETECTORS)
    parser.add_argument("--errors", action="store_true", help="a line per false or missed one")
    args = parser.parse_args()
    if not (args.real or args.unseen) and not (VIDEOS / "labels.csv").is_file():
        sys.exit(f"{VIDEOS}/labels.csv: no such file; set LONGTAKE_VIDEOS to the labelled videos")
    cv2.setNumThreads(1)
    if "transnet" in args.detectors:
        import torch

        known["transnet"].gpus = float(torch.cuda.is_available())
    cases = (
        real_cases(unseen_videos() if args.unseen else real_videos(args.half))
        if args.real or args.unseen
        else edited_cases(args.half, args.films, args.conditions)
        if args.edits
        else compressed_cases()
        if args.compressed
        else labelled_cases()
    )
    tallies, given = run(cases, {name: known[name] for name in args.detectors})
    for name, tally in tallies.items():
        show(name, tally, given)
        if args.errors:
            print("\n".join(f"    {line}" for line in tally.errors))


if __name__ == "__main__":
    main()
