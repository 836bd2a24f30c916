"""The grid holds every point once and refuses what no array can be."""

from pathlib import Path

import pytest

from nvcim.config import load_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, DeviceError
from nvcim.sweeps import SweepSettings, TrialPoint


def test_the_grid_is_the_product_of_its_values() -> None:
    settings = SweepSettings(devices=("RRAM1", "FeFET2"), weight_bits=(4, 8, 4), sigma=(0.0, 0.1), repeats=3)
    points = settings.points()
    assert len(points) == len(set(points)) == len({p.trial_id for p in points}) == 2 * 2 * 2 * 3
    assert points == settings.points()


def test_a_trial_keeps_the_rest_of_the_array() -> None:
    settings = SweepSettings(crossbar=CrossbarConfig(rows=32, adc_bits=None, sigma=0.3))
    config = settings.crossbar_at(TrialPoint("RRAM1", 5, 0.2, 0))
    assert config == CrossbarConfig(rows=32, adc_bits=None, sigma=0.2, weight_bits=5, device="RRAM1")


def test_an_unknown_device_is_refused_with_those_known() -> None:
    with pytest.raises(DeviceError, match="RRAM1"):
        SweepSettings(devices=("RRAM9",)).check()


@pytest.mark.parametrize("wrong", [{"weight_bits": (4, 99)}, {"sigma": (-0.1,)}, {"sigma": (float("nan"),)}])
def test_a_value_no_array_can_have_is_refused_by_its_point(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match="sweep point FeFET2"):
        SweepSettings.model_validate(wrong).check()


def test_an_unknown_field_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("weight_bit: [3]\n")
    with pytest.raises(ConfigError, match=r"unknown field 'weight_bit'.*did you mean 'weight_bits'"):
        load_settings(path, SweepSettings)
