"""The page about own routers is run as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from sidestep.errors import RecipeError
from sidestep.methods import METHODS, register_method
from tests.paths import ROOT

PAGE = ROOT / "docs" / "extending.md"


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)  # it is our own page
        assert re.search(r"\d% at \d+\.\d% of the MACs", capsys.readouterr().out)
        router = names["VarianceRouter"]
        assert len(blocks[0].split("class VarianceRouter")[1].split("@dataclass")[0].splitlines()) <= 30
        assert issubclass(router, names["sidestep"].Router)
    finally:
        METHODS.remove("variance")


def test_a_name_is_given_once() -> None:
    with pytest.raises(RecipeError, match="method static is there already; choose another name"):
        register_method(METHODS["static"])
