"""constraints/oldest.txt holds the lower bounds of both distributions, and nothing else."""

import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.paths import ROOT


def requirements(distribution: str) -> list[Requirement]:
    """Return what a distribution needs, extras and its build included, but for what is built here."""
    content: dict[str, Any] = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())
    project = content["project"]
    texts = [*content["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in project["optional-dependencies"].values() for text in extra]
    return [each for each in map(Requirement, texts) if each.name not in ("sidestep", "sidestep-engine")]


def releases(requirement: Requirement, operator: str) -> list[Version]:
    return [Version(each.version) for each in requirement.specifier if each.operator == operator]


def oldest() -> dict[str, Version]:
    lines = (ROOT / "constraints" / "oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert names == list(dict.fromkeys(names)), "a package stands there once"
    found = [releases(pin, "==") for pin in pins]
    assert all(len(each) == len(pin.specifier) == 1 for each, pin in zip(found, pins, strict=True))
    return dict(zip(names, (version for (version,) in found), strict=True))


@pytest.mark.parametrize("distribution", [".", "engine"])
def test_every_requirement_begins_with_the_release_that_is_tested(distribution: str) -> None:
    needed, tested = requirements(distribution), oldest()
    assert needed
    for requirement in needed:
        assert releases(requirement, ">=") == [tested[canonicalize_name(requirement.name)]], requirement


def test_nothing_is_tested_that_nobody_needs() -> None:
    needed = {canonicalize_name(each.name) for place in (".", "engine") for each in requirements(place)}
    assert set(oldest()) == needed
