"""The network of `stages/shots/gradual_network.py` in PyTorch, for training and export.

It reads frames of 64 x 36 px and gives two logits for each: of a hard cut before the frame, and of
a gradual transition at it. As in TransNetV2 (arXiv 2008.04838), convolutions over time with several
dilations find transitions of all lengths, and similarities of frames at several distances are
further features. It has a fiftieth of that network's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 8)  # of the convolutions over time in a block
OFFSETS = (
    *range(1, 9),
    10,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
)  # from a frame to those it is compared with, frames
TEMPORAL_DILATIONS = (1, 2, 4, 8, 16, 32)  # of the convolutions over time on one vector a frame


class Block(nn.Module):
    """A convolution over the picture, then one over time; halves the picture's width and height."""

    def __init__(self, channels: int, inside: int, out: int) -> None:
        """Channels of the input, between the two convolutions, and of the output."""
        super().__init__()
        self.spatial = nn.Conv2d(channels, inside, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inside)
        self.temporal = nn.ModuleList(
            nn.Conv2d(inside, out // len(DILATIONS), (3, 1), padding=(d, 0), dilation=(d, 1))
            for d in DILATIONS
        )
        self.out_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """x: (clips * frames, C, H, W) -> (clips * frames, out, H / 2, W / 2), rounded up"""
        x = F.relu(self.norm(self.spatial(x)))
        c, h, w = x.shape[1:]
        if x.is_cuda:
            x = self._as_product(x.permute(0, 2, 3, 1).reshape(clips, -1, h * w, c))
            x = x.view(-1, h, w, x.shape[3]).permute(0, 3, 1, 2)
        else:
            x = x.view(clips, -1, c, h * w).transpose(1, 2)
            x = torch.cat([convolution(x) for convolution in self.temporal], dim=1)
            x = x.transpose(1, 2).reshape(-1, x.shape[1], h, w)
        return halve_size(F.relu(self.out_norm(x)))

    def _as_product(self, x: Tensor) -> Tensor:
        """The convolutions over time as one matrix product, since cuDNN is slow at dilated ones of
        few channels.  x: (clips, T, H * W, C) -> (clips, T, H * W, out)"""
        reach, count = DILATIONS[-1], x.shape[1]
        shifts = sorted({0, *DILATIONS, *(-d for d in DILATIONS)})
        rows = []
        for shift in shifts:
            taps = [
                convolution.weight[:, :, shift // d + 1, 0]
                if shift in (-d, 0, d)
                else convolution.weight[:, :, 0, 0] * 0
                for d, convolution in zip(DILATIONS, self.temporal, strict=True)
            ]
            rows.append(torch.cat(taps).T)
        bias = torch.cat([c.bias for c in self.temporal if c.bias is not None])
        padded = F.pad(x, (0, 0, 0, 0, reach, reach))
        shifted = [padded[:, reach + s : reach + s + count] for s in shifts]
        return F.linear(torch.cat(shifted, dim=3), torch.cat(rows).T, bias)


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
    """Blocks over pictures, similarities between frames, then convolutions over time."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 16, 24), Block(24, 32, 48), Block(48, 48, 64)])
        self.flat = nn.Linear(64 * 3 * 4, width)
        self.embedding = nn.Linear(3 * 9 * 16, 32)
        self.similarity = nn.Linear(2 * len(OFFSETS), width // 2)
        self.join = nn.Conv1d(width + width // 2, width, 1)
        self.time = nn.ModuleList(Residual(width, d) for d in TEMPORAL_DILATIONS)
        self.heads = nn.Conv1d(width, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (clips, T, 36, 64, 3) uint8, Y, Cb and Cr -> (clips, T, 2), logits of a hard cut
        before the frame and of a gradual transition at it."""
        clips = frames.shape[0]
        x = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
        x = F.avg_pool2d(x, 2)  # (clips * T, 3, 18, 32)
        small = halve_size(x)  # (clips * T, 3, 9, 16)
        for block in self.blocks:
            x = block(x, clips)
        x = F.dropout(F.relu(self.flat(x.flatten(1))), 0.2, self.training)
        similar = F.relu(self.similarity(self._similarities(small.flatten(1), clips)))
        x = torch.cat([x.view(clips, -1, x.shape[1]), similar], dim=2).transpose(1, 2)
        x = F.relu(self.join(x))
        for layer in self.time:
            x = layer(x)
        return self.heads(x).transpose(1, 2)

    def _similarities(self, small: Tensor, clips: int) -> Tensor:
        """small: (clips * T, 432) -> (clips, T, 2 * len(OFFSETS)): cosine similarities to the
        frames OFFSETS after and before; 0 beyond the ends."""
        vectors = F.normalize(self.embedding(small), dim=1).view(clips, -1, 32)
        reach = OFFSETS[-1]
        padded = F.pad(vectors, (0, 0, reach, reach))
        offsets = (*OFFSETS, *(-o for o in OFFSETS))
        near = [padded[:, reach + o : (o - reach) or None] for o in offsets]
        return torch.stack([(vectors * other).sum(2) for other in near], dim=2)
