"""A saved crossbar is the crossbar: whatever it holds, however it is saved, and whatever happens to it later."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvcim.crossbar import Crossbar, CrossbarConfig

# Devices without ageing data warn when they age.
pytestmark = pytest.mark.filterwarnings("ignore:device .* its drift")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


KINDS: list[dict[str, object]] = [
    {},
    {"scheme": "offset", "read_noise": 0.05},
    {"scheme": "one_sided", "accumulate": "digital", "g_min_us": 5, "g_max_us": 50},
    {"accumulate": "digital", "input_coding": "bit_serial", "read_noise_floor": 0.02},
    {"adc_scaling": "calibrated", "adc_range_per": "column", "read_noise": 0.02},
    {"adc_scaling": "calibrated", "accumulate": "digital", "adc_errors": {"gain": 0.02, "dnl_lsb": 0.1}},
    {"programming": {"method": "write_verify", "tolerance": 0.2}, "stuck_on": 0.02, "stuck_off": 0.02},
    {"programming": {"method": "selective", "share": 0.3}, "scale_per": "column", "adc_bits": None},
    {"device": "PCM_Joshi2020", "sigma": 0.01, "read": {}, "adc_scaling": "full", "array_sigma": 0.02},
    {"device": "RRAM_Wan2022", "sigma": 0.01, "dac_full_scale": 2.0, "read_noise": 0.01},
    {"device": "PCM_Joshi2020", "read_noise": 0.02, "read_mode": "cell"},
    {"wires": {"r_word_ohm": 2, "r_bit_ohm": 2}, "g_min_us": 1, "g_max_us": 100, "read_noise": 0.02},
]


def lived(fields: dict[str, object]) -> Crossbar:
    """A crossbar in the middle of its life: rewritten, aged, calibrated and read."""
    config = CrossbarConfig.model_validate({"rows": 8, "cols": 9, **fields})
    crossbar = Crossbar.program(normal(2, 19, 10).abs(), config, generator())
    crossbar.rewrite(normal(2, 19, 10, seed=1).abs())
    crossbar.age(1000.0)
    if config.adc_scaling == "calibrated":
        crossbar.calibrate(normal(9, 19, seed=3))
    crossbar.matmul(normal(3, 19, seed=2))
    return crossbar


def same(one: Crossbar, other: Crossbar) -> bool:
    """Equal to the bit in all that can be asked of them."""
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    alike = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    cells = zip(one.cells(), other.cells(), strict=True)
    alike &= all((a is None and b is None) or torch.equal(a, b) for a, b in cells)
    x = normal(4, 19, seed=6)
    return alike and one.clock_s == other.clock_s and torch.equal(one.matmul(x), other.matmul(x))


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_restored_crossbar_lives_on_as_the_first_would_have(
    fields: dict[str, object], tmp_path: Path
) -> None:
    crossbar = lived(fields)
    save_file(crossbar.state_dict(), tmp_path / "crossbar.safetensors")
    config = CrossbarConfig.model_validate_json(crossbar.config.model_dump_json())
    assert config == crossbar.config
    copies = [
        Crossbar.from_state(load_file(tmp_path / "crossbar.safetensors"), config),
        Crossbar.from_state(crossbar.state_dict(), config),
        copy.deepcopy(crossbar),
        pickle.loads(pickle.dumps(crossbar)),
        crossbar.to("cpu"),
    ]
    original = copy.deepcopy(crossbar)
    for other in copies:
        twin = copy.deepcopy(original)
        assert same(twin, other)
        for one in (twin, other):
            one.age(5000.0)
            one.matmul(normal(3, 19, seed=9))
        assert same(twin, other)
        for one in (twin, other):
            one.rewrite(normal(2, 19, 10, seed=7).abs())
            one.age(1.0)
        assert same(twin, other)


def test_a_copy_does_not_share_its_life_with_the_original() -> None:
    crossbar = lived({"read_noise": 0.05})
    before = crossbar.read_weight().clone()
    other = copy.deepcopy(crossbar)
    moved = crossbar.to("cpu")
    for one in (other, moved):
        one.rewrite(normal(2, 19, 10, seed=7))
        one.matmul(normal(3, 19))
    assert torch.equal(crossbar.read_weight(), before)
    counts = crossbar.counts.adc_reads
    assert moved.counts.adc_reads > counts
    assert crossbar.counts.adc_reads == counts
