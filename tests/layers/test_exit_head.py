from __future__ import annotations

import pytest
import torch

from sidestep.layers.exit_head import ExitHead
from tests.doubles import enliven
from tests.reference import multi_scale as literal


@pytest.mark.parametrize("size", [7, 8])
def test_an_exit_equals_the_literal_one_on_the_maps_of_the_papers(size: int) -> None:
    head, x = ExitHead(5, 6, 3), torch.randn(2, 5, size, size)
    enliven(head)
    state = {f"head.{key}": value for key, value in head.eval().state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(head(x), literal.exit_head(state, "head", x))


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_an_exit_takes_maps_of_any_size(size: int) -> None:
    head = ExitHead(5, 6, 3).eval()
    with torch.no_grad():
        assert head(torch.randn(2, 5, size, size)).shape == (2, 3)
