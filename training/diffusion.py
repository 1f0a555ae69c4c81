"""Noise for training, the loss of an objective (training/objectives.py), and samplers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.torchvision_fix import fix_torchvision
from training.config import OBJECTIVES, DiffusionConfig, SampleConfig
from training.objectives import Diffusion, Flow

NUM_TIMESTEPS = 1000
BETAS = (1e-4, 0.02)  # the first and the last
Predict = Callable[[Tensor, Tensor], Tensor]  # (latents, t of shape (B,)) -> prediction


def alphas_cumprod(device: torch.device | str = "cpu") -> Tensor:
    """(1000,) float64: the signal's share of the variance at each t; betas from 1e-4 to 0.02."""
    betas = torch.linspace(*BETAS, NUM_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).to(device)


def sample_noise(latents: Tensor, cfg: DiffusionConfig, rng: torch.Generator) -> Tensor:
    """Gaussian noise of the latents' shape, fp32, on their device; drawn on the generator's."""
    noise = torch.randn(latents.shape, generator=rng, device=rng.device)
    if cfg.noise_offset:
        per_channel = (*latents.shape[:2], 1, 1, 1)
        noise = noise + cfg.noise_offset * torch.randn(
            per_channel, generator=rng, device=rng.device
        )
    return noise.to(latents.device)


def sample_timesteps(count: int, cfg: DiffusionConfig, rng: torch.Generator) -> Tensor:
    """(count,) fp32 on the generator's device: uniform integers; for flows 1000 s, where s is
    logit-normal, then shifted."""
    if not cfg.flows:
        return torch.randint(NUM_TIMESTEPS, (count,), generator=rng, device=rng.device).float()
    s = torch.randn(count, generator=rng, device=rng.device).sigmoid()
    return NUM_TIMESTEPS * shift_noise_level(s, cfg.flow_shift)


def shift_noise_level(s: Tensor, shift: float) -> Tensor:
    """Moves s towards 1, noise: shift s / (1 + (shift - 1) s), arXiv 2403.03206 eq. 23."""
    return shift * s / (1 + (shift - 1) * s)


def noisy_and_target(
    x: Tensor, noise: Tensor, t: Tensor, cfg: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Noisy latents, and what the objective predicts from them: fp32 or wider, of x's shape.  x,
    noise: (B, ...).  t: (B,)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    noise, t = noise.to(x), t.to(x.device)
    if cfg.flows:
        add = _broadcast(t / NUM_TIMESTEPS, x)
        keep = 1 - add
    else:
        a = alphas_cumprod(x.device)[t.long()]
        keep, add = _broadcast(a.sqrt(), x), _broadcast((1 - a).sqrt(), x)
    return keep * x + add * noise, OBJECTIVES[cfg.objective].target(x, noise, keep, add)


def loss_weight(t: Tensor, cfg: DiffusionConfig) -> Tensor:
    """(B,) fp32. Min-SNR (arXiv 2303.09556): min(snr, gamma) / snr for epsilon, / (snr + 1) for
    v. clean: 1 / s², which gives flow's loss."""
    objective = OBJECTIVES[cfg.objective]
    if isinstance(objective, Flow):
        return objective.loss_weight(t / NUM_TIMESTEPS).float()
    assert isinstance(objective, Diffusion)
    if cfg.min_snr_gamma is None:
        return torch.ones_like(t, dtype=torch.float32)
    a = alphas_cumprod(t.device)[t.long()]
    snr = a / (1 - a)
    return (snr.clamp(max=cfg.min_snr_gamma) / objective.error_scale(snr)).float()


def denoising_loss(
    predict: Predict, x: Tensor, noise: Tensor, t: Tensor, cfg: DiffusionConfig
) -> Tensor:
    """(B,) weighted mean squared error of each sample. The network gets the latents' dtype."""
    noisy, target = noisy_and_target(x, noise, t, cfg)
    error = predict(noisy.to(x.dtype), t.to(x.device)).to(target.dtype) - target
    return error.square().flatten(1).mean(1) * loss_weight(t, cfg).to(error.device)


def guided(
    conditional: Predict,
    unconditional: Predict,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Predict:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional). With scale 1,
    and at noise levels t / 1000 outside the interval (arXiv 2404.07724), only the conditional
    prediction is computed."""
    if scale == 1:
        return conditional

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if not interval[0] <= t[0].item() / NUM_TIMESTEPS <= interval[1]:
            return conditional(x, t)
        base = unconditional(x, t).float()
        return base + scale * (conditional(x, t).float() - base)

    return predict


def sample_latents(
    predict: Predict,
    noise: Tensor,
    cfg: SampleConfig,
    diffusion: DiffusionConfig,
    rng: torch.Generator,
) -> Tensor:
    """Samples latents by the solver of the settings. `predict` is called once per step."""
    if cfg.solver == "dpm++":
        return sample_second_order(predict, noise, cfg.steps, diffusion)
    if diffusion.flows:
        return sample_flow(predict, noise, cfg.steps, diffusion)
    return sample_ancestral(predict, noise, cfg.steps, diffusion, rng)


@torch.no_grad()
def sample_ancestral(
    predict: Predict, noise: Tensor, steps: int, cfg: DiffusionConfig, rng: torch.Generator
) -> Tensor:
    """Euler-ancestral sampling for epsilon and v, Allegro's and Presto's sampler: `steps` timesteps
    from 999 to 0.

    noise: (B, ...) standard normal. State and arithmetic in fp32. Formulas: Karras et al., arXiv
    2206.00364, with the ancestral split of k-diffusion: sigma_up² = to² (from² - to²) / from²,
    sigma_down² = to² - sigma_up².
    """
    objective = OBJECTIVES[cfg.objective]
    if not isinstance(objective, Diffusion):
        raise ValueError("Euler-ancestral samples epsilon and v; use sample_flow for flow matching")
    a = alphas_cumprod().numpy()
    timesteps = np.linspace(0, NUM_TIMESTEPS - 1, steps, dtype=np.float32)[::-1]
    sigmas = [*np.interp(timesteps, np.arange(NUM_TIMESTEPS), ((1 - a) / a) ** 0.5).tolist(), 0.0]
    x = noise.float() * sigmas[0]
    for t, now, to in zip(timesteps.tolist(), sigmas, sigmas[1:], strict=False):
        scaled = (x / (now**2 + 1) ** 0.5).to(noise.dtype)
        out = predict(scaled, torch.full((len(x),), t, device=x.device)).float()
        clean = objective.clean_latents(x, out, now)
        up = (to**2 * (now**2 - to**2) / now**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        x = x + (x - clean) / now * (down - now)
        if to:
            x = x + up * torch.randn(x.shape, generator=rng, device=rng.device).to(x.device)
    return x


@torch.no_grad()
def sample_flow(predict: Predict, noise: Tensor, steps: int, cfg: DiffusionConfig) -> Tensor:
    """Euler steps along the flow from noise (s = 1) to latents (s = 0), at shifted levels s."""
    objective = OBJECTIVES[cfg.objective]
    if not isinstance(objective, Flow):
        raise ValueError(
            f"sample_flow samples flow matching; {cfg.objective} needs sample_ancestral"
        )
    s = shift_noise_level(torch.linspace(1, 0, steps + 1), cfg.flow_shift).tolist()
    x = noise.float()
    for now, to in itertools.pairwise(s):
        out = predict(
            x.to(noise.dtype), torch.full((len(x),), NUM_TIMESTEPS * now, device=x.device)
        ).float()
        x = x + (to - now) * objective.velocity(x, out, now)
    return x


@torch.no_grad()
def sample_second_order(
    predict: Predict, noise: Tensor, steps: int, cfg: DiffusionConfig
) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095) of diffusers, at the noise levels of training."""
    fix_torchvision()
    from diffusers import DPMSolverMultistepScheduler

    objective = OBJECTIVES[cfg.objective]
    scheduler: Any = DPMSolverMultistepScheduler(
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        prediction_type="sample",  # clean latents, which every objective's prediction becomes
        use_flow_sigmas=cfg.flows,
        flow_shift=cfg.flow_shift,
    )
    scheduler.set_timesteps(steps)
    x = noise.float()
    for step_t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        t = NUM_TIMESTEPS * sigma if cfg.flows else step_t.item()
        out = predict(x.to(noise.dtype), torch.full((len(x),), float(t), device=x.device)).float()
        if isinstance(objective, Flow):
            clean = x - sigma * objective.velocity(x, out, sigma)
        else:
            assert isinstance(objective, Diffusion)
            clean = objective.clean_latents(x * (sigma**2 + 1) ** 0.5, out, sigma)
        x = scheduler.step(clean, step_t, x, return_dict=False)[0]
    return x


def _broadcast(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.to(like).view(-1, *[1] * (like.ndim - 1))
