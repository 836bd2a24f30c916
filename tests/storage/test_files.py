"""Atomic files keep the old content or hold the new one."""

import os
import threading
from pathlib import Path

import pytest

from nvcim.errors import RunError
from nvcim.storage.files import atomic_write_bytes, atomic_write_text, read_parquet


def test_content_and_folders_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert [f.name for f in path.parent.iterdir()] == ["b.txt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    atomic_write_bytes(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"x: cannot be written \(No space left on device\)"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "x"
    whole = [bytes([value]) * 200_000 for value in (65, 66)]
    atomic_write_bytes(path, whole[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        atomic_write_bytes(path, whole[turn % 2])
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= set(whole)


def test_a_folder_that_is_a_file_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        atomic_write_text(tmp_path / "file" / "x", "")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_broken_parquet_file_is_a_run_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"t\.parquet"):
        read_parquet(path)


def test_a_missing_parquet_file_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        read_parquet(tmp_path / "t.parquet")
