"""What gates say about images: entropies of decisions over a batch, and variances of probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sidestep.losses.budget import global_mean


def marginal_gap(logits: Tensor) -> Tensor:
    """Return the (L,) nats that are missing from the entropy of every gate over the batch, at least 0.

    That is ln K - H(mean_i p_i). A gate that treats all images alike, or that is hardly ever on, has a gap.
    Together with `conditional_entropy`, and with equal weights, it is minus the mutual information of the
    gate's decision with the image, up to ln K (Krause, Perona and Gomes, NeurIPS 2010, "Discriminative
    Clustering by Regularized Information Maximization", eq. 2 and 4).

    Args:
        logits: (B, L, K) of this process, finite; means are taken over all processes.
    """
    mean = global_mean(logits.float().softmax(dim=-1))
    return math.log(logits.shape[-1]) + (mean * mean.clamp_min(1e-20).log()).sum(dim=-1)


def conditional_entropy(logits: Tensor) -> Tensor:
    """Return the (L,) mean over images of the entropy H(p_i) of every gate's decision, in nats.

    Args:
        logits: (B, L, K) of this process, finite; means are taken over all processes.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    return global_mean(-(log_probs.exp() * log_probs).sum(dim=-1))


def variance_gap(margins: Tensor) -> Tensor:
    """Return the (L,) 1/4 - var_i(p_i) of every gate, p = sigmoid(m), at least 0.

    A quarter is the variance of a gate that is on for a half of the images and off for the others (Bengio,
    Bacon, Pineau and Precup 2015, "Conditional Computation in Neural Networks for faster models", L_v, whose
    minus variance differs by a constant).

    Args:
        margins: (B, L) log-odds of executing, of this process; means are taken over all processes.
    """
    p = torch.sigmoid(margins.float())
    return 0.25 - global_mean((p - global_mean(p)).square())
