"""The commands that replace those of released codes: run one after the other, in a short form, on digits.

Those that name a folder of ImageNet (DIR) are checked as recipes alone, in tests/test_code_blocks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sidestep.cli.main import main
from tests.paths import ROOT
from tests.test_code_blocks import blocks, command_lines

PAGES = sorted((ROOT / "docs" / "coming_from").glob("*.md"))
# One step of few images; what the page says of model and method stays.
SHORT = {
    "--data.source": "digits",
    "--data.image_size": "32",
    "--data.crop_padding": "2",
    "--data.limit": "64",
    "--training.batch_size": "16",
    "--training.max_steps": "1",
    "--training.precision": "32-true",
}


def commands_of(page: Path) -> list[list[str]]:
    return [
        typed
        for language, script in blocks(page.read_text())
        if language == "sh"
        for typed in command_lines(script)
        if "DIR" not in typed
    ]


def test_every_page_has_commands() -> None:
    assert [page.stem for page in PAGES if not commands_of(page)] == ["index"]


@pytest.mark.parametrize(
    "page",
    [
        # The others have the longest commands.
        pytest.param(
            page, marks=pytest.mark.slow if page.stem in ("rdi_net", "codinet") else pytest.mark.exhaustive
        )
        for page in PAGES
        if page.stem != "index"
    ],
    ids=lambda page: page.stem,
)
def test_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, *arguments in commands_of(page):
        if name == "train":
            arguments += [word for option in SHORT.items() for word in option]
        assert main([name, *arguments]) == 0, (name, arguments)
