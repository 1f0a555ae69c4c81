import pytest
import torch
from torch import Tensor

from training.config import DiffusionConfig
from training.diffusion import (
    alphas_cumprod,
    denoising_loss,
    guided,
    loss_weight,
    noisy_and_target,
    sample_ancestral,
    sample_flow,
    sample_noise,
    sample_second_order,
    sample_timesteps,
    shift_noise_level,
)

SHAPE = (2, 4, 3, 2, 5)


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_noise_schedule_equals_that_of_ddpm():
    scheduler = pytest.importorskip("diffusers").DDPMScheduler()
    assert torch.allclose(alphas_cumprod().float(), scheduler.alphas_cumprod, rtol=1e-5)


@pytest.mark.parametrize(("objective", "theirs"), [("epsilon", "epsilon"), ("v", "v_prediction")])
def test_noisy_latents_and_targets_equal_those_of_diffusers(objective, theirs):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(prediction_type=theirs)
    x, noise, t = random_tensor(0, *SHAPE), random_tensor(1, *SHAPE), torch.tensor([3, 907])
    noisy, target = noisy_and_target(x, noise, t, DiffusionConfig(objective))
    assert torch.allclose(noisy, scheduler.add_noise(x, noise, t), atol=1e-5)
    want = noise if objective == "epsilon" else scheduler.get_velocity(x, noise, t)
    assert torch.allclose(target, want, atol=1e-5)


@pytest.mark.parametrize("objective", ["epsilon", "v", "flow", "clean"])
def test_a_perfect_prediction_has_no_loss(objective):
    cfg = DiffusionConfig(objective)
    x, noise, t = (
        random_tensor(0, *SHAPE).double(),
        random_tensor(1, *SHAPE),
        torch.tensor([10.0, 800.0]),
    )
    target = noisy_and_target(x, noise, t, cfg)[1]
    assert denoising_loss(lambda *_: target, x, noise, t, cfg).tolist() == [0, 0]
    off = denoising_loss(lambda *_: target + 2, x, noise, t, cfg)
    assert torch.allclose(off, 4 * loss_weight(t, cfg).double())


def test_min_snr_weights_of_epsilon_and_v_agree_on_the_error_of_clean_latents():
    """An error of e in epsilon is e / sqrt(snr) in x; of e in v it is e / sqrt(snr + 1)."""
    t = torch.arange(0.0, 1000.0)
    a = alphas_cumprod()
    snr = a / (1 - a)
    in_x = snr.clamp(max=5.0)
    assert torch.allclose(loss_weight(t, DiffusionConfig("epsilon")).double() * snr, in_x)
    assert torch.allclose(loss_weight(t, DiffusionConfig("v")).double() * (snr + 1), in_x)
    assert loss_weight(t, DiffusionConfig(min_snr_gamma=None)).unique().tolist() == [1]


def test_timesteps_cover_the_range_and_repeat_with_the_seed():
    for cfg in (DiffusionConfig(), DiffusionConfig("flow")):
        t = sample_timesteps(5000, cfg, torch.Generator().manual_seed(0))
        assert torch.equal(t, sample_timesteps(5000, cfg, torch.Generator().manual_seed(0)))
        assert 0 <= t.min() < 60
        assert 940 < t.max() <= 1000
        assert abs(t.mean() - 500) < 20
    assert (
        sample_timesteps(5000, DiffusionConfig("flow", flow_shift=3.0), torch.Generator()).mean()
        > 650
    )
    assert shift_noise_level(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0, 0.75, 1]


def test_noise_offset_shifts_each_channel():
    x = torch.zeros(64, 4, 5, 8, 8)
    plain = sample_noise(x, DiffusionConfig(), torch.Generator().manual_seed(0))
    offset = sample_noise(x, DiffusionConfig(noise_offset=1.0), torch.Generator().manual_seed(0))
    moved = offset - plain
    assert torch.allclose(moved, moved[..., :1, :1, :1].expand_as(moved), atol=1e-6)
    assert 0.8 < moved[..., 0, 0, 0].std() < 1.2


def gaussian_truth(cfg: DiffusionConfig, mean: float, deviation: float):
    """What a perfect network predicts for latents that are Gaussian: the posterior mean of the
    target, exactly."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if cfg.flows:
            keep, add = 1 - t[0] / 1000, t[0] / 1000
        else:
            lower = t.floor().long()
            below, above = alphas_cumprod()[lower], alphas_cumprod()[(lower + 1).clamp(max=999)]
            a = (below + (above - below) * (t - lower))[0].float()
            keep, add = a.sqrt(), (1 - a).sqrt()
        clean = mean + (x - keep * mean) * keep * deviation**2 / (keep**2 * deviation**2 + add**2)
        noise = (x - keep * clean) / add if add > 0 else torch.zeros_like(x)
        if cfg.objective == "clean":
            return clean
        if cfg.objective == "flow":
            return noise - clean
        return noise if cfg.objective == "epsilon" else keep * noise - add * clean

    return predict


@pytest.mark.parametrize("objective", ["epsilon", "v", "flow", "clean"])
def test_samples_of_a_perfect_network_have_the_data_s_mean_and_deviation(objective):
    cfg = DiffusionConfig(objective)
    predict, noise = gaussian_truth(cfg, 0.7, 0.4), random_tensor(0, 1, 1, 4, 50, 50)
    if cfg.flows:
        out = sample_flow(predict, noise, 100, cfg)
    else:
        out = sample_ancestral(predict, noise, 1000, cfg, torch.Generator().manual_seed(1))
    assert abs(out.mean() - 0.7) < 0.02
    assert abs(out.std() - 0.4) < 0.02


@pytest.mark.parametrize(("objective", "theirs"), [("epsilon", "epsilon"), ("v", "v_prediction")])
def test_the_ancestral_sampler_equals_diffusers(objective, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerAncestralDiscreteScheduler(prediction_type=theirs)
    scheduler.set_timesteps(7)
    noise, seen = random_tensor(0, *SHAPE), []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        return torch.sin(3 * x) + t.view(-1, 1, 1, 1, 1) / 1000

    x, rng = noise * scheduler.init_noise_sigma, torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        out = predict(scheduler.scale_model_input(x, t), t.expand(2))
        x = scheduler.step(out, t, x, generator=rng).prev_sample
    theirs_t, seen = seen, []
    cfg = DiffusionConfig(objective)
    ours = sample_ancestral(predict, noise, 7, cfg, torch.Generator().manual_seed(5))
    assert seen == theirs_t
    assert torch.allclose(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["epsilon", "v", "flow", "clean"])
def test_25_second_order_steps_give_the_data_s_mean_and_deviation(objective):
    cfg = DiffusionConfig(objective, flow_shift=2.0)
    predict, noise = gaussian_truth(cfg, 0.7, 0.4), random_tensor(0, 1, 1, 4, 50, 50)
    out = sample_second_order(predict, noise, 25, cfg)
    assert abs(out.mean() - 0.7) < 0.02
    assert abs(out.std() - 0.4) < 0.02


@pytest.mark.parametrize(
    ("objective", "theirs"),
    [("epsilon", "epsilon"), ("v", "v_prediction"), ("flow", "flow_prediction")],
)
def test_the_second_order_solver_equals_diffusers_with_its_own_prediction_types(objective, theirs):
    diffusers = pytest.importorskip("diffusers")
    flows = objective == "flow"
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=theirs, use_flow_sigmas=flows, flow_shift=3.0
    )
    scheduler.set_timesteps(7)
    x = noise = random_tensor(0, *SHAPE)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t.view(-1, 1, 1, 1, 1) / 1000

    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        at = 1000 * sigma if flows else t
        x = scheduler.step(predict(x, at.expand(2)), t, x).prev_sample
    ours = sample_second_order(predict, noise, 7, DiffusionConfig(objective, flow_shift=3.0))
    assert torch.allclose(ours, x, rtol=1e-3, atol=1e-3)


def test_clean_has_the_loss_and_the_samples_of_flow():
    """The same predictions, once as latents and once as the velocity that leads to them."""
    flow, clean = DiffusionConfig("flow"), DiffusionConfig("clean")
    x, noise, t = random_tensor(0, *SHAPE), random_tensor(1, *SHAPE), torch.tensor([60.0, 999.0])

    def guess(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.sin(noisy)

    def velocity(noisy: Tensor, t: Tensor) -> Tensor:
        return (noisy - guess(noisy, t)) / (t / 1000).view(-1, 1, 1, 1, 1)

    losses = denoising_loss(guess, x, noise, t, clean)
    assert torch.allclose(losses, denoising_loss(velocity, x, noise, t, flow), rtol=1e-4)
    samples = sample_flow(guess, noise, 7, clean)
    assert torch.allclose(samples, sample_flow(velocity, noise, 7, flow), atol=1e-5)


def test_guidance_of_one_is_the_conditional_prediction():
    x, t = random_tensor(0, *SHAPE), torch.zeros(2)
    with_text, without = (lambda x, t: x), (lambda x, t: 0 * x)
    assert guided(with_text, without, 1) is with_text
    assert torch.equal(guided(with_text, without, 7)(x, t), 7 * x)


def test_steps_outside_the_guidance_interval_compute_the_conditional_prediction_only():
    x, calls = random_tensor(0, *SHAPE), []
    predict = guided(lambda x, t: x, lambda x, t: calls.append(t) or 0 * x, 7, (0.2, 0.5))
    for t, factor in ((100.0, 1), (200.0, 7), (499.0, 7), (501.0, 1)):
        assert torch.equal(predict(x, torch.full((2,), t)), factor * x)
    assert len(calls) == 2


def test_each_sampler_refuses_the_other_s_objectives():
    with pytest.raises(ValueError, match="use sample_flow"):
        sample_ancestral(
            lambda x, t: x, torch.zeros(SHAPE), 2, DiffusionConfig("flow"), torch.Generator()
        )
    with pytest.raises(ValueError, match="epsilon needs sample_ancestral"):
        sample_flow(lambda x, t: x, torch.zeros(SHAPE), 2, DiffusionConfig())
