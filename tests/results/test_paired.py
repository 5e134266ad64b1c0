"""Differences between runs of equal cost: which are compared, seed by seed, and how sure they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from sidestep.results.page import results_page
from sidestep.results.page_data import read_results
from sidestep.results.paired import corrected, differences
from tests.finished_runs import write_run


def runs(
    folder: Path, name: str, percents: dict[int, float], gflops: float = 0.08, **settings: Any
) -> list[Path]:
    """Write a run for every seed, whose recipe differs from that of other names."""
    return [
        write_run(
            folder / f"{name}_seed{seed}",
            {"training.seed": seed, "method.gate_mode": name, **settings},
            best={"accuracy": percent / 100, "gflops": gflops},
        )
        for seed, percent in percents.items()
    ]


SHARE, FIXED = {0: 91.0, 1: 91.6, 2: 91.3}, {2: 90.5, 0: 90.4, 1: 90.7}


def test_runs_are_compared_seed_by_seed_and_the_better_one_comes_first(tmp_path: Path) -> None:
    folders = runs(tmp_path, "fixed", FIXED) + runs(tmp_path, "share", SHARE)
    (found,) = differences(read_results(folders))
    assert (found.better.name, found.other.name, found.seeds) == ("share", "fixed", (0, 1, 2))
    assert found.points == pytest.approx((0.6, 0.9, 0.8))
    assert found.test is not None
    expected = ttest_rel([91.0, 91.6, 91.3], [90.4, 90.7, 90.5])
    assert found.test.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.test.low, found.test.high) == pytest.approx((interval.low, interval.high))


def test_other_costs_other_data_and_single_seeds_are_not_compared(tmp_path: Path) -> None:
    folders = runs(tmp_path, "fixed", FIXED)
    folders += runs(tmp_path, "dear", SHARE, gflops=0.09)
    folders += runs(tmp_path, "elsewhere", SHARE, **{"data.source": "other"})
    folders += runs(tmp_path, "once", {0: 92.0, 7: 92.0})
    assert differences(read_results(folders)) == []
    assert "Paired differences" not in results_page("Runs", folders)


def test_seeds_that_one_alone_has_are_left_out(tmp_path: Path) -> None:
    folders = runs(tmp_path, "fixed", FIXED) + runs(tmp_path, "share", SHARE | {3: 10.0})
    (found,) = differences(read_results(folders))
    assert found.seeds == (0, 1, 2)


def test_a_page_says_how_sure_differences_are(tmp_path: Path) -> None:
    folders = runs(tmp_path, "fixed", FIXED) + runs(tmp_path, "share", SHARE)
    folders += runs(tmp_path, "alike", {seed: percent - 1 for seed, percent in FIXED.items()})
    page = results_page("Runs", folders)
    assert "| share | fixed | 0, 1, 2 | +0.77 ± 0.15 | +0.39 to +1.15 | 0.013 | 0.013 |" in page
    # Differences that are all alike have no deviation to judge them by.
    assert "| fixed | alike | 0, 1, 2 | +1.00 ± 0.00 | - | - | - |" in page
    assert page.index("## Over seeds") < page.index("## Paired differences") < page.index("## Validation")


def test_holms_correction_multiplies_the_least_by_all_and_never_falls() -> None:
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert corrected([]) == []


def test_a_page_has_bits_of_paths_where_reports_know_them(tmp_path: Path) -> None:
    bits = {"image_bits": 3.5, "class_bits": 0.25}
    known = [
        write_run(
            tmp_path / f"net_seed{seed}", {"training.seed": seed}, best=bits | {"image_bits": 3.0 + seed}
        )
        for seed in (0, 1)
    ]
    old = write_run(tmp_path / "old", {"method.gate_mode": "old"})
    assert "bits of image" not in results_page("Runs", [old])
    page = results_page("Runs", [*known, old])
    assert "| paths | bits of image | bits of class | ms gathered |" in page
    assert "| 42 | 4.00 | 0.25 | - |" in page and "| 42 | - | - | - |" in page
    assert "| 3.50 ± 0.71 | 0.25 ± 0.00 | 2.0 ± 0.0 |" in page
