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
            self._feature, self._threshold = data["feature"], data["threshold"]
            self._left, self._right, self._value = data["left"], data["right"], data["value"]
        self._trees = np.arange(len(self._feature))[None, :]

    def probability(self, features: np.ndarray) -> np.ndarray:
        """features: (B, F) float32. Returns (B,), the probability of the positive class."""
        rows = np.arange(len(features))[:, None]
        node = np.zeros((len(features), len(self._feature)), np.int64)
        while True:
            feature = self._feature[self._trees, node]
            inner = feature >= 0
            if not inner.any():
                break
            goes_left = features[rows, np.maximum(feature, 0)] <= self._threshold[self._trees, node]
            child = np.where(
                goes_left, self._left[self._trees, node], self._right[self._trees, node]
            )
            node = np.where(inner, child, node)
        odds = self._baseline + self._value[self._trees, node].sum(axis=1)
        return 1 / (1 + np.exp(-odds))


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
