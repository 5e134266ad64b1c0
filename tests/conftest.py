"""One seed and one Hypothesis profile for every test, and no network for any."""

import os

# Before anything reads it: a hub that cannot be reached is asked again and again.
os.environ["HF_HUB_OFFLINE"] = "1"
# As the command line does (cli/process.py): beside other work tests stand still otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
import torch
from hypothesis import settings

settings.register_profile("sidestep", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("sidestep")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
