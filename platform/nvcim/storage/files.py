"""Atomic files: a reader sees the old content or the new one, never a part of it."""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nvcim.errors import RunError


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that it is on disk, whole, when this returns.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name at once.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes it readable by its owner alone
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def atomic_write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `atomic_write_bytes` does, with its errors."""
    atomic_write_bytes(path, content.encode("utf-8"))


def atomic_write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as one Parquet file, as `atomic_write_bytes` does, with its errors."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path) -> pa.Table:
    """Read one Parquet file.

    Raises:
        RunError: the file is missing, truncated or not Parquet.
    """
    try:
        # Opened as one file: a path alone would also take columns from `key=value` folder names above it.
        with path.open("rb") as stream:
            return pq.ParquetFile(stream).read()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pa.ArrowInvalid as error:
        raise RunError(f"{path}: not a whole Parquet file ({error})") from error


def _umask() -> int:
    """The process's umask; reading it means setting it for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (a rename lives in the folder, not in the file)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
