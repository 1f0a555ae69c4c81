"""What a random training sequence of small frames is made of: the arrays that `draw.py` fills in
numpy, and that `render.py` turns into frames of 64 x 36 px, Y, Cb and Cr."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEIGHT, WIDTH = 36, 64
# Y, Cb, Cr of the plain pictures, which follow the footage; the first is black, and black is there
# twice so that it is drawn more often
PLAIN = np.array(
    [
        *([0, 128, 128], [0, 128, 128], [16, 128, 128], [255, 128, 128], [235, 128, 128]),
        *([128, 128, 128], [60, 160, 110], [110, 90, 170], [180, 120, 140], [30, 140, 120]),
        *([200, 60, 150], [80, 110, 220], [150, 60, 90], [210, 20, 145], [100, 200, 100]),
        *([40, 128, 128], [225, 110, 140], [70, 90, 90], [160, 160, 160], [120, 60, 200]),
    ],
    np.uint8,
)
WHITE_INDEX = 3  # in PLAIN
BOXES = 4  # plain overlays of a sequence, at most: captions, icons, lamps, passing objects
PATCHES = 2  # overlays of a sequence that show footage, at most: displays, insets, windows, objects
PATTERNS = 64  # random grey pictures that masks, letters and the codec's error are made of
# Kinds of masks between two pictures
UNIFORM, LINE, BLINDS, ROUND, PATTERN, CLOCK, DOORS, RECTANGLE, LUMA = range(9)


@dataclass(frozen=True)
class Shot:
    """A span of the footage, [first, end), that holds no transition."""

    first: int
    end: int
    video: int  # number of the source; -1 for a plain picture


@dataclass
class Plan:
    """A sequence of T frames. Every array but `recording` has one row a frame. Layer b is a second
    picture, used where `share` is above 0."""

    a: np.ndarray  # (T,) the frame of the footage, an index
    b: np.ndarray  # (T,) that of layer b
    cuts: np.ndarray  # (T,) number of hard cuts up to the frame
    gradual: np.ndarray  # (T,) 1 at frames of a gradual transition
    kind: (
        np.ndarray
    )  # (T,) of that transition, an index into the kinds of joins.JOINS; -1 elsewhere
    counted: np.ndarray  # (T, 2) weight of the labels of a cut and of a gradual transition
    share: np.ndarray  # (T,) of layer b in the frame
    # (T, 13) kind, angle (radians), softness, pattern, whether it closes, x and y of its centre,
    # repeats, width of a border between the pictures, Y, Cb, Cr of the border, depth of a shadow
    mask: np.ndarray
    camera_a: np.ndarray  # (T, 4) x, y (widths, heights), log of zoom, angle (radians)
    camera_b: np.ndarray  # (T, 4)
    blur: np.ndarray  # (T, 2) length of the motion blur in x and y (widths, heights)
    # (T, 6) gain, offsets of Y, Cb and Cr, share of the height that is lit, how far the picture is
    # out of focus, 0 to 3
    light: np.ndarray
    # (T, PATCHES, 8) x, y, half width, half height, opacity, is round, frame of the footage,
    # whether it shows the same place of that frame, or the whole of it
    patches: np.ndarray
    # (T, BOXES, 10) x, y, half width, half height, opacity, Y, Cb, Cr, is round, is text
    boxes: np.ndarray
    recording: np.ndarray  # one number for each of RECORDING


RECORDING = (
    "saturation",  # 0: without colour
    "hue",  # radians by which colours turn
    "noise",  # standard deviation, grey levels
    "bars",  # rows of each black bar, above and below
    "mirrored",  # 1: left and right are exchanged
    "flipped",  # 1: above and below are exchanged
    "codec_error",  # of the luma, the same within a group of pictures, grey levels
    "quantizer",  # step of a coarse codec, grey levels; 0: none
    "group_frames",  # frames of a group of pictures
    "gamma",
    "contrast",
    # the part of the frame that shows the shots; its sides have what `surround` names
    "area_x",
    "area_y",
    "area_half_width",
    "area_half_height",
    "surround",
    "surround_y",
    "surround_cb",
    "surround_cr",
    "surround_row",  # frame of the footage
)
# Kinds of surrounds: a colour, the blurred shot, a still frame of the footage
PLAIN_SURROUND, BLURRED_SURROUND, STILL_SURROUND = range(3)
WHOLE_FRAME = (0.5, 0.5, 0.5, 0.5, PLAIN_SURROUND, 0, 128, 128, 0)  # the last of RECORDING


def empty_plan(count: int) -> Plan:
    """A plan of `count` frames that all show the first frame of the footage, unchanged."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((count, *shape), np.float32)

    light = zeros(6)
    light[:, 0], light[:, 4] = 1, 1
    return Plan(
        a=np.zeros(count, np.int64),
        b=np.zeros(count, np.int64),
        cuts=np.zeros(count, np.int64),
        gradual=zeros(),
        kind=np.full(count, -1, np.int64),
        counted=np.ones((count, 2), np.float32),
        share=zeros(),
        mask=zeros(13),
        camera_a=zeros(4),
        camera_b=zeros(4),
        blur=zeros(2),
        light=light,
        patches=zeros(PATCHES, 8),
        boxes=zeros(BOXES, 10),
        recording=np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, *WHOLE_FRAME], np.float32),
    )
