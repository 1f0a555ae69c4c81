"""How well a network finds the gradual transitions of sources that it was not trained on.

    python -m benchmarks.transition_network.validate FOOTAGE WEIGHTS.npz … --folds 1 5

prints for each file of weights, or exported network, what it finds in the labelled videos of these
folds, and in 1,152 sequences drawn from their shots, at several values of `gradual_probability`;
and in 240 sequences of each of STYLES, at 0.8. A transition is found
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
from benchmarks.transition_network.draw import KINDS, Planner, Style
from benchmarks.transition_network.network import TransitionNetwork, load_weights
from benchmarks.transition_network.render import Renderer, stack_plans
from benchmarks.transition_network.restore import restore_network
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
STYLES = {
    "dissolves in a part of the frame": Style(("dissolve", "short_dissolve"), is_in_area=True),
    "pushes in a part of the frame": Style(("push",), is_in_area=True),
    "dissolves of one place": Style(("dissolve",), is_one_place=True),
    "pushes and slides of slideshows": Style(("push",), is_slideshow=True),
    "short dissolves": Style(("short_dissolve",)),
    "single shots": Style(()),
}
STYLE_BATCHES = 5  # of drawn sequences of each of STYLES
FPS = 30  # at which frames are counted as minutes


# Batches of rendered sequences and the arrays of their plans that are labels
Drawn = list[tuple[torch.Tensor, dict[str, np.ndarray]]]


def true_spans(is_set: np.ndarray) -> list[tuple[int, int]]:
    """The spans [first, end) in which a (T,) bool array is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_set.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class Validation:
    """The sources that were left out, and sequences drawn from their shots."""

    def __init__(
        self,
        sources: list[tuple[Source, np.ndarray]],
        device: torch.device,
        batches: int = BATCHES,
        style_batches: int = STYLE_BATCHES,
    ) -> None:
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
        rng = np.random.default_rng(11)
        torch.manual_seed(11)

        def draw(batches: int, style: Style | None = None) -> Drawn:
            found = []
            for _ in range(batches):
                plans = stack_plans([vars(planner.plan(rng, style)) for _ in range(CLIPS)])
                labels = {k: plans[k].numpy() for k in ("cuts", "gradual", "kind", "counted")}
                with torch.no_grad():
                    found.append((renderer.render(plans), labels))
            return found

        self.drawn = draw(batches)
        self.styles = {name: draw(style_batches, style) for name, style in STYLES.items()}

    @torch.inference_mode()
    def report(self, network: TransitionNetwork) -> str:
        """What is found at each of PEAKS, and of each drawn kind and style at 0.8. Leaves the
        network in training mode."""
        network.eval()
        real, drawn = Tally(), self._count(network, self.drawn)
        for _, frames, labels in self.videos:
            logits = network(torch.from_numpy(frames)[None].to(self.device))
            real.count(torch.sigmoid(logits[0, :, 1].float()).cpu().numpy(), labels)
        styles = ", ".join(
            f"{name} {tally.found_at(0.8)}/{sum(tally.total.values())}, {tally.false[0.8]} false"
            for name, batches in self.styles.items()
            if (tally := self._count(network, batches))
        )
        network.train()
        kinds = ", ".join(
            f"{name} {drawn.found[kind, 0.8]}/{drawn.total[kind]}"
            for kind, name in enumerate(KINDS)
            if drawn.total[kind]
        )
        texts = (f"real {real.text()}", f"drawn {drawn.text()}", f"drawn at 0.8: {kinds}", styles)
        return "\n  ".join(texts)

    def _count(self, network: TransitionNetwork, batches: Drawn) -> Tally:
        tally = Tally()
        for clips, labels in batches:
            found = torch.sigmoid(network(clips)[..., 1].float()).cpu().numpy()
            for number, probabilities in enumerate(found):
                one = {name: array[number] for name, array in labels.items()}
                tally.count(probabilities, one, at_edges=False)
        return tally


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

    def found_at(self, peak: float) -> int:
        return sum(n for (_, at), n in self.found.items() if at == peak)

    def text(self) -> str:
        """The counts over all kinds, the minutes, and the mean cross-entropy of a video."""
        total = sum(self.total.values())
        parts = []
        for peak in PEAKS:
            parts.append(f"{peak:g}: {self.found_at(peak)}, {self.false[peak]} false")
        loss = np.mean(self.losses)
        return f"of {total} in {self.minutes:.0f} min, loss {loss:.4f}; " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("weights", type=Path, nargs="+", help="npz files, or an exported network")
    parser.add_argument("--folds", type=int, choices=range(FOLDS), nargs="+", required=True)
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"of {CLIPS} sequences")
    parser.add_argument("--style-batches", type=int, default=STYLE_BATCHES, help="of each style")
    args = parser.parse_args()
    sources = [read_source(path) for path in sorted(args.footage.glob("*.npz"))]
    held_out = [pair for pair in sources if fold_of(pair[0].repository) in args.folds]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    validation = Validation(held_out, device, args.batches, args.style_batches)
    for path in args.weights:
        if path.suffix == ".onnx":
            network = restore_network(path, validation.drawn[0][0][:1])
        else:
            network = load_weights(path).to(device)
        print(f"{path}: {validation.report(network)}", flush=True)


if __name__ == "__main__":
    main()
