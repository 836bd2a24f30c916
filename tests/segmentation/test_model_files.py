import json
from pathlib import Path

import pytest
import torch

from nvcim.errors import ConfigError, ModelError, RunError
from nvcim.quantization import INQ, quantizer_named
from nvcim.segmentation import FCNSettings, UNetSettings, load_fcn, make_network, save_fcn
from nvcim.segmentation.network import OutputSettings, SegmentationNetwork

FCN = FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8)
UNET = UNetSettings(width=4, depth=2, classes=2)


def some_image(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, 24, 31, generator=torch.Generator().manual_seed(seed))


def trained(settings: OutputSettings, quantizer_name: str, fraction: float) -> SegmentationNetwork:
    """A network whose normalisation has seen an image, quantized as far as `fraction`."""
    model = make_network(settings, seed=1)
    model(some_image())
    model.smallest_object = 17
    quantizer = quantizer_named(quantizer_name)
    if quantizer is not None:
        model.quantize(quantizer)
        quantizer.advance(model, fraction)
    return model


@pytest.mark.parametrize("settings", [FCN, UNET], ids=["fcn", "unet"])
@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("float", 0.0),
        ("inq-5", 0.0),
        ("inq-5", 0.6),
        ("inq-5", 1.0),
        ("inq-7", 1.0),
        ("uniform-4", 1.0),
        ("twn", 1.0),
        ("ttq", 1.0),
        ("dorefa-1", 1.0),
    ],
)
def test_saved_models_come_back_bit_exactly(
    settings: OutputSettings, name: str, fraction: float, tmp_path: Path
) -> None:
    model = trained(settings, name, fraction)
    save_fcn(model, tmp_path / "m")
    loaded = load_fcn(tmp_path / "m")
    logits, descriptor = model.eval()(some_image(seed=1))
    again, descriptor_again = loaded(some_image(seed=1))
    assert torch.equal(logits, again)
    assert torch.equal(descriptor, descriptor_again)
    assert loaded.settings == settings
    assert loaded.smallest_object == 17
    assert (loaded.quantizer.name if loaded.quantizer else "float") == name
    assert not loaded.training
    if isinstance(loaded.quantizer, INQ):
        assert loaded.quantizer.frozen_fraction(loaded) == pytest.approx(fraction, abs=0.01)


def test_inqs_schedule_goes_on_from_a_file_as_it_would_have(tmp_path: Path) -> None:
    model = trained(FCN, "inq-5", 0.6)
    save_fcn(model, tmp_path)
    loaded = load_fcn(tmp_path)
    for each in (model, loaded):
        assert each.quantizer is not None
        each.quantizer.advance(each, 1.0)
    assert torch.equal(model.eval()(some_image())[0], loaded(some_image())[0])


def test_entropy_coded_weights_come_back_bit_exactly(tmp_path: Path) -> None:
    model = trained(FCN, "inq-5", 1.0)
    save_fcn(model, tmp_path / "coded", entropy_coded=True)
    assert torch.equal(
        model.eval()(some_image(seed=1))[0], load_fcn(tmp_path / "coded")(some_image(seed=1))[0]
    )


def test_quantized_weights_take_their_bits_on_disk(tmp_path: Path) -> None:
    settings = UNetSettings(width=16, depth=3)
    save_fcn(make_network(settings, seed=1), tmp_path / "float")
    save_fcn(trained(settings, "inq-5", 1.0), tmp_path / "inq-5")
    plain, packed = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "inq-5"))
    # 32/5 = 6.4, less the normalisation's float32 and the header.
    assert 6.0 < plain / packed < 6.4


def test_damaged_model_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fcn\.json: cannot be read"):
        load_fcn(tmp_path)
    save_fcn(make_network(FCN, seed=0), tmp_path)
    description = json.loads((tmp_path / "fcn.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()

    def write(**changes: object) -> None:
        (tmp_path / "fcn.json").write_text(json.dumps(description | changes))

    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    write(settings=FCN.model_dump() | {"width": 8})
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)
    write(quantizer={"kind": "inq", "bits": 5})
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)
    write(settings={"widht": 8})
    with pytest.raises(ConfigError, match="widht"):
        load_fcn(tmp_path)
    write(settings={"kind": "vnet"})
    with pytest.raises(ConfigError, match="vnet"):
        load_fcn(tmp_path)
    write(format=99)
    with pytest.raises(ModelError, match="format 99"):
        load_fcn(tmp_path)
    write(format=1)
    with pytest.raises(ModelError, match="format 1 is not supported; this version reads 2; train"):
        load_fcn(tmp_path)
    write(quantizer={"kind": "magic"})
    with pytest.raises(ConfigError, match="magic"):
        load_fcn(tmp_path)
    for damage in (
        {"smallest_object": "17"},
        {"smallest_object": 0},
        {"settings": [1]},
        {"quantizer": "inq"},
    ):
        write(**damage)
        with pytest.raises(ModelError, match="not the description"):
            load_fcn(tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "fcn.json").write_text(content)
        with pytest.raises(ModelError, match="not the description"):
            load_fcn(tmp_path)


def test_a_quantized_models_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_fcn(trained(FCN, "inq-5", 1.0), tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        save_fcn(make_network(FCN, seed=0), tmp_path / "file" / "model")


@pytest.mark.parametrize("name", ["float", "inq-5", "uniform-4"])
def test_a_save_that_is_cut_short_leaves_no_mixture_of_two_models(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_fcn(trained(FCN, "uniform-8", 1.0), tmp_path)

    def cut_short(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nvcim.segmentation.model_files.atomic_write_text", cut_short)
    with pytest.raises(KeyboardInterrupt):
        save_fcn(trained(FCN, name, 1.0), tmp_path)
    with pytest.raises(ModelError, match=r"fcn\.json: cannot be read"):
        load_fcn(tmp_path)


def test_weights_of_another_quantizer_than_the_description_names_are_refused(tmp_path: Path) -> None:
    save_fcn(trained(FCN, "uniform-8", 1.0), tmp_path / "8")
    save_fcn(trained(FCN, "uniform-4", 1.0), tmp_path / "4")
    (tmp_path / "4" / "model.safetensors").replace(tmp_path / "8" / "model.safetensors")
    with pytest.raises(ModelError, match="weights are of uniform-4; the model's quantizer is uniform-8"):
        load_fcn(tmp_path / "8")
