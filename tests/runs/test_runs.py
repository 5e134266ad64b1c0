"""Runs from Python and from the command line, each as a user would."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, RecipeError
from sidestep.networks.models import build_backbone
from sidestep.runs.recipe import from_dict, load_recipe
from tests.hasty import hasten
from tests.marks import exhaustive_where
from tests.paths import RECIPES

ALL = sorted(RECIPES.glob("*.yaml"))
TINY: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1, "flip": False},
    "training": {"phases": [{"name": "joint", "epochs": 2, "lr": 0.05}], "batch_size": 32},
}


def write(folder: Path, values: dict[str, Any] = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sidestep", *map(str, arguments)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", str(write(folder)), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_load_gives_a_network_that_is_ready_for_images(run: Path) -> None:
    network = sidestep.load(run)
    output = network(torch.randn(3, 3, 16, 16))
    assert output.logits.shape == (3, 10)
    assert output.decisions.weights.shape == (3, 3, 2)
    assert not network.training


def test_masked_and_gathered_evaluation_agree(run: Path) -> None:
    masked, gathered = (sidestep.evaluate(run, execution=name).as_dict() for name in ("masked", "gathered"))
    assert (masked.pop("execution"), gathered.pop("execution")) == ("masked", "gathered")
    assert masked == gathered


def test_evaluate_prints_one_json_object_and_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {
        "execution", "decisions", "num_images", "accuracy", "gflops", "gflops_without_routers",
        "fraction_of_full", "keep_rates", "num_paths",
    } <= report.keys()  # fmt: skip
    assert 0 <= report["accuracy"] <= 1
    assert report["gflops_without_routers"] < report["gflops"]
    assert report == json.loads((run / "report.json").read_text())["best"]


def test_sampled_evaluation_is_a_function_of_its_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--decisions", "sampled", "--seed", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["decisions"] == "sampled"
    assert report == sidestep.evaluate(run, decisions="sampled", seed=3).as_dict()
    assert report["keep_rates"] != sidestep.evaluate(run, decisions="sampled").keep_rates
    assert report["keep_rates"] != sidestep.evaluate(run).keep_rates
    gathered = sidestep.evaluate(run, execution="gathered", decisions="sampled", seed=3).as_dict()
    assert gathered == report | {"execution": "gathered"}
    assert main(["evaluate", str(run), "--decisions", "sampled"]) == 0
    assert "sampled decisions" in " ".join(capsys.readouterr().out.split())


def untrained_run(folder: Path, method: dict[str, Any], **training: Any) -> Path:
    """Return a run that holds the weights it starts from, or those after a step of every phase."""
    recipe = {
        **TINY,
        "method": method,
        "training": {"phases": [], "batch_size": 32, "max_steps": 1} | training,
    }
    return sidestep.train(from_dict(recipe), folder / "run")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "static"},
        {"name": "fixed_path", "path": "1 0 1"},
        {"name": "act"},
        {"name": "sact"},
        {"name": "random_drop"},
        {"name": "skipnet"},
        {"name": "rdi_net", "noise_scale": 0, "router": {"dim": 8}},
    ],
    ids=lambda method: method["name"],
)
def test_methods_without_noise_refuse_to_sample(
    method: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path, method)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--decisions", "sampled"]) == 2
    error = capsys.readouterr().err
    assert "decisions must be argmax where training ended without noise, got 'sampled'" in error
    assert f"for method {method['name']}; leave them out" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decisions", "drawn"], "decisions must be one of argmax, sampled, got 'drawn'"),
        (["--seed", "1"], "seed has no effect on arg-max decisions, got 1; drop it, or set decisions"),
        (["--decisions", "sampled", "--seed", "-1"], "seed must be at least 0, got -1"),
    ],
)
def test_wrong_words_about_decisions_get_a_sentence(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_soft_gates_mix_outputs_masked_and_are_refused_gathered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path, {"name": "rdi_net", "router": {"dim": 8}})
    report = sidestep.evaluate(run, decisions="sampled")
    assert all(0.01 < rate < 0.99 for rate in report.keep_rates)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--decisions", "sampled", "--execution", "gathered"]) == 2
    assert "gathered execution needs sampled decisions that are hard" in capsys.readouterr().err


def test_codinet_rounds_its_noisy_gates_as_the_released_code_does(tmp_path: Path) -> None:
    run = untrained_run(tmp_path, {"name": "codinet", "num_units": 1.5, "gate_mode": "soft"})
    report = sidestep.evaluate(run, execution="gathered", decisions="sampled")
    assert report.num_paths > 1
    assert report.executed_mean * report.num_images == pytest.approx(
        round(report.executed_mean * report.num_images)
    )


def test_the_sampler_is_that_of_the_last_phase(tmp_path: Path) -> None:
    phase = {"name": "joint", "epochs": 1, "lr": 0.01}
    phases = [phase, phase | {"settings": {"decisions": "sampled", "policy_weight": 0.1}}]
    run = untrained_run(tmp_path, {"name": "skipnet"}, phases=phases)
    assert sidestep.evaluate(run, decisions="sampled").decisions == "sampled"


def test_bench_prints_one_json_object_and_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    assert main(["bench", str(run), "--batch-sizes", "1,4", "--seconds", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"hardware", "versions", "rows"} <= result.keys()
    assert {
        "runtime", "precision", "batch_size", "median_ms", "ms_per_image", "ratio_to_best_static",
    } <= result["rows"][0].keys()  # fmt: skip
    assert {row["batch_size"] for row in result["rows"]} == {1, 4}


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    assert {"rdi_net", "static", "fixed_path"} <= json.loads(capsys.readouterr().out).keys()


# One of every kind; the others are trained by the exhaustive tests.
_QUICK = (
    "quickstart",
    "rdi_net_resnet20_cifar10_fast",
    "act_resnet32_cifar10_finetune",
    "ranet_small_cifar10",
)


def _is_large(recipe: Path) -> bool:
    """Return whether the exhaustive tests alone train a recipe."""
    return recipe.stem not in _QUICK


@pytest.mark.parametrize("path", exhaustive_where(_is_large, ALL), ids=lambda path: path.stem)
def test_every_recipe_trains_two_steps_on_synthetic_data(path: Path, tmp_path: Path) -> None:
    """The digits stand in for the images, and a fresh network for the static weights."""
    # ConvNeXt divides the size by 32.
    size = 32 if yaml.safe_load(path.read_text())["model"]["name"].startswith("timm/") else 16
    arguments = [f"--data.image_size={size}", "--data.limit=120", "--training.max_steps=2"]
    arguments += ["--data.source=digits", "--training.batch_size=32", "--training.precision=32-true"]
    if yaml.safe_load(path.read_text())["model"].get("init"):
        arguments.append(f"--model.init={static_weights(path, tmp_path)}")
    assert main(["train", str(path), "--out", str(tmp_path / "run"), *arguments]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(yaml.safe_load(path.read_text())["training"]["phases"])
    assert [row["step"] for row in rows] == [2 * (index + 1) for index in range(len(rows))]


def static_weights(recipe: Path, folder: Path) -> Path:
    backbone = build_backbone(load_recipe(recipe).model, 10)
    save_file(backbone.state_dict(), folder / "static.safetensors")
    return folder / "static.safetensors"


def test_the_loss_of_a_smoke_run_falls(tmp_path: Path) -> None:
    recipe = write(tmp_path, {**TINY, "data": {**TINY["data"], "limit": 600}})
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--training.phases.0.epochs=4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["task"] < 0.8 * rows[0]["train"]["task"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method.tagret=1"], "did you mean target?"),
        (["--data.source=hfds/nowhere/at-all-here"], "data"),
        (
            ["--model.init=nowhere.safetensors"],
            "nowhere.safetensors (model.init) must be a file",
        ),
        (["--training.batch_size=5000"], "batch_size must be in 1 to 100"),
    ],
)
def test_wrong_input_is_one_sentence_exit_code_two_and_no_folder(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", str(write(tmp_path)), "--out", str(tmp_path / "run"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_network_of_timm_trains_and_is_read_back(name: str, tmp_path: Path) -> None:
    model = {"name": f"timm/{name}", "init": str(tmp_path / "weights.pth")}
    training = {**TINY["training"], "max_steps": 1, "precision": "bf16-mixed"}
    data = {**TINY["data"], "image_size": 32}
    recipe = from_dict({**TINY, "model": model, "training": training, "data": data})
    torch.save(build_backbone(recipe.model, 10, (32, 32)).origin.state_dict(), recipe.model.init)
    run = sidestep.train(recipe, tmp_path / "run")
    assert sidestep.load(run)(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)
    masked, gathered = (sidestep.evaluate(run, execution=way).as_dict() for way in ("masked", "gathered"))
    assert masked["accuracy"] == gathered["accuracy"]
    assert masked["keep_rates"] == gathered["keep_rates"]


def test_downloaded_weights_start_a_run_and_are_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, create = [], timm.create_model

    def trained(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
        asked.append(pretrained)
        network: nn.Module = create(name, **settings)
        nn.init.constant_(network.fc.bias, 100.0 * pretrained)
        return network

    monkeypatch.setattr(timm, "create_model", trained)
    recipe = {**TINY, "model": {"name": "timm/test_resnet", "pretrained": True}}
    recipe["training"] = {**TINY["training"], "max_steps": 1}
    run = sidestep.train(from_dict(recipe), tmp_path / "run")
    assert asked.count(True) == 1
    assert bool((sidestep.load(run).backbone.origin.fc.bias > 90).all())
    assert asked.count(True) == 1


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a run folder with best\.safetensors, and has none"):
        sidestep.load(tmp_path)


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:-100])
    assert main(["evaluate", str(tmp_path)]) == 2


def test_an_unknown_execution_is_refused(run: Path) -> None:
    with pytest.raises(RecipeError, match="masked, gathered, cascade, engine, got 'magic'"):
        sidestep.evaluate(run, execution="magic")


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    arguments = ("train", recipe, "--out", tmp_path / "run", "--training.phases.0.epochs=6")
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["train", *map(str, arguments[1:]), "--resume"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(6))


def test_importing_sidestep_is_light() -> None:
    code = (
        "import sys, sidestep; print(sorted({'torch', 'timm', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in sidestep.__all__:
        assert getattr(sidestep, name).__doc__, name
