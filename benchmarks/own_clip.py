"""Compares samples of a small run with its training clips; after `make curate` and `make train`.

    python -m benchmarks.own_clip out/train-smoke/checkpoints/step-00000400 out/samples-dataset

Prints the mean squared error (grey levels squared) between a sample from each training clip's
captions and every clip: guidance 2, 20 steps, one seed.
"""

import sys

from training.clips import ShardedClips
from training.config import SampleConfig
from training.sample import load_system, sample
from training.text_to_video import Prompt


def main(checkpoint: str, dataset: str) -> None:
    system, diffusion = load_system(checkpoint)
    source = ShardedClips(dataset, "train", system.cfg.size)
    clips = [source[i] for i in range(len(source.clip_ids))]
    for number, clip in enumerate(clips):
        prompt = Prompt.of(clip, system.cfg.mode)
        video = sample(system, prompt, diffusion, SampleConfig(20, 2.0)).float()
        errors = [(video - other.video.float()).square().mean().item() for other in clips]
        own = errors.pop(number)
        nearest = min(errors, default=float("nan"))
        print(f"{clip.clip_id}: own {own:.0f}, nearest other {nearest:.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
