"""Run folders: what is written comes back, traced, in every reader."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import nvcim
from nvcim.config import Settings
from nvcim.errors import RunError
from nvcim.storage import TABLES, RunFolder
from nvcim.storage.runs import code_version, config_hash


class Small(Settings):
    bits: int = 4
    folder: Path = Path("x")


STAGE = {"stage": "fleet", "seconds": 1.5, "basis": "measured"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "demo", Small(), seed=7)


def test_a_run_opens_as_it_was_created(run: RunFolder) -> None:
    assert RunFolder.open(run.path) == run
    record = json.loads((run.path / "run.json").read_text())
    assert record["seed"] == 7
    assert record["settings"] == {"bits": 4, "folder": "x"}
    assert record["run_id"] == run.path.name


def test_runs_made_in_the_same_second_have_their_own_folders(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path, "demo", Small(), seed=1) for _ in range(5)]
    assert len({run.path for run in runs}) == 5


def test_every_row_can_be_traced(run: RunFolder) -> None:
    run.write_table("stages", [STAGE])
    (row,) = run.read_table("stages").to_pylist()
    assert row["run_id"] == run.record.run_id
    assert row["seed"] == 7
    assert row["config_hash"] == config_hash(Small())
    assert row["code_version"].startswith(nvcim.__version__)


def test_pandas_reads_a_table(run: RunFolder) -> None:
    frame = pd.read_parquet(run.write_table("stages", [STAGE, {**STAGE, "stage": "sweep"}]))
    assert list(frame["stage"]) == ["fleet", "sweep"]


def test_columns_keep_their_unit(run: RunFolder) -> None:
    run.write_table("stages", [STAGE])
    assert run.read_table("stages").schema.field("seconds").metadata[b"unit"] == b"s"


def test_a_table_is_replaced_whole(run: RunFolder) -> None:
    run.write_table("stages", [STAGE, STAGE])
    run.write_table("stages", [])
    assert run.read_table("stages").num_rows == 0
    assert run.tables() == ["stages"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**STAGE, "minutes": 1}, r"no column \['minutes'\]"),
        ({"stage": "fleet", "basis": "measured"}, r"needs a value for \['seconds'\]"),
        ({**STAGE, "seconds": "long"}, "does not fit"),
        ({**STAGE, "basis": "guessed"}, "basis 'guessed'"),
    ],
)
def test_a_row_that_breaks_the_schema_is_refused(
    run: RunFolder, row: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run.write_table("stages", [row])
    assert run.tables() == []


def test_a_column_that_may_be_empty_can_be_left_out(run: RunFolder) -> None:
    row = {"endpoint": "/healthz", "case": "health", "status": 200, "latency_ms": 1.0, "basis": "measured"}
    run.write_table("serving", [row])
    assert run.read_table("serving").to_pylist()[0]["prompt_tokens"] is None


def test_a_table_of_ones_own_needs_its_schema(run: RunFolder) -> None:
    run.write_table("levels", [{"level": 3}], pa.schema([pa.field("level", pa.int8())]))
    assert run.read_table("levels").to_pylist()[0]["level"] == 3
    with pytest.raises(KeyError, match="stages"):
        run.write_table("unheard", [])


def test_every_schema_states_a_basis_and_describes_its_columns() -> None:
    for schema in TABLES.values():
        assert "basis" in schema.names
        assert all(field.metadata[b"about"] for field in schema)


def test_a_folder_without_a_record_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="not a run record"):
        RunFolder.open(tmp_path)


def test_a_missing_table_names_those_that_exist(run: RunFolder) -> None:
    run.write_table("stages", [])
    with pytest.raises(RunError, match="tables found: stages"):
        run.read_table("sweep")


@pytest.mark.parametrize("name", ["../up", "", "A b", "x/y"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot name"):
        RunFolder.create(tmp_path, name, Small(), seed=1)


def test_a_root_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        RunFolder.create(tmp_path / "file", "demo", Small(), seed=1)


def test_config_hash_depends_on_values_not_on_order_or_process() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash(Small()) != config_hash(Small(bits=5))
    code = "from nvcim.storage.runs import config_hash; print(config_hash({'a': 1, 'b': 2}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == config_hash({"a": 1, "b": 2})


def test_code_version_can_be_stated_by_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    code_version.cache_clear()
    monkeypatch.setenv("NVCIM_CODE_VERSION", "0.1.0+image")
    assert code_version() == "0.1.0+image"
    code_version.cache_clear()


def test_a_run_folder_travels_to_another_process(run: RunFolder) -> None:
    assert pickle.loads(pickle.dumps(run)) == run


def test_figures_have_a_place(run: RunFolder) -> None:
    path = run.figure_path("segmentation-1")
    assert path == run.path / "figures" / "segmentation-1.png"
    assert path.parent.is_dir()
