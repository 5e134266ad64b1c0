"""Sweeps: what they train, that they go on, and that a worker's death loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

from sidestep.cli.main import main
from sidestep.errors import InterruptedRunError, OutputError, RecipeError
from sidestep.runs import sweep as sweep_module
from sidestep.runs import sweep_study
from sidestep.runs import train as train_module
from sidestep.runs.combinations import SweepRun, sweep_runs
from sidestep.runs.sweep import open_sweep, sweep
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.step import TrainingStep

TINY: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}, "target": 0.5},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1, "flip": False},
    "training": {
        "phases": [{"name": "joint", "epochs": 1, "lr": 0.05}],
        "batch_size": 32,
        "max_fraction": 0.6,
    },
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / f"{changes.get('name', 'tiny')}.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def done(folder: Path) -> dict[str, float]:
    """Return when every run of a sweep was finished."""
    return {path.parent.name: path.stat().st_mtime for path in folder.glob("*/report.json")}


def test_every_combination_of_settings_is_a_run(tmp_path: Path) -> None:
    other = write(tmp_path, name="other", method={"name": "convnet_aig"})
    runs = sweep_runs([write(tmp_path), other], ["budget=0.3,0.5", "seed=0,1"], ["--training.batch_size=16"])
    assert [run.name for run in runs[:3]] == [
        "tiny-budget=0.3-seed=0",
        "tiny-budget=0.3-seed=1",
        "tiny-budget=0.5-seed=0",
    ]
    assert len(runs) == 8 and {run.recipe.training.batch_size for run in runs} == {16}
    first, last = runs[0].recipe, runs[-1].recipe
    assert (first.settings.target, first.training.seed, first.training.max_fraction) == (0.3, 0, 0.4)
    assert (last.method, last.settings.target, last.training.seed) == ("convnet_aig", 0.5, 1)


def test_values_may_be_lists(tmp_path: Path) -> None:
    rates = "method.router.initial_rates=[0.9,0.5,0.1],[0.1,0.5,0.9]"
    runs = sweep_runs([write(tmp_path)], [rates])
    assert [run.recipe.settings.router.initial_rates for run in runs] == [[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]]


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ("seed", "over must be key=value,value"),
        ("seed=", "over must be key=value,value"),
        ("seed=0,0", "must have different names"),
        ("method.targt=0.5", "did you mean target?"),
        ("seed=x", "training.seed must be a whole number"),
    ],
)
def test_what_is_no_sweep_is_refused_before_anything_is_written(
    over: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(write(tmp_path)), "--over", over, "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "method", [{"name": "static"}, {"name": "convnet_aig", "schedule": [1.0, 0.5, 0.5]}], ids=["none", "many"]
)
def test_a_budget_needs_a_method_with_one_setting_for_it(method: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="budget must be one setting of the method"):
        sweep_runs([write(tmp_path, method=method)], ["budget=0.5"])


def test_a_sweep_trains_what_is_left_and_says_what_is_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, "--over", "seed=0,1"]) == 0
    first = done(tmp_path / "out")
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["name"] for row in rows] == ["tiny-seed=0", "tiny-seed=1"]
    for row in rows:
        val = json.loads((tmp_path / "out" / row["name"] / "metrics.jsonl").read_text().splitlines()[-1])[
            "val"
        ]
        assert (row["state"], row["accuracy"], row["fraction"]) == (
            "complete",
            val["accuracy"],
            val["fraction_of_full"],
        )
    beaten = [
        any(
            (other["accuracy"], -other["fraction"]) != (row["accuracy"], -row["fraction"])
            and other["accuracy"] >= row["accuracy"]
            and other["fraction"] <= row["fraction"]
            for other in rows
        )
        for row in rows
    ]
    assert [row["is_best"] for row in rows] == [not value for value in beaten]
    assert main([*command, "--over", "seed=0,1,2"]) == 0
    assert first.items() <= done(tmp_path / "out").items() and len(done(tmp_path / "out")) == 3


def test_runs_that_hold_nothing_out_are_trained_and_none_is_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [
        "sweep",
        str(write(tmp_path)),
        "--out",
        str(out),
        "--over",
        "seed=0,1",
        "--data.val_fraction=0",
    ]
    for _ in range(2):
        assert main([*command, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert [row["state"] for row in rows] == ["complete", "complete"]
        assert {(row["accuracy"], row["fraction"], row["is_best"]) for row in rows} == {(None, None, False)}
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing is held out of some runs' images (data.val_fraction 0)" in said
    assert main(["results", str(out)]) == 0


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    over = ["--over", "training.phases.0.lr=1e30,0.05"]
    assert main(["sweep", str(write(tmp_path)), "--out", str(out), *over]) == 2
    captured = capsys.readouterr()
    assert "1 of 2 runs did not come to their end" in captured.err
    assert "\n  - tiny-lr=1e30: loss must be finite" in captured.err
    assert list(done(out)) == ["tiny-lr=0.05"]


@pytest.mark.slow
def test_a_study_that_goes_while_runs_are_trained_is_missed_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = sweep_runs([str(write(tmp_path))], ["seed=0,1"]), tmp_path / "sweep"
    train = sweep_module.train

    def train_and_delete(*arguments: Any, **named: Any) -> Path:
        folder = train(*arguments, **named)
        (out / "study.db").unlink()
        return folder

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "train", train_and_delete)
        with pytest.raises(OutputError, match=r"study .*study.db of a sweep must stay until .* start"):
            sweep(runs, out)
    rows = sweep(runs, out)
    assert [row.state for row in rows] == ["complete", "complete"]


@pytest.mark.exhaustive
def test_a_run_whose_worker_was_killed_goes_on_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that the kill comes before the end.
    training = TINY["training"] | {"phases": [{"name": "joint", "epochs": 20, "lr": 0.05}]}
    recipe, out = write(tmp_path, training=training), tmp_path / "out"
    for module in (sweep_module, sweep_study):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 1)
    script = (
        "import sys; from pathlib import Path; from sidestep.runs import sweep as sweep_module, sweep_study\n"
        "from sidestep.runs.combinations import sweep_runs\n"
        "sweep_module.HEARTBEAT_SECONDS = sweep_study.HEARTBEAT_SECONDS = 1\n"
        "sweep_module.sweep(sweep_runs([sys.argv[1]], ['seed=0']), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(recipe), str(out)])
    folder = out / "tiny-seed=0"
    deadline = time.monotonic() + 120
    while not (folder / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    epochs = (folder / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(epochs) < 20
    runs = sweep_runs([recipe], ["seed=0"])
    assert [row.state for row in sweep(runs, out)] == ["complete"]
    # What had been trained was not trained again.
    assert (folder / "metrics.jsonl").read_text().splitlines()[: len(epochs)] == epochs


@pytest.mark.slow
def test_several_workers_share_the_runs(tmp_path: Path) -> None:
    command = ["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main([*command, "--over", "seed=0,1,2"]) == 0
    runs = sweep_runs([tmp_path / "tiny.yaml"], ["seed=0,1,2"])
    study = open_sweep(tmp_path / "out", runs)
    complete = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    assert sorted(trial.user_attrs["run"] for trial in complete) == sorted(run.name for run in runs)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
def test_workers_that_ask_at_the_same_time_take_different_runs(tmp_path: Path) -> None:
    names = [str(number) for number in range(40)]
    study = open_sweep(tmp_path, [])
    for name in names:
        study.enqueue_trial({}, user_attrs={"run": name})

    def taken(_: int) -> list[str]:
        worker = open_sweep(tmp_path, [])
        return list(iter(lambda: worker.ask().user_attrs.get("run", ""), ""))

    with ThreadPoolExecutor(4) as pool:
        runs = [name for names in pool.map(taken, range(4)) for name in names]
    assert sorted(runs) == sorted(names)


def test_a_run_of_another_sweep_in_the_same_study_is_left_alone(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    larger: list[SweepRun] = sweep_runs([recipe], ["seed=0,1"])
    open_sweep(out, larger)
    assert [row.state for row in sweep(larger[1:], out)] == ["complete"]
    assert list(done(out)) == ["tiny-seed=1"]
    assert [row.state for row in sweep(larger, out)] == ["complete", "complete"]


@pytest.mark.parametrize("name", ["workers", "replicas"])
def test_nobody_cannot_train(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out"), f"--{name}", "0"]
    assert main(command) == 2
    assert f"{name} must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_replicas_in_one_process_are_the_runs_they_would_be_alone(tmp_path: Path) -> None:
    runs = sweep_runs([write(tmp_path)], ["seed=0,1,2"])
    together, alone = tmp_path / "together", tmp_path / "alone"
    sweep(runs, together, replicas=3)
    sweep(runs, alone)
    assert len(done(together)) == 3
    for name in done(alone):
        one, other = (load_checkpoint(folder / name / "last.safetensors") for folder in (together, alone))
        assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in other.tensors)


def test_a_training_seeds_nothing_while_another_draws_its_weights() -> None:
    seeds: list[int] = []

    def begin() -> None:
        with train_module._seeded_alone(5, torch.device("cpu")):
            seeds.append(torch.initial_seed())

    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        with train_module._one_at_a_time, ThreadPoolExecutor(1) as pool:
            begun = pool.submit(begin)
            time.sleep(0.1)
            assert torch.initial_seed() == 3 and not seeds
            train_module._one_at_a_time.release()
            begun.result(timeout=30)
            train_module._one_at_a_time.acquire()
        assert seeds == [5] and torch.initial_seed() == 3


@pytest.mark.slow
def test_an_interrupt_ends_all_replicas_and_the_sweep_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TINY["training"] | {"phases": [{"name": "joint", "epochs": 3, "lr": 0.05}]}
    runs = sweep_runs([write(tmp_path, training=training)], ["seed=0,1"])
    begin, calls = TrainingStep.begin, {"n": 0}

    def counted(self: TrainingStep, *arguments: Any, **options: Any) -> None:
        calls["n"] += 1
        if calls["n"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        begin(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "begin", counted)
        with pytest.raises(InterruptedRunError):
            sweep(runs, tmp_path / "out", replicas=2)
    assert calls["n"] < 12 and done(tmp_path / "out") == {}
    rows = sweep(runs, tmp_path / "out", replicas=2)
    assert [row.state for row in rows] == ["complete", "complete"]


def test_an_interrupt_behind_the_last_step_of_a_run_ends_the_sweep_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = train_module._report

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        report(*arguments)

    monkeypatch.setattr(train_module, "_report", interrupted)
    with pytest.raises(InterruptedRunError, match="the same command goes on"):
        sweep(sweep_runs([write(tmp_path)], ["seed=0,1"]), tmp_path / "out")
    assert len(done(tmp_path / "out")) == 1
