"""Renders the sequences that `draw.py` plans, a batch at a time, on the training device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.transition_network.plan import (
    BLURRED_SURROUND,
    HEIGHT,
    PATTERNS,
    RECORDING,
    ROUND,
    STILL_SURROUND,
    UNIFORM,
    WIDTH,
)

CONTRAST_PIVOT = 110  # grey level that a change of contrast keeps
FOCUS_WIDTHS = (1, 3, 7, 13)  # px of the mean that a picture shows, the further out of focus


def stack_plans(plans: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """plans: the arrays of each plan, by name. Returns them with a first axis of clips; all but
    those of int64 become float32."""
    arrays = {name: torch.from_numpy(np.stack([p[name] for p in plans])) for name in plans[0]}
    return {
        k: array if array.dtype == torch.int64 else array.float() for k, array in arrays.items()
    }


class Renderer:
    """Renders batches of plans on one device."""

    def __init__(self, footage: Tensor) -> None:
        """footage: (N, 36, 64, 3) uint8 on the device, PLAIN last."""
        self.footage, self.device = footage, footage.device
        generator = torch.Generator().manual_seed(0)
        patterns = []
        for number in range(PATTERNS):
            size = [(3, 4), (5, 9), (9, 16), (1, 8), (6, 1), (2, 2), (18, 32), (36, 64)][number % 8]
            noise = torch.rand((1, 1, *size), generator=generator)
            mode = "nearest" if number % 3 == 0 else "bilinear"
            patterns.append(F.interpolate(noise, (HEIGHT, WIDTH), mode=mode)[0, 0])
        self.patterns = torch.stack(patterns).to(self.device)
        y, x = torch.meshgrid(
            (torch.arange(HEIGHT) + 0.5) / HEIGHT,
            (torch.arange(WIDTH) + 0.5) / WIDTH,
            indexing="ij",
        )
        # (36, 64) each: the positions of pixels, 0 to 1
        self.x, self.y = x.to(self.device), y.to(self.device)

    def render(self, plans: dict[str, Tensor]) -> Tensor:
        """plans: the arrays of Plan with a first axis of clips -> (clips, T, 36, 64, 3) uint8"""
        plans = {k: array.to(self.device, non_blocking=True) for k, array in plans.items()}
        clips, count = plans["a"].shape
        flat = {k: array.flatten(0, 1) for k, array in plans.items() if k != "recording"}
        values = plans["recording"].repeat_interleave(count, dim=0).T[..., None, None]
        recording = dict(zip(RECORDING, values, strict=True))  # (clips * T, 1, 1) each
        picture = self._warped(flat["a"], flat["camera_a"], flat["blur"])
        blended = torch.nonzero(flat["share"] > 0).squeeze(1)
        if len(blended):
            second = self._warped(
                flat["b"][blended], flat["camera_b"][blended], flat["blur"][blended]
            )
            picture[blended] = self._blended(
                picture[blended], second, flat["share"][blended], flat["mask"][blended]
            )
        picture = self._out_of_focus(picture, flat["light"][:, 5])
        picture, is_shown = self._in_area(picture, recording)
        picture = self._with_patches(picture, flat["patches"])
        picture = self._with_boxes(picture, flat["boxes"])
        picture = self._with_light(picture, flat["light"], is_shown, recording)
        return self._as_recorded(picture, recording, clips, count).view(
            clips, count, HEIGHT, WIDTH, 3
        )

    def _warped(self, rows: Tensor, camera: Tensor, blur: Tensor) -> Tensor:
        """(n, 3, 36, 64) float: frames of the footage, moved by a camera and blurred by motion.

        rows: (n,) indices into the footage.  camera: (n, 4).  blur: (n, 2).
        """
        picture = self.footage[rows].permute(0, 3, 1, 2).float()
        blurred = blur.amax(1) > 0.015
        for chosen, taps in (
            (~blurred & (camera.abs().amax(1) > 1e-4), 1),
            (blurred, 5),
        ):
            moved = torch.nonzero(chosen).squeeze(1)
            if len(moved):
                picture[moved] = self._sampled(picture[moved], camera[moved], blur[moved], taps)
        return picture

    def _sampled(self, picture: Tensor, camera: Tensor, blur: Tensor, taps: int) -> Tensor:
        """Pictures (n, 3, 36, 64) as a camera shows them: means of `taps` places along the blur."""
        cosine, sine = torch.cos(camera[:, 3]), torch.sin(camera[:, 3])
        scale = torch.exp(-camera[:, 2])
        theta = torch.zeros(len(picture), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 1] = scale * cosine, -scale * sine * HEIGHT / WIDTH
        theta[:, 1, 0], theta[:, 1, 1] = scale * sine * WIDTH / HEIGHT, scale * cosine
        total: Tensor | float = 0.0
        for tap in range(taps):
            offset = 0.0 if taps == 1 else tap / (taps - 1) - 0.5
            theta[:, :, 2] = -2 * (camera[:, :2] + offset * blur)
            grid = F.affine_grid(theta, list(picture.shape), align_corners=False)
            total = total + F.grid_sample(
                picture, grid, padding_mode="reflection", align_corners=False
            )
        assert isinstance(total, Tensor)
        return total / taps

    def _blended(self, first: Tensor, second: Tensor, share: Tensor, mask: Tensor) -> Tensor:
        """Layers a and b under a mask: pictures (n, 3, 36, 64).  share: (n,).  mask: (n, 13)."""
        softness, border = mask[:, 2, None, None].clamp_min(1e-3), mask[:, 8, None, None]
        share = share[:, None, None]
        start = self._starts(second, mask)
        edge = share * (1 + softness + border)
        front = ((edge - start) / softness).clamp(0, 1)
        inner = ((edge - border - start) / softness).clamp(0, 1)
        is_uniform = mask[:, 0, None, None] == UNIFORM
        front, inner = (torch.where(is_uniform, share, x)[:, None] for x in (front, inner))
        # the new picture's shadow falls on the old one, ahead of the edge
        near = (1 - (start - edge).clamp_min(0) / 0.12).clamp(0, 1) * mask[:, 12, None, None]
        first = first * (1 - near * ~is_uniform)[:, None]
        colour = mask[:, 9:12, None, None]
        return first * (1 - front) + colour * (front - inner) + second * inner

    def _starts(self, second: Tensor, mask: Tensor) -> Tensor:
        """(n, 36, 64): the share from which a pixel changes to layer b, 0 to 1."""
        kind, angle, _, pattern, closes, x, y, repeats = (
            column[:, None, None] for column in mask[:, :8].unbind(1)
        )
        dx, dy = self.x - x, self.y - y
        cosine, sine = torch.cos(angle), torch.sin(angle)
        line = (self.x - 0.5) * cosine + (self.y - 0.5) * sine
        line = line / (cosine.abs() + sine.abs()) + 0.5
        blinds = (line * repeats.clamp_min(1)) % 1.0001
        turn = torch.atan2(dy, dx * WIDTH / HEIGHT) / (2 * torch.pi)
        far_x, far_y = torch.maximum(x, 1 - x), torch.maximum(y, 1 - y)
        lobes = 1 + 0.3 * torch.cos(2 * torch.pi * turn * repeats + angle) * (repeats > 1)
        radius = torch.hypot(dx * WIDTH / HEIGHT, dy) * lobes
        radius = radius / torch.hypot(far_x * WIDTH / HEIGHT, far_y)
        radius = radius / torch.where(repeats > 1, 1.3, 1.0)
        clock = (turn + angle / (2 * torch.pi)) * repeats.clamp_min(1) % 1
        doors = (line - 0.5).abs() * 2
        rectangle = torch.maximum(dx.abs(), dy.abs()) / torch.maximum(far_x, far_y)
        luma = second[:, 0] / 255
        patterns = self.patterns[pattern.flatten().long()]
        starts = torch.stack([line, line, blinds, radius, patterns, clock, doors, rectangle, luma])
        start = starts.gather(0, kind.long()[None].expand(1, *line.shape))[0]
        return torch.where((closes > 0) & (kind >= ROUND), 1 - start, start)

    def _out_of_focus(self, picture: Tensor, level: Tensor) -> Tensor:
        """Blurs pictures (n, 3, 36, 64), in place.  level: (n,), 0 to len(FOCUS_WIDTHS) - 1."""
        chosen = torch.nonzero(level > 0).squeeze(1)
        if not len(chosen):
            return picture
        sharp, level = picture[chosen], level[chosen][:, None, None, None]
        total = torch.zeros_like(sharp)
        for number, width in enumerate(FOCUS_WIDTHS):
            weight = (1 - (level - number).abs()).clamp_min(0)
            edge = width // 2
            padded = F.pad(sharp, (edge, edge, edge, edge), mode="replicate")
            total += weight * F.avg_pool2d(padded, width, 1)
        picture[chosen] = total
        return picture

    def _in_area(self, picture: Tensor, recording: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pictures (n, 3, 36, 64), some of them shown in a part of the frame, and where they are
        shown, (n, 36, 64). Such an area shows the middle of its picture, of the same shape."""
        x, y, half_width, half_height = (
            recording[f"area_{name}"] for name in ("x", "y", "half_width", "half_height")
        )
        dx, dy = (self.x - x) / half_width, (self.y - y) / half_height
        is_shown = torch.maximum(dx.abs(), dy.abs()) <= 1
        chosen = torch.nonzero(torch.minimum(half_width, half_height).flatten() < 0.5).squeeze(1)
        if not len(chosen):
            return picture, is_shown
        whole = picture[chosen]
        size = torch.stack([half_width[chosen], half_height[chosen]], dim=3)  # (n, 1, 1, 2)
        places = torch.stack([dx[chosen], dy[chosen]], dim=3) * size / size.amax(3, keepdim=True)
        shown = F.grid_sample(whole, places, padding_mode="border", align_corners=False)
        kind, colour = (
            recording["surround"][chosen][:, None],
            torch.cat(
                [recording[f"surround_{name}"][chosen][:, None] for name in ("y", "cb", "cr")],
                dim=1,
            ),
        )
        surround = colour.expand_as(whole)
        blurred = F.interpolate(
            F.avg_pool2d(whole, (6, 8)), (HEIGHT, WIDTH), mode="bilinear", align_corners=False
        )
        grey = whole.new_tensor([0.0, 128.0, 128.0])[:, None, None]
        blurred = grey + (blurred - grey) * (colour[:, :1] / 255)  # often darker than the shot
        still = self.footage[recording["surround_row"][chosen].flatten().long()]
        still = still.permute(0, 3, 1, 2).float()
        surround = torch.where(kind == BLURRED_SURROUND, blurred, surround)
        surround = torch.where(kind == STILL_SURROUND, still, surround)
        picture[chosen] = torch.where(is_shown[chosen][:, None], shown, surround)
        return picture, is_shown

    def _with_patches(self, picture: Tensor, patches: Tensor) -> Tensor:
        """Draws the overlays that show footage into pictures (n, 3, 36, 64), in place.

        patches: (n, PATCHES, 8)."""
        for number in range(patches.shape[1]):
            shown = torch.nonzero(patches[:, number, 4] > 0).squeeze(1)
            if not len(shown):
                continue
            columns = patches[shown, number].T[..., None, None]
            x, y, half_width, half_height, opacity, is_round, row, is_in_place = columns
            dx, dy = (self.x - x) / half_width, (self.y - y) / half_height
            u = torch.where(is_in_place > 0, 2 * self.x - 1, dx)
            v = torch.where(is_in_place > 0, 2 * self.y - 1, dy)
            source = self.footage[row.flatten().long()].permute(0, 3, 1, 2).float()
            inside = F.grid_sample(
                source, torch.stack([u, v], dim=3), padding_mode="border", align_corners=False
            )
            distance = torch.where(
                is_round > 0, torch.hypot(dx, dy), torch.maximum(dx.abs(), dy.abs())
            )
            alpha = (((1 - distance) * 8).clamp(0, 1) * opacity)[:, None]
            picture[shown] = picture[shown] * (1 - alpha) + inside * alpha
        return picture

    def _with_boxes(self, picture: Tensor, boxes: Tensor) -> Tensor:
        """Draws the overlays into pictures (n, 3, 36, 64), in place.  boxes: (n, BOXES, 10)."""
        for number in range(boxes.shape[1]):
            shown = torch.nonzero(boxes[:, number, 4] > 0).squeeze(1)
            if not len(shown):
                continue
            columns = boxes[shown, number].T[..., None, None]
            x, y, half_width, half_height, opacity, *colour, is_round, is_text = columns
            dx, dy = (self.x - x).abs() / half_width, (self.y - y).abs() / half_height
            rectangle = ((1 - torch.maximum(dx, dy)) * 8).clamp(0, 1)
            gaussian = torch.exp(-(dx**2 + dy**2))
            alpha = torch.where(is_round > 0, gaussian, rectangle) * opacity
            letters = self.patterns[7 + 8 * number]
            alpha = torch.where(is_text > 0, alpha * letters, alpha)
            plain = torch.stack([c.expand_as(alpha) for c in colour], dim=1)
            alpha = alpha[:, None]
            picture[shown] = picture[shown] * (1 - alpha) + plain * alpha
        return picture

    def _with_light(
        self, picture: Tensor, light: Tensor, is_shown: Tensor, recording: dict[str, Tensor]
    ) -> Tensor:
        """Pictures (n, 3, 36, 64) with the recording's gamma, contrast and colour, and under the
        light, (n, 6), where `is_shown`, (n, 36, 64) or (1, 36, 64)."""
        gain, *offsets, lit_share = light[:, :5].T[..., None, None]
        is_lit = (self.y <= lit_share) & is_shown
        y = 255 * (picture[:, 0] / 255).clamp(0, 1) ** recording["gamma"]
        y = (y - CONTRAST_PIVOT) * recording["contrast"] + CONTRAST_PIVOT
        channels = [torch.where(is_lit, y * gain + offsets[0], y)]
        blue, red = picture[:, 1] - 128, picture[:, 2] - 128
        cosine, sine = torch.cos(recording["hue"]), torch.sin(recording["hue"])
        turned = (blue * cosine - red * sine, blue * sine + red * cosine)
        for colour, offset in zip(turned, offsets[1:], strict=True):
            lit = torch.where(is_lit, colour * gain.clamp(max=1.2) + offset, colour)
            channels.append(128 + lit * recording["saturation"])
        return torch.stack(channels, dim=1)

    def _as_recorded(
        self, picture: Tensor, recording: dict[str, Tensor], clips: int, count: int
    ) -> Tensor:
        """Pictures (n, 3, 36, 64) with the codec's error, noise and black bars, some mirrored:
        (n, 36, 64, 3) uint8."""
        frame = torch.arange(count, device=self.device).repeat(clips)
        clip = torch.arange(clips, device=self.device).repeat_interleave(count)
        group = (frame / recording["group_frames"].flatten()).long() + 17 * clip
        first, second = (self.patterns[(group * k + n) % PATTERNS] for k, n in ((7, 6), (5, 2)))
        picture[:, 0] += (first - second) * recording["codec_error"]
        coarse = torch.nonzero(recording["quantizer"].flatten() > 0).squeeze(1)
        if len(coarse):  # small differences vanish until they exceed a step
            step = recording["quantizer"][coarse][:, None]
            soft = F.avg_pool2d(F.pad(picture[coarse], (1, 1, 1, 1), mode="replicate"), 3, 1)
            shift = first[coarse][:, None]
            picture[coarse] = ((soft / step + shift).round() - shift) * step
        picture += torch.randn_like(picture) * recording["noise"][:, None]
        row = torch.arange(HEIGHT, device=self.device)[:, None]
        in_bar = (row < recording["bars"]) | (row >= HEIGHT - recording["bars"])
        black = torch.tensor([0.0, 128.0, 128.0], device=self.device)[:, None, None]
        picture = torch.where(in_bar[:, None], black, picture)
        picture = torch.where(recording["mirrored"][:, None] > 0, picture.flip(3), picture)
        picture = torch.where(recording["flipped"][:, None] > 0, picture.flip(2), picture)
        return picture.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
