"""What several tests of kernels share."""

from __future__ import annotations

import plans
import pytest
from sidestep_engine import Engine, PlanError

KERNELS = [
    ("base", "float32"),
    ("avx2", "float32"),
    ("avx512", "float32"),
    ("avx512", "bfloat16"),
    ("amx", "bfloat16"),
]


@pytest.fixture(params=KERNELS, ids="-".join)
def kernels(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return instruction set and precision of kernels; those that this processor lacks are skipped aloud."""
    isa, precision = request.param
    try:
        Engine(plans.routed_resnet(1, (16,)), isa=isa, precision=precision)
    except PlanError as error:
        if "this processor cannot run" not in str(error):
            raise
        pytest.skip(str(error))
    return {"isa": isa, "precision": precision}
