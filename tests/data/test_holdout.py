"""What is held out, and what `limit` keeps: the same share of every class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.data import DataConfig
from sidestep.data.holdout import hold_out, shares
from sidestep.errors import DataError
from tests.data.loading import labels, load


def counts_of(found: Any, classes: Any, number: int) -> list[int]:
    return np.bincount(classes[found], minlength=number).tolist()


def test_shares_by_hand() -> None:
    classes = np.repeat([0, 1, 2, 3], [50, 30, 15, 5])
    np.random.default_rng(1).shuffle(classes)
    val, train = hold_out(classes, DataConfig(val_fraction=0.2))
    assert counts_of(val, classes, 4) == [10, 6, 3, 1]
    assert counts_of(train, classes, 4) == [40, 24, 12, 4]
    _, some = hold_out(classes, DataConfig(val_fraction=0.2, limit=40))
    assert counts_of(some, classes, 4) == [20, 12, 6, 2]
    assert set(some) <= set(train)


@pytest.mark.parametrize("seed", range(20))
def test_a_class_of_few_images_has_some_to_train_on(seed: int) -> None:
    classes = np.repeat([0, 1, 2], [200, 2, 1])
    val, train = hold_out(classes, DataConfig(val_fraction=0.5, split_seed=seed))
    assert counts_of(train, classes, 3) == [99, 1, 1]
    assert len(val) + len(train) == 203
    _, few = hold_out(classes, DataConfig(val_fraction=0.5, split_seed=seed, limit=3))
    assert counts_of(few, classes, 3) == [1, 1, 1]


def test_random_draws_as_before_there_was_a_choice() -> None:
    classes = np.repeat([0, 1, 2], [200, 2, 1])
    config = DataConfig(val_fraction=0.1, split_seed=3, holdout="random", limit=50)
    order = np.random.default_rng(3).permutation(203)
    val, train = hold_out(classes, config)
    assert val.tolist() == sorted(order[:20].tolist())
    assert train.tolist() == sorted(order[20:70].tolist())


@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda numbers: sum(numbers) >= 2),
    fraction=st.floats(0.0, 0.95),
    seed=st.integers(0, 5),
    share=st.floats(0.0, 1.0),
)
def test_parts_are_apart_and_classes_stay(
    numbers: list[int], fraction: float, seed: int, share: float
) -> None:
    classes = np.repeat(np.arange(len(numbers)), numbers)
    try:
        val, train = hold_out(classes, DataConfig(val_fraction=fraction, split_seed=seed))
    except DataError:
        assert round(fraction * len(classes)) in (0, len(classes)) or max(numbers) == 1
        return
    assert sorted([*val, *train]) == list(range(len(classes)))
    assert (np.bincount(classes[train], minlength=len(numbers)) > 0).tolist() == [n > 0 for n in numbers]
    limit = max(1, int(share * len(train)))
    _, some = hold_out(classes, DataConfig(val_fraction=fraction, split_seed=seed, limit=limit))
    assert len(some) == limit and set(some) <= set(train)
    present = sum(n > 0 for n in numbers)
    assert len(set(classes[some])) == min(limit, present) or limit < present


def test_what_is_given_adds_up() -> None:
    assert shares(7, np.array([3, 3, 3])).sum() == 7
    assert shares(3, np.array([100, 1, 1]), least=np.array([1, 1, 1])).tolist() == [1, 1, 1]
    assert shares(5, np.array([9, 1]), most=np.array([4, 1])).tolist() == [4, 1]


def test_classes_of_one_image_hold_nothing_out() -> None:
    with pytest.raises(DataError, match=r"val_fraction 0.5 must leave images .* got 0 and 4"):
        hold_out(np.arange(4), DataConfig(val_fraction=0.5))


def test_sets_are_held_out_by_class(make_folder: Callable[..., Path]) -> None:
    data = load(make_folder(count=10), val_fraction=0.2)
    assert (labels(data.val), labels(data.train)) == ([0] * 2 + [1] * 2, [0] * 8 + [1] * 8)
