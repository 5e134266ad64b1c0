"""Algorithm 1 of batch-shaping, image by image, with SciPy's Beta distribution."""

from __future__ import annotations

from scipy.stats import beta
from torch import Tensor


def batch_shaping(probabilities: Tensor, a: float, b: float) -> tuple[float, list[float]]:
    """Return the loss of one gate and its gradient with respect to probabilities, none equal."""
    values = probabilities.tolist()
    order = sorted(range(len(values)), key=lambda i: values[i])
    loss, gradient = 0.0, [0.0] * len(values)
    for place, i in enumerate(order, start=1):
        distance = float(beta.cdf(values[i], a, b)) - place / (len(values) + 1)
        loss += distance**2 / len(values)
        gradient[i] = 2 * distance * float(beta.pdf(values[i], a, b)) / len(values)
    return loss, gradient
