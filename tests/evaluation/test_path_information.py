"""Bits of paths about images and classes: hand arithmetic, scikit-learn, and what chance alone would say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from sidestep.evaluation.path_information import class_bits, image_bits, path_numbers
from sidestep.types import Decisions
from tests import strategies


def test_bits_about_the_image_are_the_entropy_of_paths() -> None:
    assert image_bits(torch.zeros(5).long()) == 0
    assert image_bits(torch.tensor([0, 1, 0, 1])) == pytest.approx(1)
    assert image_bits(torch.tensor([2, 0, 0, 1])) == pytest.approx(1.5)
    assert image_bits(torch.arange(10)) == pytest.approx(math.log2(10))


def test_paths_that_follow_the_class_know_it_and_others_do_not() -> None:
    labels = torch.arange(4).repeat_interleave(250)
    assert class_bits(labels, labels) == pytest.approx(2, abs=0.01)
    assert class_bits(labels // 2, labels) == pytest.approx(1, abs=0.01)
    assert class_bits(torch.zeros(1000).long(), labels) == 0


def test_a_path_of_its_own_for_every_image_says_nothing_that_can_be_known() -> None:
    labels = torch.arange(200) % 10
    assert class_bits(torch.arange(200), labels) == pytest.approx(0, abs=1e-6)
    assert class_bits(torch.arange(200) // 2, labels) < 0.05


def test_labels_without_meaning_have_no_bits_in_the_mean() -> None:
    generator = strategies.generator(0)
    found = []
    for _ in range(50):
        paths = torch.randint(0, 100, (400,), generator=generator)
        found.append(class_bits(paths, torch.randint(0, 10, (400,), generator=generator)))
    # Without the correction they would have 1.2.
    assert np.mean(found) < 0.03


@given(strategies.seeds)
def test_both_parts_are_those_of_scikit_learn(seed: int) -> None:
    generator = strategies.generator(seed)
    paths = torch.randint(0, 5, (30,), generator=generator).square()
    labels = torch.randint(0, 3, (30,), generator=generator)
    counts = contingency_matrix(labels, paths, sparse=True)
    nats = mutual_info_score(labels, paths) - expected_mutual_information(counts, 30)
    assert class_bits(paths, labels) == pytest.approx(max(0.0, nats / math.log(2)), abs=1e-9)


def test_where_an_image_leaves_is_a_part_of_its_path() -> None:
    weights = torch.eye(2)[[0, 1, 1]].unsqueeze(1)
    assert path_numbers(Decisions(weights=weights)).tolist() == [0, 1, 1]
    exits = torch.eye(2)[[0, 0, 1]]
    assert path_numbers(Decisions(weights=weights, exits=exits)).tolist() == [0, 1, 2]
