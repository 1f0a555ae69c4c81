"""How well a network finds the gradual transitions of sources that it was not trained on.

    python -m benchmarks.transition_network.validate FOOTAGE WEIGHTS.npz … --folds 1 5

prints for each file of weights what it finds in the labelled videos of these folds, and in 1,152
sequences drawn from their shots, at several values of `gradual_probability`. A transition is found
by a span in it or within GRADUAL_TOLERANCE frames; a span that touches no transition, no hard cut
and no uncertain frame is false.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from benchmarks.real_videos import FOLDS, fold_of
from benchmarks.transition_network.draw import KINDS, Planner
from benchmarks.transition_network.network import TransitionNetwork, load_weights
from benchmarks.transition_network.render import Renderer, stack_plans
from benchmarks.transition_network.sources import (
    Source,
    gather,
    half_size_luma,
    label_frames,
    read_source,
    select_frames,
)
from stages.shots.gradual_network import MIN_FRAME_PROBABILITY

PEAKS = (0.6, 0.7, 0.8, 0.9, 0.95)  # values of gradual_probability
CUT_TOLERANCE, GRADUAL_TOLERANCE = 2, 4  # frames
BATCHES, CLIPS = 24, 48  # of drawn sequences, and how many a batch has
FRAMES = 192  # of a drawn sequence
FPS = 30  # at which frames are counted as minutes


def true_spans(is_set: np.ndarray) -> list[tuple[int, int]]:
    """The spans [first, end) in which a (T,) bool array is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_set.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class Validation:
    """The sources that were left out, and sequences drawn from their shots."""

    def __init__(self, sources: list[tuple[Source, np.ndarray]], device: torch.device) -> None:
        self.device = device
        self.videos: list[tuple[str, np.ndarray, dict[str, np.ndarray]]] = []
        for source, frames in sources:
            at = select_frames(source.times_s)
            if not source.name.startswith("scene"):
                labels = label_frames(source, np.array(source.times_s)[at])
                self.videos.append((source.name, frames[at], labels))
        frames, shots, _ = gather(sources)
        planner = Planner(shots, [], half_size_luma(frames), FRAMES)
        renderer = Renderer(torch.from_numpy(frames).to(device))
        self.drawn: list[tuple[torch.Tensor, dict[str, np.ndarray]]] = []
        rng = np.random.default_rng(11)
        torch.manual_seed(11)
        for _ in range(BATCHES):
            plans = stack_plans([vars(planner.plan(rng)) for _ in range(CLIPS)])
            labels = {k: plans[k].numpy() for k in ("cuts", "gradual", "kind", "counted")}
            with torch.no_grad():
                self.drawn.append((renderer.render(plans), labels))

    @torch.inference_mode()
    def report(self, network: TransitionNetwork) -> str:
        """What is found at each of PEAKS, and of each drawn kind at 0.8. Leaves the network in
        training mode."""
        network.eval()
        real, drawn = Tally(), Tally()
        for _, frames, labels in self.videos:
            logits = network(torch.from_numpy(frames)[None].to(self.device))
            real.count(torch.sigmoid(logits[0, :, 1].float()).cpu().numpy(), labels)
        for clips, labels in self.drawn:
            found = torch.sigmoid(network(clips)[..., 1].float()).cpu().numpy()
            for number, probabilities in enumerate(found):
                one = {name: array[number] for name, array in labels.items()}
                drawn.count(probabilities, one, at_edges=False)
        network.train()
        kinds = ", ".join(
            f"{name} {drawn.found[kind, 0.8]}/{drawn.total[kind]}"
            for kind, name in enumerate(KINDS)
            if drawn.total[kind]
        )
        return f"real {real.text()}\n  drawn {drawn.text()}\n  drawn at 0.8: {kinds}"


class Tally:
    """Counts of transitions by kind (-1 in real videos), of found ones by kind and peak, and of
    false spans by peak."""

    def __init__(self) -> None:
        self.total: Counter = Counter()
        self.found: Counter = Counter()
        self.false: Counter = Counter()
        self.losses: list[float] = []
        self.minutes = 0.0

    def count(
        self, probabilities: np.ndarray, labels: dict[str, np.ndarray], at_edges: bool = True
    ) -> None:
        """Adds a video.  probabilities: (T,), of a gradual transition at each frame.  labels: as
        `label_frames` returns them.  at_edges: whether transitions count that the first or the last
        frame is part of."""
        count = len(probabilities)
        gradual = labels["gradual"] > 0
        counted = labels["counted"][:, 1]
        p = np.where(gradual, probabilities, 1 - probabilities).clip(1e-6)
        self.losses.append(float((-np.log(p) * counted).sum() / max(1, counted.sum())))
        self.minutes += count / FPS / 60
        kinds = labels.get("kind", np.full(count, -1))
        spans = []
        known = np.zeros(count, bool)  # where a found span is not false
        for at in np.flatnonzero(np.diff(labels["cuts"])) + 1:
            known[max(0, at - CUT_TOLERANCE) : at + CUT_TOLERANCE + 1] = True
        known |= (counted == 0) | gradual
        for first, end in true_spans(gradual):
            near = slice(max(0, first - GRADUAL_TOLERANCE), end + GRADUAL_TOLERANCE)
            known[near] = True
            inside = counted[first:end]
            if inside.max(initial=0) == 1 and (at_edges or (first > 0 and end < count)):
                kind = int(np.bincount(kinds[first:end] + 1).argmax()) - 1
                spans.append((near, kind))
                self.total[kind] += 1
        runs = true_spans(probabilities >= MIN_FRAME_PROBABILITY)
        for peak in PEAKS:
            found = np.zeros(count, bool)
            for first, end in runs:
                if probabilities[first:end].max() >= peak:
                    found[first:end] = True
                    self.false[peak] += not known[first:end].any()
            for near, kind in spans:
                self.found[kind, peak] += bool(found[near].any())

    def text(self) -> str:
        """The counts over all kinds, the minutes, and the mean cross-entropy of a video."""
        total = sum(self.total.values())
        parts = []
        for peak in PEAKS:
            found = sum(n for (_, at), n in self.found.items() if at == peak)
            parts.append(f"{peak:g}: {found}, {self.false[peak]} false")
        loss = np.mean(self.losses)
        return f"of {total} in {self.minutes:.0f} min, loss {loss:.4f}; " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--folds", type=int, choices=range(FOLDS), nargs="+", required=True)
    args = parser.parse_args()
    sources = [read_source(path) for path in sorted(args.footage.glob("*.npz"))]
    held_out = [pair for pair in sources if fold_of(pair[0].repository) in args.folds]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    validation = Validation(held_out, device)
    for path in args.weights:
        print(f"{path}: {validation.report(load_weights(path).to(device))}", flush=True)


if __name__ == "__main__":
    main()
