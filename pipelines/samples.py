"""Draws sample videos, the input of `make curate` where no other is given.

    python -m pipelines.samples out/samples

Ten small files that show what curation does: two takes to keep; and a cut, a dissolve, slides, a
zoom over a still image, a copy, a short take, a small picture and a broken file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from curation.atomic import atomic_path
from curation.cli import Arguments, NoSettings, run_command
from curation.stage import OutputError

WIDTH, HEIGHT, FPS = 1280, 720, 24
RISE_PX = 40  # by which the ground rises and falls

Frames = Iterator[np.ndarray]  # (HEIGHT, WIDTH, 3) uint8 BGR each


def noise_texture(
    rng: np.random.Generator, height: int, width: int, octaves: int = 8
) -> np.ndarray:
    """Smooth noise of several scales, 0..1, (height, width) float32."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 2 ** (octave + 2)
        grid = rng.random((cells * height // width + 2, cells + 1), np.float32)
        layer = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += np.asarray(layer / 1.35**octave, np.float32)
    return (total - total.min()) / np.ptp(total)


def tinted(texture: np.ndarray, dark: tuple, light: tuple) -> np.ndarray:
    """A texture between two BGR colours."""
    a, b = np.array(dark, np.float32), np.array(light, np.float32)
    return (a + (b - a) * texture[..., None]).astype(np.uint8)


@dataclass
class Scene:
    """Hills under a sky, a ground in front, discs that move on it; camera and light change too."""

    seed: int
    camera: Callable[[float], float]  # seconds -> position of the view to the right, px
    light: Callable[[float], float]  # seconds -> factor of the brightness
    sky: tuple = ((205, 160, 110), (240, 215, 190))
    hills: tuple = ((50, 80, 60), (110, 160, 130))
    ground: tuple = ((40, 70, 95), (110, 150, 185))
    discs: int = 3

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        wide = WIDTH * 2
        ramp = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None] * np.ones((1, wide), np.float32)
        clouds = 0.7 * ramp + 0.3 * noise_texture(rng, HEIGHT, wide)
        far = tinted(clouds, *self.sky)
        skyline = 260 + 120 * noise_texture(rng, 4, wide, 6)[0]
        rows = np.arange(HEIGHT)[:, None]
        hills = tinted(noise_texture(rng, HEIGHT, wide), *self.hills)
        self._far = np.where((rows > skyline)[..., None], hills, far)
        self._near = tinted(noise_texture(rng, 260, wide * 2, 9), *self.ground)
        # a straight edge across the picture would look like the border of two views
        rise = noise_texture(np.random.default_rng(self.seed + 100), 4, wide * 2, 7)[0]
        is_ground = np.arange(RISE_PX)[:, None] > RISE_PX * (1 - rise)
        self._rise = is_ground.astype(np.uint8) * 255
        self._noise = rng.normal(128, 2.5, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.uint8)
        self._discs = [_Disc.random(rng) for _ in range(self.discs)]
        self._rng = rng

    def frames(self, seconds: float, from_s: float = 0.0) -> Frames:
        for number in range(round(seconds * FPS)):
            yield self.at(from_s + number / FPS)

    def at(self, t_s: float) -> np.ndarray:
        picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        shift = self.camera(t_s) + WIDTH / 2
        picture[:460] = _crop(self._far, shift * 0.4, 0, 460)
        picture[460:] = near = _crop(self._near, shift, 0, 260)
        rises = _crop(self._rise, shift, 0, RISE_PX)[..., None] > 127
        np.copyto(picture[460 - RISE_PX : 460], near[RISE_PX - 1 :: -1], where=rises)
        for disc in self._discs:
            disc.paint(picture, t_s, self.camera(t_s))
        row, column = self._rng.integers(64, size=2)
        grain = self._noise[row : row + HEIGHT, column : column + WIDTH]
        return cv2.addWeighted(picture, self.light(t_s), grain, 1, -128)


@dataclass
class _Disc:
    """A textured disc on the ground that moves back and forth."""

    texture: np.ndarray
    radius: int  # px
    centre: float  # of the motion, px
    amplitude: float  # px
    period_s: float
    phase: float  # radians
    floor: int  # row of its lowest point, px

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Disc:
        radius = int(rng.integers(45, 95))
        hue = int(rng.integers(180))
        bright = cv2.cvtColor(np.full((1, 1, 3), (hue, 210, 235), np.uint8), cv2.COLOR_HSV2BGR)[
            0, 0
        ]
        noise = noise_texture(rng, 2 * radius, 2 * radius, 4)
        return cls(
            tinted(noise, tuple(bright * 0.45), tuple(bright)),
            radius,
            centre=rng.uniform(300, 980),
            amplitude=rng.uniform(180, 420),
            period_s=rng.uniform(6, 11),
            phase=rng.uniform(0, 6.28),
            floor=int(rng.integers(520, 680)),
        )

    def paint(self, picture: np.ndarray, t_s: float, camera: float) -> None:
        turn = 6.2832 * t_s / self.period_s + self.phase
        x = int(self.centre + self.amplitude * np.sin(turn) - camera) % (WIDTH + 400) - 200
        y = int(self.floor - self.radius - abs(np.sin(2 * turn)) * 40)
        left, top = max(0, x - self.radius), max(0, y - self.radius)
        right, bottom = min(WIDTH, x + self.radius), min(HEIGHT, y + self.radius)
        if right <= left or bottom <= top:
            return
        angle = np.degrees(self.amplitude * np.sin(turn) / self.radius)
        spin = cv2.getRotationMatrix2D((self.radius, self.radius), -angle, 1)
        texture = cv2.warpAffine(
            self.texture, spin, self.texture.shape[1::-1], borderMode=cv2.BORDER_REFLECT
        )
        disc = np.zeros(texture.shape[:2], np.uint8)
        cv2.circle(disc, (self.radius, self.radius), self.radius - 2, 255, -1, cv2.LINE_AA)
        inside = (
            slice(top - y + self.radius, bottom - y + self.radius),
            slice(left - x + self.radius, right - x + self.radius),
        )
        texture, share = texture[inside], disc[inside][..., None] / np.float32(255)
        place = picture[top:bottom, left:right]
        place[:] = place * (1 - share) + texture * share


def _crop(layer: np.ndarray, left: float, top: int, height: int) -> np.ndarray:
    """WIDTH x height px of a layer that repeats; `left` may lie between pixels."""
    left %= layer.shape[1] - WIDTH - 1
    whole, fraction = int(left), left - int(left)
    a = layer[top : top + height, whole : whole + WIDTH]
    b = layer[top : top + height, whole + 1 : whole + 1 + WIDTH]
    return cv2.addWeighted(a, 1 - fraction, b, fraction, 0)


def slides(seconds: float) -> Frames:
    lines = ["Long takes", "one scene", "rich in content", "five captions", "no cut"]
    for number in range(round(seconds * FPS)):
        page = np.full((HEIGHT, WIDTH, 3), 28, np.uint8)
        for row in range(1 + int(number / FPS) % len(lines)):
            cv2.putText(
                page, lines[row], (120, 150 + 120 * row), cv2.FONT_HERSHEY_DUPLEX, 3, (240,) * 3, 5
            )
        yield page


def zoom_over_still(scene: Scene, seconds: float) -> Frames:
    still = scene.at(0)
    for number in range(round(seconds * FPS)):
        scale = 1 + 0.25 * number / (seconds * FPS)
        matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 0, scale)
        yield cv2.warpAffine(still, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)


def dissolve(a: Scene, b: Scene, seconds: float) -> Frames:
    """a, then b from the middle on, with a dissolve of a second."""
    for number in range(round(seconds * FPS)):
        t_s = number / FPS
        share = np.clip(t_s - seconds / 2 + 0.5, 0, 1)
        if share <= 0 or share >= 1:
            yield (a if share <= 0 else b).at(t_s)
        else:
            yield cv2.addWeighted(a.at(t_s), 1 - share, b.at(t_s), share, 0)


def encode(frames: Frames, path: Path, width: int = WIDTH, crf: int = 20) -> None:
    """H.264 in mp4, a key frame every two seconds."""
    height = HEIGHT * width // WIDTH
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "ultrafast", "g": str(2 * FPS)}
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(frames):
            if width != WIDTH:
                picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(picture, "bgr24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def steady_scene() -> Scene:
    return Scene(1, camera=lambda t: 0.0, light=lambda t: 1.0)


def dusk_scene() -> Scene:
    return Scene(
        2,
        camera=lambda t: 60 * t if t < 16 else 960 - 45 * (t - 16),
        light=lambda t: 1.05 - 0.02 * t,
        sky=((150, 110, 200), (170, 190, 250)),
    )


def draw(folder: Path) -> None:
    """Draws all samples whose files do not exist."""
    steady, dusk = steady_scene(), dusk_scene()
    winter = Scene(
        3,
        camera=lambda t: 50 * np.sin(t / 3),
        light=lambda t: 0.85 + 0.15 * np.cos(t / 5),
        hills=((150, 140, 130), (225, 225, 220)),
        ground=((170, 165, 160), (240, 238, 235)),
        discs=4,
    )
    plans: dict[str, Callable[[Path], None]] = {
        "take_dusk_pan.mp4": lambda p: encode(dusk.frames(31), p),
        "take_steady_camera.mp4": lambda p: encode(steady.frames(16), p),
        "two_takes_one_cut.mp4": lambda p: encode(_joined(winter, steady), p),
        "dissolve.mp4": lambda p: encode(dissolve(steady, winter, 12), p),
        "slides.mp4": lambda p: encode(slides(16), p),
        "zoom_over_a_still.mp4": lambda p: encode(zoom_over_still(dusk, 16), p),
        "short.mp4": lambda p: encode(winter.frames(6), p),
        "copy_at_lower_quality.mp4": lambda p: encode(steady.frames(16), p, crf=30),
        "small_picture.mp4": lambda p: encode(winter.frames(16), p, width=640),
        "broken.mp4": _write_broken,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in plans.items():
        target = folder / name
        if not target.exists():
            with atomic_path(target) as part:
                make(part)
            print(f"drew {target}", flush=True)


def _write_broken(path: Path) -> None:
    """An MP4 that ends after its first box."""
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))


def _joined(a: Scene, b: Scene) -> Frames:
    yield from a.frames(17)
    yield from b.frames(8, from_s=40)


def work(given: Arguments[NoSettings]) -> None:
    [folder] = given.values
    try:
        draw(Path(folder))
    except OSError as error:
        raise OutputError(f"can't write the samples to {folder}: {error.strerror}") from None


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, work, argv, arguments="FOLDER")


if __name__ == "__main__":
    main(sys.argv[1:])
