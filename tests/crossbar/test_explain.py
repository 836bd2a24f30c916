"""What `explain` tells: errors by cause against definitions written out here, facts, costs, and what is refused."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nvcim.config import load_settings, parse_settings
from nvcim.crossbar import Crossbar
from nvcim.crossbar.causes import WITHOUT, causes_in, with_only
from nvcim.crossbar.cost_constants import load_cost_constants
from nvcim.crossbar.explain import CauseError, Explanation, explain, mean_square_input, spread
from nvcim.crossbar.explain_job import ExplainJob, draw_inputs, load_weight
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.errors import ConfigError, DataError, NvcimError
from nvcim.randomness import named_generator

ROOT = Path(__file__).parents[2]
CELL = {"device": "RRAM4", "g_min_us": 2.0, "g_max_us": 40.0, "rows": 16, "cols": 8, "sigma": 0.0}
QUIET = CELL | {"dac_bits": None, "adc_bits": None}


def job(crossbar: dict[str, Any], **settings: Any) -> ExplainJob:
    content = {
        "weight": {"shape": [40, 12]},
        "inputs": {"vectors": 32},
        "devices": 2,
        "crossbar": crossbar,
    }
    return parse_settings(content | settings, ExplainJob, "test")


def told(explanation: Explanation, cause: str) -> CauseError:
    return next(one for one in explanation.causes if one.cause == cause)


def alone(crossbar: dict[str, Any], cause: str, **settings: Any) -> tuple[float, float]:
    """Simulated mean and closed form of a cause."""
    found = told(explain(job(crossbar, **settings)), cause)
    assert found.expected is not None
    return statistics.fmean(found.alone), found.expected


def relative(difference: torch.Tensor, exact: torch.Tensor) -> list[float]:
    return [float(one.double().norm() / exact.norm()) for one in difference]


def test_quantization_is_the_error_of_rounded_weights() -> None:
    asked = job(QUIET | {"weight_bits": 4})
    weight, x = load_weight(asked.weight).double(), draw_inputs(asked, 40).double()
    step = weight.abs().max() / 7
    exact = x @ weight
    found = told(explain(asked), "quantization")
    assert found.alone == pytest.approx(relative([x @ ((weight / step).round() * step) - exact] * 2, exact))
    assert found.cumulative == found.alone
    closed = math.sqrt(float(x.square().sum() * 12 * step**2 / 12)) / float(exact.norm())
    assert found.expected == pytest.approx(closed)


CAUSES = {
    "variation": {"sigma": 0.1},
    "stuck cells": {"stuck_on": 0.01, "stuck_off": 0.02},
    "array spread": {"array_sigma": 0.05},
    "IR drop": {"wires": {"r_word_ohm": 2.0, "r_bit_ohm": 2.0}},
    "DAC": {"dac_bits": 6},
    "read noise": {"read_noise": 0.05, "read_noise_floor": 0.01},
    "ADC": {"adc_bits": 6},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_alone_is_what_the_engine_does_with_it_alone(cause: str) -> None:
    every = {field: value for settings in CAUSES.values() for field, value in settings.items()}
    asked = job(QUIET | every)
    found = told(explain(asked), cause)
    weight, x = load_weight(asked.weight), draw_inputs(asked, 40)
    reads = []
    for settings in (QUIET, QUIET | CAUSES[cause]):
        chips = [named_generator(0, "explain", "chip", chip) for chip in range(2)]
        config = parse_settings(settings, CrossbarConfig, "test")
        if cause != "stuck cells":
            config = config.model_copy(update={"stuck_on": 0.0, "stuck_off": 0.0})
        reads.append(Crossbar.program(weight.expand(2, -1, -1), config, chips).matmul(x))
    exact = x.double() @ weight.double()
    assert found.alone == pytest.approx(relative(reads[1] - reads[0], exact), rel=1e-5)
    assert min(found.alone) > 0


def test_the_last_cumulative_error_is_that_of_the_whole_crossbar() -> None:
    every = {field: value for settings in CAUSES.values() for field, value in settings.items()}
    asked = job(QUIET | every)
    found = explain(asked)
    assert [one.cause for one in found.causes] == ["quantization", *CAUSES]
    weight, x = load_weight(asked.weight), draw_inputs(asked, 40)
    chips = [named_generator(0, "explain", "chip", chip) for chip in range(2)]
    crossbar = Crossbar.program(weight.expand(2, -1, -1), asked.crossbar, chips)
    exact = x.double() @ weight.double()
    whole = relative(crossbar.matmul(x).double() - exact, exact)
    assert found.causes[-1].cumulative == pytest.approx(whole, rel=1e-6)
    assert found.clipping == crossbar.counts


# Closed forms are held to 10 %: relative spreads of the simulated rms are far below for these sizes (a sum over 32 x 12
# outputs of 64 chips, at least 40 draws each; the array spread has 64 x 3 x 2 x 8 factors, so 3 %).
@pytest.mark.parametrize(
    ("cause", "settings"),
    [
        ("variation", {"sigma": 0.1}),
        ("variation", {"sigma": 0.1, "programming": {"method": "write_verify", "max_pulses": 3}}),
        ("variation", {"sigma": 0.1, "programming": {"method": "selective", "share": 0.3}}),
        ("stuck cells", {"stuck_on": 0.03, "stuck_off": 0.05}),
        ("array spread", {"array_sigma": 0.05}),
        ("array spread", {"array_sigma": 0.05, "scheme": "offset", "accumulate": "digital"}),
        ("read noise", {"read_noise": 0.05, "read_noise_floor": 0.01}),
        ("read noise", {"device": "PCM_Joshi2020", "read_noise": 0.02}),
        ("read noise", {"read_noise_floor": 0.01, "dac_bits": 5, "input_coding": "bit_serial"}),
        ("read noise", {"read": {"voltage_v": 0.2, "bandwidth_hz": 1e8}, "accumulate": "digital"}),
        ("DAC", {"dac_bits": 6}),
        ("DAC", {"dac_bits": 6, "dac_full_scale": 5.0}),
        ("ADC", {"adc_bits": 8}),
        ("ADC", {"adc_bits": 9, "accumulate": "digital", "adc_range_per": "column"}),
        ("ADC", {"adc_bits": 10, "adc_scaling": "full"}),
        ("ADC", {"adc_bits": 10, "dac_bits": 6, "input_coding": "bit_serial"}),
        ("ADC", {"adc_bits": 11, "dac_bits": 6, "input_coding": "bit_serial", "adc_scaling": "full"}),
    ],
)
def test_closed_forms_agree_with_simulated_chips(cause: str, settings: dict[str, Any]) -> None:
    simulated, expected = alone(QUIET | settings, cause, devices=64)
    assert simulated == pytest.approx(expected, rel=0.1)


def test_zeros_are_driven_without_error() -> None:
    simulated, expected = alone(
        QUIET | {"dac_bits": 6}, "DAC", inputs={"kind": "half_normal", "vectors": 256}
    )
    assert simulated == pytest.approx(expected, rel=0.1)


def test_ranges_that_clip_make_an_adc_worse_than_its_closed_form() -> None:
    asked = job(QUIET | {"adc_bits": 10, "adc_scaling": "calibrated", "adc_range": 0.5})
    found = explain(asked)
    adc = told(found, "ADC")
    assert found.clipping.adc_clipped > 0
    assert adc.expected is not None
    assert min(adc.alone) > 3 * adc.expected


def test_leaking_levels_are_a_cause_of_their_own() -> None:
    found = explain(job({"device": "FeFET2", "sigma": 0.0, "dac_bits": None, "adc_bits": None}))
    assert [one.cause for one in found.causes] == ["quantization", "cell levels"]
    assert told(found, "cell levels").expected is None
    # level 0 conducts 1 % of the range; the pair of a weight differs by at most 0.5 % of its largest value per slice
    assert 0.001 < min(told(found, "cell levels").alone) < 0.1


def test_ageing_counts_from_the_write_with_the_ranges_of_the_write() -> None:
    asked = job({"device": "PCM_Joshi2020", "sigma": 0.0, "adc_bits": None, "dac_bits": None}, age_s=1e6)
    found = told(explain(asked), "ageing")
    weight, x = load_weight(asked.weight), draw_inputs(asked, 40)
    chips = [named_generator(0, "explain", "chip", chip) for chip in range(2)]
    crossbar = Crossbar.program(weight.expand(2, -1, -1), asked.crossbar, chips)
    fresh = crossbar.matmul(x)
    crossbar.age(1e6)
    exact = x.double() @ weight.double()
    assert found.alone == pytest.approx(relative(crossbar.matmul(x) - fresh, exact), rel=1e-5)
    assert found.expected is None


def test_causes_are_told_from_settings_and_device() -> None:
    config = parse_settings(CELL | {"wires": {"r_word_ohm": 0, "r_bit_ohm": 0}}, CrossbarConfig, "test")
    assert causes_in(config, 0.0) == ("DAC", "ADC")  # wires without resistance are no cause
    assert causes_in(config, 10.0) == ("DAC", "ADC")  # a cell that does not age
    assert with_only(config, tuple(WITHOUT)) == config


def test_facts_of_a_matrix_by_hand() -> None:
    found = explain(job(CELL))
    # 8-bit weights on 2-bit cells: 2 sides x 4 slices; 40 x 12 in tiles of 16 x 8: 3 x 2
    assert (found.plan.row_tiles, found.plan.col_tiles, found.plan.planes, found.plan.arrays) == (3, 2, 8, 48)
    assert [(plane.sign, plane.bits) for plane in found.planes] == [(1, 2)] * 4 + [(-1, 2)] * 4
    assert found.plan.utilisation == pytest.approx(40 * 12 / (6 * 16 * 8))
    assert found.pulses == 1.0
    assert found.clipping.adc_reads == 2 * 32 * 3 * 12
    assert found.read_method == "matrix product"


def test_the_mean_conductance_and_the_array_energy_by_hand() -> None:
    found = explain(job(QUIET | {"device": "RRAM1", "weight_bits": 2, "dac_bits": 8}))
    weight, x = load_weight(found.job.weight), draw_inputs(found.job, 40)
    on = float(((weight / weight.abs().max()).round() != 0).double().mean()) / 2  # one of a pair's two cells
    assert found.mean_conductance == pytest.approx(2e-6 + on * 38e-6, rel=1e-5)
    square = float((x / x.abs().amax(dim=1, keepdim=True)).square().mean())
    assert mean_square_input(x, found.job.crossbar) == pytest.approx(square, rel=1e-2)
    energy = 40 * 12 * 2 * found.mean_conductance * 0.5**2 * 10e-9  # cells x G x V^2 x pulse
    assert found.product["array"].energy.value == pytest.approx(
        energy * mean_square_input(x, found.job.crossbar), rel=1e-5
    )


def test_verified_writes_are_read_back_once_per_pulse() -> None:
    verify = {"sigma": 0.1, "programming": {"method": "write_verify", "tolerance": 0.1}}
    found = explain(job(CELL | verify))
    assert found.pulses > 1.05
    cells = found.plan.used_cells
    assert found.write["verify adc"].operations == pytest.approx(found.pulses * cells, rel=1e-3)
    assert found.write["write"].energy.missing == {"write energy: the device's is not published"}


def test_an_unknown_range_leaves_the_energy_unknown_with_its_reason() -> None:
    found = explain(job({"device": "RRAM4"}))
    assert found.mean_conductance is None
    assert found.product.total().energy.missing == {
        "mean_conductance: the device's conductances are not known"
    }


def test_the_record_is_json_and_labels_every_basis() -> None:
    record = json.loads(json.dumps(explain(job(CELL | {"sigma": 0.1})).as_record()))
    assert {row["basis"] for row in record["errors"]} == {"simulated"}
    assert {row["expected_basis"] for row in record["errors"]} == {"expected"}
    assert {row["basis"] for row in record["product"]["rows"]} == {"modelled"}
    assert record["constants"]["adc_energy"]["source"] == load_cost_constants().adc_energy.source
    assert record["arrays"]["arrays"] == 48
    assert parse_settings(record["settings"], ExplainJob, "record") == job(CELL | {"sigma": 0.1})


def test_the_same_settings_tell_the_same() -> None:
    asked = job(CELL | {"sigma": 0.1, "read_noise": 0.02})
    assert explain(asked).as_record() == explain(asked).as_record()


def test_steps_are_counted_to_the_end() -> None:
    steps: list[tuple[int, int]] = []
    explain(job(CELL | {"sigma": 0.1}), lambda done, total, _: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}


@pytest.mark.parametrize("stored", ["in_out", "out_in"])
def test_a_matrix_comes_from_a_file(tmp_path: Path, stored: str) -> None:
    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    held = (weight if stored == "in_out" else weight.T).contiguous()
    np.save(tmp_path / "w.npy", held.numpy())
    save_file({"layer": held.bfloat16()}, str(tmp_path / "w.safetensors"))
    np.save(
        tmp_path / "swapped.npy", held.numpy().astype(">f8")
    )  # as a machine of the other byte order has it
    ways = (
        {"file": tmp_path / "w.npy"},
        {"file": tmp_path / "swapped.npy"},
        {"file": tmp_path / "w.safetensors", "key": "layer"},
    )
    numpy, swapped, tensors = (
        load_weight(job(QUIET, weight={**way, "stored": stored}).weight) for way in ways
    )
    assert torch.equal(numpy, weight)
    assert torch.equal(swapped, weight)
    assert torch.equal(tensors, weight.bfloat16().float())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file": "w.npy", "shape": [2, 2]}, "give either shape"),
        ({}, "give either shape"),
        ({"shape": [0, 2]}, "weight.shape.0"),
        ({"file": "nowhere.npy"}, "nowhere.npy: cannot be read"),
        ({"file": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"file": "w.pt"}, r"allowed: .npy and .safetensors"),
        ({"file": "flat.npy"}, "allowed: a matrix of real numbers"),
        ({"file": "complex.npy"}, "allowed: a matrix of real numbers"),
        ({"file": "objects.npy"}, "not a whole .npy file"),
        ({"file": "cut.npy"}, "not a whole .npy file"),
        ({"file": "empty.npy"}, "not a whole .npy file"),
        ({"file": "cut.safetensors"}, "not a whole .safetensors file"),
        ({"file": "w.safetensors", "key": "other"}, r"weight.key is other; .*w\.safetensors holds: layer"),
        ({"file": "nan.npy"}, "NaN or infinity"),
        ({"file": "zero.npy"}, "product with the inputs is zero"),
    ],
)
def test_a_matrix_that_cannot_serve_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.ones(3))
    np.save("complex.npy", np.ones((2, 2), complex))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.save("nan.npy", np.full((2, 2), np.nan))
    np.save("zero.npy", np.zeros((2, 2)))
    Path("cut.npy").write_bytes(Path("flat.npy").read_bytes()[:-4])
    Path("empty.npy").write_bytes(b"")
    save_file({"layer": torch.ones(2, 2)}, "w.safetensors")
    Path("cut.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:20])
    with pytest.raises(NvcimError, match=message):
        explain(job(QUIET, weight=content))


def test_negative_weights_in_the_one_sided_scheme_are_refused() -> None:
    with pytest.raises(ConfigError, match="one_sided holds no negative weights"):
        explain(job(CELL | {"scheme": "one_sided"}))


def test_a_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.npy").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load_weight(job(QUIET, weight={"file": tmp_path / "w.npy"}).weight)


def test_the_job_that_is_shipped_has_every_cause_of_a_real_array() -> None:
    asked = load_settings(ROOT / "jobs" / "crossbar.yaml", ExplainJob)
    expected = {"variation", "stuck cells", "array spread", "ageing", "IR drop", "DAC", "read noise", "ADC"}
    assert set(causes_in(asked.crossbar, asked.age_s)) == expected


def test_a_spread_over_chips_that_overflow_is_not_a_number() -> None:
    assert math.isnan(spread((1.0, math.inf)) or 0.0)
    assert spread((1.0,)) is None
    assert spread((1.0, 3.0)) == pytest.approx(2**0.5)
