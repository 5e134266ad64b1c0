"""What commands show: whole words and numbers at 80 columns, where they are, and what they wrote."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import sidestep
from sidestep.cli.bars import Bars
from sidestep.cli.main import main
from sidestep.evaluation import bench
from sidestep.progress import Shown
from sidestep.training import log
from sidestep.training.log import RunLog
from tests.cli.test_faults import DIGITS, TINY
from tests.reference.released import make_convnet_aig

EXITS: dict[str, Any] = {**TINY, "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 8}}}
# What every command says at its end on standard output, and on its way on standard error.
SCREENS: dict[str, tuple[str, str, str]] = {
    "train": (
        "train exits.yaml --out a_run", r"wrote a_run: .*\nnext: .*`sidestep bench a_run`",
        r"^reading the images of digits\ntraining on 64 images, 1 epoch\n(.*\n)*evaluating the best check",
    ),
    "sweep": (
        "sweep tiny.yaml --over method.target=0.3,0.6 --over seed=0,1 --over training.phases.0.lr=0.01 "
        "--out sweep",
        r"`sidestep results sweep --out PAGE\.md` writes a page",
        r"run 2 of 4: tiny-target=0.3\S*, about \d+ (s|min) left",
    ),
    "cascade": (
        f"cascade run other {DIGITS} --out two", "wrote two; next: `sidestep curve two`", "evaluating",
    ),
    "frontier": (
        f"frontier run other {DIGITS} --out frontier.md --num-budgets=5",
        r"wrote frontier\.md, frontier\.png, frontier\.json", "running other",
    ),
    "survey": (
        f"survey other {DIGITS} --images=50 --out survey.md",
        r"wrote survey\.md, survey\.png, survey\.json", "",
    ),
    "evaluate": (
        "evaluate run --per-image x.parquet", "accuracy", r"^reading .*\nrunning .*\nwrote x\.parquet\n$",
    ),
    "calibrate": (
        "calibrate run --budget=0.9", "validation: .* per image; kept in the checkpoint", "reading",
    ),
    "curve": (
        "curve run --num-budgets=5", "anytime", r"wrote exits\.json, exits\.csv and exits\.png into run",
    ),
    "bench": (
        "bench other --seconds=0 --batch-sizes=1,2", "float32",
        r"batch 2: 2 of \d, about \d+ (s|min) left\n(.*\n)*wrote other/bench\.json",
    ),
    "book": (
        "bench run --seconds=0 --book=pytorch", "next: `sidestep calibrate run --ms", "wrote run/latency/",
    ),
    "export": ("export run --out x.plan", r"wrote x\.plan: \d\.\d\d MB, \d units", "writing"),
    "int8": (
        "export run --precision=int8 --out bytes.plan", r"wrote bytes\.plan", "comparing it with float32",
    ),
    "push": ("push run local-dir:pack", "wrote pack: .*`sidestep evaluate local-dir:pack` loads it", ""),
    "import": (
        f"import released --as=convnet_aig {DIGITS} --data.image_size=8 --out theirs",
        "wrote theirs; next: `sidestep bench theirs`", "running the network on 297 images",
    ),
    "results": ("results run other --out page.md", r"wrote page\.md, page\.json, page\.png", ""),
    "report": ("report run --out report.html", r"wrote report\.html", "run 1 of 1: run"),
    "ledger": ("ledger run --out ledger.md", r"wrote ledger\.md", ""),
    "methods": ("methods", "rdi_net", ""),
    "recipes": ("recipes", "minutes: ", ""),
}  # fmt: skip
# Of which parts of its work a command shows how far it is.
PARTS: dict[str, set[str]] = {
    **{
        name: {"running the network"}
        for name in ("train", "evaluate", "calibrate", "curve", "import", "cascade")
    },
    "frontier": {"candidates", "running the network"},
    "survey": {"leaving units out", "leaving out one after the other"},
    "int8": {"finding ranges of values", "choosing layers that stay real", "trying bytes"},
    "report": {"runs", "running the network", "making small pictures"},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has exits, one that has none, and a released checkpoint."""
    root = tmp_path_factory.mktemp("house")
    for name, recipe in (("tiny", TINY), ("exits", EXITS)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    sidestep.train(root / "exits.yaml", root / "run")
    sidestep.train(root / "tiny.yaml", root / "other")
    torch.save(make_convnet_aig(1), root / "released")
    Image.new("RGB", (8, 8)).save(root / "picture.png")
    return root


def rendered(shown: list[Any], width: int) -> str:
    """Return what was printed as a terminal of some width shows it."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    for each in shown:
        console.print(each)
    return file.getvalue()


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w.%,-]+", text))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", SCREENS)
def test_words_and_numbers_stay_whole_and_what_was_written_is_said(
    case: str, house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said, on_the_way = SCREENS[case]
    monkeypatch.chdir(house)
    monkeypatch.setattr(bench, "_PAUSE_SECONDS", 0.0)
    shown: list[Any] = []
    told: set[str] = set()
    real: Callable[..., None] = Console.print

    def record(console: Console, *objects: Any, **options: Any) -> None:
        shown.extend(objects)
        real(console, *objects, **options)

    def tell(bars: Bars, what: str, total: float) -> Shown:
        told.add(what)
        return tell_really(bars, what, total)

    tell_really = Bars.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Console, "print", record)
        patch.setattr(Bars, "__call__", tell)
        assert main(arguments.split()) == 0
    captured = capsys.readouterr()
    assert re.search(said, captured.out), captured.out
    assert re.search(on_the_way, captured.err), captured.err
    assert PARTS.get(case, set()) <= told
    whole = words(rendered(shown, 1000))
    for width in (80, 120):
        text = rendered(shown, width)
        assert max(map(len, text.splitlines()), default=0) <= width
        assert whole - words(text) == set(), text


def test_the_bar_of_a_training_keeps_its_time_and_numbers_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()

    def narrow(**options: Any) -> Console:
        return Console(file=file, width=80, force_terminal=True, color_system=None)

    monkeypatch.setattr(log, "Console", narrow)
    with RunLog(tmp_path) as shown:
        shown.begin_epoch("finetune 12/24", done=0, steps=391)
        shown.advance("loss 0.231  accuracy 91.2%  cost 61.0%  512 images/s")
    last = [line for line in re.split(r"[\r\n]", file.getvalue()) if "finetune" in line][-1]
    assert re.search(r"finetune 12/24 .* 1/391 \d:\d\d:\d\d left \S+ loss 0\.231 ", last), last
