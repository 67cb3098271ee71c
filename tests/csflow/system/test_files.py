from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from csflow.errors import CsflowError, DiskFullError
from csflow.system.files import explain_full_disk, new_directory, require_space, sha256_tree, sweep, write_atomic


def test_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CsflowError, match="No space left on device.*3 bytes are needed.*Free disk space"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), new_directory(tmp_path / "made") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "made") as folder:
        (folder / "whole").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "whole").read_text() == "x"


def test_tree_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, sha256_tree(tmp_path)}) == 3


def test_only_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CsflowError, match="File exists. Check the permissions") as raised:
        write_atomic(tmp_path / "file" / "below", "x")
    assert "Free disk space" not in str(raised.value)
    assert not isinstance(raised.value, DiskFullError)


def test_a_full_disk_is_found_behind_the_errors_of_libraries(tmp_path: Path) -> None:
    other = tmp_path / "other"

    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise RuntimeError("it did not work") from error
        except RuntimeError as error:
            return error

    for cause in (
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("(sqlite3.OperationalError) database or disk is full"),
        KeyError("I/O error: No space left on device (os error 28)"),
    ):
        found = explain_full_disk(wrapped(cause), [tmp_path, other])
        assert found is not None
        assert str(tmp_path) in str(found)
        assert "are free there" in str(found)
    own = DiskFullError("Cannot write x: No space left on device.")
    assert explain_full_disk(wrapped(own), [tmp_path]) is own, "it names the file already"
    assert explain_full_disk(wrapped(OSError(errno.EACCES, "Permission denied")), [tmp_path]) is None


def test_what_needs_more_than_is_free_is_refused_before_it_begins(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1, "The features of 3 images")
    with pytest.raises(DiskFullError, match=r"The features of 3 images need 1000000000\.0 GB in .*free"):
        require_space(tmp_path, 10**18, "The features of 3 images")


WRITER = """
import sys, time
from pathlib import Path
from csflow.system.files import new_directory, replacing
with new_directory(Path(sys.argv[1]) / "folder") as folder, replacing(Path(sys.argv[1]) / "file") as file:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_sweeping_takes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".registry.lock").touch()
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3, "the writer lives"
        writer.kill()
    assert len(list(tmp_path.iterdir())) == 3, "it could not clean up"
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".registry.lock"]
