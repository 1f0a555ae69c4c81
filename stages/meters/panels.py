"""Finds views that are surrounded by one colour."""

from __future__ import annotations

import cv2
import numpy as np

from stages.meters.outlines import ASPECTS, MIN_INNER_MOTION, grows, moving_pixels

MAX_GROUND_RANGE = 10  # grey levels, of a pixel of the ground over all samples
MIN_GROUND_SHARE = 0.06  # of the picture
MIN_PANEL_SHARE = 0.04  # of the picture
MIN_RECTANGLE_FILL = 0.95  # share of the box around a panel
ROUND_FILLS = (0.755, 0.815)  # around pi / 4
PANEL_AREA = (0.02, 0.06)  # share of a panel that moves
CONTENT_SHARES = (0.75, 0.9)  # of all that is not ground: area of the panels


def panel_share(stack: np.ndarray) -> float:
    """stack: luma (samples, h, w) uint8 -> 0..1: whether all content is moving rectangles or discs,
    two or more, apart on a ground of one colour."""
    low, high = stack.min(0), stack.max(0)
    stays = cv2.subtract(high, low) <= MAX_GROUND_RANGE
    levels = np.bincount(low[stays], minlength=256)
    level = int(np.convolve(levels, np.ones(7), "same").argmax())
    ground = stays & (np.abs(low.astype(np.int16) - level) <= MAX_GROUND_RANGE)
    if ground.mean() < MIN_GROUND_SHARE:
        return 0.0
    content = cv2.morphologyEx(
        (~ground).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )
    contours, _ = cv2.findContours(content, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    panels = []
    for contour in contours:
        _, _, width, height = cv2.boundingRect(contour)
        is_large = width * height >= MIN_PANEL_SHARE * content.size
        if is_large and ASPECTS[0] <= width / height <= ASPECTS[1]:
            panel = np.zeros_like(content)
            cv2.fillConvexPoly(panel, cv2.convexHull(contour), 1)
            fill = panel.sum() / (width * height)
            if fill >= MIN_RECTANGLE_FILL or ROUND_FILLS[0] <= fill <= ROUND_FILLS[1]:
                panels.append(panel > 0)
    if len(panels) < 2:
        return 0.0
    moving = moving_pixels(stack).mean(0) >= MIN_INNER_MOTION
    motion = sorted(grows(float(moving[panel].mean()), PANEL_AREA) for panel in panels)
    area = sum(int(panel.sum()) for panel in panels)
    return motion[-2] * grows(area / max(area, int(content.sum())), CONTENT_SHARES)
