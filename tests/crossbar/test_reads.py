"""What a read does: exactness, converters, read noise, independence of packing, saving and restoring."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim.config import parse_settings
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError
from tests.closeness import close


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


def quantised(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The definition, written out: round(w / step) * step with step = max|w| / (2^(bits-1) - 1)."""
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


@pytest.mark.parametrize("device", ["RRAM1", "FeFET3", "RRAM4", "FeFET6"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_an_ideal_crossbar_is_exact_up_to_weight_quantisation(device: str, bits: int) -> None:
    config = CrossbarConfig.ideal(bits).model_copy(update={"device": device, "rows": 32, "cols": 16})
    weight, x = normal(70, 45), normal(9, 70, seed=1)
    crossbar = Crossbar.program(weight, config, generator())
    assert close(crossbar.read_weight(), quantised(weight, bits), 5e-6)
    assert close(crossbar.matmul(x), x @ quantised(weight, bits), 5e-6)


def test_leakage_of_fefet2_takes_one_percent_of_the_range_from_every_cell_in_use() -> None:
    config = CrossbarConfig(device="FeFET2", sigma=0.0, weight_bits=3)
    weight = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])  # 2 magnitude bits: one cell per side
    read = Crossbar.program(weight, config, generator()).read_weight()
    assert torch.allclose(read, torch.tensor([[2.97, 1.97, 0.97, 0.0, -0.97]]), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 20),
    batch=st.integers(0, 5),
    rows=st.integers(1, 50),
    cols=st.integers(1, 50),
)
def test_any_shape_fits_any_tile(inputs: int, outputs: int, batch: int, rows: int, cols: int) -> None:
    weight, x = normal(inputs, outputs), normal(batch, inputs, seed=1)
    config = CrossbarConfig(sigma=0.0, device="RRAM4", rows=rows, cols=cols, dac_bits=14, adc_bits=16)
    y = Crossbar.program(weight, config, generator()).matmul(x)
    assert y.shape == (batch, outputs)
    scale = x.norm(dim=-1, keepdim=True) * quantised(weight, 8).norm(dim=0).max()
    assert bool(((y - x @ quantised(weight, 8)).abs() <= scale * 1e-3).all())


def test_without_converters_tiles_do_not_show() -> None:
    weight, x = normal(70, 45), normal(9, 70, seed=1)
    whole = CrossbarConfig(dac_bits=None, adc_bits=None)
    reads = [
        Crossbar.program(weight, whole.model_copy(update={"rows": rows, "cols": cols}), generator()).matmul(x)
        for rows, cols in [(128, 128), (16, 8), (1, 1)]
    ]
    assert torch.equal(reads[0], reads[1])
    assert torch.equal(reads[0], reads[2])


@pytest.mark.parametrize("field", ["dac_bits", "adc_bits"])
def test_more_converter_bits_bring_reads_closer(field: str) -> None:
    weight, x = normal(200, 64), normal(64, 200, seed=1)
    errors = []
    for bits in (3, 4, 6, 8, 10, 12):
        config = CrossbarConfig.ideal().model_copy(update={field: bits})
        crossbar = Crossbar.program(weight, config, generator())
        errors.append(relative_error(crossbar.matmul(x), x @ crossbar.read_weight()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


def test_adc_rounds_each_tile_to_its_step() -> None:
    # One tile, one output: range |x|_2 |w|_2 = 5 * 2, at 3 bits 3 codes a side, so steps of 10/3.
    config = CrossbarConfig.ideal().model_copy(update={"adc_bits": 3})
    weight = torch.tensor([[2.0], [0.0]])
    crossbar = Crossbar.program(weight, config, generator())
    x = torch.tensor([[3.0, 4.0], [5.0, 0.0], [-5.0, 0.0], [0.5, 4.974937]])
    expected = torch.tensor([[20 / 3], [10.0], [-10.0], [0.0]])
    assert close(crossbar.matmul(x), expected, 1e-5)


@pytest.mark.parametrize(("rows", "cols"), [(8, 4), (7, 128), (128, 5), (3, 1), (9, 10)])
def test_converters_do_what_a_loop_over_tiles_does(rows: int, cols: int) -> None:
    weight, x = normal(30, 18), normal(6, 30, seed=1)
    config = CrossbarConfig(rows=rows, cols=cols, dac_bits=6, adc_bits=5, adc_range=0.8)
    crossbar = Crossbar.program(weight, config, generator())
    programmed = crossbar.read_weight().double()
    expected = torch.zeros(6, 18, dtype=torch.float64)
    for row, vector in enumerate(x.double()):
        dac = vector.abs().max() / 31
        driven = (vector / dac).round() * dac
        for top in range(0, 30, rows):
            for left in range(0, 18, cols):
                tile = programmed[top : top + rows, left : left + cols]
                part = driven[top : top + rows]
                step = 0.8 * part.norm() * tile.norm(dim=0).max() / 15
                codes = (part @ tile / step).round().clamp(-15, 15)
                expected[row, left : left + cols] += codes * step
    # float32 may round the other way where a double lies next to the middle of a step: allow one such output.
    off = (crossbar.matmul(x).double() - expected).abs() > 1e-4
    assert int(off.sum()) <= 1


def test_a_perfect_match_is_not_clipped_and_a_narrower_range_clips_it() -> None:
    weight = normal(64, 4)
    x = weight[:, :1].T.contiguous()
    results = []
    for adc_range in (1.0, 0.5):
        config = CrossbarConfig.ideal().model_copy(update={"adc_bits": 10, "adc_range": adc_range})
        crossbar = Crossbar.program(weight, config, generator())
        results.append(float(crossbar.matmul(x)[0, 0] / (x @ crossbar.read_weight())[0, 0]))
    assert results[0] == pytest.approx(1.0, abs=0.01)
    assert results[1] < 0.75


@pytest.mark.parametrize("read_noise", [0.0, 0.05])
def test_a_result_does_not_depend_on_its_batch(read_noise: float) -> None:
    weight, x = normal(2, 50, 7), normal(2, 11, 50, seed=1)
    x[:, 3] *= 1000  # a loud neighbour must not change the ranges of the others
    config = CrossbarConfig(rows=16, cols=4, read_noise=read_noise)
    whole = Crossbar.program(weight, config, generator()).matmul(x)
    crossbar = Crossbar.program(weight, config, generator())
    parts = torch.cat([crossbar.matmul(part) for part in x.split([1, 3, 7], dim=1)], dim=1)
    # float32 sums of other widths may round the other way at an ADC step: compare within one step.
    step = x.norm(dim=-1, keepdim=True) * weight.norm(dim=1).max() / 127
    assert bool(((whole - parts).abs() <= 1.01 * step).all())
    assert float(((whole - parts).abs() > 0.01 * step).float().mean()) < 0.02


def test_reading_a_nan_spoils_only_its_own_vector() -> None:
    crossbar = Crossbar.program(normal(20, 6), CrossbarConfig(), generator())
    x = normal(4, 20, seed=1)
    expected = crossbar.matmul(x)
    x[2, 5] = float("nan")
    y = crossbar.matmul(x)
    assert bool(y[2].isnan().all())
    assert torch.equal(y[[0, 1, 3]], expected[[0, 1, 3]])


def test_a_zero_vector_reads_zero() -> None:
    crossbar = Crossbar.program(normal(20, 6), CrossbarConfig(read_noise=0.1), generator())
    assert not crossbar.matmul(torch.zeros(2, 20)).any()


def test_read_noise_differs_between_reads_and_has_the_variance_of_its_cells() -> None:
    # Weights 1 on RRAM1: 7 cells at 1, 7 at 0; noise only on cells that conduct.
    noise, reads, inputs = 0.1, 4000, 5
    config = CrossbarConfig(device="RRAM1", sigma=0.0, read_noise=noise, dac_bits=None, adc_bits=None, rows=2)
    crossbar = Crossbar.program(torch.ones(inputs, 8), config, generator())
    x = torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.5]])
    y = crossbar.matmul(x.expand(reads, inputs))
    cells = sum((2**i / 127) ** 2 for i in range(7))
    sigma = noise * math.sqrt(cells * float(x.square().sum()))
    count = reads * 8
    assert not torch.equal(y[0], y[1])
    assert abs(float(y.std()) - sigma) < 6 * sigma / math.sqrt(2 * count)
    assert abs(float(y.mean()) - float(x.sum())) < 6 * sigma / math.sqrt(count)
    correlation = torch.corrcoef(y.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 6 / math.sqrt(reads)


def test_read_noise_equals_reading_every_cell_by_itself() -> None:
    # The reference: redraw each weight's read noise per read, from the variance the array reports.
    config = CrossbarConfig(device="FeFET6", read_noise=0.05, dac_bits=None, adc_bits=None)
    crossbar = Crossbar.program(normal(30, 3), config, generator())
    variance = crossbar.state_dict()["variance"][0, 0]
    x, reads = normal(1, 30, seed=2), 20_000
    cells = crossbar.read_weight() + variance.sqrt() * normal(reads, 30, 3, seed=3)
    reference = (x @ cells)[:, 0].std(dim=0)
    found = crossbar.matmul(x.expand(reads, 30)).std(dim=0)
    assert torch.allclose(found, reference, rtol=6 * math.sqrt(1 / reads))


def test_read_noise_is_independent_of_the_programming_draw() -> None:
    # One cell a side and one read per weight, so that a shared stream would show as a correlation of 0.7.
    config = CrossbarConfig(device="RRAM1", weight_bits=2, read_noise=0.1, dac_bits=None, adc_bits=None)
    crossbar = Crossbar.program(torch.ones(48, 48), config, generator())
    read = crossbar.matmul(torch.eye(48)) - crossbar.read_weight()
    written = crossbar.read_weight() - 1
    correlation = torch.corrcoef(torch.stack([read.flatten(), written.flatten()]))[0, 1]
    assert abs(float(correlation)) < 6 / 48


def test_noise_of_reads_repeats_with_the_seed() -> None:
    config, weight, x = CrossbarConfig(read_noise=0.05), normal(20, 6), normal(4, 20, seed=1)
    first, second = (Crossbar.program(weight, config, generator(2)) for _ in range(2))
    assert torch.equal(first.matmul(x), second.matmul(x))
    assert torch.equal(first.matmul(x), second.matmul(x))


@pytest.mark.parametrize("read_noise", [0.0, 0.05])
def test_state_restores_bit_exactly_in_mid_stream(read_noise: float) -> None:
    config = CrossbarConfig(rows=8, cols=4, read_noise=read_noise)
    crossbar = Crossbar.program(normal(2, 20, 6), config, generator())
    x = normal(2, 4, 20, seed=1)
    crossbar.matmul(x)
    saved = crossbar.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    clones = [
        Crossbar.from_state(saved, parse_settings(config.model_dump(mode="json"), CrossbarConfig, "saved")),
        copy.deepcopy(crossbar),
        pickle.loads(pickle.dumps(crossbar)),
    ]
    expected = crossbar.matmul(x)
    for clone in clones:
        assert torch.equal(clone.read_weight(), crossbar.read_weight())
        assert torch.equal(clone.matmul(x), expected)


def test_changing_what_was_read_or_saved_does_not_change_the_device() -> None:
    crossbar = Crossbar.program(normal(5, 3), CrossbarConfig(), generator())
    expected = crossbar.read_weight().clone()
    crossbar.read_weight().zero_()
    crossbar.state_dict()["weight"].zero_()
    assert torch.equal(crossbar.read_weight(), expected)


def test_state_of_another_config_is_refused() -> None:
    crossbar = Crossbar.program(normal(5, 3), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match=r"expected clock_s, .*variance, wear, weight, writes"):
        Crossbar.from_state(crossbar.state_dict(), CrossbarConfig(read_noise=0.1))


@pytest.mark.parametrize("read_noise", [0.0, 0.05])
def test_a_stack_reads_as_its_members(read_noise: float) -> None:
    kinds = [("FeFET2", 0.1), ("RRAM1", 0.1), ("FeFET6", 0.02)]
    configs = [CrossbarConfig(device=d, sigma=s, rows=8, read_noise=read_noise) for d, s in kinds]
    members, again = (
        [Crossbar.program(normal(20, 6, seed=i), config, generator(i)) for i, config in enumerate(configs)]
        for _ in range(2)
    )
    x = normal(3, 4, 20, seed=8)
    y = Crossbar.stack(members).matmul(x)
    assert y.shape == (3, 4, 6)
    expected = torch.stack([c.matmul(part) for c, part in zip(again, x, strict=True)])
    assert close(y, expected)


def test_a_stack_of_unlike_crossbars_is_refused() -> None:
    one = Crossbar.program(normal(5, 3), CrossbarConfig(), generator())
    for other in (
        Crossbar.program(normal(5, 4), CrossbarConfig(), generator()),
        Crossbar.program(normal(5, 3), CrossbarConfig(rows=4), generator()),
        Crossbar.program(normal(5, 3), CrossbarConfig(read_noise=0.1), generator()),
    ):
        with pytest.raises(ConfigError, match="must share shape and periphery"):
            Crossbar.stack([one, other])
    with pytest.raises(ConfigError, match="at least one"):
        Crossbar.stack([])


def test_inputs_broadcast_over_devices() -> None:
    crossbar = Crossbar.program(normal(2, 3, 20, 6), CrossbarConfig(), generator())
    x = normal(4, 20, seed=1)
    expected = crossbar.matmul(x.expand(2, 3, 4, 20))
    assert expected.shape == (2, 3, 4, 6)
    assert close(crossbar.matmul(x), expected, 5e-6)
    assert close(crossbar.matmul(x.expand(3, 4, 20)), expected, 5e-6)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(20), torch.zeros(3, 19), torch.zeros(3, 2, 20), torch.zeros(1, 2, 2, 20)],
    ids=["no batch", "features", "devices", "too many dimensions"],
)
def test_inputs_that_do_not_fit_are_refused_with_the_shape_expected(x: torch.Tensor) -> None:
    crossbar = Crossbar.program(normal(2, 20, 6), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match=r"takes \(2, 'batch', 20\)"):
        crossbar.matmul(x)


def test_integers_are_refused() -> None:
    crossbar = Crossbar.program(normal(20, 6), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match="floating point"):
        crossbar.matmul(torch.ones(2, 20, dtype=torch.int64))


def test_half_precision_comes_back_as_half_precision() -> None:
    crossbar = Crossbar.program(normal(20, 6), CrossbarConfig(), generator())
    x = normal(4, 20).to(torch.bfloat16)
    y = crossbar.matmul(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, crossbar.matmul(x.float()).to(torch.bfloat16))


def test_more_variation_hurts_more() -> None:
    weight, x = normal(100, 50), normal(20, 100, seed=1)
    errors = [
        relative_error(Crossbar.program(weight, CrossbarConfig(sigma=s), generator()).matmul(x), x @ weight)
        for s in (0.0, 0.025, 0.05, 0.1, 0.2)
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 3 * errors[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigma", -1),
        ("weight_bits", 1),
        ("rows", 0),
        ("adc_bits", 1),
        ("adc_range", 0),
        ("sigma_unit", "volt"),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"demo.yaml: field '{field}'"):
        parse_settings({field: value}, CrossbarConfig, "demo.yaml")


def test_an_unknown_setting_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'sigmas'.*did you mean 'sigma'.*read_noise"):
        parse_settings({"sigmas": 1}, CrossbarConfig, "demo.yaml")
