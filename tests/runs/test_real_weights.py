"""EfficientNet-Lite0, then Lite2, with real weights on real photographs: from state dicts to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sidestep
from sidestep.cli.main import main
from sidestep.data import DataConfig
from sidestep.data.load import open_split
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from tests.real_weights import CLASS_INDICES, PHOTOS, needs_real_weights, weights_file

pytestmark = [needs_real_weights, pytest.mark.slow]
NAMES = ("efficientnet_lite0", "efficientnet_lite2")
EACH = 2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first photographs of every class, to test on and, the same, to train on."""
    root = tmp_path_factory.mktemp("photographs")
    split = open_split(DataConfig(source=f"hfds/{PHOTOS}"), "test")
    assert split is not None
    for label, name in enumerate(split.class_names):
        for index in (split.labels == label).nonzero().flatten()[:EACH].tolist():
            with split.images.open(index) as image:
                for part in ("train", "test"):
                    # Folders sort as the labels do.
                    path = root / part / f"{label} {name}" / f"{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.convert("RGB").save(path)
    return root


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade of both, the dearer one named first."""
    root = tmp_path_factory.mktemp("real")
    members = [f"timm/tf_{name}={weights_file(name, root)}" for name in reversed(NAMES)]
    classes = ["--data.classes", "imagenet", "--data.class_indices", str(CLASS_INDICES)]
    command = ["cascade", *members, "--data.source", str(photographs), "--data.workers", "0", *classes]
    assert main([*command, "--budget", "0.9", "--calibration", "halves", "--out", str(root / "run")]) == 0
    return root / "run"


def test_members_name_photographs_among_a_thousand_classes(run: Path) -> None:
    opened = open_run(run, "best")
    assert [member.name for member in opened.recipe.model.settings.members] == [f"timm/tf_{n}" for n in NAMES]
    assert len(opened.class_names) == 1000 and opened.class_names[217] == "1 English springer"
    test = data_of(opened, "test", None).test
    assert test is not None and sorted(set(test.labels.tolist())) == CLASS_INDICES
    network = opened.network
    assert isinstance(network, CascadeNetwork)
    (batch,) = test.eval_batches(batch_size=100)
    with torch.inference_mode():
        said = network(batch.images).exit_logits
    assert said is not None and said.shape == (2, 10 * EACH, 1000)
    # Three of four in the whole set.
    assert ((said.argmax(dim=2) == batch.labels).float().mean(dim=1) >= 0.6).all()


def test_the_engine_decides_as_pytorch_and_predicts_by_name(
    run: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sidestep_engine")
    reports = [
        sidestep.evaluate(run).as_dict(),
        sidestep.evaluate(run, execution="engine", precision="float32").as_dict(),
    ]
    assert reports[0]["exit_rates"] == reports[1]["exit_rates"]
    assert 0 < reports[0]["exit_rates"][0] < 1
    assert reports[0]["accuracy"] == reports[1]["accuracy"] >= 0.6
    assert main(["export", str(run), "--to", "plan"]) == 0
    files = sorted(map(str, photographs.glob("test/*/*.png")))
    capsys.readouterr()
    assert main(["run", str(run / "best.plan"), *files, "--precision", "float32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    right = [Path(each["path"]).parent.name == each["label"] for each in said]
    assert sum(right) / len(right) == pytest.approx(reports[0]["accuracy"])
