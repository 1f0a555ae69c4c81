"""Writes the trained network to stages/shots/models/gradual.onnx, its weights as int8.

    python -m benchmarks.transition_network.export NETWORK.npz

NETWORK.npz is a file of weights that `train.py` wrote. Needs the package `onnx`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from benchmarks.transition_network.network import (
    PIXEL_OFFSET,
    PIXEL_SCALE,
    Block,
    TransitionNetwork,
    halve_size,
    load_weights,
)
from stages.shots.gradual_network import MODEL


class FoldedBlock(nn.Module):
    """A trained Block whose last batch normalization is folded into the convolutions before it.
    Takes over the block's layers and changes their weights."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.spatial, self.norm, self.temporal = block.spatial, block.norm, block.temporal
        self.halves = block.halves
        norm, start = block.out_norm, 0
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for convolution in self.temporal:
            part = slice(start, start := start + convolution.out_channels)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, norm.running_mean[part],
                norm.running_var[part], norm.eps, norm.weight[part], norm.bias[part],
            )  # fmt: skip

    def forward(self, x: Tensor, clips: int) -> Tensor:
        x = F.relu(self.norm(self.spatial(x)))
        c, h, w = x.shape[1:]
        x = x.view(clips, -1, c, h * w).transpose(1, 2)
        x = torch.cat([F.relu(convolution(x)) for convolution in self.temporal], dim=1)
        x = x.transpose(1, 2).reshape(-1, x.shape[1], h, w)
        return halve_size(x) if self.halves else x


def fold_normalization(network: TransitionNetwork) -> None:
    """Folds `TransitionNetwork.normalized` into the layers that read pixels without padding."""
    convolution = network.blocks[0].spatial
    with torch.no_grad():
        convolution.weight /= PIXEL_SCALE
        convolution.bias = nn.Parameter(
            -PIXEL_OFFSET * PIXEL_SCALE * convolution.weight.sum((1, 2, 3))
        )
        network.embedding.weight /= PIXEL_SCALE
        network.embedding.bias -= PIXEL_OFFSET * PIXEL_SCALE * network.embedding.weight.sum(1)
    network.normalized = lambda pixels: pixels


class GradualProbability(nn.Module):
    """Frames (T, 36, 64, 3) uint8 -> probabilities (T,) of a gradual transition at each."""

    def __init__(self, network: TransitionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return torch.sigmoid(self.network(frames[None])[0, :, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    args = parser.parse_args()
    network = load_weights(args.network)
    fold_normalization(network)
    network.blocks = nn.ModuleList(FoldedBlock(block) for block in network.blocks)
    frames = torch.zeros((200, 36, 64, 3), dtype=torch.uint8)
    exported = io.BytesIO()
    axes = {"frames": {0: "t"}, "probabilities": {0: "t"}}
    torch.onnx.export(
        GradualProbability(network).eval(), (frames,), exported, dynamo=False, opset_version=17,
        input_names=list(axes)[:1], output_names=list(axes)[1:], dynamic_axes=axes,
    )  # fmt: skip
    MODEL.write_bytes(_reduce_size(exported.getvalue()))
    print(f"{MODEL}: {MODEL.stat().st_size} bytes")


def _reduce_size(model: bytes) -> bytes:
    """The ONNX model with matrices of weights as int8, a scale for each row, which become float32
    when it is loaded, and with short names of its tensors. Raises onnx.checker.ValidationError
    where it is no valid model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = (loaded := onnx.load_from_string(model)).graph
    scales, casts = [], []
    for weights in graph.initializer:
        values, name = numpy_helper.to_array(weights), weights.name
        if values.dtype == np.float32 and values.ndim > 1:
            axes = tuple(range(1, values.ndim))
            scale = np.abs(values).max(axes, keepdims=True).clip(1e-12) / 127
            weights.CopyFrom(
                numpy_helper.from_array((values / scale).round().astype(np.int8), f"{name}.int8")
            )
            scales.append(numpy_helper.from_array(scale, f"{name}.scale"))
            whole = f"{name}.whole"
            casts.append(helper.make_node("Cast", [weights.name], [whole], to=TensorProto.FLOAT))
            casts.append(helper.make_node("Mul", [whole, f"{name}.scale"], [name]))
    graph.initializer.extend(scales)
    nodes = [*casts, *graph.node]
    short = {value.name: value.name for value in (*graph.input, *graph.output)}
    for weights in graph.initializer:
        weights.name = short.setdefault(weights.name, f"w{len(short)}")
    for node in nodes:  # the names of tensors are a fifth of the file
        node.name, node.doc_string = "", ""
        for names in (node.input, node.output):
            names[:] = [name and short.setdefault(name, f"v{len(short)}") for name in names]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(loaded)
    return loaded.SerializeToString()


if __name__ == "__main__":
    main()
