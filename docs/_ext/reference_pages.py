"""Pages that are made when the site is built: commands, keys of recipes, public names, results, changes."""

from __future__ import annotations

import re
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "docs" / "made"


def setup(app: Any) -> dict[str, Any]:
    """Make the pages before Sphinx reads any."""
    app.connect("builder-inited", lambda _: write_pages(MADE))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Write all pages into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = {
        "commands.md": commands_page(),
        "recipe_keys.md": keys_page(),
        "recipes.md": recipes_page(),
        "python.md": names_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": contributing_page(),
        **{f"tutorials/{path.stem}.md": tutorial_page(path) for path in tutorials()},
    }
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    copy_results(folder / "results")


def tutorials() -> list[Path]:
    """Return the tutorials that are programs."""
    return sorted((ROOT / "docs" / "tutorials").glob("*.py"))


def tutorial_page(path: Path) -> str:
    """Return a program in jupytext's percent format as a page: its texts, and its cells as code."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata.clear()
    text = jupytext.writes(notebook, fmt="md")
    # Without the header of notebooks; links are those of a page in docs/tutorials.
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).lstrip().replace("](../", "](../../")
    return f"{text}\n*This page is a program: `docs/tutorials/{path.name}`.*\n"


def contributing_page() -> str:
    """Return CONTRIBUTING.md with the list for releases below it."""
    toc = "\n".join(["", "```{toctree}", "../releasing", "```", ""])
    return (ROOT / "CONTRIBUTING.md").read_text() + toc


def commands_page() -> str:
    """Return what every command takes, as `--help` says it."""
    from sidestep.cli.help import command_help, overview
    from sidestep.cli.main import commands

    found = commands()
    lines = ["# Commands", "", "```text", overview(found.values()), "```", ""]
    for name, command in found.items():
        lines += [f"## {name}", "", "```text", command_help(command), "```", ""]
    return "\n".join(lines)


def keys_page() -> str:
    """Return every key of recipes: of data and training, of every model and source, of every method."""
    from sidestep.data.data_config import DataConfig
    from sidestep.data.sources import SOURCES
    from sidestep.methods import METHODS
    from sidestep.networks.models import MODELS, ModelConfig
    from sidestep.training.training_config import TrainingConfig

    lines = [
        "# Keys of recipes",
        "",
        "`sidestep train RECIPE --help` shows those of one recipe, with its values. On the command line "
        "every key is an option, such as `--training.batch_size 64`.",
        "",
    ]
    parts: list[tuple[str, str, type]] = [
        ("training", "training", TrainingConfig),
        ("data", "data", DataConfig),
        ("model", "model", ModelConfig),
    ]
    parts += [
        (f"data of {source.name}", "data", source.settings) for source in map(SOURCES.__getitem__, SOURCES)
    ]
    parts += [(f"model {model.name}", "model", model.settings) for model in map(MODELS.__getitem__, MODELS)]
    parts += [
        (f"method {method.name}", "method", method.settings) for method in map(METHODS.__getitem__, METHODS)
    ]
    for title, place, settings in parts:
        rows = list(keys_of(settings, place))
        if rows:
            lines += [f"## {title}", "", "| key | what it says | default |", "| --- | --- | --- |"]
            lines += [f"| `{key}` | {_cell(text)} | {_cell(default)} |" for key, text, default in rows]
            lines.append("")
    return "\n".join(lines)


def keys_of(settings: type, place: str) -> list[tuple[str, str, str]]:
    """Return (key, text, default) of a settings class and of those that it nests."""
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from sidestep.cli.options import alternatives, descriptions

    told, hints = descriptions(settings), get_type_hints(settings)
    rows = []
    for field in fields(settings):
        if field.name == "settings" and place in ("data", "model"):
            continue
        key = f"{place}.{field.name}"
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        nested = next((kind for kind in alternatives(hints[field.name]) if is_dataclass(kind)), None)
        shown = "required" if default is MISSING else "" if nested is not None else f"`{default}`"
        rows.append((key, told.get(field.name, ""), shown))
        if nested is not None:
            rows += keys_of(nested, key)
        for item in _items(hints[field.name]):
            rows += keys_of(item, f"{key}.N")
    return rows


def _items(hint: Any) -> list[type]:
    """Return the settings classes of a list's or a mapping's items."""
    from typing import get_args, get_origin

    if get_origin(hint) not in (list, dict):
        return []
    return [kind for kind in get_args(hint) if is_dataclass(kind)]


def recipes_page() -> str:
    """Return the recipes that come with the package."""
    from sidestep.runs.recipe_book import recipe_cards

    lines = ["# Recipes", "", "Any of these names is a recipe: `sidestep train NAME`.", ""]
    lines += ["| recipe | what | expected | minutes |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{card.name}` | {_cell(card.about)} | {_cell(card.expected)} | {_cell(card.minutes)} |"
        for card in recipe_cards()
    ]
    return "\n".join(lines) + "\n"


def names_page() -> str:
    """Return every public name, documented from its docstring."""
    import sidestep

    lines = ["# Python", "", "All of these are names of `sidestep`.", ""]
    for name in sorted(sidestep.__all__, key=str.lower):
        value = getattr(sidestep, name)
        lines += [f"## {name}", ""]
        if isinstance(value, type):
            directive, options = "autoclass", ":members:\n:show-inheritance:"
        elif callable(value) and not is_dataclass(value):
            directive, options = "autofunction", ""
        else:
            lines += [f"{_one_line(type(value).__doc__)}", ""]
            continue
        path = f"{value.__module__}.{value.__qualname__}"
        lines += [
            "```{eval-rst}",
            f".. {directive}:: {path}",
            *(f"   {line}" for line in options.split("\n")),
        ]
        lines += ["```", ""]
    return "\n".join(lines)


def copy_results(folder: Path) -> None:
    """Copy the results pages, with their figures, below a page that lists them."""
    source = ROOT / "benchmarks" / "results"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.json"))
    index = folder / "README.md"
    text = index.read_text()
    pages = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.md"))
    toc = "\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```", ""])
    (folder / "index.md").write_text(text + toc)
    index.unlink()
    for path in folder.glob("*/*.md"):
        # Pages of runs point to folders that were not kept.
        path.write_text(re.sub(r"\]\((?!https?:|[\w./-]+\.(?:png|md)\b)[^)]*\)", "]", path.read_text()))


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
