"""Averages the weights of two exported networks, of which one was trained from the other's weights.

    python -m benchmarks.transition_network.average FIRST.onnx SECOND.onnx OUT.onnx [--share 0.5] \
        [--factor 1]

The mean keeps more of what the first network finds than the second does (Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022). It is less certain than both, so `--factor` multiplies the
logits: a probability of 0.5 stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np


def average(first: Any, second: Any, share: float, factor: float) -> None:
    """Changes the ONNX model `first`: (1 - share) of its weights and `share` of those of `second`,
    in the form that `export.py` gives them. Raises ValueError where the two have other layers."""
    from onnx import numpy_helper

    nodes, others = ([(n.op_type, list(n.input)) for n in m.graph.node] for m in (first, second))
    if nodes != others:
        raise ValueError("the networks have different layers")
    mine, its = ({t.name: t for t in m.graph.initializer} for m in (first, second))
    whole = {n.output[0]: n.input[0] for n in first.graph.node if n.op_type == "Cast"}
    # name of an int8 matrix -> that of its scales
    scales = {
        whole[n.input[0]]: n.input[1]
        for n in first.graph.node
        if n.op_type == "Mul" and whole.get(n.input[0]) in mine and n.input[1] in mine
    }

    def mean(name: str, factor: float = 1.0) -> np.ndarray:
        values = [
            numpy_helper.to_array(tensors[name])
            * (numpy_helper.to_array(tensors[scales[name]]) if name in scales else 1)
            for tensors in (mine, its)
        ]
        return ((1 - share) * values[0] + share * values[1]).astype(np.float32) * factor

    def store(name: str, values: np.ndarray) -> None:
        mine[name].CopyFrom(numpy_helper.from_array(values, name))

    *_, heads = (n for n in first.graph.node if n.op_type == "Conv")
    for name, tensor in list(mine.items()):
        its_factor = np.float32(factor if name == heads.input[2] else 1)
        if name in scales:
            values = mean(name)
            axes = tuple(range(1, values.ndim))
            scale = np.abs(values).max(axes, keepdims=True).clip(1e-12) / 127
            is_heads = any(
                heads.input[1] in n.output and scales[name] in n.input for n in first.graph.node
            )
            store(name, (values / scale).round().astype(np.int8))
            store(scales[name], scale * np.float32(factor if is_heads else 1))
        elif tensor.data_type == 1 and name not in scales.values() and len(tensor.dims) == 1:
            store(name, mean(name) * its_factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second network")
    parser.add_argument("--factor", type=float, default=1.0, help="of the logits")
    args = parser.parse_args()
    import onnx

    first, second = onnx.load(str(args.first)), onnx.load(str(args.second))
    average(first, second, args.share, args.factor)
    onnx.checker.check_model(first)
    args.out.write_bytes(first.SerializeToString())


if __name__ == "__main__":
    main()
