"""One seed and one Hypothesis profile for every test."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("sidestep", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("sidestep")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
