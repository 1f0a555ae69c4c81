"""How well `seam_share` finds drawn insets and panels, and what it makes of drawn single views.

    python -m benchmarks.drawn_views [--part reporting|choosing] [--errors]

Draws each example from single takes of real footage (benchmarks/footage.py: LONGTAKE_VIDEOS,
LONGTAKE_LABELLED, LONGTAKE_FOOTAGE), all of the development half. A repository belongs to one part:
thresholds were chosen on the drawings of `choosing`. Insets are 1/5 to 1/2 of the width, in a
corner or with a margin, with and without a border, with right or rounded corners or round. All are
encoded as H.264, a third of them at a low rate.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from benchmarks.footage import Take, single_takes
from benchmarks.shots import wilson
from benchmarks.views import VIEW_LABELS
from curation import config
from curation.policy import decide
from curation.stage import BadVideo
from curation.video.planes import convert
from curation.video.reader import Reader
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.meters.seams import Seams
from tests.support.drawn import decoded, encoded, feed
from tests.support.paths import REPOSITORY

PARTS = ("choosing", "reporting")
WIDTH, HEIGHT = 640, 360  # px, of a drawing
FPS, SECONDS = 10, 6
MAX_START_S = 20.0  # of a take: files are decoded from their start
TAKES = 36  # of each part
COUNTS = {"inset": 120, "panels": 40, "round views": 20, "one view": 60}
CRFS = (20, 26, 36)
Film = list[np.ndarray]  # (HEIGHT, WIDTH) uint8 each


@dataclass(frozen=True)
class Drawing:
    kind: str
    description: str
    frames: Film
    crf: int


def takes_of(part: str) -> list[Take]:
    """TAKES takes of different repositories, where there are so many, that show one view."""
    labels = map(json.loads, VIEW_LABELS.read_text().splitlines())
    others = {label["sha256"] for label in labels if label["view"] != "one"}
    by_repository = defaultdict(list)
    for take in single_takes():
        sha256 = take.path.rsplit("/", 1)[-1].split(".")[0]
        hashed = zlib.crc32(take.repository.encode())
        if (
            take.half == "development"
            and sha256 not in others
            and take.start_s <= MAX_START_S
            and take.end_s - take.start_s >= SECONDS
            and PARTS[hashed // 7 % 2] == part
        ):
            by_repository[hashed].append(take)
    takes = [sorted(found, key=lambda take: take.path)[0] for found in by_repository.values()]
    return sorted(takes, key=lambda take: zlib.crc32(take.path.rsplit("/", 1)[-1].encode()))[:TAKES]


@cache
def film(take: Take) -> Film:
    """FPS frames a second of the first SECONDS of a take; fewer where it can't be decoded."""
    frames: Film = []
    try:
        with Reader(take.path) as reader:
            for t_s, planes in reader.frames():
                if t_s >= take.start_s + len(frames) / FPS:
                    picture = convert(planes.source.frame, WIDTH, HEIGHT, "gray")
                    frames.append(picture.to_ndarray())
                if len(frames) == FPS * SECONDS:
                    break
    except BadVideo:
        pass
    return frames


def resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of the frame, with the aspect of width x height."""
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    whole = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return whole[top : top + height, left : left + width]


def shape_mask(width: int, height: int, shape: str) -> np.ndarray:
    """(height, width) float32, 0..1: rectangle, rounded or round."""
    mask = np.zeros((height, width), np.float32)
    if shape == "round":
        middle, radii = ((width - 1) / 2, (height - 1) / 2), (width / 2, height / 2)
        y, x = np.mgrid[:height, :width]
        distance = np.hypot((x - middle[0]) / radii[0], (y - middle[1]) / radii[1])
        return np.clip((1 - distance) * min(radii) + 0.5, 0, 1).astype(np.float32)
    radius = min(width, height) // 8 if shape == "rounded" else 0
    mask[radius : height - radius or None] = 1
    mask[:, radius : width - radius or None] = 1
    for x in (radius, width - 1 - radius):
        for y in (radius, height - 1 - radius):
            if radius:
                cv2.circle(mask, (x, y), radius, 1.0, -1, cv2.LINE_AA)
    return mask


def pasted(under: Film, over: Film, x: int, y: int, size: tuple[int, int], shape: str) -> Film:
    mask = shape_mask(*size, shape)
    area = slice(y, y + size[1]), slice(x, x + size[0])
    frames = []
    for ground, shown in zip(under, over, strict=False):
        frame = ground.copy()
        part = resized(shown, *size)
        frame[area] = (mask * part + (1 - mask) * frame[area] + 0.5).astype(np.uint8)
        frames.append(frame)
    return frames


def flat(level: int, frames: int) -> Film:
    return [np.full((HEIGHT, WIDTH), level, np.uint8)] * frames


def blurred(shown: Film) -> Film:
    return [cv2.GaussianBlur(frame, (0, 0), 20) for frame in shown]


def inset(rng: np.random.Generator, main: Film, other: Film) -> tuple[str, Film]:
    width = round(WIDTH * rng.uniform(0.2, 0.5))
    aspect = rng.choice([16 / 9, 4 / 3, 1.0, 3 / 4])
    shape = str(rng.choice(["rectangle", "rounded", "round"], p=[0.7, 0.18, 0.12]))
    if shape == "round":
        aspect, width = 1.0, min(width, 200)
    height = min(round(width / aspect), HEIGHT * 3 // 4)
    width = min(width, round(height * aspect))
    margin = 0 if shape == "rectangle" and rng.random() < 0.4 else int(rng.uniform(6, 40))
    x = (margin, WIDTH - margin - width)[rng.integers(2)]
    y = (margin, HEIGHT - margin - height)[rng.integers(2)]
    border = int(rng.choice([0, 0, 1, 2, 4, 8]))
    frames, grey = main, int(rng.choice([0, 128, 255]))
    if border and margin > border:
        box = (width + 2 * border, height + 2 * border)
        frames = pasted(frames, flat(grey, len(main)), x - border, y - border, box, shape)
    else:
        border = 0
    frames = pasted(frames, other, x, y, (width, height), shape)
    return f"{shape} {width}x{height} at {x},{y}, border {border} of {grey}", frames


def panels(rng: np.random.Generator, one: Film, two: Film) -> tuple[str, Film]:
    """Two views apart, on black, white, or the blurred first view."""
    ground = str(rng.choice(["black", "white", "blurred"]))
    frames = blurred(one) if ground == "blurred" else flat(255 * (ground == "white"), len(one))
    gap, margin = int(rng.uniform(24, 60)), int(rng.uniform(10, 40))
    width = (WIDTH - 2 * margin - gap) // 2
    for shown, x in ((one, margin), (two, margin + width + gap)):
        height = min(round(width / rng.choice([16 / 9, 4 / 3, 1.0])), HEIGHT - 20)
        y = (HEIGHT - height) // 2 + int(rng.uniform(-10, 10))
        frames = pasted(frames, shown, x, y, (width, height), "rectangle")
    return f"on {ground}, {gap} px apart", frames


def round_views(rng: np.random.Generator, one: Film, two: Film) -> tuple[str, Film]:
    side = int(rng.uniform(200, 310))
    frames = flat(int(rng.choice([0, 0, 255])), len(one))
    for shown, middle in ((one, WIDTH // 4), (two, WIDTH * 3 // 4)):
        place = middle - side // 2, (HEIGHT - side) // 2
        frames = pasted(frames, shown, *place, (side, side), "round")
    return f"diameter {side}", frames


def one_view(rng: np.random.Generator, main: Film, other: Film) -> tuple[str, Film]:
    """One view with black bars, a logo, a banner, a box of text, or a picture that stands still."""
    kind = str(rng.choice(["bars", "letterbox", "logo", "banner", "subtitles", "tilted picture"]))
    frames = main
    if kind in ("bars", "letterbox"):
        x = 0 if kind == "letterbox" else int(rng.uniform(20, 160))
        y = int(rng.uniform(20, 80)) if kind == "letterbox" or rng.random() < 0.5 else 0
        size = (WIDTH - 2 * x, HEIGHT - 2 * y)
        frames = pasted(flat(0, len(main)), main, x, y, size, "rectangle")
    elif kind == "tilted picture":  # or a television in the same place of a static scene
        still = [resized(main[0], WIDTH, HEIGHT)] * len(main)
        degrees = rng.uniform(0.7, 3) * rng.choice([-1, 1])
        turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, 0.35)
        mask = cv2.warpAffine(np.ones((HEIGHT, WIDTH), np.float32), turn, (WIDTH, HEIGHT))
        inside = [cv2.warpAffine(frame, turn, (WIDTH, HEIGHT)) for frame in other]
        frames = [
            (mask * a + (1 - mask) * b + 0.5).astype(np.uint8)
            for a, b in zip(inside, still, strict=False)
        ]
    else:
        x, y, width, height = {
            "logo": (520, 20, 100, 60),
            "banner": (0, 290, 640, 50),
            "subtitles": (120, 300, 400, 40),
        }[kind]
        plate = np.full((height, width), int(rng.choice([20, 90, 235])), np.uint8)
        cv2.putText(plate, "CHANNEL FIVE", (8, height - 14), 0, 0.6, 128, 2, cv2.LINE_AA)
        frames = [frame.copy() for frame in main]
        for frame in frames:
            frame[y : y + height, x : x + width] = plate
    return kind, frames


DRAW = {"inset": inset, "panels": panels, "round views": round_views, "one view": one_view}


def drawings(part: str) -> Iterator[Drawing]:
    takes = takes_of(part)
    for kind, count in COUNTS.items():
        for number in range(count):
            rng = np.random.default_rng((zlib.crc32(kind.encode()), PARTS.index(part), number))
            main, other = (takes[i] for i in rng.choice(len(takes), 2, replace=False))
            description, frames = DRAW[kind](rng, film(main), film(other))
            crf = CRFS[number % len(CRFS)]
            yield Drawing(kind, f"{number}: {description}, crf {crf}", frames, crf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, default="reporting")
    parser.add_argument("--errors", action="store_true", help="a line per wrong decision")
    args = parser.parse_args()
    policy = config.load(Settings, str(REPOSITORY / DEFAULT_CONFIG), []).select.policy
    rules = type(policy)({"seam_share": policy["seam_share"]})
    shares: dict[str, list[float]] = defaultdict(list)
    decisions: dict[str, list[bool]] = defaultdict(list)
    errors = []
    for drawing in drawings(args.part):
        meter = Seams()
        feed([meter], decoded(encoded(drawing.frames, FPS, drawing.crf)), FPS)
        share = meter.score(0, SECONDS)["seam_share"]
        if share is None:
            continue
        shares[drawing.kind].append(share)
        rejected = bool(decide({"seam_share": share}, rules))
        decisions[drawing.kind].append(rejected)
        if rejected == (drawing.kind == "one view"):
            errors.append(f"{drawing.kind} {drawing.description}: {share:.2f}")
    print("kind         rejected   rate (95 % interval)    seam_share: median, range")
    for kind, found in shares.items():
        hits, count = sum(decisions[kind]), len(found)
        low, high = wilson(hits, count)
        print(
            f"{kind:12} {hits:4} of {count:3}   {hits / count:.3f} ({low:.3f} to {high:.3f})   "
            f"{np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        )
    if args.errors:
        print("\n".join(errors))


if __name__ == "__main__":
    main()
