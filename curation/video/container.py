"""Opens a video file safely, and names in plain words what is wrong with it.

Files are hostile: only container formats that hold their own frames are opened, only from the disk,
so that a playlist, a concat list or a manifest cannot make the reader open another file or the
network.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, NoReturn

import av
from annotated_types import Ge, Gt

from curation.orientation import read_orientation
from curation.stage import BadVideo
from curation.video import ebml, mp4_boxes
from curation.video.frames import VideoInfo
from curation.video.geometry import Crop, Geometry
from curation.video.source import Source

# A decoder's errors reach `av.logging.Capture` of the same thread, or nobody.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)  # else a line about one file appears in the log of the next
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False

REDUCED_SIDE_PX = 320  # about, of the long side of the planes that meters get

# Demuxers whose files hold their own frames. Not here: playlists and manifests (hls, dash, concat,
# sdp, rtsp), image sequences (image2 reads a name as a pattern), devices, scripts.
ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,rm,dv,wtv,"
    "h264,hevc,m4v,obu,yuv4mpegpipe"
)
# Containers whose header has the duration; FFmpeg guesses that of the others from the bit rate.
FORMATS_WITH_DURATION = ("mov", "matroska", "avi", "flv", "asf", "mxf")
COVER_IMAGE = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.still_image
)
DEFAULT_FPS = 25.0  # FFmpeg's own for streams without a container
# Of a sparse file. Zeros between the frames of a good file may be holes after it was copied.
MAX_HOLE_BYTES, MAX_HOLES_SHARE = 1 << 30, 0.5
MAX_EXTENTS = 10_000  # of a sparse file that are counted
# FFmpeg's names of the numbers of ISO 23091-2
TRANSFERS = {
    **{1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear"},
    **{9: "log100", 10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1"},
    **{14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67"},
}
MAX_PIXEL_ASPECT = Fraction(8)  # and its inverse
NEARLY_SQUARE = Fraction(1, 200)  # muxers round: 1.78 for 16:9
FORMATS_WITH_ASPECT = ("mov", "matroska")  # it counts before the codec's, of all frames
MAX_DELAYED_FRAMES = 64  # between a packet and its frame; decoders delay at most half as many
MAX_BYTES_OUTSIDE_BOXES = 64 * 1024
MAX_SHARE_OUTSIDE_BOXES = 0.01
MAX_MISSING_S, MAX_MISSING_SHARE = 1.0, 0.05  # of the header's duration, else it is truncated


@dataclass(frozen=True)
class Limits:
    """What a video may cost. A frame or a stream beyond them is refused, not shortened."""

    max_pixels: Annotated[int, Ge(1)] = 8192 * 4608  # of one frame
    max_duration_s: Annotated[float, Gt(0)] = 12 * 3600.0
    max_frames: Annotated[int, Ge(1)] = 12 * 3600 * 60


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class VideoHeader:
    """Properties from the header and the first frame. Width and height are as shown."""

    width: int
    height: int
    header_fps: float | None  # mean or nominal; None where the container has none
    codec: str
    pix_fmt: str
    geometry: Geometry  # from the decoded to the shown picture
    header_duration_s: float | None  # of the video stream; None where the container has none
    container: str
    stream_index: int
    interlaced: bool  # of the first frame
    transfer: str

    @property
    def fps(self) -> float:
        """Nominal; the frames' own times decide."""
        return self.header_fps or DEFAULT_FPS

    @property
    def reduction(self) -> int:
        """The whole number that planes are divided by for the meters."""
        by = max(1, round(max(self.width, self.height) / REDUCED_SIDE_PX))
        return min(by, self.width, self.height)

    def info(self) -> VideoInfo:
        by = self.reduction
        return VideoInfo(self.width, self.height, self.fps, self.width // by, self.height // by)


def check_file(path: str) -> int:
    """Returns the file's size, without reading it: a pipe or a file of the kernel could block for
    ever, a sparse file could be endless. Opening a device may have an effect on it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise BadVideo("not a plain file (a pipe, socket or device)")
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            status = os.fstat(f.fileno())
            holes = _hole_bytes(f.fileno(), status.st_size)
    except FileNotFoundError as error:
        raise BadVideo("no such file") from error
    except PermissionError as error:
        raise BadVideo("permission denied") from error
    except IsADirectoryError as error:
        raise BadVideo("not a file but a folder") from error
    except (OSError, ValueError) as error:
        raise BadVideo(f"can't be opened: {error}") from error
    if not stat.S_ISREG(status.st_mode):  # replaced meanwhile
        raise BadVideo("not a plain file (a pipe, socket or device)")
    if status.st_size == 0:
        raise BadVideo("empty file (0 bytes)")
    if status.st_dev in _kernel_file_systems():
        raise BadVideo("a file of the operating system's kernel")
    if holes > max(MAX_HOLE_BYTES, MAX_HOLES_SHARE * status.st_size):
        raise BadVideo(f"not complete: {holes} of {status.st_size} bytes were never written")
    return status.st_size


def _hole_bytes(descriptor: int, size: int) -> int:
    """The bytes of a sparse file that no block of the disk holds; 0 where it can't be found out."""
    holes = at = 0
    for _ in range(MAX_EXTENTS):
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            holes += start - at
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:  # ENXIO: there is no data after `at`
            return holes + (size - at if error.errno == errno.ENXIO else 0)
    return holes


def _kernel_file_systems() -> set[int]:
    """Device numbers; their files have sizes that are not those of their content."""
    return {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.exists(path)}


def open_container(
    path: Source, limits: Limits, *, header_only: bool = False
) -> av.container.InputContainer:
    """header_only: FFmpeg reads a stream's properties from one packet, without decoding it where
    the decoder can, instead of from several. How many frames are reordered may then be unknown."""
    options = {"skip_frame": "all", "probesize": "32"} if header_only else {}
    options |= {
        "format_whitelist": ALLOWED_FORMATS,
        "protocol_whitelist": "file",
        "max_pixels": str(limits.max_pixels),  # for the decoders that probe the first packets
    }
    # `file:` before the name, so that it is never taken for a URL, an option or a pattern
    file: Any = f"file:{path}" if isinstance(path, str) else path.view()
    try:
        return av.open(file, "r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise BadVideo(_open_failure_reason(path, error)) from error


def _open_failure_reason(path: Source, error: av.FFmpegError) -> str:
    if isinstance(error, av.error.FileNotFoundError):
        return "no such file"
    if isinstance(error, av.error.PermissionError):
        return "permission denied"
    if isinstance(error, MemoryError):
        return "opening it needs more memory than the limit"
    kind = mp4_boxes.identify_other_file(path)
    if kind is not None:
        return f"not a video: {kind}"
    boxes = mp4_boxes.read_top_level(path)
    if boxes.kinds and boxes.kinds[0] in mp4_boxes.TOP_LEVEL:
        if b"moov" not in boxes.kinds:
            return "truncated: the index (moov) is missing"
        return "damaged: the index (moov) can't be read"
    return "not a video, or damaged at its start: no known container format"


def choose_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first video stream that the container marks as default, else the first one. A cover image
    is none."""
    videos = [s for s in container.streams.video if not s.disposition & COVER_IMAGE]
    if not videos:
        if container.streams.audio:
            also = ", with a cover picture" if container.streams.video else ""
            raise BadVideo(f"no video stream (audio only{also})")
        raise BadVideo("no video stream")
    default = [s for s in videos if s.disposition & av.stream.Disposition.default]
    return (default or videos)[0]


def set_up_decoder(
    stream: av.video.stream.VideoStream, limits: Limits, *, skip_loop_filter: bool = False
) -> av.video.codeccontext.VideoCodecContext:
    """skip_loop_filter: on non-reference frames. They differ by 47 to 75 dB, the other frames not
    at all, and a tenth of the time is saved: enough for measuring, not for cutting."""
    decoder = stream.codec_context
    if decoder is None:
        raise BadVideo("no decoder for the video's codec")
    check_pixels(decoder.width or 0, decoder.height or 0, limits)
    decoder.thread_count = 1
    decoder.thread_type = "NONE"
    decoder.options = {"max_pixels": str(limits.max_pixels)}  # a stream may grow midway
    if skip_loop_filter:
        decoder.options |= {"skip_loop_filter": "noref"}
    return decoder


def check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise BadVideo(
            f"picture {width}x{height} is larger than the limit of {limits.max_pixels} pixels"
        )


def raise_without_frames(path: Source, limits: Limits, errors: int) -> NoReturn:
    """Decodes again with FFmpeg's log, which alone has the size of a frame that it refused."""
    try:
        with av.logging.Capture() as log, open_container(path, limits) as container:
            stream = choose_stream(container)
            decoder = set_up_decoder(stream, limits)
            for packet, _ in zip(container.demux(stream), range(3), strict=False):
                with contextlib.suppress(av.FFmpegError):
                    decoder.decode(packet)
    except av.FFmpegError:
        pass
    for _, _, line in log:
        if found := re.match(r"Picture size (\d+)x(\d+) ", line):
            check_pixels(int(found[1]), int(found[2]), limits)
    raise BadVideo(f"no frame could be decoded (damaged packets: {errors})")


def read_header(
    path: Source,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    frame: av.VideoFrame,
    pixel_aspect: Fraction,
) -> VideoHeader:
    """frame: the first one, or one whose size and pixel aspect the header is to have."""
    geometry = Geometry(
        _read_crop(path, container, stream, frame),
        pixel_aspect,
        read_orientation(frame),
        is_single_field(stream.codec_context, frame),
    )
    width, height = geometry.shown_size(frame.width, frame.height)
    rate = stream.average_rate or stream.guessed_rate
    name = container.format.name.split(",")[0]
    return VideoHeader(
        width=width,
        height=height,
        # 1000 is Matroska's clock, which FFmpeg gives where a file has no rate
        header_fps=float(rate) if rate and 0 < rate < 1000 else None,
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=frame.format.name,
        geometry=geometry,
        header_duration_s=_header_duration_s(container, stream, name),
        container=name,
        stream_index=stream.index,
        interlaced=frame.interlaced_frame,
        transfer=TRANSFERS.get(frame.color_trc, "unknown"),
    )


def read_pixel_aspect(stream: av.video.stream.VideoStream) -> Fraction:
    """Width of a decoded pixel over its height. The container's counts before the codec's."""
    return _plausible_aspect(stream.sample_aspect_ratio)


def _plausible_aspect(aspect: Fraction | None) -> Fraction:
    """Square pixels where it is within NEARLY_SQUARE of them, or is too far from them to be
    meant."""
    if aspect is None or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return Fraction(1)
    return aspect if abs(aspect - 1) > NEARLY_SQUARE else Fraction(1)


def is_single_field(decoder: av.video.codeccontext.VideoCodecContext, frame: av.VideoFrame) -> bool:
    """Whether the frame is one field of half the height: FFmpeg returns those of HEVC one by one,
    and those of other codecs in pairs."""
    return frame.interlaced_frame and decoder.codec.canonical_name == "hevc"


class PixelAspects:
    """The pixel aspect of each frame: a stream may change it midway.

    PyAV does not expose that of a frame, only the decoder's, which is that of the last packet.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> None:
        """Before the first packet is decoded."""
        self._decoder = stream.codec_context
        self._first = self._last = read_pixel_aspect(stream)
        self._of_decoder = self._decoder.sample_aspect_ratio
        self._is_fixed = container.format.name.startswith(FORMATS_WITH_ASPECT)
        self._by_stamp: dict[int | None, Fraction] = {}

    def add(self, packet: av.Packet) -> None:
        """After the packet was decoded."""
        if self._is_fixed:
            return
        found = self._decoder.sample_aspect_ratio
        self._last = self._first if found == self._of_decoder else _plausible_aspect(found)
        self._by_stamp[packet.pts] = self._last
        if len(self._by_stamp) > MAX_DELAYED_FRAMES:
            del self._by_stamp[next(iter(self._by_stamp))]

    def of(self, frame: av.VideoFrame) -> Fraction:
        """Of one of the last frames that were decoded."""
        aspect = self._by_stamp.get(frame.pts, self._last)
        return aspect / 2 if is_single_field(self._decoder, frame) else aspect


def _read_crop(
    path: Source,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    frame: av.VideoFrame,
) -> Crop:
    """PyAV does not expose it."""
    if container.format.name.startswith("mov"):
        return mp4_boxes.read_crop(path, stream.id, frame.width, frame.height)
    if container.format.name.startswith("matroska"):
        crops, number = ebml.read_crops(path), container.streams.video.index(stream)
        return crops[number] if number < len(crops) else Crop()
    return Crop()


def _header_duration_s(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, name: str
) -> float | None:
    if name not in FORMATS_WITH_DURATION:
        return None
    whole_s = container.duration / 1e6 if container.duration else None
    if stream.duration and stream.time_base:
        stream_s = float(stream.duration * stream.time_base)
        return stream_s if whole_s is None else min(stream_s, whole_s)  # an edit list may cut it
    return whole_s


def check_boxes(path: Source) -> tuple[float, float] | None:
    """Of an MP4: `mp4_boxes.header_and_index_durations`. Raises BadVideo for stray bytes."""
    boxes = mp4_boxes.read_top_level(path)
    limit = max(MAX_BYTES_OUTSIDE_BOXES, MAX_SHARE_OUTSIDE_BOXES * boxes.total)
    if boxes.outside > limit:
        raise BadVideo(
            f"damaged: {boxes.outside} of {boxes.total} bytes belong to no box of the file "
            f"(from byte {boxes.readable})"
        )
    return mp4_boxes.header_and_index_durations(path)


def check_end(header_s: float, *ends_s: float) -> None:
    """Raises BadVideo where the latest of these ends is much earlier than the header's duration."""
    if header_s - max(ends_s) > max(MAX_MISSING_S, MAX_MISSING_SHARE * header_s):
        raise BadVideo(f"truncated: header says {header_s:.1f} s, frames end at {ends_s[0]:.1f} s")
