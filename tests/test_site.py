"""The site: its reference knows every name, command and key, what it promises exists, and it builds."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import sidestep
from sidestep.cli.main import commands
from sidestep.runs.recipe import load_recipe
from sidestep.runs.recipe_book import recipe_cards

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
reference = __import__("reference_pages")
sys.path.pop(0)

# Keys of mappings whose keys are the user's.
FREE = re.compile(r"(\.settings|\.ramps|\.options|\.members)\b.*")


@cache
def known_keys() -> set[str]:
    return set(re.findall(r"^\| `([\w.]+)`", reference.keys_page(), flags=re.MULTILINE))


def keys_in(values: Any, place: str) -> Iterator[str]:
    """Return the keys below a place of a recipe, with N for numbers."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from keys_in(value, f"{place}.{key}")
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        for value in values:
            yield from keys_in(value, f"{place}.N")
    else:
        yield place


def missing_names(page: str) -> list[str]:
    """Return the public names that a page does not have."""
    return [name for name in sidestep.__all__ if f"\n## {name}\n" not in page]


def missing_options(page: str) -> list[str]:
    """Return the commands, and options of commands, that a page does not have."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    return [
        f"{name} {option.label}"
        for name, command in commands().items()
        for option in command.options
        if option.label not in sections.get(name, "")
    ]


def test_the_reference_knows_every_public_name() -> None:
    page = reference.names_page()
    assert missing_names(page) == []
    assert missing_names(page.replace("\n## wrap\n", "\n")) == ["wrap"]


def test_the_reference_knows_every_command_and_option() -> None:
    page = reference.commands_page()
    assert missing_options(page) == []
    assert missing_options(page.replace("--calibration", "")) == [
        "cascade --calibration",
        "evaluate --calibration",
    ]
    assert {each.split()[0] for each in missing_options(page.replace("\n## serve\n", "\n"))} == {"serve"}


def missing_keys(known: set[str]) -> set[str]:
    """Return the keys of all recipes that are not among those of the reference."""
    missing = set()
    for card in recipe_cards():
        values = load_recipe(card.name).as_dict()
        for part in ("method", "model", "data", "training"):
            missing |= {
                key
                for key in keys_in(values[part], part)
                if key not in known and key != "method.name" and FREE.sub(r"\1", key) not in known
            }
    return missing


def test_the_reference_knows_every_key_of_every_recipe() -> None:
    known = known_keys()
    assert missing_keys(known) == set()
    assert missing_keys(known - {"method.target"}) == {"method.target"}


@pytest.mark.parametrize("page", sorted(path.name for path in (DOCS / "coming_from").glob("*.md")))
def test_what_replaces_an_option_exists(page: str) -> None:
    """In the right column of the tables, and in commands."""
    text = (DOCS / "coming_from" / page).read_text()
    here = [line.rsplit(" | ", 1)[-1] for line in text.splitlines() if line.startswith("| `")]
    commands_there = [line for line in text.splitlines() if line.startswith(("sidestep ", "  --"))]
    known = known_keys() | {"method.name"}
    keys = re.findall(r"--((?:method|model|data|training)\.[\w.]+)", "\n".join([*here, *commands_there]))
    assert page == "index.md" or keys
    assert [key for key in keys if re.sub(r"\.\d+\.", ".N.", key) not in known] == []
    recipes = {card.name for card in recipe_cards()}
    assert set(re.findall(r"sidestep train (\w+)", text)) <= recipes


class Page(HTMLParser):
    """The addresses that a page links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src") if name in found]


def broken_links(site: Path) -> list[str]:
    """Return the links between pages, and to places in them, that lead nowhere."""
    # Among its own files the theme has a template.
    own = site / "_static"
    found = [path for path in sorted(site.rglob("*.html")) if own not in path.parents]
    pages = {path.resolve(): Page(path) for path in found}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if parts.scheme or parts.netloc or (target.is_file() and target not in pages and not place):
                continue
            if target not in pages or place not in pages[target].places:
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">, <a href="b.html">, <img src="c.png">, <p id="x">'
    )
    (tmp_path / "b.html").write_text(
        '<p id="here"><a href="a.html#y">, <a href="#x">, <a href="https://x.y">'
    )
    assert broken_links(tmp_path) == ["a.html: c.png", "b.html: a.html#y", "b.html: #x"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "jupytext"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run([*command, str(DOCS), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = (tmp_path / "made" / "python.html").read_text()
    for name in sidestep.__all__:
        value = getattr(sidestep, name)
        if isinstance(value, type) or callable(value):
            assert f'id="{value.__module__}.{value.__qualname__}"' in names, name
    index = (tmp_path / "searchindex.js").read_text()
    assert all(
        page in index for page in ("made/tutorials/train_rdi_net", "made/recipe_keys", "why_not_faster")
    )
    assert broken_links(tmp_path) == []
    # Whoever opens it from disk, without a network, can search and read it.
    start = (tmp_path / "index.html").read_text()
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="https?://[^"]*\.(?:js|css)', start)
