"""Do a small run's captions give their own clips? Run `make curate` and `make train` first.

    python -m benchmarks.own_clip out/train-smoke/checkpoints/step-00000400 out/samples-dataset

Mean squared error (grey levels) of a sample on each training clip's captions to every clip:
guidance 2, 20 steps, one seed.
"""

import sys

from training.clips import Shards
from training.config import SampleConfig
from training.sample import open_system, sample
from training.text_to_video import Script


def main(checkpoint: str, dataset: str) -> None:
    system, diffusion = open_system(checkpoint)
    source = Shards(dataset, "train", system.cfg.size)
    clips = [source[i] for i in range(len(source.clip_ids))]
    for number, clip in enumerate(clips):
        script = Script.of(clip, system.cfg.mode)
        video = sample(system, script, diffusion, SampleConfig(20, 2.0)).float()
        errors = [(video - other.video.float()).square().mean().item() for other in clips]
        own = errors.pop(number)
        nearest = min(errors, default=float("nan"))
        print(f"{clip.clip_id}: own {own:.0f}, nearest other {nearest:.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
