"""How well cuts are found on the labelled videos, per kind, beside other detectors, in one run.

    python -m benchmarks.shots [--transnet] [--synthesise] [--sweep] [--compressed]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos). All detectors see the
same decoded frames, about 320 px wide. CPU is a detector's own seconds over those of decoding. A
cut is found within 0.15 s, a gradual transition where the intervals overlap or lie within 0.3 s; a
hard cut that a detector puts into a gradual transition counts as that transition, since
PySceneDetect has no other way to say it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from benchmarks.shots_compressed import ENCODINGS, compressed
from benchmarks.shots_truth import Film, Span, Truth, labelled, synthesised
from curation.stage import BadVideo
from curation.video.frames import Planes, VideoInfo
from curation.video.reader import Reader, colour
from stages.shots import residual
from stages.shots import transnet as transnet_stage
from stages.shots.transnet import TransNetDetector
from tests.support.paths import VIDEOS

Found = tuple[list[float], list[Span]]  # hard cuts, gradual transitions
Detector = Callable[[Film], tuple[Found, float]]  # and the CPU seconds it took
TOLERANCE_S, APART_S = 0.15, 0.3


def read(path: Path, truth: Truth) -> Film | None:
    """All frames that can be read, or None where there is none."""
    times_s: list[float] = []
    planes: list[Planes] = []
    aside_s = 0.0  # for the peers' colour pictures, which are not decoding
    start = time.process_time()
    try:
        with Reader(str(path)) as reader:
            for t_s, frame in reader.frames():
                times_s.append(t_s)
                began = time.process_time()
                # the small picture stands in for the decoder's frame, of which few fit in memory
                planes.append(Planes(frame.y, colour(frame, 320)))
                aside_s += time.process_time() - began
    except BadVideo as error:
        print(f"{path.name}: {error}")
    spent_s = time.process_time() - start - aside_s
    return Film(truth, np.array(times_s), planes, spent_s) if planes else None


def ours(film: Film) -> tuple[Found, float]:
    start = time.process_time()
    meter = residual.ResidualDetector()
    meter.start(VideoInfo(1280, 720, 25.0, 320, 180))
    for t_s, frame in zip(film.times_s, film.planes, strict=True):
        meter.process_frame(float(t_s), frame)
    found = meter.transitions()
    return (found.cuts_s, found.gradual), time.process_time() - start


def pyscenedetect(name: str) -> Detector:
    """ContentDetector, AdaptiveDetector or HashDetector at its defaults."""

    def detect(film: Film) -> tuple[Found, float]:
        import scenedetect

        detector = getattr(scenedetect, name)()
        pictures = [bgr(frame) for frame in film.planes]
        start = time.process_time()
        rate = Fraction(30)  # frames are counted, true times looked up
        stamps = [scenedetect.FrameTimecode(i, rate) for i in range(len(pictures))]
        cuts = [
            cut
            for s, p in zip(stamps, pictures, strict=True)
            for cut in detector.process_frame(s, p)
        ]
        cuts += detector.post_process(stamps[-1])
        spent_s = time.process_time() - start
        return ([float(film.times_s[cut.frame_num]) for cut in cuts], []), spent_s

    return detect


def transnet(confirm: float | None = None) -> Detector:
    """TransNetV2 as `score.decode.detector=transnet` runs it, on the CPU.

    confirm: instead, ours, less the cuts that it holds for less likely than this nearby.
    """
    import torch

    torch.set_num_threads(1)
    meter = TransNetDetector(gpus=0)
    meter.setup()

    def detect(film: Film) -> tuple[Found, float]:
        size = (transnet_stage.WIDTH_PX, transnet_stage.HEIGHT_PX)
        pictures = [cv2.resize(bgr(p), size, interpolation=cv2.INTER_AREA) for p in film.planes]
        start = time.process_time()
        if film.truth.name not in probabilities:
            meter.start(VideoInfo(1280, 720, 25.0, 320, 180))
            for t_s, picture in zip(film.times_s, pictures, strict=True):
                meter.process_image(float(t_s), picture[:, :, ::-1])
            probabilities[film.truth.name] = meter.probabilities()
        likely = probabilities[film.truth.name]
        if confirm is None:
            found = transnet_stage.transitions_of(likely, film.times_s)
            return (found.cuts_s, found.gradual), time.process_time() - start
        (cuts_s, gradual), _ = ours(film)
        places = np.searchsorted(film.times_s, cuts_s)
        near = [likely[max(0, at - NEARBY) : at + NEARBY].max() for at in places]
        sure = [t_s for t_s, most in zip(cuts_s, near, strict=True) if most >= confirm]
        return (sure, gradual), time.process_time() - start

    return detect


NEARBY = 3  # frames
probabilities: dict[str, np.ndarray] = {}  # of a film's frames: worked out once


def bgr(frame: Planes) -> np.ndarray:
    """(h, w, 3) uint8; drawn films are grey."""
    if frame.source is None:
        return cv2.cvtColor(frame.y, cv2.COLOR_GRAY2BGR)
    return frame.source


def overlap(a: Span, b: Span, apart_s: float = 0.0) -> bool:
    return min(a[1], b[1]) - max(a[0], b[0]) >= -apart_s


def count(truth: Truth, found: Found, counts: Counter) -> None:
    """Adds to ('true', kind), ('found', kind), 'false', ('false', 'gradual'), 'false in takes'."""
    left = sorted(found[0])
    for cut_s, kind in truth.cuts.items():
        near = [t for t in left if abs(t - cut_s) <= TOLERANCE_S]
        counts["true", kind] += 1
        counts["found", kind] += bool(near)
        if near:
            left.remove(min(near, key=lambda t: abs(t - cut_s)))
    wrong = [t for t in left if not any(overlap((t, t), span, APART_S) for span in truth.gradual)]
    counts["false"] += len(wrong)
    counts["true", "gradual"] += len(truth.gradual)
    said = found[1] + [(t, t) for t in left if t not in wrong]
    counts["found", "gradual"] += sum(
        any(overlap(t, f, APART_S) for f in said) for t in truth.gradual
    )
    false = [f for f in found[1] if not any(overlap(t, f, APART_S) for t in truth.gradual)]
    counts["false", "gradual"] += len(false)
    inner = [(start + APART_S, end - APART_S) for start, end in truth.takes]
    edges = [s for s in inner if s[1] > s[0]]
    counts["false in takes"] += sum(any(overlap((t, t), s) for s in edges) for t in wrong)
    counts["false in takes"] += sum(any(overlap(f, s) for s in edges) for f in false)
    for what, items in (("false cut", wrong), ("false gradual", false)):
        for item in items:
            counts[f"{what} {truth.name} {np.round(item, 2)}"] += 1


def rates(counts: Counter, kinds: list[str], false: int) -> tuple[float, float, float]:
    """Precision, recall, F1."""
    hit, true = (sum(counts[what, kind] for kind in kinds) for what in ("found", "true"))
    precision = hit / (hit + false) if hit + false else 1.0
    recall = hit / true if true else 1.0
    return precision, recall, 2 * precision * recall / (precision + recall or 1)


def table(results: dict[str, Counter]) -> Iterator[str]:
    head = (
        "recall place",
        "recall jump",
        "hard cuts P",
        "R",
        "F1",
        "gradual P",
        "R",
        "false in takes",
        "CPU/decode",
    )
    yield f"{'detector':24s}" + "".join(f"{h:>15s}" for h in head)
    for name, counts in results.items():
        hard = rates(counts, ["place", "jump"], counts["false"])
        slow = rates(counts, ["gradual"], counts["false", "gradual"])
        cells = [rates(counts, [kind], 0)[1] for kind in ("place", "jump")] + [
            *hard,
            slow[0],
            slow[1],
        ]
        numbers = [*(f"{c:.3f}" for c in cells), counts["false in takes"]]
        numbers.append(f"{counts['cpu_us'] / max(1, counts['decode_us']):.2f}")
        yield f"{name:24s}" + "".join(f"{n!s:>15s}" for n in numbers)


def measure(detectors: dict[str, Detector], films: Iterator[Film]) -> dict[str, Counter]:
    results: dict[str, Counter] = {name: Counter() for name in detectors}
    for film in films:
        for name, detect in detectors.items():
            found, spent_s = detect(film)
            count(film.truth, found, results[name])
            results[name]["cpu_us"] += round(spent_s * 1e6)
            results[name]["decode_us"] += round(film.decode_cpu_s * 1e6)
    return results


SWEPT = [
    "MIN_SPIKE_RATIO",
    "MIN_SPIKE",
    "MIN_MEDIAN_RATIO",
    "MIN_MEDIAN_STEP",
    "RELAXED_RATIO",
    "RELAXED_SPIKE",
    "MIN_STRONG_CHANGE_RATIO",
    "MAX_STRUCTURE_CORRELATION",
    "MIN_PATCH_STEP",
    "MIN_PATCH_STEP_RATIO",
    "MAX_TEXT_AREA",
    "MAX_TEXT_HEIGHT",
    "MAX_REDRAWN_AREA",
    "WINDOW_S",
]


def sweep(films: list[Film]) -> None:
    """F1 on hard cuts with one threshold at a time scaled: off a plateau it was fitted."""
    scales = (0.7, 1.0, 1.4)
    print(f"{'F1 at threshold x':24s}" + "".join(f"{s:>8}" for s in scales))
    for name in SWEPT:
        usual, row = getattr(residual, name), []
        for scale in scales:
            setattr(residual, name, usual * scale)
            counts = measure({"ours": ours}, iter(films))["ours"]
            kinds = [k[1] for k in counts if k[0] == "true" and k[1] not in ("gradual", "unseen")]
            row.append(rates(counts, kinds, counts["false"])[2])
        setattr(residual, name, usual)
        print(f"{name:24s}" + "".join(f"{f1:8.3f}" for f1 in row), flush=True)


def with_any_step(film: Film) -> tuple[Found, float]:
    """Ours as it was before cuts had to change whole patches."""
    usual, residual.MIN_PATCH_STEP = residual.MIN_PATCH_STEP, 0.0
    try:
        return ours(film)
    finally:
        residual.MIN_PATCH_STEP = usual


def at_low_bit_rates(folder: Path) -> Iterator[str]:
    """What is found in encoded films, and by how much the look at whole patches changes it."""
    halves = ("chosen on", "held out")
    rows: dict[tuple[str, str], tuple[Counter, Counter]] = {
        (half, name): (Counter(), Counter()) for half in halves for name in (*ENCODINGS, "all")
    }
    for name, held_out, film in compressed(folder):
        for which, detect in enumerate((with_any_step, ours)):
            found, spent_s = detect(film)
            for row in (name, "all"):
                counts = rows[halves[held_out], row][which]
                count(film.truth, found, counts)
                counts["s"] += film.times_s[-1]
                counts["cpu_us"] += round(spent_s * 1e6)
                counts["frames"] += len(film.planes)
    head = ("minutes", "false cuts", "false gradual", "jump x1", "jump x2", "place", "us/frame")
    yield f"{'without -> with, found of true':34s}" + "".join(f"{h:>18s}" for h in head)
    for (half, name), (before, after) in rows.items():
        cells = [f"{after['s'] / 60:.1f}"]
        cells += [f"{before[k]} -> {after[k]}" for k in ("false", ("false", "gradual"))]
        for kind in ("jump x1", "jump x2", "place"):
            hits = f"{before['found', kind]} -> {after['found', kind]}"
            cells.append(f"{hits} of {after['true', kind]}")
        per_frame = (f"{c['cpu_us'] / max(1, c['frames']):.0f}" for c in (before, after))
        cells.append(" -> ".join(per_frame))
        yield f"{half + ': ' + name:34s}" + "".join(f"{cell:>18s}" for cell in cells)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--transnet", action="store_true", help="TransNetV2 too (minutes)")
    options.add_argument(
        "--synthesise", action="store_true", help="films edited from the long takes too"
    )
    options.add_argument("--sweep", action="store_true", help="how F1 hangs on each threshold")
    options.add_argument(
        "--compressed", action="store_true", help="takes and cuts at low bit rates (20 minutes)"
    )
    args = options.parse_args()
    folder = VIDEOS
    if not (folder / "labels.csv").is_file():
        sys.exit(f"{folder}/labels.csv: no such file; set LONGTAKE_VIDEOS to the labelled videos")
    cv2.setNumThreads(1)
    detectors: dict[str, Detector] = {"ours": ours}
    for name in ("ContentDetector", "AdaptiveDetector", "HashDetector"):
        detectors[name] = pyscenedetect(name)
    if args.transnet:
        detectors["TransNetV2"] = transnet()
        for least in (0.02, 0.1, 0.5):
            detectors[f"ours, it {least:g} sure"] = transnet(least)
    films = (film for path, truth in labelled(folder) if (film := read(path, truth)))
    results = measure(detectors, films)
    print(
        *table(results),
        *(f"ours: {k}" for k in results["ours"] if str(k).startswith("false ")),
        sep="\n",
    )
    if args.synthesise:
        counts = measure({"ours": ours}, synthesised(folder))["ours"]
        print("\nedited from the long takes, ours: found of true")
        for kind in sorted({k[1] for k in counts if k[0] == "true"}):
            print(f"  {kind:10s} {counts['found', kind]:4d} of {counts['true', kind]:4d}")
        print(f"  false cuts {counts['false']}, false gradual {counts['false', 'gradual']}")
        print(*(f"  {k}" for k in counts if str(k).startswith("false ")), sep="\n")
    if args.compressed:
        print("\nat low bit rates, ours", *at_low_bit_rates(folder), sep="\n")
    if args.sweep:
        cut = [f for path, truth in labelled(folder) if truth.cuts and (f := read(path, truth))]
        sweep(cut + [f for f in synthesised(folder) if f.truth.name.startswith("jumps x2")])


if __name__ == "__main__":
    main()
