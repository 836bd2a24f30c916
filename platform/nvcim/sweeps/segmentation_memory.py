"""What a comparison's kinds of weights take on disk, whole files: the run's own network and the paper-sized one."""

import tempfile
from pathlib import Path

from torch import nn

from nvcim.quantization import quantizer_named
from nvcim.segmentation.architectures import make_network
from nvcim.segmentation.fcn import PAPER_FCN
from nvcim.segmentation.model_files import load_fcn, save_fcn
from nvcim.segmentation.network import SegmentationNetwork, baked
from nvcim.storage import RunFolder
from nvcim.sweeps.segmentation_scoring import WEIGHTS
from nvcim.sweeps.segmentation_settings import FLOAT, FULL, GRID, Point, SegmentationSettings
from nvcim.sweeps.segmentation_statistics import COMPACT, PAPER_SIZED, Row, arm_of

TABLE = "segmentation_memory"


def measure_memory(settings: SegmentationSettings, run: RunFolder) -> list[Row]:
    """Write the table `segmentation_memory` of a finished comparison, unless it is there; returns its rows.

    The run's own networks are the first of each kind of weights. The paper-sized network has initial weights: packed
    files of plain codes do not depend on values, entropy-coded ones do and are left out for it.

    Raises:
        RunError: the run lacks its scores, or a file cannot be written.
        ModelError: a network of the run cannot be loaded.
    """
    if TABLE in run.tables():
        rows: list[Row] = run.read_table(TABLE).to_pylist()
        return rows
    rows = [_own_row(name, folder) for name, folder in _trained(run).items()]
    rows += [_paper_row(name) for name in dict.fromkeys(_names(settings))]
    run.write_table(TABLE, rows)
    return rows


def _names(settings: SegmentationSettings) -> list[str]:
    """Every kind of weights that is compared."""
    parts = (settings.full, settings.grid)
    return [name for part in parts if part is not None for name in part.quantizers]


def _trained(run: RunFolder) -> dict[str, Path]:
    """A folder of a trained network for each kind of weights: the whole pool's, or else the grid's."""
    scored = [row for row in run.read_table("segmentation_scores").to_pylist() if row["part"] in (FULL, GRID)]
    found: dict[str, Path] = {}
    for row in sorted(scored, key=lambda row: (row["part"] != FULL, row["repeat"])):
        arm = arm_of(row)
        name = Point.folder_of(arm.part, row["repeat"], arm.strategy, arm.round, arm.quantizer)
        found.setdefault(arm.quantizer, run.path / "networks" / name / "0")
    return found


def _own_row(name: str, folder: Path) -> Row:
    model = load_fcn(folder)
    entropy = None if model.quantizer is None else _saved_bytes(model, entropy_coded=True)
    return _row(COMPACT, name, model, (folder / WEIGHTS).stat().st_size, entropy)


def _paper_row(name: str) -> Row:
    model, quantizer = make_network(PAPER_FCN, seed=0), quantizer_named(name)
    if quantizer is not None:
        model.quantize(quantizer)
        quantizer.advance(model, 1.0)
    return _row(PAPER_SIZED, name, model, _saved_bytes(model), None)


def _row(network: str, name: str, model: SegmentationNetwork, stored: int, entropy: int | None) -> Row:
    plain = stored if name == FLOAT else _saved_bytes(baked(model))
    return {
        "network": network,
        "model": name,
        "weights": sum(conv.weight.numel() for conv in baked(model).modules() if isinstance(conv, nn.Conv2d)),
        "float32_file_bytes": plain,
        "file_bytes": stored,
        "ratio": plain / stored,
        "entropy_file_bytes": entropy,
        "entropy_ratio": None if entropy is None else plain / entropy,
        "basis": "measured",
    }


def _saved_bytes(model: SegmentationNetwork, *, entropy_coded: bool = False) -> int:
    """Bytes of the file that a network's weights are saved in."""
    with tempfile.TemporaryDirectory() as folder:
        save_fcn(model, Path(folder), entropy_coded=entropy_coded)
        return (Path(folder) / WEIGHTS).stat().st_size
