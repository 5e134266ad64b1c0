"""Blocks of code in the documents: commands and settings exist, programs compile and call what there is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import sidestep
from sidestep.cli.main import commands
from sidestep.cli.parse import arguments_of, split, without_imports
from sidestep.errors import UsageError
from sidestep.runs.combinations import sweep_runs
from sidestep.runs.recipe import from_dict, load_recipe
from sidestep.runs.recipe_book import recipe_cards
from tests.paths import ROOT
from tests.test_site import FREE, keys_in, known_keys

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "engine/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if "made" not in path.parts and path.name != "CHANGELOG.md"
)
# What is no code: pictures of folders and of the flow of data, and lists of pages.
PLAIN = {"", "text", "{toctree}"}
PARTS = {"method", "model", "data", "training"}
COMMANDS = commands()


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks of a page with their languages."""
    return re.findall(r"^```([^\n`]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> list[Any]:
    """Return (page, code) of every block in a language, as parameters of tests."""
    found = []
    for page in PAGES:
        codes = [code for name, code in blocks(page.read_text()) if name == language]
        name = str(page.relative_to(ROOT))
        found += [pytest.param(page, code, id=f"{name}-{index}") for index, code in enumerate(codes)]
    return found


def command_lines(script: str) -> Iterator[list[str]]:
    """Return what is typed behind every `sidestep` of a script, with the variables that it sets filled in."""
    variables: dict[str, str] = {}
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        command: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set(";&|()<>{}"):
                command.append(token)
                continue
            while command and (assigned := re.fullmatch(r"(\w+)=(.*)", command[0])):
                variables[assigned[1]] = assigned[2]
                command.pop(0)
            if command[:1] == ["for"]:
                variables[command[1]] = command[3]  # the first of the loop
            filled = [part for word in command for part in filled_in(word, variables)]
            starts = [index for index, word in enumerate(filled) if Path(word).name == "sidestep"]
            if starts and "pip" not in [Path(word).name for word in filled[: starts[0]]]:
                yield filled[starts[0] + 1 :]
            command = []


def filled_in(word: str, variables: dict[str, str]) -> list[str]:
    """Return the words that a word with variables stands for, as a shell would have them."""
    if re.fullmatch(r"\$\w+", word):
        return shlex.split(variables.get(word[1:], ""))
    return [re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], ""), word)]


def check_command(typed: list[str]) -> None:
    """Raise what the command line would say of a command, and of the recipe that it names."""
    rest, _ = without_imports(typed)
    name, *arguments = rest
    if name in ("--help", "--version") or "--help" in arguments:
        return
    values = arguments_of(COMMANDS[name], arguments)
    if name == "train" and (recipe := packaged(values["recipe"])):
        load_recipe(recipe, values["overrides"])
    elif name == "sweep" and all(map(packaged, values["recipes"])):
        assert sweep_runs(list(map(packaged, values["recipes"])), values["over"], values["overrides"])


def packaged(recipe: Path) -> Path | None:
    """Return the recipe of the package that is meant, or None for one of the reader's own."""
    known = recipe.stem in {card.name for card in recipe_cards()}
    return Path(recipe.stem) if known and str(recipe.parent) in (".", "recipes") else None


def test_blocks_are_in_a_language_that_is_checked() -> None:
    known = {"sh", "python", "yaml", "json", "toml", *PLAIN}
    found = {(str(page.relative_to(ROOT)), name) for page in PAGES for name, _ in blocks(page.read_text())}
    assert [each for each in found if each[1] not in known] == []
    hidden = [
        (page.name, code)
        for page in PAGES
        for name, code in blocks(page.read_text())
        if name in PLAIN and re.search(r"^(sidestep|python|pip) ", code, re.MULTILINE)
    ]
    assert hidden == []


@pytest.mark.parametrize(("page", "script"), all_blocks("sh"))
def test_commands_are_such_that_there_are(page: Path, script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for typed in command_lines(script):
        check_command(typed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_are_such_that_there_are(page: Path) -> None:
    """Of commands between backticks, which have placeholders for values."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for typed in re.findall(r"`(sidestep [^`]+)`", text):
        name, *arguments = without_imports(shlex.split(typed)[1:])[0]
        if name in COMMANDS:
            split(COMMANDS[name], [word for word in arguments if word not in ("...", "-h", "--help")])
        else:
            assert name.startswith("--") or name.isupper(), typed


@pytest.mark.parametrize(("page", "program"), all_blocks("python"))
def test_programs_compile_and_call_what_there_is(page: Path, program: str) -> None:
    tree = ast.parse(program, str(page))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sidestep":
            home = import_module(node.module or "")
            assert [each.name for each in node.names if not hasattr(home, each.name)] == []
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sidestep"
        ):
            assert node.attr in (*sidestep.__all__, "__version__"), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sidestep."):
            check_call(node)


def check_call(call: ast.Call) -> None:
    """Assert that a public function takes the arguments of a call."""
    name = ast.unparse(call.func).removeprefix("sidestep.")
    value = getattr(sidestep, name, None)
    if value is None or (isinstance(value, type) and issubclass(value, Exception)):
        return
    if any(isinstance(each, ast.Starred) for each in call.args):
        return
    keywords = {each.arg: None for each in call.keywords if each.arg is not None}
    try:
        inspect.signature(value).bind_partial(*[None for _ in call.args], **keywords)
    except TypeError as error:
        pytest.fail(f"{ast.unparse(call)}: {error}")


@pytest.mark.parametrize(("page", "text"), all_blocks("yaml"))
def test_settings_are_such_that_there_are(page: Path, text: str) -> None:
    values = yaml.safe_load(text)
    assert isinstance(values, dict)
    if page.name == "extending.md":
        return  # its recipes name what its programs register; tests/test_extending.py runs both
    if set(values) >= PARTS:
        from_dict(values)
        return
    known = known_keys() | {"method.name"}
    # What is no part of a recipe is one of a phase.
    places = {part: part if part in PARTS else f"training.phases.N.{part}" for part in values}
    keys = {key for part, below in values.items() for key in keys_in(below, places[part])}
    assert {key for key in keys if key not in known and FREE.sub(r"\1", key) not in known} == set()


@pytest.mark.parametrize(("page", "text"), all_blocks("json"))
def test_json_is_json(page: Path, text: str) -> None:
    assert json.loads(text)


@pytest.mark.parametrize(("page", "text"), all_blocks("toml"))
def test_toml_is_toml(page: Path, text: str) -> None:
    assert tomllib.loads(text)


def test_what_is_wrong_is_found() -> None:
    """The checks themselves: an unknown command, option, key of a recipe and argument."""
    script = "R=quickstart\nA=1 sidestep train $R --method.target 0.5 && x/sidestep bench a # c\n"
    script += "pip install sidestep"
    assert list(command_lines(script)) == [["train", "quickstart", "--method.target", "0.5"], ["bench", "a"]]
    for wrong in ("trane quickstart", "bench a --batches 3", "train quickstart --method.targets 1"):
        with pytest.raises((KeyError, UsageError, sidestep.RecipeError)):
            check_command(shlex.split(wrong))
    with pytest.raises(pytest.fail.Exception, match="exekution"):
        check_call(ast.parse("sidestep.evaluate(run, exekution='masked')", mode="eval").body)
