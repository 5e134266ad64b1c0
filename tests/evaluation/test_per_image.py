"""The table of images: it adds up to the report, for networks that route, halt, and leave early."""

from io import BytesIO
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sidestep.cli.main import main
from sidestep.evaluation.per_image import PerImage
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.evaluate import evaluate
from sidestep.runs.train import train
from sidestep.types import Batch, CostModel, Decisions, RoutedOutput
from tests.training.test_methods_train import tiny


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("convnet_aig", {}),
        ("rdi_net, three options", {"execution": "gathered"}),
        ("act", {}),
        ("msdnet", {"execution": "cascade", "budget": ExitBudget(fraction=0.6)}),
    ],
)
def test_rows_add_up_to_the_report(variant: str, options: dict[str, object], tmp_path: Path) -> None:
    folder = train(tiny(variant), tmp_path / "run")
    path = tmp_path / "images.parquet"
    report = evaluate(folder, per_image=path, **options)  # type: ignore[arg-type]
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert rows["image"][:] == list(range(report.num_images))
    table = {name: torch.tensor(rows[name][:]) for name in ("correct", "macs", "executed")}
    assert float(table["correct"].double().mean()) == pytest.approx(report.accuracy)
    assert 2e-9 * float(table["macs"].mean()) == pytest.approx(report.gflops)
    assert float(table["executed"].mean()) == pytest.approx(report.executed_mean, rel=1e-5)
    assert rows.features["label"].names == rows.features["prediction"].names
    assert len(set(rows["path"][:])) <= report.num_paths
    if report.exit_rates is not None:
        left = torch.bincount(torch.tensor(rows["exit"][:]), minlength=len(report.exit_rates))
        assert (left / report.num_images).tolist() == pytest.approx(report.exit_rates)
    else:
        assert set(rows["exit"][:]) == {None}


def test_columns_by_hand() -> None:
    weights = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    exits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    decisions = Decisions(weights=weights, exits=exits)
    each = torch.tensor([[[0.0, 2.0], [3.0, 0.0]], [[4.0, 0.0], [1.0, 0.0]]])
    output = RoutedOutput(
        logits=torch.tensor([[4.0, 0.0], [3.0, 0.0]]), decisions=decisions, exit_logits=each
    )
    cost = CostModel(
        fixed=10.0,
        options=torch.tensor([[0.0, 5.0], [0.0, 7.0]]),
        routers=torch.zeros(2),
        exits=torch.tensor([1.0, 2.0]),
        exit_units=torch.tensor([1, 2]),
    )
    rows = PerImage(cost)
    rows.add(output, Batch(images=torch.zeros(2, 3, 1, 1), labels=torch.tensor([0, 1])))
    found = rows.columns()
    assert found["path"] == ["10", "1-"]
    assert found["exit"] == [1, 0] and found["macs"] == [17.0, 16.0]
    assert found["prediction"] == [0, 0] and found["correct"] == [True, False]
    assert found["confidence"][1] == pytest.approx(float(torch.tensor([3.0, 0.0]).softmax(0)[0]))
    assert found["exit_predictions"] == [[1, 0], [0, 0]]
    assert found["exit_confidences"][0][0] == pytest.approx(float(torch.tensor([0.0, 2.0]).softmax(0)[1]))


def test_classes_of_one_name_get_numbers(tmp_path: Path) -> None:
    rows = PerImage(CostModel(fixed=1.0, options=torch.zeros(0, 2), routers=torch.zeros(0)))
    decisions = Decisions(weights=torch.zeros(1, 0, 2))
    rows.add(
        RoutedOutput(logits=torch.tensor([[0.0, 1.0]]), decisions=decisions),
        Batch(images=torch.zeros(1, 3, 1, 1), labels=torch.tensor([1])),
    )
    path = tmp_path / "x.parquet"
    path.write_bytes(BytesIO(rows.as_parquet(["crane", "crane"])).getvalue())
    table = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == ["crane", "crane (1)"]
    assert table["path"][:] == [""]


def test_a_table_of_another_kind_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny("skipnet"), tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--per-image", str(tmp_path / "x.csv")]) == 2
    assert "per-image must be a .parquet file, got" in capsys.readouterr().err
