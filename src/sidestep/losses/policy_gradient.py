"""Policy gradients for hard decisions without a gradient of their own: SkipNet's and BlockDrop's."""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.layers.processes import num_processes, sum_over_processes
from sidestep.types import RoutedOutput


def skipping_return(
    weights: Tensor, task_loss: Tensor, *, alpha: float, gamma: float = 1.0, scale_task: bool = False
) -> Tensor:
    """Return the (B, G) return of every gate's decision (SkipNet, hybrid reinforcement learning).

    With a_k = 1 when gate k executes, R_g = sum_{k>=g} gamma^(k-g) (1 - a_k) alpha / G - gamma^(G-g) CE. The
    released code for ImageNet has alpha / G before the CE as well: R_g is alpha / G times the number of gates
    that are skipped from g on, less the CE.

    Args:
        weights: (B, G, 2) one-hot decisions.
        task_loss: (B,) cross-entropy of every image.
        alpha: reward of skipping all gates.
        gamma: discount per gate.
        scale_task: whether alpha / G scales the cross-entropy too.
    """
    skipped = weights[..., 0].detach()
    num_gates = skipped.shape[1]
    scale = alpha / num_gates
    following = -task_loss.detach() * (scale if scale_task else 1.0)
    returns = []
    for reward in reversed((skipped * scale).unbind(dim=1)):
        following = reward + gamma * following
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)


def reinforce_loss(log_probs: Tensor, weights: Tensor, returns: Tensor) -> Tensor:
    """Return the scalar batch mean of -sum_g log p(a_g) R_g, whose gradient is that of the expected return.

    Args:
        log_probs: (B, G, K) log-probabilities of the options under the sampling policy, with gradient.
        weights: (B, G, K) one-hot decisions that were drawn.
        returns: (B, G) or (B, 1), without gradient.
    """
    chosen = (log_probs * weights.detach()).sum(dim=-1)
    return -(chosen * returns).sum(dim=1).mean()


def leave_one_out_advantage(returns: Tensor, views: int = 1) -> Tensor:
    """Return the (B, G) returns less their mean over others, which know nothing of an image's own decisions.

    So the gradient is the same in the mean, with less variance. Others are the other views of the same image
    (Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"), whose draws are
    independent; of images with one view the other images of the batch, which share how well the network does
    and how much it skips, and not how hard the image is.

    Args:
        returns: (B, G) of this process, without gradient; the views of one image are neighbours. Other images
            are those of all processes.
        views: number M of views of every image; B must be a multiple of it.
    """
    if views > 1:
        grouped = returns.view(-1, views, returns.shape[1])
        others = (grouped.sum(dim=1, keepdim=True) - grouped) / (views - 1)
        compared: Tensor = (grouped - others).flatten(0, 1)
        return compared
    total = returns.sum(dim=0)
    if num_processes() > 1:
        total = sum_over_processes(total)
    count = len(returns) * num_processes()
    return returns - (total - returns) / max(count - 1, 1)


def self_critical_advantage(
    drawn: RoutedOutput, greedy: RoutedOutput, labels: Tensor, *, penalty: float
) -> Tensor:
    """Return the (B,) advantage of drawn paths over the most probable ones, without gradient (BlockDrop).

    The reward is 1 - u^2 for a right prediction, u the share of units that were executed, and `penalty` for a
    wrong one.

    Args:
        drawn: scores and decisions of the paths that were drawn.
        greedy: those of the most probable paths.
        labels: (B,) classes.
        penalty: reward of a wrong prediction, negative: the larger, the more units are kept.
    """
    return _reward(drawn, labels, penalty) - _reward(greedy, labels, penalty)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the (...) entropy in nats of (..., K) log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def _reward(output: RoutedOutput, labels: Tensor, penalty: float) -> Tensor:
    right = output.logits.detach().argmax(dim=1) == labels
    usage = output.decisions.execution().detach().float().mean(dim=1)
    return torch.where(right, 1 - usage.square(), penalty)
