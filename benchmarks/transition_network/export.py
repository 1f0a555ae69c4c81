"""Writes the trained network as stages/shots/models/gradual.onnx, its weights in 16 bits.

    python -m benchmarks.transition_network.export NETWORK.pt

Needs the package `onnx`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.transition_network.network import TransitionNetwork
from stages.shots.gradual_network import MODEL


class GradualProbability(nn.Module):
    """(T, 36, 64, 3) uint8 -> (T,)"""

    def __init__(self, network: TransitionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return torch.sigmoid(self.network(frames[None])[0, :, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    args = parser.parse_args()
    network = TransitionNetwork()
    network.load_state_dict(torch.load(args.network, map_location="cpu", weights_only=True))
    frames = torch.zeros((200, 36, 64, 3), dtype=torch.uint8)
    exported = io.BytesIO()
    axes = {"frames": {0: "t"}, "probabilities": {0: "t"}}
    torch.onnx.export(
        GradualProbability(network).eval(), (frames,), exported, dynamo=False, opset_version=17,
        input_names=list(axes)[:1], output_names=list(axes)[1:], dynamic_axes=axes,
    )  # fmt: skip
    MODEL.write_bytes(_halved(exported.getvalue()))
    print(f"{MODEL}: {MODEL.stat().st_size} bytes")


def _halved(model: bytes) -> bytes:
    """The model with its weights in 16 bits, which are cast to 32 when it is loaded."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = (loaded := onnx.load_from_string(model)).graph
    casts = []
    for weights in graph.initializer:
        if weights.data_type == TensorProto.FLOAT:
            name, values = weights.name, numpy_helper.to_array(weights)
            weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    short = {value.name: value.name for value in (*graph.input, *graph.output)}
    for weights in graph.initializer:
        weights.name = short.setdefault(weights.name, f"w{len(short)}")
    for node in nodes:  # the names of what is computed are a fifth of the file
        node.name, node.doc_string = "", ""
        for names in (node.input, node.output):
            names[:] = [name and short.setdefault(name, f"v{len(short)}") for name in names]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(loaded)
    return loaded.SerializeToString()


if __name__ == "__main__":
    main()
