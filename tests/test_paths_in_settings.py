"""Every path that settings keep is absolute once they are read: workers and later commands run in other folders."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo

import nvcim
from nvcim.config import LocalPath, Settings, parse_settings
from nvcim.crossbar.explain_job import ExplainJob
from nvcim.errors import ConfigError
from nvcim.fleet.fleet import FleetSettings
from nvcim.sweeps import SweepSettings
from nvcim.sweeps.comparison import ComparisonSettings
from nvcim.sweeps.segmentation_settings import SegmentationSettings

RESOLVE = next(part for part in get_args(LocalPath) if part is not Path)
WRITTEN = {("ExplainJob", "out")}
"""Folders of results, which are written to at once and not kept."""


def kinds(above: type[Settings] = Settings) -> Iterator[type[Settings]]:
    """Every kind of settings of the library; other tests make some of their own."""
    for kind in above.__subclasses__():
        if kind.__module__.startswith("nvcim."):
            yield kind
        yield from kinds(kind)


def parts(field: FieldInfo) -> Iterator[Any]:
    """Everything that a field's annotation names, and what pydantic took out of it."""
    yield from field.metadata
    waiting: list[Any] = [field.annotation]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += get_args(part)
        waiting += getattr(part, "__metadata__", ())


def test_no_settings_keep_a_path_that_depends_on_the_working_folder() -> None:
    for module in pkgutil.walk_packages(nvcim.__path__, "nvcim."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    named = {(kind.__name__, name): field for kind in kinds() for name, field in kind.model_fields.items()}
    kept = {key: list(parts(field)) for key, field in named.items() if key[0] != "Places"}
    paths = {key for key, found in kept.items() if Path in found and not key[0].startswith("AppSettings")}
    assert paths >= {
        ("CrossbarConfig", "catalogue"),
        ("FleetSettings", "data"),
        ("SweepSettings", "from_run"),
    }
    loose = {key for key in paths if RESOLVE not in kept[key]}
    assert loose <= WRITTEN | {("ComparisonPoint", "data")}  # a point's data are its settings'


@pytest.mark.parametrize(
    ("kind", "field", "given"),
    [
        (FleetSettings, "model", "lm"),
        (SweepSettings, "model", "lm"),
        (ComparisonSettings, "models", ("lm", "embedded", "gpt2")),
        (SegmentationSettings, "data", "set"),
    ],
)
def test_a_model_s_folder_is_absolute_and_a_name_stays_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Settings], field: str, given: Any
) -> None:
    here = tmp_path.resolve()
    monkeypatch.chdir(here)
    for name in ("lm", "embedded"):  # a folder called as the embedded model is does not stand for it
        (here / name).mkdir()
    found = getattr(parse_settings({field: given}, kind, "test"), field)
    places = {"lm": str(here / "lm"), "set": here / "set"}
    expected = tuple(places.get(one, one) for one in given) if isinstance(given, tuple) else places[given]
    assert found == expected
    assert parse_settings({field: "x" * 5000}, FleetSettings, "test") if field == "model" else True


def test_the_files_of_an_explanation_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = parse_settings({"weight": {"file": "w.npy"}, "cost_constants": "c.yaml"}, ExplainJob, "test")
    assert (job.weight.file, job.cost_constants) == (
        tmp_path.resolve() / "w.npy",
        tmp_path.resolve() / "c.yaml",
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_settings({"device": "X", "catalogue": "my.yaml"}, type(job.crossbar), "test").cell()
