from pathlib import Path

import pytest
from typer.testing import CliRunner

from nvcim.cli import app
from nvcim.data.images import write_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, ModelError, RunError
from nvcim.quantization import packed_sizes
from nvcim.segmentation import FCNSettings, TrainingSettings, load_fcn, train_on_folder
from nvcim.segmentation.training_files import network_called
from nvcim.segmentation.unet import UNetSettings

NETWORK = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=8)
QUICK = TrainingSettings(steps=4, batch=2, crop=32, checkpoint_every=1, validate_every=2, device="cpu")


@pytest.fixture
def tissue(tmp_path: Path) -> Path:
    write_image_set(generate_tissue(4, TissueSettings(height=48, width=48), seed=0), tmp_path / "set")
    return tmp_path / "set"


def test_several_networks_are_members_with_their_float_twins(tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int]] = []
    logs = train_on_folder(
        tissue, out, NETWORK, QUICK, "inq-4", on_step=lambda done, total, _: seen.append((done, total)),
        networks=2, validation=0.25,
    )  # fmt: skip
    assert [(log.weights, len(log.losses)) for log in logs] == [("float", 4), ("inq-4", 2)] * 2
    assert seen == [(i, 12) for i in range(1, 13)]
    assert all(log.validations for log in logs)
    for member in ("member-0", "member-1"):
        quantizer = load_fcn(out / member).quantizer
        assert quantizer is not None
        assert quantizer.name == "inq-4"
        assert load_fcn(out / member / "float").quantizer is None


def test_what_was_begun_goes_on_with_resume_and_begins_anew_without(tissue: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int, loss: float) -> None:
        if done == 6:
            raise KeyboardInterrupt

    arguments = (tissue, tmp_path / "out", NETWORK, QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_on_folder(*arguments, on_step=kill, networks=2)
    seen: list[int] = []
    resumed = train_on_folder(*arguments, on_step=lambda done, *_: seen.append(done), networks=2, resume=True)
    assert seen == [7, 8]
    seen.clear()
    anew = train_on_folder(*arguments, on_step=lambda done, *_: seen.append(done), networks=2)
    assert seen == list(range(1, 9))
    assert [log.losses for log in anew] == [log.losses for log in resumed]


def models(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("fcn.json"))


def test_networks_of_an_earlier_training_do_not_stay(tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_on_folder(tissue, out, NETWORK, QUICK, "inq-4", networks=3)
    (out / "member-2" / "notes.txt").write_text("mine")
    train_on_folder(tissue, out, NETWORK, QUICK, networks=2)
    assert models(out) == ["member-0", "member-1"]
    assert [path.name for path in (out / "member-2").iterdir()] == ["notes.txt"]
    train_on_folder(tissue, out, NETWORK, QUICK, "inq-4")
    assert models(out) == [".", "float"]
    train_on_folder(tissue, out, NETWORK, QUICK, networks=2)
    assert models(out) == ["member-0", "member-1"]


def test_resuming_beside_other_networks_is_refused(tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_on_folder(tissue, out, NETWORK, QUICK, networks=3)
    for networks in (1, 2):
        with pytest.raises(ModelError, match=r"member-\d: holds a network that is none of this training's"):
            train_on_folder(tissue, out, NETWORK, QUICK, networks=networks, resume=True)
    assert models(out) == ["member-0", "member-1", "member-2"]


def test_a_place_that_is_a_file_is_refused(tissue: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for weights in ("float", "inq-4"):
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(RunError, match="file"):
                train_on_folder(tissue, place, NETWORK, QUICK, weights)


def test_the_command_stops_early_and_prints_what_each_layer_takes(tissue: Path, tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text(
        "{steps: 40, batch: 2, crop: 32, device: cpu, learning_rate: 0.5, validate_every: 1, patience: 1}"
    )
    where = [str(tissue), "--out", str(tmp_path / "out"), "--config", str(config), "--weights", "uniform-2"]
    done = CliRunner().invoke(app, ["segment", "train", *where, "--validation", "0.3", "--entropy-coded"])
    assert done.exit_code == 0, done.output
    assert "lowest validation loss" in done.output
    steps = [
        int(line.split(", ")[-1].split()[0]) for line in done.output.splitlines() if " steps in " in line
    ]
    assert len(steps) == 2
    assert steps[0] < 40
    sizes = packed_sizes(tmp_path / "out" / "model.safetensors")
    assert "huffman" in {size.form for size in sizes}
    whole = (tmp_path / "out" / "model.safetensors").stat().st_size
    [last] = [line for line in done.output.splitlines() if "whole file" in line]
    assert f" {whole} " in last
    for size in sizes[:3]:
        assert size.layer in done.output
    refused = CliRunner().invoke(app, ["segment", "train", *where])
    assert "patience: needs images to validate on" in str(refused.exception or refused.output)


def test_wrong_orders_are_refused_before_images_are_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="quantizer 'inq' is not known"):
        train_on_folder(nowhere, tmp_path, weights="inq")
    with pytest.raises(ConfigError, match="at least 1, given 0"):
        train_on_folder(nowhere, tmp_path, networks=0)
    with pytest.raises(ConfigError, match="below 1"):
        train_on_folder(nowhere, tmp_path, validation=1.0)
    with pytest.raises(ConfigError, match="entropy coding: is for quantized weights"):
        train_on_folder(nowhere, tmp_path, entropy_coded=True)
    with pytest.raises(ConfigError, match="network 'vgg' is not known; allowed: fcn, unet, paper"):
        network_called("vgg")


def test_networks_go_by_name() -> None:
    assert network_called("fcn") == FCNSettings()
    assert network_called("unet") == UNetSettings()
    assert isinstance(network_called("paper"), FCNSettings)
