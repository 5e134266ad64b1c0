"""Help texts: complete, one look long, in one form, without waiting for torch."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sidestep.cli.help import WIDTH, command_help
from sidestep.cli.main import commands, main
from sidestep.cli.options import Command, Overrides, command_of
from sidestep.runs.recipe import load_recipe
from tests.paths import RECIPES

COMMANDS = commands()


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command line prints that only helps."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def looks_as_all(text: str, usage: str) -> None:
    assert text.splitlines()[0] == f"usage: sidestep {usage}"
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "null" not in text and "None" not in text and "==" not in text


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["nothing", "long", "short"])
def test_help_of_the_command_line_names_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *arguments)
    looks_as_all(text, "COMMAND [options]")
    lines = [line.strip().partition(" ")[0] for line in text.splitlines()]
    assert COMMANDS.keys() <= set(lines)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_of_a_command_says_all_of_its_options_in_one_look(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, command.name, "--help")
    positional = [option.name.upper() for option in command.options if option.is_positional]
    lists = ("sweep", "cascade", "frontier", "run", "serve", "explore", "results", "report", "ledger")
    several = "..." if command.name in lists else ""
    looks_as_all(text, " ".join([command.name, *positional]).strip() + several + " [options]")
    assert len(text.splitlines()) <= 40
    flat = " ".join(text.split())
    assert command.summary in flat
    for option in command.options:
        assert option.text and f" {option.label} " in flat
        assert " ".join(option.text.split()) in flat


def test_nothing_is_imported_for_help_and_for_what_was_mistyped() -> None:
    code = (
        "import sys; from sidestep.cli.main import main, commands\n"
        "for name in commands(): main([name, '--help']); main([name, '--no-such'])\n"
        "main(['--help']), main(['--version']), main(['trian'])\n"
        "heavy = {'torch', 'timm', 'datasets', 'matplotlib', 'lightning_fabric', 'optuna', 'altair'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_long_names_have_their_texts_below_and_words_stay_whole() -> None:
    @dataclass(frozen=True)
    class Group:
        """Some.

        Args:
            a_name_longer_than_the_column: what it is, said in so many words that they need a second line.
            rates: as numbers.
        """

        a_name_longer_than_the_column: int = 3
        rates: list[float] = field(default_factory=list)

    def command(files: list[Path], *, group: Group, overrides: Overrides, quiet: bool = False) -> None:
        """Do it.

        It is done
        at once.

        Args:
            files: to do.
            group: of options.
            overrides: of the recipe.
            quiet: say nothing.
        """

    command.__annotations__["group"] = Group
    assert command_help(command_of("do", command)) == (
        "usage: sidestep do FILES... [options]\n\n"
        "Do it.\n\n"
        "It is done at once.\n\n"
        "arguments:\n"
        "  FILES  to do\n\n"
        "options:\n"
        "  --a-name-longer-than-the-column N\n"
        "                              what it is, said in so many words that they need a\n"
        "                              second line (default: 3)\n"
        "  --rates X                   as numbers\n"
        "  --quiet                     say nothing\n"
        "  --KEY VALUE                 of the recipe\n"
        "  --help                      show this"
    )


def keys(values: dict[str, Any], place: str) -> list[str]:
    """Return the keys of all plain values below a place of a recipe."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += keys(value, f"{place}.{name}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found += [
                key for index, item in enumerate(value) for key in keys(item, f"{place}.{name}.{index}")
            ]
        else:
            found.append(f"{place}.{name}")
    return found


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_help_of_a_recipe_says_every_key_with_its_text_and_value(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "train", str(path), "--help")
    assert text.startswith(f"usage: sidestep train {path} [--KEY VALUE ...]\n")
    recipe = load_recipe(path)
    assert max(len(line) for line in text.splitlines() if str(path) not in line) <= WIDTH
    without_titles = re.sub(r"\n\n\S.*:(?=\n  --)", "", text)
    rows = [" ".join(row.split()) for row in without_titles.split("\n  --")[1:]]
    names = [row.split()[0] for row in rows]
    values = {name: value for name, value in recipe.as_dict().items() if isinstance(value, dict)}
    values["method"].pop("name")
    # Mappings of a recipe's own names are one key each.
    free = re.compile(r"\.(settings|ramps)\.")
    wanted = {key for name, part in values.items() for key in keys(part, name) if not free.search(key)}
    assert wanted <= set(names)
    assert len(names) == len(set(names))
    for row in rows:
        again = re.search(r"phases\.[1-9]", row)
        assert re.fullmatch(rf"\S+ \S+ {'' if again else '.+ '}\((now: .*|not set)\)", row)


def test_help_of_a_recipe_shows_what_was_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    path = RECIPES / "rdi_net_resnet20_cifar10_short.yaml"
    text = " ".join(shown(capsys, "train", str(path), "--method.target=0.37", "-h").split())
    assert "(now: 0.37)" in text
    assert " --method.router.gamma X|auto " in text
