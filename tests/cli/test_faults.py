"""What users get wrong, over all commands: exit code 2, one sentence, nothing written, no traceback.

Cases follow from the command line's own description: every command, every option, every kind of value.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
import torch

import sidestep
from sidestep.cli.main import commands, main
from sidestep.cli.options import Command, Option, alternatives
from tests.paths import RECIPES
from tests.reference.released import make_convnet_aig

TINY: dict[str, Any] = {
    "method": {"name": "rdi_net", "target": 0.6, "gate_mode": "hard", "router": {"dim": 8}},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 8, "limit": 64, "workers": 0, "flip": False},
    "training": {"batch_size": 32, "phases": [{"name": "joint", "epochs": 1, "lr": 0.05}]},
}
COMMANDS = commands()
DIGITS = "--data.source=digits"

# Wrong kinds of what a command takes without a name, by the name of that parameter.
RUNS = (
    "absent", "file", "empty", "junk", "torn", "recipe only", "weights",
    "local-dir:", "local-dir:absent", "local-dir:junk", "local-dir:torn package",
    "hf-hub:", "hf-hub:someone/absent",
)  # fmt: skip
RECIPE_FILES = ("absent", "folder", "nothing", "binary", "list", "open", "wrong keys")
PLANS = ("absent", "folder", "nothing", "torn plan", "text")
PICTURES = ("absent", "folder", "nothing", "text", "torn picture")
WRONG = {
    "run": RUNS, "runs": RUNS, "recipe": RECIPE_FILES, "recipes": RECIPE_FILES, "plan": PLANS,
    "file": ("absent", "folder", "nothing", "text", "weights", "torn/best.safetensors"),
    "images": PICTURES, "name": ("absent", "timm/absent"),
    "to": (
        "name", "../a/b", "hf-hub:", "someone/absent", "local-dir:", "local-dir:file", "local-dir:folder",
        "local-dir:file/x", "local-dir:/proc/sidestep/x",
    ),
    "members": (
        *RUNS[:6], *RUNS[7:], "cifar_resnet20=absent", "timm/absent=file", "cifar_resnet20=file", "run",
    ),
    "candidates": (*RUNS[:6], *RUNS[7:], "cifar_resnet20=absent", "run"),
    "model": (*RUNS[:6], *RUNS[7:], "cifar_resnet20=absent", "timm/absent=file", "cifar_resnet20=file"),
    "models": (*RUNS, *PLANS[2:], "name=absent"),
}  # fmt: skip
# Places where nothing can be written.
PLACES = ("/dev/null/x", "file/x", "x" * 300, "/proc/sidestep/x", ".")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a good run, a good plan, and one of everything that is wrong."""
    root = tmp_path_factory.mktemp("house")
    import yaml
    from PIL import Image

    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run = sidestep.train(root / "tiny.yaml", root / "run")
    plan = Path(sidestep.export_run(run, root / "tiny.plan").path).read_bytes()
    Image.new("RGB", (8, 8)).save(root / "good.png")
    picture = (root / "good.png").read_bytes()
    for name, content in {
        "file": b"x", "nothing": b"", "binary": bytes(range(256)), "list": b"- 1\n- 2\n", "open": b"a: [1",
        "wrong keys": b"method: {name: rdi_net, tagret: 1}\n", "torn plan": plan[:200], "text": b"hello\n",
        "torn picture": picture[:20],
    }.items():  # fmt: skip
        (root / name).write_bytes(content)
    for name in ("folder", "empty", "junk", "recipe only"):
        (root / name).mkdir()
    (root / "folder" / "x").write_text("x")
    (root / "junk" / "recipe.yaml").write_text("[")
    shutil.copy(run / "recipe.yaml", root / "recipe only" / "recipe.yaml")
    shutil.copytree(run, root / "torn")
    for name in ("best.safetensors", "last.safetensors", "report.json", "metrics.jsonl"):
        (root / "torn" / name).write_bytes((run / name).read_bytes()[:-60])
    shutil.copy(run / "best.safetensors", root / "weights")
    torch.save(make_convnet_aig(1), root / "released")
    sidestep.push(run, f"local-dir:{root / 'torn package'}")
    weights = root / "torn package" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-60])
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Return all files below a folder with what is in them, and all folders."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def good(command: Command) -> list[str]:
    """Return what a command takes without a name, as it should be."""
    values = {
        "run": "run", "runs": "run", "recipe": "tiny.yaml", "recipes": "tiny.yaml", "plan": "tiny.plan",
        "images": "good.png", "name": "resnet20-cifar10", "members": "run", "candidates": "run",
        "to": "local-dir:new", "file": "released", "model": "run",
        "models": "tiny.plan",
    }  # fmt: skip
    found = [values[option.name] for option in command.options if option.is_positional]
    more = {name: [DIGITS] for name in ("cascade", "frontier", "survey")}
    more["import"] = [DIGITS, "--as=convnet_aig"]
    return [*found, *more.get(command.name, [])]


def named(command: Command) -> list[Option]:
    return [option for option in command.options if not option.is_positional]


# Wrong texts of options that name something or hold a small language.
TEXTS = {
    "execution": ["perhaps"], "criterion": ["perhaps"], "to": ["perhaps"], "published": ["perhaps"],
    "dataset": ["perhaps"], "accelerator": ["perhaps"], "strategy": ["perhaps"],
    "source": ["absent", "hfds/"], "storage": ["nonsense", "sqlite:////dev/null/x"],
    "batch_sizes": ["0", "x", "1,,2"],
    "over": ["x", "seed=", "nope=1", "seed=0,0", "training.seed=-1", "method.target=x"],
    "budget": ["5", "-1", "0"], "risk": ["0", "1"], "confidence": ["0.9"], "max_drop": ["-100"],
    "per_image": ["x.csv"], "images": ["0"], "seconds": ["-1"], "num_budgets": ["1"], "workers": ["0"],
    "replicas": ["0"], "segments": ["0"], "devices": ["0", "99"], "num_nodes": ["0", "2"], "seed": ["-1"],
    "calibrate": ["-1"],
    "port": ["-1", "70000"], "host": ["no host"], "min_budget": ["5", "0"], "deadline_ms": ["0"],
    "queue": ["0"], "max_body_mb": ["0"], "max_megapixels": ["-1"], "client_seconds": ["0"],
    "drain_seconds": ["0"], "token_file": ["absent", "nothing", "binary", "folder"],
}  # fmt: skip


def wrong_values(option: Option) -> list[str]:
    """Return values that an option does not have."""
    return [*_of_other_types(option), *TEXTS.get(option.name, [])]


def _of_other_types(option: Option) -> list[str]:
    kinds = alternatives(option.value_type)
    if int in kinds:
        return ["x", "1.5", ""]
    if float in kinds:
        return ["x", "nan", "inf", ""]
    if bool in kinds:
        return ["perhaps"]
    if any(get_origin(kind) is Literal for kind in kinds):
        return ["perhaps"]
    return []


def cases() -> Iterator[tuple[str, ...]]:
    for name, command in COMMANDS.items():
        yield name, *good(command), "--frobnicate"
        yield name, *good(command), "stray", "--", "--stray"
        yield from wrong_positional(name, command)
        for option in named(command):
            yield from wrong_named(name, command, option)
        if command.overrides is not None:
            for override in ("--method.tagret=1", "--training.phases.9.lr=1", "--data=3", "--name"):
                yield name, *good(command), override


def wrong_positional(name: str, command: Command) -> Iterator[tuple[str, ...]]:
    positional = [option for option in command.options if option.is_positional]
    for place, option in enumerate(positional):
        for value in WRONG[option.name]:
            arguments = good(command)
            arguments[place] = value
            yield name, *arguments
    if positional:
        yield (name,)


def wrong_named(name: str, command: Command, option: Option) -> Iterator[tuple[str, ...]]:
    if option.is_flag:
        yield name, *good(command), f"{option.label}=true"
        return
    yield name, *good(command), option.label
    for value in wrong_values(option):
        yield name, *good(command), f"{option.label}={value}"
    if option.name == "out":
        for value in PLACES:
            yield name, *good(command), option.label, value


# A word more is one more run or recipe where a command takes a list of them.
# A report is made of the runs that there are, and says what it lacks; as sweeps it shares folders.
HARMLESS = {
    ("weights", "resnet20-cifar10", "--out"),
    ("report", "run", "stray", "--", "--stray"),
    ("report", "run", "--out", "."),
    ("sweep", "tiny.yaml", "--out", "."),
}
CASES = [case for case in dict.fromkeys(cases()) if case not in HARMLESS]


def test_there_are_enough_cases_and_every_command_has_some() -> None:
    assert len(CASES) >= 300
    assert {case[0] for case in CASES} == set(COMMANDS)


@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    arguments: tuple[str, ...], house: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(house)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = tree(house)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    sentences = [line for line in lines if line.startswith("sidestep: ")]
    assert len(sentences) == 1
    # Behind the sentence come its points, and in front of it what had been done.
    assert all(line.startswith("  - ") for line in lines[lines.index(sentences[0]) + 1 :])
    assert "Traceback" not in captured.err and "Error:" not in captured.err
    assert tree(house) == before


def test_recipes_of_this_checkout_are_those_of_the_package() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    from sidestep.runs.recipe_book import recipe_cards

    assert [card.name for card in recipe_cards()] == names
