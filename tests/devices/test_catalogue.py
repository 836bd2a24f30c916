"""The device catalogue: the numbers of the papers' table, and what a user's file may do."""

import math
from pathlib import Path

import pytest

from nvcim.devices import EFFECTS, get_device, load_catalogue
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


PAPER = ["RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6"]


def test_holds_the_five_devices_of_the_paper_first() -> None:
    assert list(load_catalogue())[:5] == PAPER
    assert [get_device(name).bits for name in PAPER] == [1, 2, 2, 2, 2]


def test_holds_measured_and_ideal_cells_beside_them() -> None:
    others = ["PCM_Joshi2020", "RRAM_Wan2022", "Ideal1", "Ideal2", "Ideal4", "Ideal8"]
    assert list(load_catalogue())[5:] == others


def test_claims_nothing_that_the_paper_does_not_state() -> None:
    for name in PAPER:
        device = get_device(name)
        unknown = {
            field: getattr(device, field) for field in (*EFFECTS, "g_min", "g_max", "sigma_law", "on_off")
        }
        assert set(unknown.values()) == {None}, unknown


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
    assert leaks == dict.fromkeys(leaks, 0.0) | {"FeFET2": 0.01}


def test_unknown_device_error_lists_what_is_known() -> None:
    with pytest.raises(DeviceError, match=r"'FeFET9'.*RRAM1, FeFET2, FeFET3, RRAM4, FeFET6"):
        get_device("FeFET9")


def test_users_file_extends_the_catalogue(tmp_path: Path) -> None:
    catalogue = load_catalogue(write_catalogue(tmp_path, ONE_DEVICE.format(name="PCM1")))
    device = get_device("PCM1", catalogue)
    assert device.level_conductance == (0.0, 1.0)
    assert device.g_max == 2.5e-5
    assert list(catalogue) == [*load_catalogue(), "PCM1"]
    assert device.on_off == pytest.approx(250)
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


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("drift: {t0_s: 20, exponent_mean: [0.05], exponent_sd: [0.01]}", "drift has a value but no source"),
        ("endurance: 1.0e+6", "endurance has a value but no source; name it under sources"),
        ("endurance: 1.0e+6\n    sources: {endurance: ''}", "endurance has a value but no source"),
        ("sources: {endurance: data sheet}", "sources names endurance, which has no value"),
        ("sources: {colour: data sheet}", "sources names 'colour'; allowed: read_noise, drift, .*endurance"),
        ("stuck_on: 0.7\n    stuck_off: 0.4\n    sources: {stuck_on: a, stuck_off: a}", "must not add up"),
        ("stuck_on: -0.1", "'stuck_on'.*greater than or equal to 0"),
        ("array_sigma: .inf", "'array_sigma'.*finite"),
        ("v0: 0", "'v0'.*greater than 0"),
        ("write: {}", "give at least one of energy_j, pulse_s, pulses, method"),
        ("write: {energy: 1.0e-12}", r"unknown field 'write\.energy' \(did you mean 'energy_j'\?\)"),
        ("write: {energy_j: 1.0e-12}", "write has a value but no source"),
        ("drift: {t0_s: 20, exponent_sd: [0.01]}", "give either exponent_mean or mean_law"),
        (
            "drift: {t0_s: 20, exponent_mean: [0.05], exponent_sd: [0.01], "
            "sd_law: {slope: 0, offset: 0, low: 0, high: 1}}",
            "give either exponent_sd or sd_law",
        ),
        (
            "drift: {t0_s: 20, exponent_mean: [1, 2, 3], exponent_sd: [0]}",
            r"drift\.exponent_mean has 3 values; allowed: 1 or 2, one per level",
        ),
        ("drift: {t0_s: 20, exponent_mean: [-0.05], exponent_sd: [0]}", r"'drift\.exponent_mean\.0'"),
        ("drift: {t0_s: 0, exponent_mean: [0.05], exponent_sd: [0]}", r"'drift\.t0_s'"),
        ("drift: {t0_s: 1, mean_law: {slope: 0, offset: 0, low: 1, high: 0}}", "low must not be above high"),
        ("read_noise: {t_read_s: 1, t0_s: 20}", "give either coefficient or law"),
        ("read_noise: {coefficient: [0.1], t_read_s: 30, t0_s: 20}", "t_read_s must not be above t0_s"),
        ("retention: {t0_s: 1, loss_per_decade: []}", r"loss_per_decade has 0 values; allowed: 1 or 2"),
        ("temperature: {reference_k: 300, coefficient_per_k: [0, 0, 0]}", "allowed: 1 or 2, one per level"),
        (
            "relaxation: {times_s: [1, 2], spread: [{coefficients_us: [1]}]}",
            "spread has 1 laws, but times_s has 2",
        ),
        (
            "relaxation: {times_s: [2, 1], spread: [{coefficients_us: [1]}, {coefficients_us: [1]}]}",
            "times_s must rise",
        ),
        ("sigma_law: {coefficients_us: [0.3]}", "level_sigma and sigma_law differ; give one of them"),
    ],
)
def test_effects_that_make_no_sense_are_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    path = write_catalogue(tmp_path, f"{ONE_DEVICE.format(name='PCM1')}    {lines}\n")
    with pytest.raises(ConfigError, match=complaint) as refusal:
        load_catalogue(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ("", "'level_sigma'.*required"),
        ("level_sigma: -0.01", "must not be negative"),
        ("sigma_law: {coefficients_us: [0.3]}", "sigma_law acts on siemens and needs g_min and g_max"),
        ("level_sigma: 0\n    g_max: 1.0e-5\n    v0: 1\n    sources: {v0: a}\n    temperature: "
         "{reference_k: 300, coefficient_per_k: [0]}", "temperature acts on siemens.*g_min: 0 for a cell"),
        ("g_min: 1\n    g_max: 1\n    sigma_law: {coefficients_us: [0.3]}", "g_min must be below g_max"),
        ("g_min: 0\n    g_max: high\n    sigma_law: {coefficients_us: [0.3]}", "'g_max'"),
        ("g_min: 0\n    g_max: 1\n    sigma_law: {coefficients_us: []}", r"'sigma_law\.coefficients_us'"),
        ("g_min: 0\n    g_max: 1\n    sigma_law: {coefficients_us: [1], order: 2}", "unknown field 'sigma_law.order'"),
    ],
)  # fmt: skip
def test_a_spread_that_makes_no_sense_is_refused(tmp_path: Path, fields: str, complaint: str) -> None:
    text = f"devices:\n  - name: Mine\n    technology: PCM\n    bits: 2\n    source: me\n    {fields}\n"
    with pytest.raises(ConfigError, match=complaint):
        load_catalogue(write_catalogue(tmp_path, text))


def test_one_sigma_stands_for_all_levels(tmp_path: Path) -> None:
    text = "devices: [{name: Mine, technology: PCM, bits: 2, source: me, level_sigma: 0.02}]"
    assert get_device("Mine", load_catalogue(write_catalogue(tmp_path, text))).level_sigma == (0.02,) * 4


def test_sigma_of_many_levels_is_described_in_a_few_words() -> None:
    assert get_device("FeFET2").describe_sigma() == "0.0067 0.0135 0.0135 0.0067"
    assert get_device("Ideal8").describe_sigma() == "0 at all 256 levels"
    assert get_device("PCM_Joshi2020").describe_sigma() == "0.01054 to 0.04345 over 256 levels"
