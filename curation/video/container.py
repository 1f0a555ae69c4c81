"""Opens a video safely and says in plain words what is wrong with it.

Files are hostile: only container formats that hold their own pictures are opened, only from the
disk, so a playlist, a concat list or a manifest can't make the reader touch another file or the
network.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from typing import Annotated, NoReturn

import av
from annotated_types import Ge, Gt

from curation.stage import BadVideo
from curation.video import mp4_boxes as boxes
from curation.video.frames import VideoInfo

av.logging.set_level(av.logging.PANIC)
av.logging.set_skip_repeated(False)  # else a line of one file turns up in the log of the next

REDUCED_SIDE = 320  # px, about: the long side of the planes that meters see

# Demuxers whose files hold their own pictures. Not here: playlists and manifests (hls, dash,
# concat, sdp, rtsp), image sequences (image2 reads a name as a pattern), devices, scripts.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,rm,dv,wtv,"
    "h264,hevc,m4v,obu,yuv4mpegpipe"
)
# Containers whose header says how long the video is; the others only guess it from the bit rate.
KNOWS_DURATION = ("mov", "matroska", "avi", "flv", "asf", "mxf")
COVER = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.still_image
)


@dataclass(frozen=True)
class Limits:
    """What a video may cost. A picture or a stream beyond them is refused, not shortened."""

    max_pixels: Annotated[int, Ge(1)] = 8192 * 4608  # of one picture
    max_duration_s: Annotated[float, Gt(0)] = 12 * 3600.0
    max_frames: Annotated[int, Ge(1)] = 12 * 3600 * 60


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class VideoHead:
    """What the header and the first frame say. Width and height are as shown, after rotation."""

    width: int
    height: int
    fps: float  # nominal; time stamps decide
    codec: str
    pix_fmt: str
    rotation: (
        int  # degrees clockwise that the stored picture is turned by for showing: 0, 90, 180, 270
    )
    header_duration_s: float | None  # of the video stream, None where the container doesn't say
    bytes: int
    container: str
    stream_index: int
    sample_aspect: float  # width of a stored pixel over its height; width and height don't count it
    interlaced: bool

    @property
    def reduction(self) -> int:
        """The whole number that planes are divided by for the meters."""
        by = max(1, round(max(self.width, self.height) / REDUCED_SIDE))
        return min(by, self.width, self.height)

    def facts(self) -> VideoInfo:
        """What meters may know."""
        by = self.reduction
        return VideoInfo(self.width, self.height, self.fps, self.width // by, self.height // by)


def check_file(path: str) -> int:
    """The file's size. Only a plain file is opened: a pipe would wait for ever."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            status = os.fstat(f.fileno())
    except FileNotFoundError as error:
        raise BadVideo("no such file") from error
    except PermissionError as error:
        raise BadVideo("permission denied") from error
    except IsADirectoryError as error:
        raise BadVideo("not a file but a folder") from error
    except (OSError, ValueError) as error:
        raise BadVideo(f"can't be opened: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadVideo("not a plain file (a pipe, socket or device)")
    if status.st_size == 0:
        raise BadVideo("empty file (0 bytes)")
    return status.st_size


def open_container(path: str, limits: Limits) -> av.container.InputContainer:
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
        "max_pixels": str(limits.max_pixels),  # for the decoders that look into the first packets
    }
    try:  # `file:` before the name: it is never taken for a URL, an option or a pattern
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise BadVideo(_why_not_opened(path, error)) from error


def _why_not_opened(path: str, error: av.FFmpegError) -> str:
    if isinstance(error, av.error.FileNotFoundError):
        return "no such file"
    if isinstance(error, av.error.PermissionError):
        return "permission denied"
    if isinstance(error, MemoryError):
        return "opening it needs more memory than the limit"
    kind = boxes.what_is(path)
    if kind is not None:
        return f"not a video: {kind}"
    found = boxes.walk(path)
    if found.kinds and found.kinds[0] in boxes.TOP_LEVEL:
        if b"moov" not in found.kinds:
            return "truncated: the index (moov) is missing"
        return "damaged: the index (moov) can't be read"
    return "not a video, or damaged at its start: no known container format"


def choose_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first real video stream that the container marks as default, else the first real one."""
    videos = [s for s in container.streams.video if not s.disposition & COVER]
    if not videos:
        if container.streams.audio:
            also = ", with a cover picture" if container.streams.video else ""
            raise BadVideo(f"no video stream (audio only{also})")
        raise BadVideo("no video stream")
    default = [s for s in videos if s.disposition & av.stream.Disposition.default]
    return (default or videos)[0]


def set_up_decoder(
    stream: av.video.stream.VideoStream, limits: Limits, *, to_measure: bool = False
) -> av.video.codeccontext.VideoCodecContext:
    """to_measure: frames that no other is predicted from are left without the codec's smoothing of
    block edges. Their pictures differ by 47 to 75 dB, the others not at all, and a tenth of the
    time is saved."""
    decoder = stream.codec_context
    if decoder is None:
        raise BadVideo("no decoder for the video's codec")
    check_pixels(decoder.width or 0, decoder.height or 0, limits)
    decoder.thread_count = 1
    decoder.thread_type = "NONE"
    decoder.options = {"max_pixels": str(limits.max_pixels)}  # a stream may grow in the middle
    if to_measure:
        decoder.options |= {"skip_loop_filter": "noref"}
    return decoder


def check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise BadVideo(
            f"picture {width}x{height} is larger than the limit of {limits.max_pixels} pixels"
        )


def refuse_without_frames(path: str, limits: Limits, errors: int) -> NoReturn:
    """Looks once more with FFmpeg's log on: only there it names a size that it refused."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log, open_container(path, limits) as container:
            stream = choose_stream(container)
            decoder = set_up_decoder(stream, limits)
            for packet, _ in zip(container.demux(stream), range(3), strict=False):
                with contextlib.suppress(av.FFmpegError):
                    decoder.decode(packet)
    except av.FFmpegError:
        pass
    finally:
        av.logging.set_level(av.logging.PANIC)
    for _, _, line in log:
        if found := re.match(r"Picture size (\d+)x(\d+) ", line):
            check_pixels(int(found[1]), int(found[2]), limits)
    raise BadVideo(f"no frame could be decoded (damaged packets: {errors})")


def read_head(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    frame: av.VideoFrame,
    size: int,
) -> VideoHead:
    rotation = -90 * round(frame.rotation / 90) % 360  # ffmpeg counts counter-clockwise
    width, height = frame.width, frame.height
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    if rotation in (90, 270):
        width, height, aspect = height, width, 1 / aspect
    rate = stream.average_rate or stream.guessed_rate
    name = container.format.name.split(",")[0]
    return VideoHead(
        width=width,
        height=height,
        fps=float(rate)
        if rate and 0 < rate <= 1000
        else 25.0,  # ffmpeg's own guess for bare streams
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=frame.format.name,
        rotation=rotation,
        header_duration_s=_header_duration_s(container, stream, name),
        bytes=size,
        container=name,
        stream_index=stream.index,
        sample_aspect=aspect,
        interlaced=frame.interlaced_frame,
    )


def _header_duration_s(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, name: str
) -> float | None:
    if name not in KNOWS_DURATION:
        return None
    whole_s = container.duration / 1e6 if container.duration else None
    if stream.duration and stream.time_base:
        own_s = float(stream.duration * stream.time_base)
        return own_s if whole_s is None else min(own_s, whole_s)  # an edit list may show less
    return whole_s


def check_boxes(path: str) -> tuple[float, float] | None:
    """Of an MP4: what its headers claim and its tables hold, s. Raises BadVideo for stray bytes."""
    found = boxes.walk(path)
    if found.outside > max(64 * 1024, 0.01 * found.total):
        raise BadVideo(
            f"damaged: {found.outside} of {found.total} bytes belong to no box of the file "
            f"(from byte {found.readable})"
        )
    return boxes.claimed_and_indexed_s(path)


def check_end(says_s: float, *ends_s: float) -> None:
    """Whether the latest of these ends reaches what the header tells, within a second or 5 %."""
    if says_s - max(ends_s) > max(1.0, 0.05 * says_s):
        raise BadVideo(f"truncated: header says {says_s:.1f} s, frames end at {ends_s[0]:.1f} s")
