"""Samplers: how the logits of a router become the weights that a unit is run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Sample(NamedTuple):
    """What was sampled for a batch.

    Attributes:
        weights: (B, K) that are executed.
        relaxed: (B, K) weights behind them.
        chosen: (N,) rows that alone execute the unit, rising, where their number was set before; None
            otherwise. Of two options the others have the first one.
        others: (B - N,) all other rows, rising, or None likewise.
    """

    weights: Tensor
    relaxed: Tensor
    chosen: Tensor | None = None
    others: Tensor | None = None


class Sampler(Protocol):
    """Turns (B, K) logits of one unit into a `Sample`."""

    def __call__(self, logits: Tensor) -> Sample: ...


@runtime_checkable
class UnitSampler(Protocol):
    """A sampler that differs from unit to unit."""

    def at(self, unit: int) -> Sampler:
        """Return the sampler of a unit."""
        ...


def log_softmax(logits: Tensor) -> Tensor:
    """Return the (..., K) log-probabilities of logits, in float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def bounded_log_probs(logits: Tensor, alpha: float) -> Tensor:
    """Return the (..., 2) log-probabilities of s' = alpha s + (1 - alpha)(1 - s) with s = softmax(logits).

    With alpha below 1 no decision is ever certain, so that exploration goes on (BlockDrop). Decisions that
    are forced by an infinite logit stay so.

    Args:
        logits: (..., 2).
        alpha: in [0.5, 1]; 0.8 keeps s' in [0.2, 0.8].
    """
    return explored_log_probs(logits, 2 * (1 - alpha))


def explored_log_probs(logits: Tensor, share: float) -> Tensor:
    """Return the (..., K) log-probabilities of (1 - share) s + share / K with s = softmax(logits).

    A share of the decisions is drawn as if all options were equal. Those that are forced by an infinite logit
    stay so.

    Args:
        logits: (..., K).
        share: in [0, 1].
    """
    s = logits.float().softmax(dim=-1)
    mixed = (1 - share) * s + share / logits.shape[-1]
    forced = logits.isinf().any(dim=-1, keepdim=True)
    return torch.where(forced, s, mixed).log()


class Noise:
    """Uniform draws that do not depend on how a batch is split over processes.

    Every process draws for the whole global batch from the same generator and keeps its own rows, so two
    processes see the numbers that one would have seen.

    Args:
        generator: source of the draws, seeded by the caller.
        rank: index of this process.
        world_size: number of processes, all with equal batches.
    """

    def __init__(self, generator: torch.Generator, *, rank: int = 0, world_size: int = 1) -> None:
        self.generator = generator
        self.rank = rank
        self.world_size = world_size

    def uniform(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Return this process's (rows, columns) float32 numbers in [0, 1)."""
        return self._drawn(rows, columns)[self.rank * rows : (self.rank + 1) * rows].to(device)

    def common(self, rows: int, device: torch.device) -> Tensor:
        """Return the (1, 1) number in [0, 1) that all rows of all processes share."""
        return self._drawn(rows, 1)[:1].to(device)

    def _drawn(self, rows: int, columns: int) -> Tensor:
        """Return the numbers of all processes."""
        count, device = rows * self.world_size, self.generator.device
        return torch.rand(count, columns, generator=self.generator, device=device)


def one_hot_argmax(scores: Tensor) -> Tensor:
    """Return the (B, K) one-hot of the largest score in every row; of equals the cheapest option wins."""
    return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)


def argmax(logits: Tensor) -> Sample:
    """Return hard, noise-free weights: the sampler of evaluation (a tie skips)."""
    weights = one_hot_argmax(logits)
    return Sample(weights, weights)


def given(option: int, logits: Tensor) -> Sample:
    """Return what is decided about all images beforehand: 0 skips a unit of two options, 1 executes it.

    A unit that is skipped is not computed, in training too.
    """
    weights = torch.zeros_like(logits)
    weights[:, option].fill_(1)
    if option:
        return Sample(weights, weights)
    rows = torch.arange(len(logits), device=logits.device)
    return Sample(weights, weights, rows[:0], rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class GumbelSoftmax:
    """The sampler of training (RDI-Net eq. 8, ConvNet-AIG): softmax((logits + G) / temperature).

    The paper prints a logarithm around logits + G, which is undefined for negative arguments; the usual
    Gumbel-softmax is meant, where log class probabilities differ from the logits by a constant only.

    Args:
        noise: source of the uniform draws.
        temperature: divisor of the perturbed logits.
        noise_scale: factor on the Gumbel noise; 1 samples from softmax(logits), smaller values are sharper.
        hard: straight-through: one-hot in the forward pass, gradient of the soft weights.
        explore: share of the decisions that are drawn as if all options were equal.
        draws: above 1, the soft weights behind a hard decision are the mean over so many noises that all
            lead to it: the same gradient in the mean, with less variance (Paulus, Maddison and Krause, ICLR
            2021, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator").
    """

    noise: Noise
    temperature: float = 1.0
    noise_scale: float = 1.0
    hard: bool = False
    explore: float = 0.0
    draws: int = 1

    def __call__(self, logits: Tensor) -> Sample:
        logits = explored_log_probs(logits, self.explore) if self.explore else logits.float()
        uniform = self.noise.uniform(logits.shape[0], logits.shape[1], logits.device).clamp_(1e-10, 1 - 1e-7)
        negative_gumbel = uniform.log_().neg_().log_()
        noisy = torch.sub(logits, negative_gumbel, alpha=self.noise_scale)
        if self.hard and self.draws > 1:
            chosen = one_hot_argmax(noisy.detach())
            soft = self._mean_over_noises(logits, chosen)
            return Sample(chosen - soft.detach() + soft, soft)
        soft = torch.softmax(noisy / self.temperature, dim=1)
        if not self.hard:
            return Sample(soft, soft)
        return Sample(one_hot_argmax(soft.detach()) - soft.detach() + soft, soft)

    def _mean_over_noises(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Return (B, K) soft weights, averaged over noises under which the chosen options have won.

        With l = logits / noise_scale, exponential E and option i chosen, the winner's perturbed logit is
        log Z - log E_i with Z = sum exp(l), and that of every other one -log(E_j / exp(l_j) + E_i / Z) (eq. 8
        and 9 of the paper). The noise is their difference to l, and has no gradient.
        """
        rows, options = logits.shape
        uniform = self.noise.uniform(rows, options * self.draws, logits.device).clamp_(1e-10, 1 - 1e-7)
        log_e = uniform.log_().neg_().log_().view(rows, self.draws, options)
        scaled, chosen = (logits / self.noise_scale).unsqueeze(1), chosen.unsqueeze(1)
        with torch.no_grad():
            winner = scaled.logsumexp(dim=2, keepdim=True) - (log_e * chosen).sum(dim=2, keepdim=True)
            others = -torch.logaddexp(log_e - scaled, -winner)
            noise = torch.where(chosen > 0, winner, others) - scaled
            # Options that are ruled out by an infinite logit stay so.
            noise = noise.masked_fill(scaled.isinf(), 0.0)
        return torch.softmax((scaled + noise) * (self.noise_scale / self.temperature), dim=2).mean(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorical:
    """Hard draws from softmax(logits) without a gradient: uniform sampling, random dropping, and policies.

    Args:
        noise: source of the uniform draws.
        per: "sample" draws anew for every image, "batch" one option for the whole batch, in all processes.
        log_probs: maps (B, K) logits to the log-probabilities that are drawn from.
    """

    noise: Noise
    per: Literal["sample", "batch"] = "sample"
    log_probs: Callable[[Tensor], Tensor] = log_softmax

    def __call__(self, logits: Tensor) -> Sample:
        with torch.no_grad():
            cumulated = self.log_probs(logits).exp().cumsum(dim=1)
            rows, device = logits.shape[0], logits.device
            of_batch = self.per == "batch"
            uniform = self.noise.common(rows, device) if of_batch else self.noise.uniform(rows, 1, device)
            option = (uniform >= cumulated[:, :-1]).sum(dim=1, keepdim=True)
            weights = torch.zeros_like(cumulated).scatter_(1, option, 1.0)
        return Sample(weights, weights)


def is_noisy(sampler: Sampler) -> bool:
    """Return whether a sampler draws: all do but the arg-max and a Gumbel-softmax without noise."""
    if isinstance(sampler, GumbelSoftmax):
        return sampler.noise_scale > 0
    return sampler is not argmax
