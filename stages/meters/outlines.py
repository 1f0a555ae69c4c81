"""Finds views inside a picture: insets, by their straight sides."""

from __future__ import annotations

import cv2
import numpy as np

MIN_PICTURE_PX = 48  # a smaller picture has no outlines to examine
MAX_BAR_SPREAD = 4.0  # grey levels, along a row or column of a bar and over time
MIN_CHANGE_LEVELS = 6.0  # between samples: motion
# Share of the samples in which a pixel moves, to count as moving
MIN_INNER_MOTION = 0.3  # in a view
MIN_OUTLINE_MOTION = 0.5  # next to an outline
ASPECTS = (0.33, 4.0)  # width by height of a view: banners are wider
# Rectangles
NUM_LINES = 16  # examined per direction
NUM_RECTANGLES = 12  # examined
MIN_JUMP_LEVELS = 6  # grey levels across an edge, and 1.5 times the differences next to it
MIN_EDGE_SHARE = 0.3  # of a part of a line, over all samples
MARGIN_PX = 6  # lines so near to the picture's edge are not examined
MIN_SIDE_PX = 16
SIDE_SHARES = (0.12, 0.9)  # of the picture's sides
MAX_AREA_SHARE = 0.6  # of the picture
MAX_OVERLAP = 0.8  # of two examined rectangles, intersection over union
BANDS = 4  # parts of a side whose positions are compared
BEYOND_PX = (3, 14)  # from a corner: where a side of an inset does not continue
# Evidence grows from 0 at the first value to 1 at the second.
EDGE_SHARES = (0.4, 0.62)  # of the side with the fewest edges
END_SHARES = (0.15, 0.35)  # of the quarter with the fewest, at an end of a side
BEYOND_SHARES = (0.6, 0.35)  # edges beyond the corners: of grids and door frames
INNER_AREA = (0.03, 0.1)  # share of the middle third that moves
INNER_TEXTURE = (6.0, 9.0)  # grey levels per two px: of a blurred or flat patch, less
TOGETHER = (0.5, 0.2)  # correlation of the motion on both sides of the outline
# Correlation of the brightness on both sides of the outline, over time: the scene shows through a
# translucent plate or a blurred patch, and an object crosses the sides of a drawer
SHOWS_THROUGH = (0.35, 0.15)
OUTLINE_SHARES = (0.2, 0.5)  # share of the outline along which one side of it moves
DEVIATIONS_PX = (0.45, 0.2)  # of the bands of a side from a row or column
STRAIGHT_SHARE = 0.75  # of an outline with three exact sides, whatever moves along it
BORDER_SPREADS = (10.0, 4.0)  # grey levels, standard deviation of a border's pixels
MIN_BORDER_LEVELS = 10.0  # from a border to both sides of it
Box = tuple[int, int, int, int]  # left, top, right, bottom: the last px outside, the last inside


def outline_share(stack: np.ndarray) -> float:
    """stack: luma (samples, h, w) uint8 -> 0..1, of the clearest outline of a view in the picture.

    A scene has rectangles too: doors, windows, televisions. But a camera shows few of their sides
    exactly along a row or column, and they move with what is around them. So does the scene that
    shows through a plate or a blurred patch.
    """
    stack = _without_bars(stack)
    if min(stack.shape[1:]) < MIN_PICTURE_PX:
        return 0.0
    moves = moving_pixels(stack)
    planes = [
        _Lines(stack, moves),
        _Lines(*(np.ascontiguousarray(a.transpose(0, 2, 1)) for a in (stack, moves))),
    ]
    shares = (_rectangle_share(planes, box) for box in _rectangles(planes))
    return max(shares, default=0.0)


def moving_pixels(stack: np.ndarray) -> np.ndarray:
    """(samples, h, w) -> (samples - 1, h, w) float32: 1 where the picture moves, else 0."""
    changes = (cv2.absdiff(a, b) for a, b in zip(stack[1:], stack[:-1], strict=True))
    moves = [cv2.blur(change, (3, 3)) > MIN_CHANGE_LEVELS for change in changes]
    return np.stack(moves).astype(np.float32)


def _without_bars(stack: np.ndarray) -> np.ndarray:
    """Without rows and columns of one colour at the picture's edges."""
    low, high = stack.min(0), stack.max(0)
    spans = []
    for axis in (1, 0):
        spreads = high.std(axis), low.std(axis), cv2.subtract(high, low).mean(axis)
        has_content = np.flatnonzero(np.max(spreads, axis=0) > MAX_BAR_SPREAD)
        spans.append(slice(has_content[0], has_content[-1] + 1) if len(has_content) else slice(0))
    return np.ascontiguousarray(stack[:, spans[0], spans[1]])


class _Lines:
    """The vertical lines of a picture; of the turned picture, its horizontal lines.

    A line x lies between the columns x and x + 1, or it is a thin border there.
    """

    def __init__(self, stack: np.ndarray, moves: np.ndarray) -> None:
        """stack: (samples, h, w) uint8; moves: (samples - 1, h, w)."""
        self.stack, self.moves = stack, moves
        samples, height, width = stack.shape
        rows = stack.reshape(-1, width)
        across = cv2.absdiff(rows[:, 3:], rows[:, :-3])  # [:, x - 1] is that of line x
        next_to = np.full_like(across, MIN_JUMP_LEVELS * 2 // 3)
        next_to[:, 3:] = cv2.max(next_to[:, 3:], across[:, :-3])
        next_to[:, :-3] = cv2.max(next_to[:, :-3], across[:, 3:])
        is_edge = (across > cv2.add(next_to, next_to // 2)).reshape(samples, height, -1)
        edges = np.zeros((height, width), np.float32)
        edges[:, 1:-2] = is_edge.view(np.uint8).sum(0, dtype=np.uint8) / np.float32(samples)
        self.edges = cv2.dilate(edges, np.ones((1, 3), np.uint8))  # (h, w): share of the samples
        part = max(15, min(height, width) // 7)
        clearest = cv2.blur(edges, (1, part), borderType=cv2.BORDER_CONSTANT).max(0)
        clearest[:MARGIN_PX] = clearest[-MARGIN_PX:] = 0
        found: list[int] = []
        while len(found) < NUM_LINES and clearest.max() >= MIN_EDGE_SHARE:
            x = int(clearest.argmax())
            found.append(x)
            clearest[max(0, x - 3) : x + 4] = 0
        # the picture's edges are the first and the last line
        self.places = np.array([-1, *sorted(found), width - 1])

    def edge_shares(self, tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
        """(lines, spans): share of each line in each span of rows; inf of the picture's edges."""
        sums = np.cumsum(self.edges[:, self.places], axis=0)
        sums = np.vstack([np.zeros_like(sums[:1]), sums])
        shares = ((sums[bottoms + 1] - sums[tops + 1]) / (bottoms - tops)[:, None]).T
        shares[[0, -1]] = np.inf
        return shares

    def is_visible(self, x: int) -> bool:
        return bool(self.places[0] < x < self.places[-1])


def _rectangles(planes: list[_Lines]) -> list[Box]:
    """Those with the clearest sides; one or two of them may be edges of the picture."""
    spans = [np.triu_indices(len(lines.places), 1) for lines in planes]
    starts = [lines.places[first] for lines, (first, _) in zip(planes, spans, strict=True)]
    ends = [lines.places[last] for lines, (_, last) in zip(planes, spans, strict=True)]
    shares = [planes[i].edge_shares(starts[1 - i], ends[1 - i]) for i in (0, 1)]
    sides = np.stack(
        [
            *(shares[0][side] for side in spans[0]),  # left and right: (spans of x, spans of y)
            *(shares[1][side].T for side in spans[1]),
        ]
    )
    width, height = (ends[0] - starts[0])[:, None], ends[1] - starts[1]
    full_width, full_height = (lines.stack.shape[2] for lines in planes)
    least = sides.min(0)
    fits = (
        (least > EDGE_SHARES[0])
        & (width >= max(SIDE_SHARES[0] * full_width, MIN_SIDE_PX))
        & (width <= SIDE_SHARES[1] * full_width)
        & (height >= max(SIDE_SHARES[0] * full_height, MIN_SIDE_PX))
        & (height <= SIDE_SHARES[1] * full_height)
        & (width * height <= MAX_AREA_SHARE * full_width * full_height)
        & (width >= ASPECTS[0] * height)
        & (width <= ASPECTS[1] * height)
    )
    clear = least + np.minimum(sides, 1.0).mean(0)
    found: list[Box] = []
    candidates = np.argwhere(fits)
    for i, j in candidates[np.argsort(-clear[fits])]:
        box = int(starts[0][i]), int(starts[1][j]), int(ends[0][i]), int(ends[1][j])
        if all(_overlap(box, other) < MAX_OVERLAP for other in found):
            found.append(box)
            if len(found) == NUM_RECTANGLES:
                break
    return found


def _overlap(one: Box, two: Box) -> float:
    """Intersection over union."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    both = max(0, width) * max(0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return both / (sum(areas) - both)


def _rectangle_share(planes: list[_Lines], box: Box) -> float:
    """0..1: whether it is the outline of a view that moves."""
    sides = [
        _Side(lines, x, is_first, span)
        for lines, span, ends in (
            (planes[0], box[1::2], box[::2]),
            (planes[1], box[::2], box[1::2]),
        )
        for x, is_first in zip(ends, (True, False), strict=True)
        if lines.is_visible(x)
    ]
    clear = _clear_share(sides) * _content_share(planes[0], box)
    if clear == 0:
        return 0.0
    moves, levels = (
        [np.concatenate(place, axis=1) for place in zip(*along, strict=True)]
        for along in zip(*((side.moves(), side.levels()) for side in sides), strict=True)
    )
    apart = grows(_correlation(*moves), TOGETHER) * grows(_correlation(*levels), SHOWS_THROUGH)
    outer, inner = (
        grows(float((motion.mean(0) >= MIN_OUTLINE_MOTION).mean()), OUTLINE_SHARES)
        for motion in moves
    )
    straight = min(side.straightness() for side in sides)
    if len(sides) > 2:
        drawn = max(outer, straight * max(inner, STRAIGHT_SHARE))
    else:
        drawn = straight * max(outer, inner)
    return clear * apart * drawn


def _clear_share(sides: list[_Side]) -> float:
    """0..1: whether each side has edges up to its corners, but not beyond."""
    beyond = np.concatenate([side.beyond for side in sides])
    ends_here = grows(float(beyond.mean()), BEYOND_SHARES) if len(beyond) else 1.0
    edge_share = grows(min(float(side.edges.mean()) for side in sides), EDGE_SHARES)
    return ends_here * edge_share * grows(min(side.end_share for side in sides), END_SHARES)


def _content_share(lines: _Lines, box: Box) -> float:
    """0..1: whether the middle moves, and the inside has texture."""
    left, top, right, bottom = box
    x, y = (right - left) // 3, (bottom - top) // 3
    middle = lines.moves[:, top + y : bottom - y, left + x : right - x].mean(0)
    motion = grows(float((middle >= MIN_INNER_MOTION).mean()), INNER_AREA)
    if motion == 0:
        return 0.0
    texture = _texture(lines.stack[:, top + 4 : bottom - 2, left + 4 : right - 2])
    return motion * grows(texture, INNER_TEXTURE)


def _texture(stack: np.ndarray) -> float:
    """Grey levels: the mean differences over two px, across and down."""
    return sum(
        float(cv2.absdiff(np.ascontiguousarray(one), np.ascontiguousarray(two)).mean())
        for one, two in (
            (stack[:, :, 2:], stack[:, :, :-2]),
            (stack[:, 2:], stack[:, :-2]),
        )
    )


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    one, two = one - one.mean(), two - two.mean()
    return float((one * two).sum() / np.sqrt((one * one).sum() * (two * two).sum() + 1e-3))


class _Side:
    """A side of a rectangle: the line x, between the rows of span. If it is the first side, the
    rectangle is to the right of it."""

    def __init__(self, lines: _Lines, x: int, is_first: bool, span: tuple[int, int]) -> None:
        self.lines, self.x = lines, x
        self.order = 1 if is_first else -1  # that puts what is outside first
        start, end = span[0] + 1, span[1] + 1
        self.rows = slice(start + 2, end - 2)
        self.edges, quarter = lines.edges[start:end, x], (end - start) // 4
        self.end_share = float(min(self.edges[:quarter].mean(), self.edges[-quarter:].mean()))
        near, far = BEYOND_PX
        before = lines.edges[max(start - far, 0) : max(start - near, 0), x]
        self.beyond = np.concatenate([before, lines.edges[end + near : end + far, x]])

    def moves(self) -> list[np.ndarray]:
        """Outside and inside: (samples - 1, px along the side)."""
        return [self.lines.moves[:, self.rows, self.x + i] for i in (-3, 4)][:: self.order]

    def around(self) -> np.ndarray:
        """(samples, px along the side, 12) float32: the line is between the middle columns."""
        return self.lines.stack[:, self.rows, self.x - 5 : self.x + 7].astype(np.float32)

    def levels(self) -> list[np.ndarray]:
        """Outside and inside: (samples, px along the side), without the mean over time."""
        around = self.around()
        levels = [cv2.blur(around[:, :, i : i + 3].mean(2), (9, 1)) for i in (0, 9)]
        return [level - level.mean(0) for level in levels][:: self.order]

    def straightness(self) -> float:
        """0..1: whether it lies exactly along a row or column, or is a border of one colour."""
        around = self.around()
        spreads = around[:, :, 4:8].std((0, 1))
        at = 4 + int(spreads.argmin())
        level = around[:, :, at].mean()
        contrast = min(float(np.abs(around[:, :, i] - level).mean()) for i in (at - 3, at + 3))
        is_border = grows(float(spreads.min()), BORDER_SPREADS) * (contrast > MIN_BORDER_LEVELS)
        return max(is_border, grows(_deviation(around[:, :, 3:9]), DEVIATIONS_PX))


def _deviation(around: np.ndarray) -> float:
    """around: (samples, px along the side, 6) -> px, standard deviation of the bands' positions.

    The two columns in the middle are a mix of the views; each band's share of the first view in
    them is fitted over all samples.
    """
    first, second = around[:, :, :2].mean(2), around[:, :, 4:].mean(2)
    mixed, difference = around[:, :, 2] + around[:, :, 3] - 2 * second, first - second
    products, squares = (
        np.array([band.sum() for band in np.array_split(product, BANDS, axis=1)]) + 1e-3
        for product in (mixed * difference, difference**2)
    )
    places, weights = products / squares, squares / squares.sum()
    return float(np.sqrt((weights * (places - (weights * places).sum()) ** 2).sum()))


def grows(value: float, between: tuple[float, float]) -> float:
    """0 at the first value, 1 at the second."""
    start, end = between
    return min(1.0, max(0.0, (value - start) / (end - start)))
