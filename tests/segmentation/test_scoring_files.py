"""The scores of two folders: every metric, empty sides counted, and the table as a file."""

from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from nvcim.cli import app
from nvcim.data.images import find_masks, write_instances
from nvcim.errors import DataError
from nvcim.segmentation import score_folders, write_scores


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((12, 16), dtype=np.int32)
    mask[top : top + side, left : left + side] = 1
    return mask


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four images: shifted by one column, missed, invented, and without objects on both sides."""
    nothing = np.zeros((12, 16), dtype=np.int32)
    pairs = {
        "shifted": (square(0, 1), square(0, 0)),
        "missed": (nothing, square(0, 0, 2)),
        "invented": (square(0, 0, 2), nothing),
        "nothing": (nothing, nothing),
    }
    for name, (segmented, truth) in pairs.items():
        write_instances(segmented, tmp_path / "segmented" / f"{name}.tif")
        write_instances(truth, tmp_path / "truth" / f"{name}.png")
    return tmp_path / "segmented", tmp_path / "truth"


def test_a_folder_is_scored_by_every_metric_and_empty_sides_are_counted(folders: tuple[Path, Path]) -> None:
    scores = score_folders(*folders)
    assert scores.names == ("invented", "missed", "nothing", "shifted")
    assert (scores.one_side_empty, scores.both_sides_empty) == (2, 1)
    pooled = scores.pooled.values()
    # Shifted: 12 of 16 pixels on either side, union 20. Missed and invented add 4 pixels to a side each.
    assert pooled["object_f1"] == 2 / (2 + 1 + 1)
    assert pooled["object_dice"] == pytest.approx(16 * 0.75 / 20)
    assert pooled["object_hausdorff"] == pytest.approx(
        (16 * 1 + 4 * 20) / 20
    )  # the diagonal of 12 x 16 is 20
    assert pooled["pixel_iou"] == 12 / (20 + 4 + 4)
    assert pooled["pixel_dice"] == 24 / (24 + 8 + 8)
    assert pooled["aji"] == 12 / (20 + 4 + 4)
    assert (pooled["sq"], pooled["rq"], pooled["pq"]) == pytest.approx((0.6, 0.5, 0.3))
    means = scores.means()
    assert means["object_f1"] == (1 + 0 + 0 + 1) / 4
    assert means["aji"] == pytest.approx((0.6 + 0 + 0 + 1) / 4)
    assert means["object_hausdorff"] == pytest.approx((1 + 20 + 20 + 0) / 4)


@pytest.mark.parametrize("name", ["scores.csv", "deep/scores.parquet"])
def test_the_table_reads_back_as_the_rows(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    scores = score_folders(*folders)
    write_scores(scores, tmp_path / name)
    read = pyarrow.csv.read_csv if name.endswith("csv") else pyarrow.parquet.read_table
    assert read(tmp_path / name).to_pylist() == scores.rows()


def test_other_tables_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores\.xlsx: a table of scores is written as \.csv or \.parquet"):
        write_scores(score_folders(*folders), tmp_path / "scores.xlsx")
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"x\.csv: is a folder"):
        write_scores(score_folders(*folders), tmp_path / "x.csv")


def test_the_command_prints_every_metric_both_ways(folders: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    done = CliRunner().invoke(app, ["segment", "score", *map(str, folders), "--out", str(table)])
    assert done.exit_code == 0, done.output
    lines = {cells[1].strip(): cells[2:4] for cells in (line.split("│") for line in done.output.splitlines())
             if len(cells) > 4}  # fmt: skip
    for metric, figures in {
        "object F1": ("0.500", "0.500"),
        "object Hausdorff, px": ("4.8", "10.2"),
        "pixel Dice": ("0.600", "0.438"),
        "AJI": ("0.429", "0.400"),
        "PQ": ("0.300", "0.400"),
    }.items():
        assert tuple(cell.strip() for cell in lines[metric]) == figures
    assert "on one side only: 2" in done.output
    assert "without objects on both: 1" in " ".join(done.output.split())
    assert table.is_file()


def test_a_table_that_cannot_be_written_is_refused_before_scoring(folders: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["segment", "score", "nowhere", "nowhere", "--out", "scores.txt"])
    assert done.exit_code != 0
    assert isinstance(done.exception, DataError)
    assert "scores.txt" in str(done.exception)


def test_overlays_are_no_masks_and_neither_are_the_images(tmp_path: Path) -> None:
    write_instances(np.ones((4, 5), dtype=np.int32), tmp_path / "a.png")
    write_instances(np.ones((4, 5), dtype=np.int32), tmp_path / "a_overlay.png")
    assert find_masks(tmp_path) == {"a": tmp_path / "a.png"}
    with pytest.raises(DataError, match=r"a\.png: is an image, not a mask"):
        find_masks(tmp_path, images=[tmp_path / "." / "a.png"])


def test_truth_in_the_data_science_bowls_folders_is_scored(tmp_path: Path) -> None:
    truth = np.zeros((12, 16), dtype=np.int32)
    truth[1:5, 1:5], truth[6:10, 4:9], truth[2:6, 10:15] = 1, 2, 3
    for name in ("00ae65", "0121d6"):
        write_instances(truth, tmp_path / "predicted" / f"{name}.png")
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(
            make(tmp_path / "set" / name / "images") / f"{name}.png"
        )
        for number in (1, 2, 3):
            part = ((truth == number) * 255).astype(np.uint8)
            Image.fromarray(part).save(make(tmp_path / "set" / name / "masks") / f"{number}.png")
    pooled = score_folders(tmp_path / "predicted", tmp_path / "set").pooled.objects
    assert (pooled.objects_truth, pooled.objects_segmented, pooled.f1) == (6, 6, 1.0)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
