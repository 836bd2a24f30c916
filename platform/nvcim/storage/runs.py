"""A run folder: `runs/<run id>/` with its record, its Parquet tables and its figures."""

import datetime
import functools
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import nvcim
from nvcim.config import Settings
from nvcim.errors import RunError
from nvcim.storage.files import atomic_write_table, atomic_write_text, read_parquet
from nvcim.storage.schemas import BASES, TRACE, table_schema

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class RunRecord(Settings):
    """What `run.json` says of a run."""

    run_id: str
    name: str
    seed: int
    config_hash: str
    code_version: str
    command: str
    created: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and its record; plain data, so it travels to workers as it is."""

    path: Path
    record: RunRecord

    @classmethod
    def create(cls, root: Path, name: str, settings: Settings | Mapping[str, Any], seed: int) -> "RunFolder":
        """Make a new folder `root/<name>-<time>-<random>` and write its `run.json`.

        Raises:
            RunError: `name` cannot name a folder, or `root` cannot be written to.
        """
        _check_name(name)
        now = datetime.datetime.now(datetime.UTC)
        run_id = f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        content = _as_json_mapping(settings)
        record = RunRecord(
            run_id=run_id,
            name=name,
            seed=seed,
            config_hash=config_hash(content),
            code_version=code_version(),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            created=now.isoformat(timespec="seconds"),
            settings=content,
        )
        path = root / run_id
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{path}: run folder cannot be made ({error.strerror})") from error
        atomic_write_text(path / "run.json", record.model_dump_json(indent=2) + "\n")
        return cls(path, record)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            RunError: there is no readable `run.json` in it.
        """
        file = path / "run.json"
        try:
            return cls(path, RunRecord.model_validate_json(file.read_bytes()))
        except OSError as error:
            raise RunError(f"{path}: not a run folder (run.json: {error.strerror})") from error
        except ValueError as error:
            raise RunError(f"{file}: not a run record ({str(error).splitlines()[0]})") from error

    def write_table(
        self, name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema | None = None
    ) -> Path:
        """Write `<name>.parquet` atomically, replacing an older one, and return its path.

        Args:
            name: Table name; without `schema` one of `nvcim.storage.schemas.TABLES`.
            rows: Mappings with the schema's columns; the columns of `TRACE` are added here.
            schema: Columns of a table that is not in `TABLES`.

        Raises:
            ValueError: a row lacks a column, has one more, or holds a value of another type.
            RunError: the file cannot be written.
        """
        _check_name(name)
        path = self.table_path(name)
        atomic_write_table(path, self.traced(list(rows), schema or table_schema(name)))
        return path

    def traced(self, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
        """Return `rows` as a table with the columns of `TRACE` (raises ValueError as `write_table`)."""
        for index, row in enumerate(rows):
            _check_row(index, row, schema)
        trace = {column.name: getattr(self.record, column.name) for column in TRACE}
        full = pa.schema([*schema, *TRACE])
        try:
            return pa.Table.from_pylist([{**row, **trace} for row in rows], schema=full)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"a value does not fit its column: {error}") from error

    def read_table(self, name: str) -> pa.Table:
        """Read `<name>.parquet` of this run.

        Raises:
            RunError: the run has no such table (the message lists those it has), or the file is broken.
        """
        path = self.table_path(name)
        if not path.is_file():
            found = ", ".join(self.tables()) or "none"
            raise RunError(f"{self.path}: no table '{name}'; tables found: {found}")
        return read_parquet(path)

    def tables(self) -> list[str]:
        """Names of the tables that the run holds, sorted."""
        return sorted(file.stem for file in self.path.glob("*.parquet"))

    def table_path(self, name: str) -> Path:
        """Where the table `name` is or would be."""
        return self.path / f"{name}.parquet"

    def figure_path(self, name: str) -> Path:
        """Return `figures/<name>.png` of the run; its folder is made.

        Raises:
            RunError: the folder cannot be made, or `name` cannot name a file.
        """
        _check_name(name)
        folder = self.path / "figures"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder / f"{name}.png"


def config_hash(settings: Settings | Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the settings as sorted JSON."""
    text = json.dumps(_as_json_mapping(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


@functools.cache
def code_version() -> str:
    """Return nvcim's version; from a checkout also its commit, and `.dirty` where a source file was changed.

    An image that holds no git states its own commit in the environment variable `NVCIM_CODE_VERSION`.
    """
    stated = os.environ.get("NVCIM_CODE_VERSION")
    if stated:
        return stated
    package = Path(nvcim.__file__).resolve().parent
    # A package installed beside some other project's checkout must not take that project's commit.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return nvcim.__version__
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return nvcim.__version__
    dirty = ".dirty" if _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".") else ""
    return f"{nvcim.__version__}+g{commit}{dirty}"


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in `folder`, or None where it failed or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _as_json_mapping(settings: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """Settings as what JSON can hold (paths become text)."""
    if isinstance(settings, Settings):
        return settings.model_dump(mode="json")
    content: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return content


def _check_name(name: str) -> None:
    """Refuse names that are no plain file name."""
    if not _NAME.fullmatch(name):
        raise RunError(
            f"'{name}' cannot name a run or table; allowed: lower-case letters, digits, '-' and '_'"
        )


def _check_row(index: int, row: Mapping[str, Any], schema: pa.Schema) -> None:
    """Refuse a row that does not have exactly the columns of `schema` (empty ones may be left out)."""
    unknown = sorted(set(row) - set(schema.names))
    if unknown:
        raise ValueError(f"row {index}: no column {unknown} in the table; columns: {', '.join(schema.names)}")
    missing = [field.name for field in schema if not field.nullable and row.get(field.name) is None]
    if missing:
        raise ValueError(f"row {index}: needs a value for {missing}")
    if "basis" in schema.names and row["basis"] not in BASES:
        raise ValueError(f"row {index}: basis '{row['basis']}' is not one of {', '.join(BASES)}")
