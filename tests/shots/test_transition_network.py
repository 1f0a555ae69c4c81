"""The drawn training sequences of the network that finds gradual transitions, and its labels."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.transition_network import joins
from benchmarks.transition_network.draw import Planner, Style
from benchmarks.transition_network.network import TransitionNetwork, load_weights, save_weights
from benchmarks.transition_network.plan import (
    LUMA,
    PLAIN,
    STILL_SURROUND,
    UNIFORM,
    Plan,
    Shot,
    empty_plan,
)
from benchmarks.transition_network.render import Renderer, stack_plans
from benchmarks.transition_network.restore import restore_network
from benchmarks.transition_network.sources import Source, gather, half_size_luma, label_frames
from benchmarks.transition_network.surroundings import random_area
from benchmarks.transition_network.validate import Tally
from stages.shots.gradual_network import MODEL, load_session

COLOURS = np.array([[40, 90, 160], [200, 128, 128], [90, 170, 100], [150, 110, 190]], np.uint8)


@pytest.fixture(scope="module")
def planner_and_renderer() -> tuple[Planner, Renderer]:
    """They have four shots of one colour each, and the plain pictures."""
    colours = np.concatenate([COLOURS.repeat(60, axis=0), PLAIN])
    frames = colours[:, None, None].repeat(36, axis=1).repeat(64, axis=2)
    shots = [Shot(60 * i, 60 * i + 60, i) for i in range(4)]
    planner = Planner(shots, [], half_size_luma(frames), 96)
    return planner, Renderer(torch.from_numpy(frames))


def drawn(renderer: Renderer, plan: Plan) -> np.ndarray:
    """(T, 36, 64, 3) int: the frames of a plan."""
    return renderer.render(stack_plans([vars(plan)]))[0].numpy().astype(int)


@pytest.mark.parametrize("seed", range(40))
def test_outside_gradual_transitions_a_drawn_frame_shows_one_shot_which_changes_at_cuts_alone(
    planner_and_renderer, seed
):
    planner, renderer = planner_and_renderer
    plan = planner.plan_edited_film(np.random.default_rng(seed), Style())
    frames = drawn(renderer, plan)
    quiet = (plan.gradual == 0) & (plan.counted.min(axis=1) == 1)
    known = np.concatenate([COLOURS, PLAIN]).astype(int)
    for frame in frames[quiet]:
        assert np.ptp(frame, axis=(0, 1)).max() <= 1
        assert abs(known - frame[18, 32]).max(axis=1).min() <= 1
    for at in range(1, len(frames)):
        changes = abs(frames[at] - frames[at - 1]).max() > 1
        if quiet[at] and quiet[at - 1] and changes:
            assert plan.cuts[at] != plan.cuts[at - 1]


@pytest.mark.parametrize("seed", range(30))
def test_a_picture_that_slides_in_or_is_uncovered_is_not_mirrored(seed):
    y, x = np.mgrid[0:36, 0:64]
    new = np.stack([60 + y + 2 * x, 0 * x + 128, 0 * x + 128], axis=2)
    old = np.zeros_like(new)
    renderer = Renderer(torch.from_numpy(np.stack([old, new]).astype(np.uint8)))
    plan = empty_plan(20)
    plan.b[:] = 1
    joins.push(plan, np.random.default_rng(seed), 0, 20)
    plan.mask[:, 9:12], plan.blur[:] = 0, 0  # a dark border
    shown = drawn(renderer, plan)[..., 0][plan.share < 0.9]
    is_new = shown > 50
    for axis in (1, 2):  # the new picture gets brighter to the right and below
        step = np.diff(shown, axis=axis)
        at = np.arange(shown.shape[axis] - 1)
        both = is_new.take(at, axis) & is_new.take(at + 1, axis)
        assert both.any()
        assert (step[both] > 0).mean() > 0.9


@pytest.mark.parametrize("kind", range(UNIFORM, LUMA + 1))
def test_a_mask_shows_the_old_picture_first_and_the_new_one_last(planner_and_renderer, kind):
    _, renderer = planner_and_renderer
    plan = empty_plan(96)
    plan.b[:], plan.share[:] = 60, np.linspace(0, 1, 96)
    plan.mask[:] = [kind, 0.7, 0.02, 5, 1, 0.3, 0.6, 3, 0.1, 9, 9, 9, 0]
    shown = drawn(renderer, plan)
    assert abs(shown[0] - COLOURS[0]).max() <= 1
    assert abs(shown[-1] - COLOURS[1]).max() <= 1
    new = np.mean(abs(shown - COLOURS[1]).max(axis=3) <= 1, axis=(1, 2))
    assert (np.diff(new) >= 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_video_in_a_part_of_the_frame_leaves_the_surround_as_it_is(planner_and_renderer, seed):
    _, renderer = planner_and_renderer
    plan = empty_plan(96)
    plan.b[:], plan.share[:] = 60, np.linspace(0, 1, 96)
    area = random_area(np.random.default_rng(seed), row=120)
    area[4] = seed % 2 * STILL_SURROUND
    plan.recording[-len(area) :] = area
    shown = drawn(renderer, plan)
    changes = np.ptp(shown[..., 0], axis=0) > 1
    x, y = (np.arange(64) + 0.5) / 64, (np.arange(36) + 0.5) / 36
    inside = (abs(x - area[0]) <= area[2]) & (abs(y - area[1]) <= area[3])[:, None]
    assert np.array_equal(changes, inside)
    surround = COLOURS[2] if seed % 2 else area[5:8]
    assert abs(shown[:, ~inside] - surround).max() <= 1


def test_an_exported_network_is_restored_and_its_mean_with_itself_is_itself(tmp_path):
    onnx = pytest.importorskip("onnx")
    from benchmarks.transition_network.average import average

    rng = np.random.default_rng(0)
    clips = torch.from_numpy(rng.integers(0, 256, (2, 60, 36, 64, 3), np.uint8))
    model = onnx.load(str(MODEL))
    average(model, onnx.load(str(MODEL)), share=0.5, factor=1)
    onnx.save(model, str(tmp_path / "mean.onnx"))
    restored = restore_network(tmp_path / "mean.onnx", clips).eval()
    with torch.inference_mode():
        found = torch.sigmoid(restored(clips)[..., 1]).numpy()
    for clip, probabilities in zip(clips, found, strict=True):
        (expected,) = load_session().run(None, {"frames": clip.numpy()})
        assert probabilities == pytest.approx(expected, abs=1e-3)


def test_a_validation_counts_found_missed_and_false_spans():
    tally = Tally()
    labels = label_frames(
        Source("a", "b", True, [], [1.0], [(2.0, 2.4), (3.0, 3.2)], []), np.arange(200) / 25
    )
    probabilities = np.zeros(200, np.float32)
    probabilities[50:56] = 0.85  # in the first transition
    probabilities[24:27] = 0.99  # at the hard cut
    probabilities[150:155] = 0.75  # at nothing
    tally.count(probabilities, labels)
    assert tally.total == {-1: 2}
    assert (tally.found[-1, 0.8], tally.found[-1, 0.9]) == (1, 0)
    assert (tally.false[0.7], tally.false[0.8]) == (1, 0)


def test_stored_weights_give_the_same_network(tmp_path):
    network = TransitionNetwork().eval()
    save_weights(network, tmp_path / "network.npz")
    frames = torch.randint(0, 256, (1, 30, 36, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(frames), load_weights(tmp_path / "network.npz")(frames))


def test_labels_name_the_first_frame_after_a_cut_and_every_frame_of_a_gradual_transition():
    times_s = np.arange(100) / 25
    source = Source("a", "b", True, times_s.tolist(), [1.0], [(2.0, 2.4)], [(3.0, 3.1)])
    labels = label_frames(source, times_s)
    assert np.flatnonzero(np.diff(labels["cuts"])) + 1 == [25]
    assert np.flatnonzero(labels["gradual"]).tolist() == list(range(50, 61))
    assert (labels["counted"][np.flatnonzero((times_s >= 2.9) & (times_s <= 3.2))] == 0).all()
    assert labels["counted"][40].tolist() == [1, 1]
    _, shots, videos = gather([(source, np.zeros((100, 36, 64, 3), np.uint8))])
    assert [(shot.first, shot.end) for shot in shots] == [(0, 25), (25, 49), (62, 73), (81, 100)]
    assert len(videos) == 1


def test_a_frame_far_away_does_not_change_what_the_network_gives():
    network = TransitionNetwork().eval()
    frames = torch.randint(0, 256, (1, 400, 36, 64, 3), dtype=torch.uint8)
    changed = frames.clone()
    changed[:, 300:] = 0
    with torch.inference_mode():
        before, after = network(frames)[0], network(changed)[0]
    assert torch.allclose(before[:170], after[:170], atol=1e-5)
    assert not torch.allclose(before[290:], after[290:], atol=1e-2)
