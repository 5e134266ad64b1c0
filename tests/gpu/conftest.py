"""Tests of this folder need a GPU; without one they are skipped aloud."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Skip without a GPU, and compute products in whole float32, as a CPU does."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: recorded steps, replicas on streams and execution on a GPU are unchecked")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
