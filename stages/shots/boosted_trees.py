"""Evaluates gradient-boosted decision trees that scikit-learn trained, with numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class BoostedTrees:
    """A binary classifier. `benchmarks/train_transitions.py` writes its files.

    A file holds (T, N) arrays of T trees with at most N nodes: `feature` (negative in a leaf),
    `threshold`, `left`, `right` (node numbers), `value`; `baseline` in log-odds; and the names of
    the features, which must be the caller's.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        with np.load(path, allow_pickle=False) as data:
            stored = tuple(str(name) for name in data["names"])
            if stored != names:
                raise ValueError(f"{path}: trained on other features; train again")
            self._baseline = float(data["baseline"])
            feature, left, right = data["feature"], data["left"], data["right"]
            self._threshold, self._value = data["threshold"].ravel(), data["value"].ravel()
        # Nodes are numbered through all trees. A leaf is its own child, so that all trees can take
        # the same number of steps.
        trees, nodes = feature.shape
        self._roots = np.arange(0, trees * nodes, nodes)
        itself = np.arange(trees * nodes).reshape(trees, nodes)
        is_leaf = feature < 0
        self._feature = np.where(is_leaf, 0, feature).ravel().astype(np.intp)
        children = (
            np.where(is_leaf, itself, self._roots[:, None] + side) for side in (right, left)
        )
        self._child = np.stack(list(children), axis=-1).ravel()  # right and left of each node
        self._depth = _depth(is_leaf, left, right)

    def probability(self, features: np.ndarray) -> np.ndarray:
        """features: (B, F) float32. Returns (B,), the probability of the positive class."""
        count, width = features.shape
        values = np.ascontiguousarray(features).ravel()
        rows = np.arange(0, count * width, width)[:, None]
        node = np.broadcast_to(self._roots, (count, len(self._roots)))
        for _ in range(self._depth):
            goes_left = values[rows + self._feature[node]] <= self._threshold[node]
            node = self._child[2 * node + goes_left]
        odds = self._baseline + self._value[node].sum(axis=1)
        return 1 / (1 + np.exp(-odds))


def _depth(is_leaf: np.ndarray, left: np.ndarray, right: np.ndarray) -> int:
    """Steps from the root to the deepest leaf of any tree; all arrays (T, N)."""
    trees = np.arange(len(is_leaf))
    reached = [(trees, np.zeros(len(trees), np.int64))]
    for depth in range(is_leaf.shape[1]):
        inner = [(t[~is_leaf[t, n]], n[~is_leaf[t, n]]) for t, n in reached]
        reached = [(t, side[t, n]) for t, n in inner for side in (left, right) if len(t)]
        if not reached:
            return depth
    raise ValueError("nodes of a tree form a circle")


def tree_arrays(classifier: Any) -> dict[str, np.ndarray]:
    """The arrays of a file, of a fitted `sklearn.ensemble.HistGradientBoostingClassifier`."""
    trees = [predictors[0].nodes for predictors in classifier._predictors]
    size = max(len(nodes) for nodes in trees)
    shape = len(trees), size
    arrays: dict[str, np.ndarray] = {
        "feature": np.full(shape, -1, np.int16),
        "threshold": np.zeros(shape, np.float32),
        "left": np.zeros(shape, np.int16),
        "right": np.zeros(shape, np.int16),
        "value": np.zeros(shape, np.float32),
    }
    for number, nodes in enumerate(trees):
        count = len(nodes)
        leaf = nodes["is_leaf"].astype(bool)
        arrays["feature"][number, :count] = np.where(leaf, -1, nodes["feature_idx"])
        arrays["threshold"][number, :count] = nodes["num_threshold"]
        for name in ("left", "right", "value"):
            arrays[name][number, :count] = nodes[name]
    arrays["baseline"] = np.array(classifier._baseline_prediction.item())
    return arrays
