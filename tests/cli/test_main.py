"""The command line's own words; what the commands do is tested with the runs."""

from pathlib import Path

import pytest

from sidestep.cli.main import main


def test_help_of_train_lists_the_keys_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--method.router.gamma  number or value out of auto (default: 0.5)" in text
    assert "--training.phases.0.epochs  whole number" in text
    assert "--data.source" in text


def test_results_of_a_folder_that_is_no_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(tmp_path)]) == 2
    assert "must be trained to its end" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "1,x", ""])
def test_batch_sizes_that_are_none_are_refused(
    sizes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path), "--batch-sizes", sizes]) == 2
    assert "batch-sizes must be whole numbers from 1" in capsys.readouterr().err


def test_an_unknown_command_leaves_with_two() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
