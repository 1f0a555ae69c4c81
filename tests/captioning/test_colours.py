import numpy as np
import pytest

from stages.captioning.colours import name_colours


def picture(*areas: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """Grey (128), 180 x 320, with areas painted in sRGB."""
    bgr = np.full((180, 320, 3), 128, np.uint8)
    for rows, columns, rgb in areas:
        bgr[rows, columns] = rgb[::-1]
    return bgr


ALL, TOP, BOTTOM, LEFT = slice(None), slice(0, 60), slice(120, 180), slice(0, 107)


@pytest.mark.parametrize(
    ("rgb", "words"),
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
def test_a_plain_colour_has_the_name_that_a_person_gives_it(rgb, words):
    (colour,) = name_colours(picture((ALL, ALL, rgb)))
    assert (colour.words, colour.share) == (words, 1.0)


def test_colours_are_told_with_their_places_largest_first():
    found = name_colours(picture((TOP, ALL, (135, 185, 230)), (BOTTOM, LEFT, (30, 120, 40))))
    assert [(c.words, c.place) for c in found] == [
        ("grey", ""),
        ("light blue", "at the top"),
        ("green", "at the bottom left"),
    ]


def test_bars_on_both_sides_are_one_place():
    sides = [(ALL, slice(0, 80), (0, 0, 0)), (ALL, slice(240, 320), (0, 0, 0))]
    assert {c.name: c.place for c in name_colours(picture(*sides))}["black"] == "at both sides"


def test_a_speck_of_colour_is_not_named():
    assert len(name_colours(picture((slice(0, 20), slice(0, 20), (255, 0, 0))))) == 1


def test_one_pixel_is_a_picture():
    assert name_colours(np.zeros((1, 1, 3), np.uint8))[0].name == "black"
