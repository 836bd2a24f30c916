from pathlib import Path

import pytest

from nvcim.data.images import write_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError
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


def test_wrong_orders_are_refused_before_images_are_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="quantizer 'inq' is not known"):
        train_on_folder(nowhere, tmp_path, weights="inq")
    with pytest.raises(ConfigError, match="at least 1, given 0"):
        train_on_folder(nowhere, tmp_path, networks=0)
    with pytest.raises(ConfigError, match="below 1"):
        train_on_folder(nowhere, tmp_path, validation=1.0)
    with pytest.raises(ConfigError, match="network 'vgg' is not known; allowed: fcn, unet, paper"):
        network_called("vgg")


def test_networks_go_by_name() -> None:
    assert network_called("fcn") == FCNSettings()
    assert network_called("unet") == UNetSettings()
    assert isinstance(network_called("paper"), FCNSettings)
