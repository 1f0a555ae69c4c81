"""Names the colours of an image, and where in the image each one is."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.images import shrink

MIN_SHARE = 0.05  # of the image: a colour that covers less is left out
ANALYSIS_LONG_SIDE_PX = 64  # small enough that areas of colour count, not texture
DARK_L, LIGHT_L = 28.0, 72.0  # CIE L*: below it the name gets `dark`, above it `light`
MIN_SHARE_IN_THIRD = 0.62  # of a colour's pixels: then the third is its position
MIN_SHARE_IN_MIDDLE = 0.55  # the same for the middle quarter of the area

# Examples of each colour name, sRGB. A pixel gets the name of the nearest example in CIE Lab.
EXAMPLES = {
    "black": [(0, 0, 0), (22, 22, 22)],
    "grey": [(60, 60, 60), (95, 95, 95), (130, 130, 130), (165, 165, 165), (200, 200, 200)],
    "white": [(255, 255, 255), (232, 232, 232)],
    "red": [(205, 25, 35), (140, 20, 25), (95, 15, 20)],
    "orange": [(240, 130, 20), (220, 105, 45)],
    "brown": [(70, 45, 28), (110, 70, 40), (145, 100, 62), (125, 85, 65)],
    "beige": [(200, 175, 140), (222, 200, 165), (238, 225, 200)],
    "yellow": [(245, 220, 40), (210, 185, 50), (250, 240, 150)],
    "green": [(25, 110, 40), (90, 165, 60), (55, 75, 38), (115, 135, 75), (160, 205, 120)],
    "turquoise": [(40, 175, 170), (120, 205, 200)],
    "blue": [(25, 50, 150), (60, 120, 200), (135, 180, 225), (28, 38, 75), (185, 215, 240)],
    "purple": [(110, 50, 150), (70, 35, 95), (165, 130, 195)],
    "pink": [(240, 150, 190), (220, 80, 150), (245, 200, 210)],
}
NEVER_TINTED = ("black", "white", "beige", "yellow", "pink", "orange", "turquoise")


@dataclass(frozen=True)
class Colour:
    name: str  # a key of EXAMPLES
    tint: str  # `dark`, `light` or empty
    share: float  # of the image, 0..1
    position: str  # `at the top`, ...; empty where the colour is spread over the image

    @property
    def tinted_name(self) -> str:
        return f"{self.tint} {self.name}".strip()


def name_colours(bgr: np.ndarray) -> tuple[Colour, ...]:
    """Returns the colours of an (h, w, 3) uint8 image, largest first."""
    lab = _to_lab(shrink(bgr, ANALYSIS_LONG_SIDE_PX))
    nearest = np.argmin(np.linalg.norm(lab[:, :, None] - _EXAMPLE_LAB, axis=3), axis=2)
    names = _EXAMPLE_NAME[nearest]
    found = []
    for name in EXAMPLES:
        mask = names == name
        share = float(mask.mean())
        if share >= MIN_SHARE:
            found.append(
                Colour(name, _tint(name, lab[mask][:, 0].mean()), share, name_mask_position(mask))
            )
    return tuple(sorted(found, key=lambda c: (-c.share, c.name)))


def name_mask_position(mask: np.ndarray) -> str:
    """Where most of an (h, w) bool mask is, as `at the top left`; empty where it is spread."""
    total = mask.sum()
    if not total:
        return ""
    rows, columns = mask.sum(axis=1) / total, mask.sum(axis=0) / total
    top, _, bottom = (part.sum() for part in np.array_split(rows, 3))
    left, _, right = (part.sum() for part in np.array_split(columns, 3))
    vertical = _name_of_third(top, bottom, "top", "bottom")
    across = _name_of_third(left, right, "left", "right")
    if vertical or across:
        return f"at the {f'{vertical} {across}'.strip()}"
    if left + right > 0.9 and min(left, right) > 0.3:
        return "at both sides"
    if top + bottom > 0.9 and min(top, bottom) > 0.3:
        return "at the top and the bottom"
    height, width = mask.shape
    inner = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return "in the middle" if inner.sum() / total >= MIN_SHARE_IN_MIDDLE else ""


def _name_of_third(low: float, high: float, low_name: str, high_name: str) -> str:
    if low >= MIN_SHARE_IN_THIRD:
        return low_name
    return high_name if high >= MIN_SHARE_IN_THIRD else ""


def _tint(name: str, lightness: float) -> str:
    if name in NEVER_TINTED:
        return ""
    return "dark" if lightness < DARK_L else "light" if lightness > LIGHT_L else ""


def _to_lab(bgr: np.ndarray) -> np.ndarray:
    """Converts (h, w, 3) uint8 BGR to CIE L*a*b* (D65), L in 0..100."""
    return cv2.cvtColor(bgr.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)


_EXAMPLE_NAME = np.array([name for name, examples in EXAMPLES.items() for _ in examples])
_EXAMPLE_LAB = _to_lab(
    np.array([[rgb[::-1] for examples in EXAMPLES.values() for rgb in examples]], np.uint8)
)[0]
