"""From the decoded to the shown picture: cropped, stretched to square pixels, oriented."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from curation.orientation import Orientation


class Crop(NamedTuple):
    """Decoded pixels outside of the clean aperture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


class Geometry(NamedTuple):
    """Sizes are width and height in px."""

    crop: Crop = Crop()
    pixel_aspect: Fraction = Fraction(1)  # width of a decoded pixel over its height
    orientation: Orientation = Orientation()
    is_single_field: bool = False  # a picture is one field, half as high as a frame

    def cropped_size(self, width: int, height: int) -> tuple[int, int]:
        """Of a decoded picture of this size. A crop that leaves nothing of it does not apply."""
        left, top, right, bottom = self.crop
        if left + right >= width or top + bottom >= height:
            return width, height
        return width - left - right, height - top - bottom

    def square_size(self, width: int, height: int) -> tuple[int, int]:
        """The same with square pixels, before it is oriented: the height stays."""
        width, height = self.cropped_size(width, height)
        if self.pixel_aspect != 1:  # products of fractions are slow
            width = max(1, round(width * self.pixel_aspect))
        return width, height

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Of a decoded picture of this size, as shown."""
        width, height = self.square_size(width, height)
        return (height, width) if self.orientation.swaps_sides else (width, height)

    def cut(self, plane: np.ndarray, width: int, height: int) -> np.ndarray:
        """The part inside of the crop, a view. plane: (h, w) or (h, w, C), of a decoded picture of
        this size; it may be scaled or subsampled."""
        cropped_width, cropped_height = self.cropped_size(width, height)
        if (cropped_width, cropped_height) == (width, height):
            return plane
        y, x = plane.shape[0] / height, plane.shape[1] / width
        lines, columns = max(1, round(cropped_height * y)), max(1, round(cropped_width * x))
        top = min(round(self.crop.top * y), plane.shape[0] - lines)
        left = min(round(self.crop.left * x), plane.shape[1] - columns)
        return plane[top : top + lines, left : left + columns]
