from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.data import Shard
from sidestep.data.image_set import count_steps, epoch_order, eval_rows, train_rows
from sidestep.errors import RecipeError


@given(start=st.integers(0, 50), count=st.integers(0, 100), world_size=st.integers(1, 9))
def test_shards_laid_side_by_side_are_the_batch(start: int, count: int, world_size: int) -> None:
    parts = [Shard(rank, world_size).rows(start, start + count) for rank in range(world_size)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(
        range(start, start + count)
    )
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_four_shards_of_eight_rows() -> None:
    assert [Shard(rank, 4).rows(8, 16) for rank in range(4)] == [
        slice(8, 10),
        slice(10, 12),
        slice(12, 14),
        slice(14, 16),
    ]


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation_that_can_be_repeated(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed=seed, epoch=epoch))


def test_order_depends_on_seed_and_on_epoch() -> None:
    orders = [epoch_order(100, seed=s, epoch=e).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_training_leaves_out_the_incomplete_batch_and_evaluation_does_not() -> None:
    assert train_rows(10, 4, 0, Shard()) == [slice(0, 4), slice(4, 8)]
    assert train_rows(10, 4, 1, Shard()) == [slice(4, 8)]
    assert train_rows(10, 4, 2, Shard()) == []
    assert eval_rows(10, 4, Shard()) == [slice(0, 4), slice(4, 8), slice(8, 10)]


def test_a_shard_without_an_image_of_the_last_batch_gets_no_empty_batch() -> None:
    assert eval_rows(5, 4, Shard(0, 2)) == [slice(0, 2)]
    assert eval_rows(5, 4, Shard(1, 2)) == [slice(2, 4), slice(4, 5)]


def test_errors_name_rule_and_value() -> None:
    with pytest.raises(RecipeError, match=r"rank must be in 0 to 1 .* got 2"):
        Shard(2, 2)
    with pytest.raises(RecipeError, match="batch_size must be in 1 to 10, the number of images, got 11"):
        count_steps(10, 11)
    with pytest.raises(RecipeError, match="multiple of the number of processes, 3, got 4"):
        train_rows(10, 4, 0, Shard(0, 3))
    with pytest.raises(RecipeError, match="start_step must be in 0 to 2, the steps of an epoch, got 3"):
        train_rows(10, 4, 3, Shard())
    with pytest.raises(RecipeError, match="batch_size must be at least 1, got 0"):
        eval_rows(10, 0, Shard())
    with pytest.raises(RecipeError, match="seed must be at least 0, got -1"):
        epoch_order(10, seed=-1, epoch=0)
    with pytest.raises(RecipeError, match="epoch must be at least 0, got -2"):
        epoch_order(10, seed=0, epoch=-2)
