"""The device catalogue: the numbers of the papers' table, and what a user's file may do."""

import math
from pathlib import Path

import pytest

from nvcim.devices import CellDevice, get_device, load_catalogue
from nvcim.errors import ConfigError, DeviceError, NvcimError

SCALES = {"FeFET2": 2, "FeFET3": 3, "RRAM4": 4, "FeFET6": 6}


def write_catalogue(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


ONE_DEVICE = """
devices:
  - name: {name}
    technology: PCM
    bits: 1
    level_sigma: [0.002, 0.02]
    g_min: 1.0e-7
    g_max: 2.5e-5
    source: own measurement
"""


def test_holds_the_five_devices_of_the_paper() -> None:
    assert list(load_catalogue()) == ["RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6"]
    assert [device.bits for device in load_catalogue().values()] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize(("name", "scale"), SCALES.items())
def test_sigmas_follow_the_published_formula(name: str, scale: int) -> None:
    # EvaXB noise.py: edge 1/sqrt(0.4 s^2 + 0.6), middle s times that; the table prints four digits.
    edge = 0.01 / math.sqrt(0.4 * scale**2 + 0.6)
    expected = [edge, scale * edge, scale * edge, edge]
    assert get_device(name).level_sigma == pytest.approx(expected, abs=5.1e-5)


def test_sigma_scales_from_the_reference_of_one_percent() -> None:
    assert get_device("FeFET6").sigma_at(0.1) == pytest.approx((0.026, 0.155, 0.155, 0.026))


def test_only_fefet2_leaks_at_level_zero() -> None:
    leaks = {name: device.level_conductance[0] for name, device in load_catalogue().items()}
    assert leaks == {"RRAM1": 0.0, "FeFET2": 0.01, "FeFET3": 0.0, "RRAM4": 0.0, "FeFET6": 0.0}


def test_unknown_device_error_lists_what_is_known() -> None:
    with pytest.raises(DeviceError, match=r"'FeFET9'.*RRAM1, FeFET2, FeFET3, RRAM4, FeFET6"):
        get_device("FeFET9")


def test_users_file_extends_the_catalogue(tmp_path: Path) -> None:
    catalogue = load_catalogue(write_catalogue(tmp_path, ONE_DEVICE.format(name="PCM1")))
    device = get_device("PCM1", catalogue)
    assert device.level_conductance == (0.0, 1.0)
    assert device.g_max == 2.5e-5
    assert len(catalogue) == 6
    assert "PCM1" not in load_catalogue()


def test_redefining_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"mine\.yaml: device 'RRAM4' is defined already"):
        load_catalogue(write_catalogue(tmp_path, ONE_DEVICE.format(name="RRAM4")))


def test_unknown_field_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    text = ONE_DEVICE.format(name="PCM1") + "    levelsigma: [1, 2]\n"
    with pytest.raises(
        ConfigError, match=r"PCM1: unknown field 'levelsigma'.*did you mean 'level_sigma'.*bits"
    ):
        load_catalogue(write_catalogue(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("bits: 2", "level_sigma has 2 values, but 2 bits mean 4 levels"),
        ("bits: 0", "bits"),
        ("bits: many", "bits"),
        ("level_sigma: [0.01, -0.01]", "must not be negative"),
        ("level_sigma: [0.01, .nan]", "level_sigma"),
        ("level_conductance: [0.5, 0.5]", "must rise"),
        ("level_conductance: [0.0, 1.5]", "within 0..1"),
        ("g_min: 1.0e-4", "g_min must be below g_max"),
        ("source: ''", "source"),
    ],
)
def test_senseless_entries_are_refused(tmp_path: Path, change: str, complaint: str) -> None:
    field = change.partition(":")[0]
    lines = [line for line in ONE_DEVICE.format(name="PCM1").splitlines() if f" {field}:" not in line]
    path = write_catalogue(tmp_path, "\n".join([*lines, f"    {change}", ""]))
    with pytest.raises(ConfigError, match=complaint):
        load_catalogue(path)


@pytest.mark.parametrize("text", ["", "[]", "devices: 3", "devices:\n  - 4", "a: 1\ndevices: []", "{"])
def test_files_that_are_no_catalogue_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(NvcimError, match=r"mine\.yaml"):
        load_catalogue(write_catalogue(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_catalogue(tmp_path / "absent.yaml")


def test_every_device_names_its_source() -> None:
    for device in load_catalogue().values():
        assert isinstance(device, CellDevice)
        assert device.source.startswith("NVCiM-PT")
