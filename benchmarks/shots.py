"""Precision and recall of cuts and transitions on the labelled videos, also of other detectors.

    python -m benchmarks.shots [--transnet] [--edited] [--sweep] [--compressed]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos). All detectors
get the same decoded frames, about 320 px wide. CPU is a detector's own seconds divided by those of
decoding. A cut is found if a detector reports one within 0.15 s, a gradual transition if the
intervals overlap or are at most 0.3 s apart. A hard cut that a detector reports within a gradual
transition counts as that transition, because PySceneDetect reports cuts only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from benchmarks.labelled_videos import LabelledVideo, Labels, Span, edited_videos, read_labels
from benchmarks.shots_compressed import ENCODINGS, compressed_videos
from curation.stage import BadVideo
from curation.video.frames import Planes, VideoInfo
from curation.video.planes import bgr_image
from curation.video.reader import Reader
from stages.shots import residual
from stages.shots import transnet as transnet_stage
from stages.shots.transnet import TransNetDetector
from tests.support.paths import VIDEOS

Found = tuple[list[float], list[Span]]  # hard cuts, gradual transitions
Detect = Callable[[LabelledVideo], tuple[Found, float]]  # and its CPU seconds
CUT_TOLERANCE_S, GRADUAL_TOLERANCE_S = 0.15, 0.3
CONFIRM_FRAMES = 3  # on both sides of a cut that TransNetV2 confirms


def read_video(path: Path, labels: Labels) -> LabelledVideo | None:
    """All readable frames; None if there are none."""
    times_s: list[float] = []
    planes: list[Planes] = []
    colour_s = 0.0  # for the colour frames of other detectors, which is not decoding
    start = time.process_time()
    try:
        with Reader(str(path)) as reader:
            for t_s, frame in reader.frames():
                times_s.append(t_s)
                before = time.process_time()
                # the small frame replaces the decoder's, because few of those fit in memory
                planes.append(Planes(frame.y, bgr_image(frame, 320)))
                colour_s += time.process_time() - before
    except BadVideo as error:
        print(f"{path.name}: {error}")
    decode_s = time.process_time() - start - colour_s
    return LabelledVideo(labels, np.array(times_s), planes, decode_s) if planes else None


def detect_ours(video: LabelledVideo) -> tuple[Found, float]:
    start = time.process_time()
    detector = residual.ResidualDetector()
    detector.start(VideoInfo(1280, 720, 25.0, 320, 180))
    for t_s, frame in zip(video.times_s, video.planes, strict=True):
        detector.process_frame(float(t_s), frame)
    found = detector.transitions()
    return (found.cuts_s, found.gradual), time.process_time() - start


def pyscenedetect(name: str) -> Detect:
    """ContentDetector, AdaptiveDetector or HashDetector with its defaults."""

    def detect(video: LabelledVideo) -> tuple[Found, float]:
        import scenedetect

        detector = getattr(scenedetect, name)()
        images = [to_bgr(frame) for frame in video.planes]
        start = time.process_time()
        rate = Fraction(30)  # frame numbers, which are converted to the video's times below
        stamps = [scenedetect.FrameTimecode(i, rate) for i in range(len(images))]
        cuts = [
            cut
            for stamp, image in zip(stamps, images, strict=True)
            for cut in detector.process_frame(stamp, image)
        ]
        cuts += detector.post_process(stamps[-1])
        cpu_s = time.process_time() - start
        return ([float(video.times_s[cut.frame_num]) for cut in cuts], []), cpu_s

    return detect


def transnet(min_probability: float | None = None) -> Detect:
    """TransNetV2 as `score.decode.detector=transnet` runs it, on the CPU.

    min_probability: instead, our cuts near which TransNetV2's probability is at least this.
    """
    import torch

    torch.set_num_threads(1)
    detector = TransNetDetector(gpus=0)
    detector.setup()

    def detect(video: LabelledVideo) -> tuple[Found, float]:
        size = (transnet_stage.WIDTH_PX, transnet_stage.HEIGHT_PX)
        images = [cv2.resize(to_bgr(p), size, interpolation=cv2.INTER_AREA) for p in video.planes]
        start = time.process_time()
        if video.labels.name not in probabilities:
            detector.start(VideoInfo(1280, 720, 25.0, 320, 180))
            for t_s, image in zip(video.times_s, images, strict=True):
                detector.process_image(float(t_s), image[:, :, ::-1])
            probabilities[video.labels.name] = detector.probabilities()
        probability = probabilities[video.labels.name]
        if min_probability is None:
            found = transnet_stage.transitions_of(probability, video.times_s)
            return (found.cuts_s, found.gradual), time.process_time() - start
        (cuts_s, gradual), _ = detect_ours(video)
        frames = np.searchsorted(video.times_s, cuts_s)
        near = [probability[max(0, i - CONFIRM_FRAMES) : i + CONFIRM_FRAMES].max() for i in frames]
        confirmed = [t_s for t_s, most in zip(cuts_s, near, strict=True) if most >= min_probability]
        return (confirmed, gradual), time.process_time() - start

    return detect


probabilities: dict[str, np.ndarray] = {}  # of a video's frames, by its name: computed once


def to_bgr(frame: Planes) -> np.ndarray:
    """(h, w, 3) uint8; edited videos are grey."""
    if frame.source is None:
        return cv2.cvtColor(frame.y, cv2.COLOR_GRAY2BGR)
    return frame.source


def overlap(a: Span, b: Span, tolerance_s: float = 0.0) -> bool:
    return min(a[1], b[1]) - max(a[0], b[0]) >= -tolerance_s


def count_matches(labels: Labels, found: Found, counts: Counter) -> None:
    """Adds to ('true', kind), ('found', kind), 'false', ('false', 'gradual'), 'false in takes'."""
    unmatched = sorted(found[0])
    for cut_s, kind in labels.cuts.items():
        near = [t for t in unmatched if abs(t - cut_s) <= CUT_TOLERANCE_S]
        counts["true", kind] += 1
        counts["found", kind] += bool(near)
        if near:
            unmatched.remove(min(near, key=lambda t: abs(t - cut_s)))
    gradual, tolerance_s = labels.gradual, GRADUAL_TOLERANCE_S
    false_cuts = [
        t for t in unmatched if not any(overlap((t, t), span, tolerance_s) for span in gradual)
    ]
    counts["false"] += len(false_cuts)
    counts["true", "gradual"] += len(gradual)
    reported = found[1] + [(t, t) for t in unmatched if t not in false_cuts]
    counts["found", "gradual"] += sum(
        any(overlap(t, f, tolerance_s) for f in reported) for t in gradual
    )
    false_gradual = [f for f in found[1] if not any(overlap(t, f, tolerance_s) for t in gradual)]
    counts["false", "gradual"] += len(false_gradual)
    inner = [(start + tolerance_s, end - tolerance_s) for start, end in labels.takes]
    takes = [s for s in inner if s[1] > s[0]]
    counts["false in takes"] += sum(any(overlap((t, t), s) for s in takes) for t in false_cuts)
    counts["false in takes"] += sum(any(overlap(f, s) for s in takes) for f in false_gradual)
    for what, items in (("false cut", false_cuts), ("false gradual", false_gradual)):
        for item in items:
            counts[f"{what} {labels.name} {np.round(item, 2)}"] += 1


def precision_recall_f1(
    counts: Counter, kinds: list[str], false: int
) -> tuple[float, float, float]:
    """false: the number of false positives."""
    hit, true = (sum(counts[what, kind] for kind in kinds) for what in ("found", "true"))
    precision = hit / (hit + false) if hit + false else 1.0
    recall = hit / true if true else 1.0
    return precision, recall, 2 * precision * recall / (precision + recall or 1)


def format_table(results: dict[str, Counter]) -> Iterator[str]:
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
        hard = precision_recall_f1(counts, ["place", "jump"], counts["false"])
        gradual = precision_recall_f1(counts, ["gradual"], counts["false", "gradual"])
        cells = [precision_recall_f1(counts, [kind], 0)[1] for kind in ("place", "jump")]
        cells += [*hard, gradual[0], gradual[1]]
        numbers = [*(f"{c:.3f}" for c in cells), counts["false in takes"]]
        numbers.append(f"{counts['cpu_us'] / max(1, counts['decode_us']):.2f}")
        yield f"{name:24s}" + "".join(f"{n!s:>15s}" for n in numbers)


def evaluate(detectors: dict[str, Detect], videos: Iterable[LabelledVideo]) -> dict[str, Counter]:
    results: dict[str, Counter] = {name: Counter() for name in detectors}
    for video in videos:
        for name, detect in detectors.items():
            found, cpu_s = detect(video)
            count_matches(video.labels, found, results[name])
            results[name]["cpu_us"] += round(cpu_s * 1e6)
            results[name]["decode_us"] += round(video.decode_cpu_s * 1e6)
    return results


def sweep_thresholds(videos: list[LabelledVideo]) -> None:
    """Prints F1 on hard cuts with one threshold at a time scaled. A threshold that is not on a
    plateau is overfitted."""
    names = [n for n, value in vars(residual).items() if n.isupper() and isinstance(value, float)]
    scales = (0.7, 1.0, 1.4)
    print(f"{'F1 at threshold x':24s}" + "".join(f"{s:>8}" for s in scales))
    for name in names:
        default, row = getattr(residual, name), []
        for scale in scales:
            setattr(residual, name, default * scale)
            counts = evaluate({"ours": detect_ours}, videos)["ours"]
            kinds = [k[1] for k in counts if k[0] == "true" and k[1] not in ("gradual", "unseen")]
            row.append(precision_recall_f1(counts, kinds, counts["false"])[2])
        setattr(residual, name, default)
        print(f"{name:24s}" + "".join(f"{f1:8.3f}" for f1 in row), flush=True)


def detect_without_patch_check(video: LabelledVideo) -> tuple[Found, float]:
    """Ours, but cuts need not change whole patches."""
    default, residual.MIN_PATCH_STEP = residual.MIN_PATCH_STEP, 0.0
    try:
        return detect_ours(video)
    finally:
        residual.MIN_PATCH_STEP = default


def evaluate_low_bit_rates(folder: Path) -> Iterator[str]:
    """The lines of a table: what is found in encoded videos without and with the check of whole
    patches."""
    halves = ("chosen on", "held out")
    rows: dict[tuple[str, str], tuple[Counter, Counter]] = {
        (half, name): (Counter(), Counter()) for half in halves for name in (*ENCODINGS, "all")
    }
    for name, held_out, video in compressed_videos(folder):
        for which, detect in enumerate((detect_without_patch_check, detect_ours)):
            found, cpu_s = detect(video)
            for row in (name, "all"):
                counts = rows[halves[held_out], row][which]
                count_matches(video.labels, found, counts)
                counts["s"] += video.times_s[-1]
                counts["cpu_us"] += round(cpu_s * 1e6)
                counts["frames"] += len(video.planes)
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
    options.add_argument("--transnet", action="store_true", help="also TransNetV2 (minutes)")
    options.add_argument(
        "--edited", action="store_true", help="also videos edited from the long takes"
    )
    options.add_argument("--sweep", action="store_true", help="F1 with each threshold scaled")
    options.add_argument(
        "--compressed",
        action="store_true",
        help="also takes and cuts at low bit rates (20 minutes)",
    )
    args = options.parse_args()
    folder = VIDEOS
    if not (folder / "labels.csv").is_file():
        sys.exit(f"{folder}/labels.csv: no such file; set LONGTAKE_VIDEOS to the labelled videos")
    cv2.setNumThreads(1)
    detectors: dict[str, Detect] = {"ours": detect_ours}
    for name in ("ContentDetector", "AdaptiveDetector", "HashDetector"):
        detectors[name] = pyscenedetect(name)
    if args.transnet:
        detectors["TransNetV2"] = transnet()
        for least in (0.02, 0.1, 0.5):
            detectors[f"ours, confirmed at {least:g}"] = transnet(least)
    videos = (v for path, labels in read_labels(folder) if (v := read_video(path, labels)))
    results = evaluate(detectors, videos)
    print(
        *format_table(results),
        *(f"ours: {k}" for k in results["ours"] if str(k).startswith("false ")),
        sep="\n",
    )
    if args.edited:
        counts = evaluate({"ours": detect_ours}, edited_videos(folder))["ours"]
        print("\nvideos edited from the long takes, ours: found of true")
        for kind in sorted({k[1] for k in counts if k[0] == "true"}):
            print(f"  {kind:10s} {counts['found', kind]:4d} of {counts['true', kind]:4d}")
        print(f"  false cuts {counts['false']}, false gradual {counts['false', 'gradual']}")
        print(*(f"  {k}" for k in counts if str(k).startswith("false ")), sep="\n")
    if args.compressed:
        print("\nat low bit rates, ours", *evaluate_low_bit_rates(folder), sep="\n")
    if args.sweep:
        with_cuts = [item for item in read_labels(folder) if item[1].cuts]
        labelled = [video for item in with_cuts if (video := read_video(*item))]
        jumps = [v for v in edited_videos(folder) if v.labels.name.startswith("jumps x2")]
        sweep_thresholds(labelled + jumps)


if __name__ == "__main__":
    main()
