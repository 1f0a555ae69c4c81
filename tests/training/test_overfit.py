"""Training and sampling together: four clips are overfitted and sampled from their captions."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from tests.support.tiny_run import tiny_config
from training import checkpoint
from training.clips import Clip, ClipList
from training.config import DiffusionConfig, SampleConfig
from training.sample import load_system, sample
from training.text_to_video import Prompt
from training.train import train

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "white": (240,) * 3}


def moving_square(number: int) -> Clip:
    """A square crosses a grey picture, one way in the first half and another in the second."""
    name, colour = list(COLOURS.items())[number]
    video = np.full((4, 16, 16, 3), 90, np.uint8)
    for t, (x, y) in enumerate([(0, 0), (8, 0), (8, 8), (0, 8)]):
        if number % 2:
            x, y = y, x
        video[t, y : y + 8, x : x + 8] = colour
    ways = ["to the right", "down"][:: -1 if number % 2 else 1]
    texts = [f"a {name} square goes {way}" for way in ways]
    spans = [(0.0, 1.0), (1.0, 2.0)]
    return Clip(f"{number:024d}", torch.from_numpy(video), 2.0, spans, texts, "; then ".join(texts))


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """Four clips, the losses of a run that overfits them, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    clips = [moving_square(i) for i in range(4)]
    cfg = tiny_config(
        folder,
        steps=STEPS,
        batch=8,
        accumulate=1,
        lr=3e-3,
        warmup_steps=20,
        ema_decay=0.98,
        save_every=STEPS,
        log_every=100,
        diffusion=DiffusionConfig("clean"),
    )
    model = replace(
        cfg.system.model,
        num_attention_heads=4,
        attention_head_dim=24,
        patch_size=1,
        positions="space",
    )
    text = replace(cfg.system.text, width=48)
    losses = train(
        replace(cfg, system=replace(cfg.system, model=model, text=text)), ClipList(clips)
    )
    return clips, losses, folder


@pytest.mark.slow
def test_overfitting_four_clips_lowers_the_loss(overfitted):
    _, losses, _ = overfitted
    assert np.mean(losses[-50:]) < 0.25 * np.mean(losses[:10])


@pytest.mark.slow
def test_overfitted_clips_are_sampled_from_their_captions(overfitted):
    clips, _, folder = overfitted
    system, diffusion = load_system(checkpoint.folder_of_step(folder, STEPS))
    for own, clip in enumerate(clips):
        prompt = Prompt.of(clip, "overlapped")
        video = sample(system, prompt, diffusion, SampleConfig(steps=20, guidance=2.0)).float()
        errors = [(video - other.video.float()).square().mean().item() for other in clips]
        nearest, next_best = np.argsort(errors)[:2]
        assert nearest == own
        assert errors[own] < 0.7 * errors[next_best]


STEPS = 600
