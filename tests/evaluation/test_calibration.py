"""Temperatures and calibration errors."""

import pytest
import torch

from sidestep.evaluation.calibration import calibration_errors, fit_temperatures


def drawn(scale: float, images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `scale` times too large for the labels that are drawn from them."""
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(images, 5, generator=generator)
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=generator).squeeze(1)
    return scale * honest, labels


def test_the_fitted_temperature_undoes_a_scale() -> None:
    logits, labels = drawn(1.0)
    several = torch.stack([3 * logits, logits, logits / 2])
    assert fit_temperatures(several, labels) == pytest.approx([3.0, 1.0, 0.5], rel=0.1)
    assert labels.dtype == torch.long and not several.requires_grad


def test_no_other_temperature_has_a_smaller_loss() -> None:
    logits, labels = drawn(2.5)
    (found,) = fit_temperatures(logits.unsqueeze(0), labels)
    losses = [
        torch.nn.functional.cross_entropy(logits / temperature, labels)
        for temperature in (found, 0.98 * found, 1.02 * found)
    ]
    assert losses[0] == min(losses)


def test_scaled_logits_are_better_calibrated() -> None:
    logits, labels = drawn(4.0)
    exits = logits.unsqueeze(0)
    (before,) = calibration_errors(exits, labels, [1.0])
    (after,) = calibration_errors(exits, labels, fit_temperatures(exits, labels))
    assert before > 0.1 and after < 0.03


def test_the_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    # Two bins: confidence 0.9 with accuracy 0.5, and 0.6 with accuracy 1.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    (error,) = calibration_errors(probabilities.log().unsqueeze(0), labels, [1.0])
    assert error == pytest.approx((0.4 + 0.4) / 2, abs=1e-6)
