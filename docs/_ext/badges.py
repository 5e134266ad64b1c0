"""Badges of the README: small pictures in the repository, which no service draws.

python docs/_ext/badges.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
_CHARACTER, _MARGIN = 6.6, 12


def badges() -> dict[str, str]:
    """Return the badges as SVG by the names of their files."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    strict = "strict" if content["tool"]["mypy"]["strict"] else "some"
    return {
        "python.svg": badge("python", project["requires-python"].replace(">=", "") + "+"),
        "licence.svg": badge("licence", project["license"]),
        "types.svg": badge("mypy", strict),
    }


def badge(name: str, value: str) -> str:
    """Return a badge with a name on grey and a value on blue, both white (contrast above 4.5)."""
    left, right = (round(_CHARACTER * len(text)) + _MARGIN for text in (name, value))
    parts = [(0, left, "#555555", name), (left, right, "#0b5c94", value)]
    drawn = "".join(
        f'<rect x="{x}" width="{width}" height="20" fill="{color}"/>'
        f'<text x="{x + width / 2:g}" y="14" textLength="{width - _MARGIN}">{text}</text>'
        for x, width, color, text in parts
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{name}: {value}"><g fill="#ffffff" text-anchor="middle" '
        f'font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{drawn}</g></svg>\n'
    )


if __name__ == "__main__":
    for file, picture in badges().items():
        (PICTURES / file).write_text(picture)
