import numpy as np
import pytest

from stages.captioning.colours import name_colours


def image(*areas: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """Grey (128), 180 x 320, with areas painted in sRGB."""
    bgr = np.full((180, 320, 3), 128, np.uint8)
    for rows, columns, rgb in areas:
        bgr[rows, columns] = rgb[::-1]
    return bgr


ALL, TOP, BOTTOM, LEFT = slice(None), slice(0, 60), slice(120, 180), slice(0, 107)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((50, 50, 50), "dark grey"),
        ((220, 10, 20), "red"),
        ((250, 140, 0), "orange"),
        ((110, 70, 40), "brown"),
        ((70, 45, 25), "dark brown"),
        ((230, 212, 180), "beige"),
        ((255, 230, 0), "yellow"),
        ((34, 139, 34), "green"),
        ((0, 60, 0), "dark green"),
        ((64, 200, 200), "turquoise"),
        ((20, 60, 190), "blue"),
        ((170, 205, 235), "light blue"),
        ((128, 0, 160), "purple"),
        ((255, 150, 190), "pink"),
    ],
)
def test_plain_colour_gets_its_common_name(rgb, name):
    (colour,) = name_colours(image((ALL, ALL, rgb)))
    assert (colour.tinted_name, colour.share) == (name, 1.0)


def test_colours_are_listed_largest_first_with_their_positions():
    found = name_colours(image((TOP, ALL, (135, 185, 230)), (BOTTOM, LEFT, (30, 120, 40))))
    assert [(c.tinted_name, c.position) for c in found] == [
        ("grey", ""),
        ("light blue", "at the top"),
        ("green", "at the bottom left"),
    ]


def test_bars_on_both_sides_are_one_colour_at_both_sides():
    sides = [(ALL, slice(0, 80), (0, 0, 0)), (ALL, slice(240, 320), (0, 0, 0))]
    assert {c.name: c.position for c in name_colours(image(*sides))}["black"] == "at both sides"


def test_small_area_of_colour_is_not_named():
    assert len(name_colours(image((slice(0, 20), slice(0, 20), (255, 0, 0))))) == 1


def test_image_of_one_pixel_has_a_colour():
    assert name_colours(np.zeros((1, 1, 3), np.uint8))[0].name == "black"
