"""Cascades as run folders: made from runs and weights, evaluated, calibrated, exported as any other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sidestep
from sidestep.cli.main import main
from sidestep.data.data_config import DataConfig
from sidestep.errors import RecipeError
from sidestep.evaluation.frontier import FrontierPoint
from sidestep.evaluation.price_fit import fit_prices
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.results.frontier_page import command_of
from sidestep.runs import latency as runs_latency
from sidestep.runs import train as runs_train
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.compose import make_cascade
from sidestep.runs.members import distinct, member_of
from sidestep.runs.published_weights import ABOUT
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.runs.timing import representative_first
from tests.hasty import hasten

DATA = {"source": "digits", "image_size": 16, "workers": 0, "crop_padding": 0, "flip": False, "limit": 400}


def trained(folder: Path, model: str, **data: Any) -> Path:
    values = {
        "method": {"name": "rdi_net", "target": 0.6, "gate_mode": "hard", "router": {"dim": 8}},
        "model": {"name": model},
        "data": {**DATA, **data},
        "training": {"batch_size": 50, "phases": [{"name": "joint", "epochs": 3, "lr": 0.1}]},
    }
    return sidestep.train(from_dict(values), folder)


def in_no_time(*arguments: Any, **options: Any) -> Any:
    return fit_prices(*arguments, **options | {"seconds": 0.0})


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a trained run, cheap and looking at small images, and static weights of a dearer network."""
    root = tmp_path_factory.mktemp("members")
    run = trained(root / "small", "cifar_resnet8", image_size=8, mean=[0.5] * 3, std=[0.5] * 3)
    torch.manual_seed(0)
    save_file(build_backbone(ModelConfig(name="cifar_resnet14"), 10).state_dict(), root / "w.safetensors")
    return [f"cifar_resnet14={root / 'w.safetensors'}", str(run)]


@pytest.fixture(scope="module")
def made(members: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cascade") / "run"
    return make_cascade(members, out, data=DATA, budget=ExitBudget(gflops=0.012)).folder


def test_members_are_sorted_by_cost_and_keep_their_weights_and_pixels(made: Path, members: list[str]) -> None:
    network = sidestep.load(made)
    assert isinstance(network, CascadeNetwork)
    recipe = sidestep.load_recipe(made / "recipe.yaml")
    assert [member.name for member in recipe.model.settings.members] == ["small", "cifar_resnet14"]
    assert recipe.data.size == (16, 16)
    alone = sidestep.evaluate(members[1])
    assert sidestep.evaluate(made).exit_accuracies is not None
    # The member sees the digits resized once more, from 16 pixels to 8.
    found = sidestep.evaluate(made).exit_accuracies
    assert found is not None and found[0] == pytest.approx(alone.accuracy, abs=0.1)


def test_every_command_takes_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for execution in ("masked", "cascade"):
        report = sidestep.evaluate(made, execution=execution)
        assert report.gflops <= 0.0135
    assert sidestep.evaluate(made, execution="cascade").exit_rates == sidestep.evaluate(made).exit_rates
    assert main(["calibrate", str(made), "--budget-gflops", "0.01"]) == 0
    assert main(["curve", str(made), "--num-budgets", "4"]) == 0
    assert main(["results", str(made)]) == 0
    assert "cascade" in capsys.readouterr().out
    assert main(["export", str(made)]) == 0
    assert "units that images can skip, 1 exit in front of the last" in capsys.readouterr().out


def test_the_images_that_a_bench_takes_one_by_one_stand_for_all(made: Path) -> None:
    opened = open_run(made, "best")
    data = data_of(opened, "test", None)
    assert data.test is not None
    images = next(iter(data.test.eval_batches(batch_size=256))).images
    chosen = representative_first(opened, images, opened.exit_rule)
    assert torch.equal(chosen.flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)
    with torch.no_grad():
        output = opened.network(chosen, rule=opened.exit_rule)
    macs = opened.cost.per_sample(output.decisions)
    assert macs[:32].mean().item() == pytest.approx(macs.mean().item(), rel=0.03)


def test_halves_report_no_image_under_thresholds_it_has_chosen(members: list[str], tmp_path: Path) -> None:
    found = make_cascade(
        members, tmp_path / "run", data=DATA, budget=ExitBudget(gflops=0.012), calibration="halves"
    )
    assert found.calibration is not None and found.report["num_images"] == 297
    kept = json.loads((tmp_path / "run" / "report.json").read_text())["best"]
    assert kept == found.report
    assert kept["gflops"] == pytest.approx(0.012, rel=0.1)


@pytest.mark.parametrize("calibration", ["val", "halves"])
def test_a_cascade_is_measured_where_a_book_is_asked_for(
    calibration: Any, members: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(runs_latency, "fit_prices", in_no_time)
    found = make_cascade(
        members,
        tmp_path / "run",
        data=DATA,
        budget=ExitBudget(gflops=0.012),
        book="pytorch",
        calibration=calibration,
    )
    assert found.calibration is not None and found.calibration.ms is not None
    assert found.report["latency_book"] == "pytorch-float32-1" and found.report["latency_ms"] > 0
    assert (tmp_path / "run" / "latency" / "pytorch-float32-1.json").is_file()


def test_a_book_without_a_budget_is_refused(members: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="book 'engine' has no effect without a budget"):
        make_cascade(members, tmp_path / "run", data=DATA, book="engine")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("calibration", ["val", "halves"])
@pytest.mark.parametrize("stood", [False, True])
def test_a_budget_that_is_refused_leaves_nothing_behind(
    calibration: Any, stood: bool, members: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if stood:
        out.mkdir()
    with pytest.raises(RecipeError, match="budget must be between"):
        make_cascade(members, out, data=DATA, budget=ExitBudget(gflops=1e-6), calibration=calibration)
    assert out.is_dir() == stood and not any(tmp_path.glob("run/*"))


def test_a_cascade_that_is_interrupted_is_not_in_the_way_of_the_next_try(
    members: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runs_train, "report_and_keep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cascade(members, out, data=DATA)
    assert not out.exists()
    make_cascade(members, out, data=DATA)
    before = sorted(out.iterdir())
    with pytest.raises(RecipeError, match="must be empty or new"):
        make_cascade(members, out, data=DATA)
    assert sorted(out.iterdir()) == before


def test_a_run_with_exits_is_a_member_that_answers_at_its_end(members: list[str], tmp_path: Path) -> None:
    values = {
        "method": {"name": "static"},
        "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 8}},
        "data": DATA,
        "training": {"batch_size": 50, "max_steps": 1, "phases": [{"name": "joint", "epochs": 1, "lr": 0.1}]},
    }
    run = sidestep.train(from_dict(values), tmp_path / "exits")
    found = make_cascade([str(run), members[0]], tmp_path / "run", data=DATA)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        alone, said = sidestep.load(run)(images), sidestep.load(found.folder)(images).exit_logits
    assert said is not None and found.members[0] == "exits"
    torch.testing.assert_close(said[0].log_softmax(1), alone.logits.log_softmax(1), rtol=1e-4, atol=1e-4)


def test_names_of_members_are_their_own(members: list[str]) -> None:
    member = member_of(members[1], DataConfig()).settings
    names = ["a", "a", "a-2", "b", "a"]
    found = [each.name for each in distinct([replace(member, name=name) for name in names])]
    assert found == ["a", "a-3", "a-2", "b", "a-4"]


@pytest.mark.parametrize("combine", ["last", "probs"])
def test_what_is_said_together_is_a_setting(combine: Any, members: list[str], tmp_path: Path) -> None:
    found = make_cascade(members, tmp_path / "run", data=DATA, combine=combine)
    assert sidestep.load_recipe(tmp_path / "run" / "recipe.yaml").model.settings.combine == combine
    assert found.calibration is None and found.members == ["small", "cifar_resnet14"]


def test_a_frontier_is_a_page_and_its_scores_are_kept(
    members: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, bad = tmp_path / "page.md", f"cifar_resnet20={tmp_path / 'absent.safetensors'}"
    options = [text for key, value in DATA.items() for text in (f"--data.{key}", str(value).lower())]
    command = ["frontier", *members, bad, *options, "--out", str(page), "--num-budgets", "5"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "must be a file, and there is none" in first.out and "running" in first.err
    assert "## Not run" in page.read_text() and "## Candidates" in page.read_text()
    assert page.with_suffix(".png").is_file() and len(json.loads(page.with_suffix(".json").read_text())) == 7
    kept = sorted((tmp_path / "page.scores").iterdir())
    assert len(kept) == 2
    assert main(command) == 0
    again = capsys.readouterr()
    assert "running" not in again.err and again.out == first.out
    kept[0].write_bytes(kept[0].read_bytes()[:-20])
    assert main(command) == 0
    assert "are damaged and made again" in capsys.readouterr().err


def test_a_frontier_in_milliseconds_times_every_candidate_once(
    members: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(runs_latency, "fit_prices", in_no_time)
    options = [text for key, value in DATA.items() for text in (f"--data.{key}", str(value).lower())]
    page = tmp_path / "page.md"
    command = ["frontier", *members, *options, "--out", str(page), "--num-budgets", "5"]
    assert main([*command, "--runtime", "pytorch"]) == 0
    first = capsys.readouterr()
    assert "the fastest for its accuracy" in first.out and "timing" in first.err
    text = page.read_text()
    assert "## The fastest for its accuracy" in text
    points = json.loads(page.with_suffix(".json").read_text())
    assert all(point["ms"] > 0 for point in points)
    pairs = [point for point in points if point["kind"] == "cascade"]
    alone = {point["members"][0]: point["ms"] for point in points if point["kind"] == "static"}
    for point in pairs:
        low, high = (alone[name] for name in point["members"])
        assert low * 0.99 <= point["ms"] <= (low + high) * 1.01
    made_by = command_of(FrontierPoint(**pairs[0]), {"small": "a", "cifar_resnet14": "b c"}, DATA, "ms")
    pixels = "--data.image_size 16 --data.workers 0 --data.crop_padding 0 --data.flip false --data.limit 400"
    assert made_by.startswith(
        f"sidestep cascade a 'b c' --data.source digits {pixels} --ms {pairs[0]['ms']:.4f} "
    )
    assert main([*command, "--runtime", "pytorch"]) == 0
    again = capsys.readouterr()
    assert "timing" not in again.err and again.out == first.out


@pytest.mark.parametrize("command", ["cascade", "frontier"])
def test_images_are_named_and_never_guessed(
    command: str, members: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.md"
    assert main([command, *members, "--out", str(out)]) == 2
    assert "data.source must be named, got nothing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_classes_and_what_is_no_member_are_refused(members: list[str], tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for label in "ab":
            for index in range(4):
                path = tmp_path / "set" / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(RecipeError, match="must have the classes of the data, by name and order"):
        make_cascade(members, tmp_path / "run", data={"source": str(tmp_path / "set"), "image_size": 16})
    with pytest.raises(RecipeError, match="a member must be a run folder"):
        member_of("resnet", DataConfig())
    with pytest.raises(RecipeError, match="members must be two networks or more, got 1"):
        make_cascade(members[1:], tmp_path / "run", data=DATA)
    assert not (tmp_path / "run").exists()


def test_any_network_of_timm_is_a_member_with_the_pixels_that_timm_says(tmp_path: Path) -> None:
    import timm

    names = ("test_efficientnet", "test_resnet")
    for name in names:
        torch.manual_seed(0)
        state = timm.create_model(name, num_classes=10).state_dict()
        save_file(state, tmp_path / f"{name}.safetensors")
    texts = [f"timm/{name}={tmp_path / name}.safetensors" for name in names]
    member = member_of(texts[0], DataConfig()).settings
    assert member.whole and member.input.size == (160, 160) and member.input.interpolation == "bicubic"
    found = make_cascade(texts, tmp_path / "run", data={"source": "digits", "workers": 0})
    network = sidestep.load(found.folder)
    alone = member.build(10)
    alone.load_state_dict({f"module.{key}": value for key, value in timm_state(tmp_path, names[0]).items()})
    place = found.members.index(f"timm/{names[0]}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = alone.eval()(network.views[place](images)).logits
        output = network(images)
        assert output.exit_logits is not None
        said = output.exit_logits[0] if place == 0 else 2 * output.exit_logits[1] - output.exit_logits[0]
    assert torch.allclose(said, expected, atol=1e-4)


def test_weights_of_timms_networks_from_elsewhere_may_bring_pixels_of_their_own(tmp_path: Path) -> None:
    import json

    import timm

    state = timm.create_model("test_efficientnet", num_classes=10).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    save_file(state, tmp_path / "told.safetensors", {ABOUT: json.dumps({"data": {"std": [0.1, 0.2, 0.3]}})})
    timms = member_of("timm/test_efficientnet", DataConfig()).settings.input
    asked = DataConfig(mean=(0.4,) * 3, std=(0.3,) * 3)
    plain, told = (f"timm/test_efficientnet={tmp_path / name}.safetensors" for name in ("plain", "told"))
    assert member_of(plain, DataConfig()).settings.input == timms
    found = member_of(plain, asked, given=("mean", "std", "source")).settings.input
    assert found == replace(timms, mean=asked.mean, std=asked.std)
    assert member_of(told, DataConfig()).settings.input == replace(timms, std=(0.1, 0.2, 0.3))
    assert member_of(told, asked, given=("std",)).settings.input == replace(timms, std=(0.1, 0.2, 0.3))
    assert member_of("timm/test_efficientnet", asked, given=("mean",)).settings.input == timms


def test_weights_that_say_no_pixels_are_told_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = build_backbone(ModelConfig(name="cifar_resnet20"), num_classes=10).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    text = f"cifar_resnet20={tmp_path / 'w.safetensors'}"
    member_of(text, DataConfig(mean=(0.4,) * 3), given=("mean",))
    (said,) = caplog.messages
    assert f"member {text} does not say the std" in said and "--data.std" in said
    assert "--data.mean" not in said
    caplog.clear()
    member_of(text, DataConfig(), given=("mean", "std"))
    assert not caplog.messages


def timm_state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def test_a_cascade_needs_no_batch_of_training_images(members: list[str], tmp_path: Path) -> None:
    found = make_cascade(members, tmp_path / "run", data={**DATA, "limit": 20})
    assert found.report["num_images"] == 297
