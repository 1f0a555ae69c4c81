"""How often `seam_share` rejects drawn insets and panels, and drawn pictures of one view.

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
from benchmarks.views import VIEW_LABELS, format_range, format_rate
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
COUNTS = {"inset": 120, "panels": 40, "round views": 20, "one view": 160}
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


def bars(rng: np.random.Generator, main: Film, other: Film) -> Film:
    """Black bars at two sides, or at all four."""
    x, y = int(rng.uniform(20, 160)), int(rng.uniform(20, 80))
    hidden = rng.integers(3)
    x, y = x * (hidden != 0), y * (hidden != 1)
    size = (WIDTH - 2 * x, HEIGHT - 2 * y)
    return pasted(flat(0, len(main)), main, x, y, size, "rectangle")


def plate(rng: np.random.Generator, main: Film, other: Film) -> Film:
    """A logo, banner or box of text, opaque or translucent, anywhere or at a usual place."""
    usual = [(520, 20, 100, 60), (0, 290, 640, 50), (120, 300, 400, 40)]
    width, height = int(rng.uniform(90, 320)), int(rng.uniform(44, 180))
    x = int(rng.choice([0, 20, WIDTH - width - 20, WIDTH - width, (WIDTH - width) // 2]))
    y = int(rng.choice([0, 16, HEIGHT - height - 16, HEIGHT - height]))
    if rng.random() < 0.5:
        x, y, width, height = usual[rng.integers(len(usual))]
    shown = np.full((height, width), int(rng.choice([20, 90, 235])), np.uint8)
    cv2.putText(shown, "CHANNEL FIVE", (8, height - 14), 0, 0.6, 128, 2, cv2.LINE_AA)
    alpha = rng.uniform(0.3, 0.8) if rng.random() < 0.6 else 1.0
    frames = [frame.copy() for frame in main]
    for frame in frames:
        area = frame[y : y + height, x : x + width]
        area[:] = (alpha * shown + (1 - alpha) * area + 0.5).astype(np.uint8)
    return frames


def hidden_patch(rng: np.random.Generator, main: Film, other: Film) -> Film:
    """A patch that is blurred, pixelated, or filled from its sides, as a logo that was removed."""
    width, height = int(rng.uniform(90, 260)), int(rng.uniform(60, 180))
    x = int(rng.choice([0, WIDTH - width, rng.uniform(0, WIDTH - width)]))
    y = int(rng.choice([0, HEIGHT - height, rng.uniform(0, HEIGHT - height)]))
    kind, strength = rng.integers(3), rng.uniform(8, 30)
    frames = [frame.copy() for frame in main]
    for frame in frames:
        area = frame[y : y + height, x : x + width]
        if kind == 0:
            area[:] = cv2.GaussianBlur(area, (0, 0), strength)
        elif kind == 1:
            cells = (max(2, int(width / strength)), max(2, int(height / strength)))
            small = cv2.resize(area, cells, interpolation=cv2.INTER_AREA)
            area[:] = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
        else:
            area[:] = cv2.resize(area[:, [0, -1]], (width, height), interpolation=cv2.INTER_LINEAR)
    return frames


def tilted_picture(rng: np.random.Generator, main: Film, other: Film) -> Film:
    """A television in a static scene, tilted by 0.7 to 3 degrees."""
    still = [main[0]] * len(main)
    degrees = rng.uniform(0.7, 3) * rng.choice([-1, 1])
    turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, 0.35)
    mask = cv2.warpAffine(np.ones((HEIGHT, WIDTH), np.float32), turn, (WIDTH, HEIGHT))
    inside = [cv2.warpAffine(frame, turn, (WIDTH, HEIGHT)) for frame in other]
    return [
        (mask * a + (1 - mask) * b + 0.5).astype(np.uint8)
        for a, b in zip(inside, still, strict=False)
    ]


def furniture(rng: np.random.Generator, main: Film, other: Film) -> Film:
    """Something straight in a scene: a drawer, shelf or door frame, with an arm that moves past it.

    It may reach the picture's edges. The camera is static or handheld.
    """
    width, height = int(rng.uniform(110, 320)), int(rng.uniform(80, 260))
    x = int(rng.choice([-40, WIDTH - width + 40, rng.uniform(20, WIDTH - width - 20)]))
    y = int(rng.choice([-40, HEIGHT - height + 40, rng.uniform(20, HEIGHT - height - 20)]))
    middle = (x + width / 2, y + height / 2)
    box = cv2.boxPoints((middle, (width, height), rng.choice([0, 0, 0.3, 0.8]))).astype(np.int32)
    scene = main[0].copy()
    mask = cv2.fillPoly(np.zeros_like(scene), [box], 1) > 0
    scene[mask] = cv2.addWeighted(scene, 0.4, other[0], 0.5, int(rng.choice([-20, 40])))[mask]
    cv2.polylines(scene, [box], True, (int(rng.choice([20, 230])),), int(rng.choice([2, 5])))
    shake = rng.choice([0.0, 0.0, 0.4, 1.5])  # px
    corners = box[rng.permutation(4)].astype(np.float64)
    frames = []
    for t, skin in enumerate(other):
        place = t / max(1, len(other)) * 4
        one, two = corners[int(place) % 4], corners[(int(place) + 1) % 4]
        x, y = np.clip(one + (two - one) * (place % 1), 20, (WIDTH - 20, HEIGHT - 20))
        arm = np.zeros_like(scene)
        start = (WIDTH // 2 + int(40 * np.sin(t)), 0)
        cv2.line(arm, start, (int(x), int(y)), (1,), 44)
        frame = np.where(arm > 0, skin, scene)
        shift = np.array([[1, 0, rng.normal(0, shake)], [0, 1, rng.normal(0, shake)]])
        noisy = frame + rng.normal(0, 1.5, frame.shape)
        moved = cv2.warpAffine(noisy, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
        frames.append(np.clip(moved, 0, 255).astype(np.uint8))
    return frames


ONE_VIEW = {
    "bars": bars,
    "plate": plate,
    "hidden patch": hidden_patch,
    "tilted picture": tilted_picture,
    "furniture": furniture,
}


def one_view(rng: np.random.Generator, main: Film, other: Film) -> tuple[str, Film]:
    """One view, with something in it or on it that is no other view."""
    kind = str(rng.choice(list(ONE_VIEW), p=[0.12, 0.28, 0.24, 0.12, 0.24]))
    return kind, ONE_VIEW[kind](rng, main, other)


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
        print(f"{kind:12} {format_rate(decisions[kind])}   {format_range(found)}")
    if args.errors:
        print("\n".join(errors))


if __name__ == "__main__":
    main()
