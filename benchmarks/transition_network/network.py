"""The network of `stages/shots/gradual_network.py` in PyTorch, for training and export.

It reads frames of 64 x 36 px and gives two logits for each: of a hard cut before the frame, and of
a gradual transition at it. As in TransNetV2 (arXiv 2008.04838), convolutions over time with several
dilations find transitions of all lengths, and similarities of frames at several distances are
further features. It has 5 % of that network's weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 8)  # of the convolutions over time in a block
SHIFTS = sorted({0, *DILATIONS, *(-d for d in DILATIONS)})  # that they read, frames
# From a frame to those that it is compared with, frames
OFFSETS = (*range(1, 9), 10, 12, 16, 20, 24, 32, 40, 48, 64)
PIXEL_SCALE, PIXEL_OFFSET = 64, 2  # pixels of 0 to 255 become -2 to 2
VECTOR = 32  # length of the vector of a frame that is compared with those of other frames
MIN_STEP = 0.3  # steps of vectors much shorter than this count as noise
TEMPORAL_DILATIONS = (1, 2, 4, 8, 16, 32)  # of the convolutions over time on one vector a frame


class Block(nn.Module):
    """A convolution over the picture, then one over time; may halve the picture's width and
    height."""

    def __init__(
        self, channels: int, inside: int, out: int, patch: int = 0, halves: bool = True
    ) -> None:
        """Channels of the input, between the two convolutions, and of the output.

        patch: side of the squares, px, each of which the first convolution makes one pixel; 0 where
        it reads 3 x 3 px for each.
        """
        super().__init__()
        self.halves = halves
        self.spatial = (
            nn.Conv2d(channels, inside, patch, stride=patch, bias=False)
            if patch
            else nn.Conv2d(channels, inside, 3, padding=1, bias=False)
        )
        self.norm = nn.BatchNorm2d(inside)
        self.temporal = nn.ModuleList(
            nn.Conv2d(inside, out // len(DILATIONS), (3, 1), padding=(d, 0), dilation=(d, 1))
            for d in DILATIONS
        )
        self.out_norm = nn.BatchNorm2d(out)
        # (dilations, taps of a convolution, SHIFTS): 1 where the tap reads the frame at the shift
        taps = [[[float(s == t * d) for s in SHIFTS] for t in (-1, 0, 1)] for d in DILATIONS]
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """x: (clips * frames, C, H, W) -> (clips * frames, out, …)"""
        x = F.relu(self.norm(self.spatial(x)))
        c, h, w = x.shape[1:]
        if x.is_cuda:
            x = self._as_product(x.permute(0, 2, 3, 1).reshape(clips, -1, h * w, c))
            x = x.view(-1, h, w, x.shape[3]).permute(0, 3, 1, 2)
        else:
            x = x.view(clips, -1, c, h * w).transpose(1, 2)
            x = torch.cat([convolution(x) for convolution in self.temporal], dim=1)
            x = x.transpose(1, 2).reshape(-1, x.shape[1], h, w)
        x = F.relu(self.out_norm(x))
        return halve_size(x) if self.halves else x

    def _as_product(self, x: Tensor) -> Tensor:
        """The convolutions over time as one matrix product, since cuDNN is slow at dilated ones of
        few channels.  x: (clips, T, H * W, C) -> (clips, T, H * W, out)"""
        reach, count = DILATIONS[-1], x.shape[1]
        weights = torch.stack([convolution.weight[..., 0] for convolution in self.temporal])
        rows = torch.einsum("doct,dts->scdo", weights, self.taps).flatten(2).flatten(0, 1)
        bias = torch.cat([c.bias for c in self.temporal if c.bias is not None])
        padded = F.pad(x, (0, 0, 0, 0, reach, reach))
        shifted = [padded[:, reach + s : reach + s + count] for s in SHIFTS]
        return F.linear(torch.cat(shifted, dim=3), rows.T, bias)


def halve_size(x: Tensor) -> Tensor:
    """(n, C, H, W) -> (n, C, H / 2, W / 2): means of 2 x 2. Repeats the last row of an odd H; W is
    even."""
    return F.avg_pool2d(F.pad(x, (0, 0, 0, x.shape[2] % 2), mode="replicate"), 2)


class Residual(nn.Module):
    """Adds to each frame's vector a convolution over time: (clips, width, T), in and out."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.convolution(x)))


class TransitionNetwork(nn.Module):
    """Blocks over pictures, comparisons of frames, then convolutions over time."""

    def __init__(self, width: int = 112) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(3, 24, 32, patch=4), Block(32, 48, 64), Block(64, 48, 64, halves=False)]
        )
        self.flat = nn.Linear(64 * 3 * 4, width)
        self.embedding = nn.Linear(3 * 9 * 16, VECTOR)
        self.comparison = nn.Linear(4 * len(OFFSETS), width // 2)
        self.join = nn.Conv1d(width + width // 2, width, 1)
        self.time = nn.ModuleList(Residual(width, d) for d in TEMPORAL_DILATIONS)
        self.heads = nn.Conv1d(width, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (clips, T, 36, 64, 3) uint8, Y, Cb and Cr -> (clips, T, 2), logits of a hard cut
        before the frame and of a gradual transition at it."""
        clips = frames.shape[0]
        x = self.normalized(frames.flatten(0, 1).permute(0, 3, 1, 2).float())
        small = F.avg_pool2d(x, 4)  # (clips * T, 3, 9, 16)
        for block in self.blocks:
            x = block(x, clips)
        x = F.dropout(F.relu(self.flat(x.flatten(1))), 0.2, self.training)
        compared = F.relu(self.comparison(self._comparisons(small.flatten(1), clips)))
        x = torch.cat([x.view(clips, -1, x.shape[1]), compared], dim=2).transpose(1, 2)
        x = F.relu(self.join(x))
        for layer in self.time:
            x = layer(x)
        return self.heads(x).transpose(1, 2)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels of 0 to 255, scaled to -2 to 2."""
        return pixels / PIXEL_SCALE - PIXEL_OFFSET

    def _comparisons(self, small: Tensor, clips: int) -> Tensor:
        """small: (clips * T, 432) -> (clips, T, 4 * len(OFFSETS)).

        For each offset the cosine similarities of a frame and the one after, of a frame and the one
        before, and of these two; and that of the two steps. The last is 1 where the frame is a
        mixture of the two, as in a dissolve. All are 0 beyond the ends.
        """
        with torch.autocast(small.device.type, enabled=False):
            raw = F.linear(small.float(), self.embedding.weight, self.embedding.bias)
            raw = raw.view(clips, -1, VECTOR)
            reach, here = OFFSETS[-1], raw[:, :, None]
            padded = F.pad(raw, (0, 0, reach, reach))
            # (clips, T, len(OFFSETS), VECTOR) each
            after, before = (
                torch.stack([padded[:, reach + o : (o - reach) or None] for o in offsets], dim=2)
                for offsets in (OFFSETS, [-o for o in OFFSETS])
            )
            step_in, step_out = here - before, after - here
            pairs = ((here, after), (here, before), (before, after), (step_in, step_out))
            floors = (1e-4, 1e-4, 1e-4, MIN_STEP**4)  # of the product of the squared lengths
            found = [
                (x * y).sum(3) / ((x * x).sum(3) * (y * y).sum(3) + floor).sqrt()
                for (x, y), floor in zip(pairs, floors, strict=True)
            ]
            return torch.cat(found, dim=2)


def save_weights(network: TransitionNetwork, path: Path) -> None:
    """Writes the network's state_dict as an npz file."""
    np.savez(path, **{name: values.cpu().numpy() for name, values in network.state_dict().items()})


def load_weights(path: Path) -> TransitionNetwork:
    """The network whose weights `save_weights` wrote, in evaluation mode."""
    with np.load(path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    network = TransitionNetwork()
    network.load_state_dict(weights)
    return network.eval()
