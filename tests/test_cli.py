"""A user's mistake is one line on stderr and exit status 2; what works prints where its results are."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from nvcim.cli import console, run, sweep_table
from nvcim.data.images import write_image_set, write_instances
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import DataError
from nvcim.fleet.fleet import FleetSettings
from nvcim.fleet.ray_session import RaySession
from nvcim.report.crossbar_tables import TextTable

ROOT = Path(__file__).parents[1]
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs the command line in this process; returns exit status, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tissue")
    settings = TissueSettings(height=64, width=64, smallest_radius=9, largest_radius=16)
    write_image_set(generate_tissue(3, settings, seed=1), folder)
    return folder


def test_devices_are_listed_with_the_users_own(shell: Shell, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    cell = "{name: Mine, technology: PCM, bits: 1, level_sigma: [0.02, 0.03], source: my lab}"
    own.write_text(f"devices: [{cell}]\n")
    status, out, _ = shell("devices", "list", "--catalogue", own)
    assert status == 0
    for device in ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6", "Mine"):
        assert device in out


def test_help_names_every_verb(shell: Shell) -> None:
    status, out, _ = shell("--help")
    assert status == 0
    for verb in ("demo", "fleet", "sweep", "segment", "serve", "report", "devices", "crossbar"):
        assert verb in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unheard"], "No such command 'unheard'"),
        (["sweep", "run", "--confg", "x"], "No such option: --confg"),
        (["segment", "predict"], "Missing argument"),
        (["sweep", "run", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["sweep", "run", "--resume", "nowhere"], "nowhere: not a run folder"),
        (["report", "nowhere"], "nowhere: not a run folder"),
        (["serve", "nowhere"], "nowhere"),
        (["devices", "list", "--catalogue", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["segment", "train", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["segment", "train", "nowhere", "--out", "x", "--weights", "inq"], "quantizer 'inq' is not known"),
        (["segment", "predict", "nowhere", "a.png", "--out", "x"], "nowhere"),
        (["segment", "score", "nowhere", "nowhere"], "nowhere"),
        (["demo", "--data", "nowhere"], "nowhere"),
        (["crossbar", "explain"], "Missing argument"),
        (["crossbar", "explain", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = shell(*arguments)
    assert status == 2
    assert message in err
    assert err.startswith("nvcim: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing is left behind by a command that could not run


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("weight_bit: [4]", "unknown field 'weight_bit' (did you mean 'weight_bits'?); allowed: "),
        ("crossbar: {adc: 3}", "unknown field 'crossbar.adc'"),
        ("devices: [RRAM9]", "RRAM9"),
        ("weight_bits: [1]", "weight_bits"),
        ("sigma: high", "field 'sigma'"),
        ("- a list", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_config_with_a_mistake_says_which(shell: Shell, tmp_path: Path, yaml: str, message: str) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml)
    status, _, err = shell("sweep", "run", "--config", config, "--runs", tmp_path / "runs")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


EXPLAINED = "weight: {shape: [20, 12]}\ninputs: {vectors: 4}\ncrossbar: {rows: 16, cols: 8}\n"


def test_crossbar_explain_prints_tables_and_writes_a_page(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvcim.cli.console.out", Console(width=80))
    config = tmp_path / "crossbar.yaml"
    config.write_text(EXPLAINED)
    status, out, _ = shell("crossbar", "explain", config, "--out", tmp_path / "out")
    assert status == 0
    tables = out.split("sources of the constants")[0]
    assert max(len(line) for line in tables.splitlines()) <= 80
    for part in ("utilisation", "quantization", "variation", "so far (simulated)", "modelled", "total"):
        assert part in tables
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"explain.html", "explain.json", "explain.png", "explain.svg"}


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("{}", "field 'weight'"),
        (EXPLAINED + "device: 3", "unknown field 'device' (did you mean 'devices'?)"),
        (EXPLAINED.replace("rows: 16", "row: 16"), "unknown field 'crossbar.row'"),
        (EXPLAINED.replace("[20, 12]", "[20]"), "field 'weight.shape.1'"),
        (EXPLAINED.replace("shape: [20, 12]", "file: no.npy"), "no.npy: cannot be read"),
        (EXPLAINED.replace("rows: 16", "device: RRAM9"), "RRAM9"),
        (
            EXPLAINED.replace("rows: 16", "wires: {r_word_ohm: 1, r_bit_ohm: 1}"),
            "g_min and g_max are unknown",
        ),
        (EXPLAINED.replace("rows: 16", "slice_bits: [9]"), "slice_bits asks for 9 bits"),
        (EXPLAINED + "cost_constants: no.yaml", "no.yaml: cannot be read"),
    ],
)
def test_crossbar_explain_refuses_mistakes(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yaml: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("crossbar.yaml").write_text(yaml)
    status, out, err = shell("crossbar", "explain", "crossbar.yaml")
    assert (status, out) == (2, "")
    error = err.splitlines()[-1]  # after lines of progress
    assert error.startswith("nvcim: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["crossbar.yaml"]


def test_devices_of_many_levels_are_listed_in_a_few_words(shell: Shell) -> None:
    _, out, _ = shell("devices", "list")
    assert "0.01054 to 0.04345" in out
    assert len(out.splitlines()) < 120


def test_segment_trains_predicts_and_scores(shell: Shell, tmp_path: Path, tissue: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text("{steps: 2, batch: 2, crop: 32, device: cpu}")
    model, masks = tmp_path / "model", tmp_path / "masks"
    status, out, err = shell("segment", "train", tissue, "--out", model, "--config", config)
    assert (status, "saved to" in out) == (0, True)
    assert "2/2" in err
    assert shell("segment", "predict", model, tissue / "images", "--out", masks)[0] == 0
    tiles = tmp_path / "tiles.yaml"
    tiles.write_text("tile: 64\nthreshold: 0.4\n")
    options = ["--config", tiles, "--overlap", "32", "--certainty", "0.1"]
    assert (
        shell("segment", "predict", model, tissue / "images", "--out", tmp_path / "tiled", *options)[0] == 0
    )
    status, _, err = shell("segment", "predict", model, tissue / "images", "--out", masks, "--overlap", "800")
    assert status == 2
    assert "overlap must be at most half the tile, given 800 of 1280" in err
    assert len(list(masks.glob("*_overlay.png"))) == 3
    status, out, _ = shell("segment", "score", masks, tissue / "labels")
    assert status == 0
    assert "all objects, pooled" in out


def test_perfect_masks_score_one(shell: Shell, tissue: Path) -> None:
    status, out, _ = shell("segment", "score", tissue / "labels", tissue / "labels")
    assert status == 0
    pooled = next(line for line in out.splitlines() if "pooled" in line)
    assert pooled.count("1.000") == 2
    assert " 0.0 " in pooled


def test_a_mask_of_another_size_and_a_truncated_image_are_refused(
    shell: Shell, tmp_path: Path, tissue: Path
) -> None:
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "set" / "images" / "a.png")
    write_instances(np.zeros((20, 31), np.int32), tmp_path / "set" / "labels" / "a.png")
    status, _, err = shell("segment", "train", tmp_path / "set", "--out", tmp_path / "m")
    assert status == 2
    assert "images/a.png" in err
    assert "labels/a.png" in err
    whole = next((tissue / "images").glob("*.png")).read_bytes()
    (tmp_path / "set" / "images" / "a.png").write_bytes(whole[: len(whole) // 2])
    status, _, err = shell("segment", "train", tmp_path / "set", "--out", tmp_path / "m")
    assert status == 2
    assert "a.png" in err


def test_a_mistake_that_a_worker_finds_is_one_line_too(
    shell: Shell, ray_local: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    @ray.remote
    def find() -> None:
        raise DataError("sample 7 is too long")

    monkeypatch.setattr("nvcim.devices.load_catalogue", lambda _: ray.get(find.remote()))
    assert shell("devices", "list") == (2, "", "nvcim: sample 7 is too long\n")


def test_an_interrupted_command_is_status_130(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nvcim.devices.load_catalogue", interrupt)
    assert shell("devices", "list")[0] == 130


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nvcim.devices.load_catalogue", broken)
    with pytest.raises(ZeroDivisionError):
        run(["devices", "list"])


def test_the_command_exits_with_its_status_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    for arguments, status in ((["devices", "list"], 0), (["report", "nowhere"], 2)):
        command = [sys.executable, "-m", "nvcim.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


def test_a_sweep_table_has_a_line_per_trial() -> None:
    row = {
        "trial_id": "a",
        "device": "RRAM1",
        "weight_bits": 4,
        "sigma": 0.1,
        "status": "done",
        "error": None,
    }
    failed = {
        **row,
        "trial_id": "b",
        "metric": "none",
        "score": None,
        "status": "failed",
        "error": "no memory",
    }
    rows = [{**row, "metric": "x", "score": 0.5}, {**row, "metric": "y", "score": 0.25}, failed]
    table = sweep_table(rows)
    assert table.row_count == 2
    assert [column.header for column in table.columns][3:5] == ["x", "y"]


ODD_NAMES = (
    "slide [x=512,y=0].png",
    "cell[red].png",
    "a[/b].png",
    "[/tmp]",
    "[bold]x",
    ":dog:.png",
    r"\[a].png",
    "[link=x]",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_shown_as_it_is_and_never_read_as_markup(shell: Shell, tmp_path: Path, name: str) -> None:
    table = Table(title=f"of {name}")
    table.add_column(f"in {name}")
    table.add_row(f"cell {name}")
    console.out.print(table)
    console.out.print(f"saved to {name}", soft_wrap=True)
    console.print_table(TextTable(f"text of {name}", ("a",), ((f"one {name}",),), (f"note {name}",)))
    status, out, _ = shell("devices", "list", "--catalogue", named_device(tmp_path, name))
    assert status == 0
    for place in ("of", "in", "cell", "saved to", "text of", "one", "note"):
        assert f"{place} {name}" in out
    assert f"│ {name} " in out


def named_device(folder: Path, name: str) -> Path:
    cell = {"name": name, "technology": "RRAM", "bits": 1, "level_sigma": [0.02, 0.03], "source": "test"}
    (folder / "own.yaml").write_text(yaml.safe_dump({"devices": [cell]}), encoding="utf-8")
    return folder / "own.yaml"


def test_scores_of_images_with_brackets_in_their_names_name_them(
    shell: Shell, tmp_path: Path, tissue: Path
) -> None:
    labels = sorted((tissue / "labels").glob("*.png"))
    names = ["slide [x=512,y=0].png", "cell[red].png", "c[a].png"]
    (tmp_path / "[bold]").mkdir()
    for label, name in zip(labels, names, strict=True):
        (tmp_path / "[bold]" / name).write_bytes(label.read_bytes())
    scores = tmp_path / "[bold]" / "scores.csv"
    status, out, _ = shell("segment", "score", tmp_path / "[bold]", tmp_path / "[bold]", "--out", scores)
    assert status == 0
    assert [name for name in names if name.removesuffix(".png") not in out] == []
    assert "[bold]/scores.csv" in "".join(out.split())


def test_a_file_s_name_that_is_no_text_is_printed_all_the_same(tmp_path: Path) -> None:
    code = "from nvcim.cli import console, run; run(['devices', 'list']); console.out.print('a\\udce9.png')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("a\\udce9.png\n")


def test_the_library_prints_through_its_consoles_alone() -> None:
    """A Console of rich's own kind reads markup."""
    users = [
        str(path.relative_to(ROOT))
        for room in ("platform", "jobs", "serving")
        for path in sorted((ROOT / room).rglob("*.py"))
        if "Console(" in path.read_text(encoding="utf-8")
    ]
    assert users == ["platform/nvcim/cli/console.py", "platform/nvcim/progress.py"]


def test_two_sigmas_that_print_alike_are_two_lines_of_the_table() -> None:
    common = {
        "device": "RRAM1",
        "weight_bits": 4,
        "status": "done",
        "error": None,
        "metric": "x",
        "score": 1.0,
    }
    rows = [{**common, "trial_id": str(sigma), "sigma": sigma} for sigma in (0.1234561, 0.1234564)]
    column = sweep_table(rows).columns[2]
    assert list(column.cells) == ["0.1234561", "0.1234564"]


def test_a_relative_model_on_the_command_line_is_kept_as_the_place_it_is(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lm").mkdir()
    monkeypatch.chdir(tmp_path)
    kept: list[str] = []

    def keep(settings: FleetSettings, *_: object) -> None:
        kept.append(settings.model)
        raise DataError("enough")

    monkeypatch.setattr("nvcim.fleet.fleet.streams_of", keep)
    assert shell("fleet", "run", "--model", "lm")[0] == 2
    assert kept == [str(tmp_path.resolve() / "lm")]
