"""What the network predicts from noisy latents, and how the loss weighs its error.

| objective | noisy latents | target | t given to the network |
|---|---|---|---|
| epsilon | sqrt(a) x + sqrt(1 - a) e | e | 0..999, integers |
| v | the same | sqrt(a) e - sqrt(1 - a) x | 0..999, integers |
| flow | (1 - s) x + s e | e - x | 1000 s |
| clean | the same | x; the error over s is flow's | 1000 s |

x: latents, e: Gaussian noise, a: `alphas_cumprod` at t. Allegro and Presto use epsilon with betas
from 1e-4 to 0.02 in 1000 steps (DDPM, arXiv 2006.11239); v: arXiv 2202.00512; flow matching: arXiv
2210.02747, 2403.03206; clean: arXiv 2511.13720. With the first three the network predicts noise, so
all numbers of a token have to pass through its width. Where a token has more numbers than that, as
large patches of pixels do, use `clean`.

To add one: a subclass of Diffusion or Flow in a file of its own, and an entry in `OBJECTIVES`
(training/config.py). Settings name an objective and are checked before torch is imported, so such a
file imports torch for type checks only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MIN_DIVISOR = 0.05  # clean: the loss divides by no smaller s (as in arXiv 2511.13720)


class Objective:
    def target(self, x: Tensor, noise: Tensor, keep: Tensor, add: Tensor) -> Tensor:
        """What the network has to predict of the noisy latents keep * x + add * noise."""
        raise NotImplementedError


class Diffusion(Objective):
    """Noise is added as in DDPM: keep² + add² = 1."""

    def clean_latents(self, noisy: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        """noisy: x + sigma * noise, of which the network got noisy / sqrt(sigma² + 1)."""
        raise NotImplementedError

    def error_scale(self, snr: Tensor) -> Tensor:
        """The prediction's squared error where that of the clean latents is 1.

        snr: signal-to-noise ratio keep² / add².
        """
        raise NotImplementedError


class Flow(Objective):
    """The path from latents to noise is straight: keep = 1 - s, add = s."""

    def velocity(self, noisy: Tensor, prediction: Tensor, s: float) -> Tensor:
        """The flow noise - x at s."""
        raise NotImplementedError

    def loss_weight(self, s: Tensor) -> Tensor:
        return s.new_ones(s.shape)


class PredictNoise(Diffusion):
    def target(self, x: Tensor, noise: Tensor, keep: Tensor, add: Tensor) -> Tensor:
        return noise

    def clean_latents(self, noisy: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        return noisy - sigma * prediction

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr


class PredictV(Diffusion):
    def target(self, x: Tensor, noise: Tensor, keep: Tensor, add: Tensor) -> Tensor:
        return keep * noise - add * x

    def clean_latents(self, noisy: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        return noisy / (sigma**2 + 1) - prediction * (sigma / (sigma**2 + 1) ** 0.5)

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr + 1


class PredictFlow(Flow):
    def target(self, x: Tensor, noise: Tensor, keep: Tensor, add: Tensor) -> Tensor:
        return noise - x

    def velocity(self, noisy: Tensor, prediction: Tensor, s: float) -> Tensor:
        return prediction


class PredictClean(Flow):
    def target(self, x: Tensor, noise: Tensor, keep: Tensor, add: Tensor) -> Tensor:
        return x

    def velocity(self, noisy: Tensor, prediction: Tensor, s: float) -> Tensor:
        return (noisy - prediction) / s

    def loss_weight(self, s: Tensor) -> Tensor:
        return s.clamp(min=MIN_DIVISOR).pow(-2)
