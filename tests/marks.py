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
    return [pytest.param(value, marks=pytest.mark.slow) if slow(value) else value for value in values]
