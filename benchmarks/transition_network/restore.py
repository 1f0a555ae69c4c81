"""Reads a network back from the exported model, so that a training can start from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.transition_network.network import PIXEL_OFFSET, PIXEL_SCALE, TransitionNetwork


def restore_network(model: Path, clips: Tensor) -> TransitionNetwork:
    """The network that `export.py` wrote to `model`, in training mode.

    The model holds no batch normalizations: they are folded into the layers before them. They get
    the means and variances that the clips, (clips, T, 36, 64, 3) uint8, have there, and the weights
    with which they change nothing.
    """
    network = TransitionNetwork().to(clips.device).eval()
    layers = iter(_read_layers(model))

    def fill(layer: nn.Module) -> Tensor:
        """Sets the layer's weights; returns its bias in the model."""
        weight, bias = (torch.from_numpy(values).to(clips.device) for values in next(layers))
        layer.weight.data = weight.view_as(layer.weight)
        if layer.bias is not None:
            layer.bias.data = bias
        return bias

    with torch.no_grad():
        for block in network.blocks:
            bias = fill(block.spatial)
            if block is network.blocks[0]:
                bias = bias + PIXEL_OFFSET * PIXEL_SCALE * block.spatial.weight.sum((1, 2, 3))
                block.spatial.weight *= PIXEL_SCALE
            block.norm.bias.copy_(bias)
            for convolution in block.temporal:
                fill(convolution)
        fill(network.flat)
        fill(network.embedding)
        network.embedding.bias += PIXEL_OFFSET * PIXEL_SCALE * network.embedding.weight.sum(1)
        network.embedding.weight *= PIXEL_SCALE
        for layer in (network.comparison, network.join, *(r.convolution for r in network.time)):
            fill(layer)
        fill(network.heads)
        _fit_norms(network, clips)
    return network.train()


def _read_layers(model: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias of each layer, in the order in which the model runs them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(model)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers, product = [], ""  # the product of a layer of which the model adds the bias later
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(name in values for name in node.input):
            values[node.output[0]] = values[node.input[0]] * values[node.input[1]]
        elif node.op_type in ("Conv", "Gemm"):
            layers.append((values[node.input[1]], values[node.input[2]]))
        elif node.op_type == "MatMul" and node.input[1] in values:
            product, weight = node.output[0], values[node.input[1]].T
        elif node.op_type == "Add" and product in node.input:
            layers.append((weight, next(values[name] for name in node.input if name != product)))
    return [(np.array(weight), np.array(bias)) for weight, bias in layers]


def _fit_norms(network: TransitionNetwork, clips: Tensor) -> None:
    """Sets every batch normalization, in the order in which they run, to what the clips have
    there."""

    def fit(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        over = [0, *range(2, x.ndim)]
        mean, variance = x.float().mean(over), x.float().var(over, unbiased=False)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias += mean

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(fit) for norm in norms]
    network(clips)
    for handle in handles:
        handle.remove()
