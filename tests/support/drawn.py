"""Draws moving, textured scenes with known motion, and encodes them.

Everything is grey (luma float32 (h, w), 0..255) and depends on the seed alone. 640 x 360 px, so
that the reduced planes are 320 x 180 as those of real videos.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

import av
import cv2
import numpy as np

from curation.video.frames import FrameProcessor, Planes, VideoInfo

WIDTH, HEIGHT = 640, 360
# x, y of the image at the view's centre, px; zoom; rotation in degrees
Camera = tuple[float, float, float, float]
Path = Callable[[float], Camera]


def textured_image(seed: int, width: int = 1600, height: int = 1000) -> np.ndarray:
    """An image with detail at every size: 1/f clouds, shapes with hard edges, fine grain."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 120, np.float32)
    for octave in range(1, 8):
        cloud = rng.normal(0, 1, (2**octave * 5 // 8 + 2, 2**octave + 2)).astype(np.float32)
        image += 28 / octave * cv2.resize(cloud, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        centre = rng.uniform((0, 0), (width, height))
        corners = centre + rng.normal(0, rng.uniform(20, 110), (rng.integers(3, 7), 2))
        shape = np.zeros((height, width), np.uint8)
        cv2.fillPoly(shape, [cv2.convexHull(corners.astype(np.int32))], 1)
        image[shape > 0] = rng.uniform(10, 245) + rng.uniform(0, 0.6) * (image[shape > 0] - 120)
    image += cv2.GaussianBlur(rng.normal(0, 12, image.shape).astype(np.float32), (0, 0), 1.0)
    return np.clip(image, 4, 250)


def view(image: np.ndarray, camera: Camera, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """The view of a camera over a flat image."""
    x, y, zoom, degrees = camera
    to_view = cv2.getRotationMatrix2D((x, y), degrees, zoom)
    to_view[:, 2] += size[0] / 2 - x, size[1] / 2 - y
    # Area filtering where the image shrinks, so that detail does not flicker.
    soft = cv2.GaussianBlur(image, (0, 0), 0.45 / zoom) if zoom < 0.8 else image
    return cv2.warpAffine(soft, to_view, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def rotated_view(
    image: np.ndarray, pan: float, tilt: float, roll: float, field: float
) -> np.ndarray:
    """The view of a rotating camera on a distant scene: a homography.

    Angles in degrees; field: the width of its view.
    """
    focal = WIDTH / 2 / np.tan(np.radians(field / 2))
    lens = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    centre = np.array([[focal, 0, image.shape[1] / 2], [0, focal, image.shape[0] / 2], [0, 0, 1]])
    turn = (
        cv2.Rodrigues(np.radians([tilt, pan, 0.0]))[0] @ cv2.Rodrigues(np.radians([0, 0, roll]))[0]
    )
    to_view = lens @ turn.T @ np.linalg.inv(centre)
    return cv2.warpPerspective(
        image, to_view, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


def cutout(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured object and its soft mask, both (side, side): mask 0..1."""
    rng = np.random.default_rng(seed)
    texture = textured_image(seed + 7919, 2 * side, 2 * side)[:side, :side] * 0.8 + rng.uniform(
        -20, 70
    )
    mask = np.zeros((side, side), np.float32)
    corners = side / 2 + rng.normal(0, side / 5, (9, 2))
    cv2.fillPoly(mask, [cv2.convexHull(np.clip(corners, 3, side - 4).astype(np.int32))], 1.0)
    return np.clip(texture, 0, 255), cv2.GaussianBlur(mask, (0, 0), 0.8)


def paste(
    frame: np.ndarray, cut: tuple[np.ndarray, np.ndarray], x: float, y: float, scale: float = 1
) -> None:
    """Draws a cutout into the frame, its centre at x, y, to fractions of a pixel."""
    texture, mask = cut
    side = texture.shape[0]
    move = np.array([[scale, 0, x - scale * side / 2], [0, scale, y - scale * side / 2]])
    size = (frame.shape[1], frame.shape[0])
    cover = cv2.warpAffine(mask, move, size)
    frame += cover * (cv2.warpAffine(texture, move, size, borderMode=cv2.BORDER_REPLICATE) - frame)


def shake(seed: int, amplitude_px: float) -> Callable[[float], np.ndarray]:
    """The motion of a handheld camera: (x, y) px at t, sums of sines of 0.3 to 6 Hz."""
    rng = np.random.default_rng(seed)
    frequency, phase = rng.uniform(0.3, 6, (6, 1)), rng.uniform(0, 6.28, (6, 2))
    strength = amplitude_px / np.sqrt(frequency) / 2
    return lambda t: (strength * np.sin(2 * np.pi * frequency * t + phase)).sum(axis=0)


def noisy(frames: Iterable[np.ndarray], sigma: float, seed: int = 0) -> Iterator[np.ndarray]:
    """(h, w) uint8 with sensor noise, other noise in every frame."""
    rng = np.random.default_rng(seed)
    for frame in frames:
        grain = rng.normal(0, sigma, frame.shape) if sigma else 0.0
        yield np.clip(frame + grain + 0.5, 0, 255).astype(np.uint8)


def times(seconds: float, fps: float = 25.0) -> np.ndarray:
    return np.arange(round(seconds * fps)) / fps


def encoded(
    frames: Iterable[np.ndarray], fps: int = 25, crf: int = 23, preset: str = "veryfast"
) -> bytes:
    """uint8 frames (h, w) as an mp4 in H.264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.height, stream.width = frame.shape
                stream.pix_fmt, stream.thread_count = "yuv420p", 1
                stream.options = {"crf": str(crf), "preset": preset}
            video_frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
            container.mux(stream.encode(video_frame))
        assert stream is not None, "no frames to encode"
        container.mux(stream.encode())
    return file.getvalue()


_FULL_RANGE = np.clip((np.arange(256) - 16) * (255 / 219) + 0.5, 0, 255).astype(np.uint8)


def decoded(source: bytes | str) -> Iterator[tuple[float, Planes]]:
    """Seconds from the first frame, and reduced full-range planes, of 8 bit 4:2:0 video."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        first = None
        for frame in container.decode(stream):
            assert frame.pts is not None
            first = frame.pts if first is None else first
            y = _plane(frame.reformat(format="yuv420p").planes[0])
            if frame.color_range != 2:
                y = _FULL_RANGE[y]
            by = max(1, round(max(y.shape) / 320))
            yield (
                float((frame.pts - first) * stream.time_base),
                Planes(_reduced(y, by)),
            )


def _plane(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[
        : plane.height, : plane.width
    ]


def _reduced(plane: np.ndarray, by: int) -> np.ndarray:
    size = (plane.shape[1] // by, plane.shape[0] // by)
    return cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_AREA)


def planes(
    frames: Iterable[np.ndarray], fps: float = 25.0, by: int = 2
) -> Iterator[tuple[float, Planes]]:
    """Time and reduced planes of frames that were not encoded."""
    for number, frame in enumerate(frames):
        yield number / fps, Planes(_reduced(frame, by))


def feed(
    meters: Iterable[FrameProcessor], frames: Iterable[tuple[float, Planes]], fps: float = 25.0
) -> float:
    """Gives a whole video to the meters; returns the time of its last frame, s."""
    started, t_s, meters = False, 0.0, list(meters)
    for t_s, frame in frames:
        if not started:
            height, width = frame.y.shape
            for meter in meters:
                meter.start(VideoInfo(2 * width, 2 * height, fps, width, height))
            started = True
        for meter in meters:
            meter.process_frame(t_s, frame)
    return t_s


def graphic(kind: str, seed: int) -> np.ndarray:
    """(HEIGHT, WIDTH) float32, 0..1: where a logo (`text`, `disc`) or a plate (`box`) lies."""
    rng = np.random.default_rng(seed)
    area = np.zeros((HEIGHT, WIDTH), np.uint8)
    if kind == "text":
        place = (int(rng.uniform(30, 330)), int(rng.choice([50, 330])))
        cv2.putText(
            area,
            "CHANNEL 5",
            place,
            cv2.FONT_HERSHEY_DUPLEX,
            rng.uniform(1.0, 1.5),
            255,
            2,
            cv2.LINE_AA,
        )
    elif kind == "disc":
        centre = (int(rng.choice([60, 570])), int(rng.choice([60, 300])))
        cv2.circle(area, centre, 32, 255, -1, cv2.LINE_AA)
        cv2.circle(area, centre, 16, 0, -1, cv2.LINE_AA)
    elif kind == "box":
        cv2.rectangle(area, (40, 290), (300, 335), 255, -1)
    else:
        raise ValueError(f"a graphic is text, disc or box, not {kind!r}")
    return area / np.float32(255)
