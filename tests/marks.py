"""Marks of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_where(slow: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return parameters, of which some are marked slow.

    Args:
        slow: whether a parameter takes long.
        values: the parameters.
    """
    return _marked(pytest.mark.slow, slow, values)


def exhaustive_where(exhaustive: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return parameters, of which some are marked exhaustive: members of a family that is tested by others.

    Args:
        exhaustive: whether a parameter is one of many.
        values: the parameters.
    """
    return _marked(pytest.mark.exhaustive, exhaustive, values)


def _marked(mark: pytest.MarkDecorator, chosen: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    return [pytest.param(value, marks=mark) if chosen(value) else value for value in values]
