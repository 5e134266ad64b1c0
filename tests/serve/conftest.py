from pathlib import Path

import pytest

from sidestep.serve.served_model import ServedModel, open_models
from sidestep.serve.settings import ServeSettings
from tests.serve.served import trained


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def models(run: Path) -> list[ServedModel]:
    """The run, ready to be served: opened once, since that takes a second."""
    return open_models([run], ServeSettings())
