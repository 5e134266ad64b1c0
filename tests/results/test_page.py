"""Results pages: what they say of runs, and that they can be made again."""

import json
from pathlib import Path
from typing import Any

import pytest

from sidestep.cli.main import main
from sidestep.errors import CheckpointError, OutputError, RecipeError
from sidestep.results.exit_tables import exit_sections
from sidestep.results.page import results_page, save_results
from sidestep.results.page_data import page_data, read_results
from sidestep.results.run_result import Timing, read_result
from tests.finished_runs import add_bench, write_exit_run, write_run


def test_a_page_says_what_came_out_and_how_it_was_made(tmp_path: Path) -> None:
    page = results_page("Fine-tuning", [write_run(tmp_path / "one"), write_run(tmp_path / "two")])
    assert page.startswith("# Fine-tuning\n")
    row = "| one | rdi_net | 3 | 93.12 | 0.0801 | 58.2 % | 92.99 | 0.0801 | 58.2 % | 8.50 ± 1.25 | 42 "
    assert f"{row}| - | - | - | 2.0 |" in page
    assert "- two: 90.00 @ 60 %, 94.00 @ 58 %" in page
    assert "On Some CPU (avx2), 2 cores, 2 threads used, torch 2.x." in page
    assert "| one | rdi_net_resnet32 | abc123 |" in page
    assert "![" not in page


def test_local_files_are_named_without_their_folders(tmp_path: Path) -> None:
    page = results_page("Fine-tuning", [write_run(tmp_path / "one")])
    assert "init: static.safetensors" in page and "data: {source: cifar10}" in page
    assert "someone" not in page


def test_a_run_without_validation_split_is_not_called_untrained(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two")]
    epoch = {"phase": "joint", "epoch": 0, "step": 5, "train": {"accuracy": 0.5}, "seconds": 60.0}
    (runs[0] / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    page = results_page(None, runs)
    assert "- one: no validation split, the last epoch counts\n- two: 90.00 @ 60 %" in page
    alone = results_page(None, runs[:1])
    assert "## Validation curves" not in alone
    assert "trained on the whole training split, and their best checkpoint is the last." in alone


def test_a_run_keeps_what_pages_show_of_its_reports_and_epochs(tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "one"))
    assert result.minutes == pytest.approx((90 + 20 + 10) / 60)
    assert result.validation == [(0.9, 0.6), (0.94, 0.58)]
    assert result.percent == pytest.approx(93.12) and result.reports["last"]["accuracy"] == 0.9299
    assert "keep_rates_per_class" not in result.reports["best"]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    (run / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"report\.json is missing; finish it with --resume"):
        read_result(run)


TIMES = [
    ("gathered", "float32", 256, 0.11),
    ("gathered", "float32", 1, 5.0),
    ("gathered", "bfloat16", 256, 0.07),
    ("static pytorch", "float32", 256, 0.2),
    ("static openvino", "float32", 256, 0.1),
    ("engine", "float32", 256, 0.05),
]


def test_a_row_has_the_milliseconds_of_the_largest_measured_batch(tmp_path: Path) -> None:
    page = results_page("Fine-tuning", [add_bench(write_run(tmp_path / "one"), TIMES)])
    assert "| 42 | 0.110 | 0.200 | 0.050 | 2.0 |" in page
    assert Timing(runtime="engine", precision="float32", batch_size=256, ms_per_image=0.05) in (
        read_result(tmp_path / "one").timings
    )


def test_all_timings_stand_in_a_table_by_batch_size(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "untimed"), add_bench(write_run(tmp_path / "one"), TIMES)]
    page = results_page("Fine-tuning", runs)
    assert "| run | precision | batch | gathered | static pytorch | static openvino | engine |" in page
    assert "| one | float32 | 1 / 256 | 5.000 / 0.110 | - / 0.200 | - / 0.100 | - / 0.050 |" in page
    assert "| one | bfloat16 | 256 | 0.070 | - | - | - |" in page
    assert "Milliseconds an image" not in results_page("Fine-tuning", runs[:1])


def sources(folder: Path) -> list[Path]:
    """Write one run of each kind: timed, with exits, static."""
    static = {"method": {"name": "static"}, "training.phases": []}
    return [
        add_bench(write_run(folder / "timed", {"training.seed": 7}), TIMES),
        write_exit_run(folder / "exits"),
        write_run(folder / "static", static, commit="def456"),
    ]


def test_a_page_is_made_again_from_the_file_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = [str(run) for run in sources(tmp_path)], tmp_path / "page.md"
    assert main(["results", *runs, "--title", "Runs", "--out", str(out), "--published", "cifar10"]) == 0
    page, picture, data = (out.with_suffix(end).read_bytes() for end in (".md", ".png", ".json"))
    assert page.startswith(b"# Runs\n\n![Accuracy over cost](page.png)\n") and picture[1:4] == b"PNG"
    capsys.readouterr()
    assert main(["results", str(tmp_path / "page.json")]) == 0
    assert capsys.readouterr().out.encode() == page
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "page.md"
    assert main(["results", str(tmp_path / "page.json"), "--out", str(again)]) == 0
    assert again.read_bytes() == page
    assert again.with_suffix(".png").read_bytes() == picture
    assert again.with_suffix(".json").read_bytes() == data


def test_what_is_read_back_is_what_the_run_folders_say(tmp_path: Path) -> None:
    runs = sources(tmp_path)
    written = save_results(tmp_path / "page.md", runs, title="Runs", published="cifar10")
    assert [path.name for path in written] == ["page.md", "page.json", "page.png"]
    found = page_data([tmp_path / "page.json"])
    assert (found.title, found.published, found.figure) == ("Runs", "cifar10", "page.png")
    assert found.results == [read_result(run) for run in runs]
    assert page_data([tmp_path / "page.json"], title="Other").title == "Other"


def test_a_file_can_be_joined_by_other_runs_and_holds_each_once(tmp_path: Path) -> None:
    runs = sources(tmp_path)
    save_results(tmp_path / "page.md", runs[:2], title="Runs")
    found = read_results([tmp_path / "page.json", *runs])
    assert [result.folder for result in found] == ["timed", "exits", "static"]
    assert results_page(None, runs).startswith("# Results\n")


def test_two_runs_of_one_name_are_two(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    runs = [write_run(tmp_path / "run"), write_run(tmp_path / "other" / "run", {"training.seed": 4})]
    assert len(read_results(runs)) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"title": "a", "figure": null, "published": null, "runs": [{}]}', '{"title": "a"'],
    ids=["empty", "list", "nothing", "no run", "torn"],
)
def test_other_files_are_refused_with_a_way_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"page\.json .*`sidestep results --out` has written"):
        read_results([path])


def test_a_torn_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    save_results(tmp_path / "page.md", sources(tmp_path)[:1])
    whole = (tmp_path / "page.json").read_text().rstrip()
    for length in range(0, len(whole), 97):
        (tmp_path / "torn.json").write_text(whole[:length])
        with pytest.raises(CheckpointError):
            read_results([tmp_path / "torn.json"])


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a file, and there is none"):
        read_results([tmp_path / "page.json"])


def test_a_page_is_markdown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the page must be a \.md file, got .*page\.txt"):
        save_results(tmp_path / "page.txt", [write_run(tmp_path / "one")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_a_page_brings_its_folder_or_says_why_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    save_results(tmp_path / "topic" / "today" / "page.md", [run])
    assert (tmp_path / "topic" / "today" / "page.json").is_file()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "page.md", tmp_path / "file" / "topic" / "page.md"):
        with pytest.raises(OutputError, match=r"could not be written .*; choose another place"):
            save_results(place, [run])


def test_published_points_need_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "one"))
    assert main(["results", run, "--published", "cifar10"]) == 2
    assert "published has no effect without out" in capsys.readouterr().err


def test_nothing_is_written_when_the_data_set_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be one of cifar10, cifar100, imagenet, got 'mnist'"):
        save_results(tmp_path / "page.md", [write_run(tmp_path / "one")], published="mnist")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_a_file_has_one_field_of_a_run_per_line(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]
    save_results(tmp_path / "page.md", runs)
    text = (tmp_path / "page.json").read_text()
    values: dict[str, Any] = json.loads(text)
    assert len(text.splitlines()) == 7 + sum(len(run) + 2 for run in values["runs"])


def test_what_a_network_saves_by_is_read_from_its_report(tmp_path: Path) -> None:
    run = write_exit_run(tmp_path / "both")
    assert read_result(run).savings == "exits"
    reports = json.loads((run / "report.json").read_text())
    reports["best"]["keep_rates"] = [1.0, 0.5]
    (run / "report.json").write_text(json.dumps(reports))
    assert read_result(run).savings == "skipping and exits"
    assert read_result(write_run(tmp_path / "neither")).savings == "nothing"


@pytest.mark.parametrize(("second", "savings"), [("static", "exits"), ("rdi_net", "skipping and exits")])
def test_cascades_skip_where_a_member_does(second: str, savings: str, tmp_path: Path) -> None:
    members = [{"name": name, "method": {"name": name}} for name in ("static", second)]
    settings = {"method": {"name": "cascade"}, "model": {"name": "cascade", "members": members}}
    best = {"keep_rates": [0.5], "exit_rates": [0.5, 0.5], "by_halves": True}
    run = write_run(tmp_path / "run", settings, best=best)
    assert read_result(run).savings == savings
    (line,) = [line for line in exit_sections([read_result(run)]) if line.startswith("- run:")]
    assert line.endswith("solved on either half of the test split, and reported on the other.")
