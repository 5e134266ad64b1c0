"""The writer of files, and what it does where it cannot write."""

import errno
import os
import warnings
from pathlib import Path

import pytest

from sidestep.errors import CheckpointError, ExportError, OutputError, UnkeptWarning
from sidestep.files import check_writable, kept, made_folder, read_json, whole_folder, write_file


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b" / "file", "text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"
    assert list((tmp_path / "a" / "b").iterdir()) == [tmp_path / "a" / "b" / "file"]


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(OutputError, match=r"file .* could not be written \(Is a directory\); choose"):
        write_file(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x", "/proc/x/y", "x" * 300])
def test_impossible_places_are_one_sentence(place: str) -> None:
    for no_file in (place, ".", "..", "/"):
        with pytest.raises(OutputError, match="could not be written"):
            write_file(Path(no_file), "")
    with (
        pytest.raises(OutputError, match=r"could not be (made|written)|must be one that"),
        whole_folder(Path(place)),
    ):
        raise AssertionError
    with pytest.raises(OutputError, match="could not be made"), made_folder(Path(place)):
        raise AssertionError


def test_an_interrupted_writer_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_go_when_what_was_to_fill_them_fails(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(ZeroDivisionError), made_folder(tmp_path / "before" / "a" / "b"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["before"]

    def fill() -> None:
        (tmp_path / "before" / "a" / "kept").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), made_folder(tmp_path / "before" / "a" / "b"):
        fill()
    assert (tmp_path / "before" / "a" / "kept").is_file()


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, error: BaseException | None = None) -> None:
        with whole_folder(path, error=ExportError) as folder:
            (folder / "a").write_text("x")
            (folder / "b").mkdir()
            assert not path.is_dir() or not list(path.iterdir())
            if error is not None:
                raise error

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for error in (KeyboardInterrupt(), ZeroDivisionError()):
        for place in (tmp_path / "new" / "deep", Path()):
            with pytest.raises(type(error)):
                fill(place, error)
            assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    with pytest.raises(ExportError, match=r"deep could not be written \(No space left on device\)"):
        fill(tmp_path / "new" / "deep", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    fill(tmp_path / "new" / "deep")
    fill(Path())
    # A working directory stays the one that a shell stands in.
    assert sorted(os.listdir()) == sorted(os.listdir(tmp_path / "new" / "deep")) == ["a", "b"]
    with pytest.raises(ExportError, match="must be a new or empty folder, and is not"):
        fill(Path())


def test_a_folder_is_tried_before_hours_of_work(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="must be one that can be written into"):
        check_writable(tmp_path / "absent")


def test_what_is_worth_more_than_its_file_is_kept_with_a_warning() -> None:
    with pytest.warns(UnkeptWarning, match="could not be written"), kept():
        write_file(Path("/dev/null/x"), "")
    with warnings.catch_warnings(), pytest.raises(ValueError), kept():
        raise ValueError


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"thing .*x\.json is damaged .*; do that"):
        read_json(tmp_path / "x.json", what="thing", way_out="do that")
