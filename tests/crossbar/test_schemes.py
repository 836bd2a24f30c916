"""Schemes, slices, accumulation and input coding say the same number in other cells."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError
from tests.closeness import close


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def config(**fields: object) -> CrossbarConfig:
    """Cells without flaws and ideal converters, unless said otherwise."""
    base = {"device": "Ideal2", "sigma": 0.0, "rows": 16, "cols": 8, "dac_bits": None, "adc_bits": None}
    return CrossbarConfig.model_validate({**base, **fields})


def quantised(weight: torch.Tensor, bits: int = 8) -> torch.Tensor:
    step = weight.abs().amax(dim=(-2, -1), keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


@pytest.mark.parametrize("device", ["Ideal1", "Ideal2", "Ideal4", "Ideal8"])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
@pytest.mark.parametrize("scheme", ["differential", "offset"])
def test_every_scheme_holds_the_quantised_weight(scheme: str, accumulate: str, device: str) -> None:
    weight, x = normal(2, 37, 21), normal(2, 5, 37, seed=1)
    crossbar = Crossbar.program(
        weight, config(scheme=scheme, accumulate=accumulate, device=device), generator()
    )
    assert close(crossbar.read_weight(), quantised(weight), 2e-5)
    assert close(crossbar.matmul(x), x @ quantised(weight), 2e-5)


@pytest.mark.parametrize("accumulate", ["analog", "digital"])
def test_one_sided_holds_weights_that_are_not_negative_in_half_the_cells(accumulate: str) -> None:
    weight, x = normal(37, 21).abs(), normal(5, 37, seed=1)
    one, two = (
        Crossbar.program(weight, config(scheme=scheme, accumulate=accumulate), generator())
        for scheme in ("one_sided", "differential")
    )
    assert one.cells().levels.shape[1] * 2 == two.cells().levels.shape[1]
    assert close(one.matmul(x), x @ quantised(weight), 1e-5)
    assert close(one.matmul(x), two.matmul(x), 1e-5)


def test_one_sided_refuses_negative_weights_also_on_a_rewrite() -> None:
    with pytest.raises(
        ConfigError, match=r"one_sided holds no negative weights; allowed: differential, offset"
    ):
        Crossbar.program(normal(4, 3), config(scheme="one_sided"), generator())
    crossbar = Crossbar.program(normal(4, 3).abs(), config(scheme="one_sided"), generator())
    with pytest.raises(ConfigError, match="one_sided"):
        crossbar.rewrite(normal(4, 3))


@pytest.mark.parametrize("scheme", ["offset", "one_sided"])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
def test_the_digital_side_takes_off_what_cells_at_g_min_let_through(scheme: str, accumulate: str) -> None:
    # g_min is a quarter of the range, so what is taken off exceeds the weights.
    own = config(scheme=scheme, accumulate=accumulate, g_min_us=10, g_max_us=50)
    weight, x = normal(37, 21).abs(), normal(5, 37, seed=1)
    crossbar = Crossbar.program(weight, own, generator())
    assert close(crossbar.read_weight(), quantised(weight), 1e-4)
    assert close(crossbar.matmul(x), x @ quantised(weight), 1e-4)


@pytest.mark.parametrize("slice_bits", [[1, 2, 4], [4, 3], [3, 4], [2, 2, 2, 2], [1] * 7])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
def test_unequal_slices_read_alike(slice_bits: list[int], accumulate: str) -> None:
    weight, x = normal(37, 21), normal(5, 37, seed=1)
    own = config(device="Ideal4", slice_bits=slice_bits, accumulate=accumulate)
    crossbar = Crossbar.program(weight, own, generator())
    assert crossbar.cells().levels.shape[1] == 2 * len(slice_bits)
    assert close(crossbar.matmul(x), x @ quantised(weight), 1e-5)


@pytest.mark.parametrize("device", ["FeFET2", "RRAM1", "PCM_Joshi2020"])
def test_digital_accumulation_equals_analog_on_the_same_imperfect_cells(device: str) -> None:
    weight, x = normal(2, 37, 21), normal(2, 5, 37, seed=1)
    analog, digital = (
        Crossbar.program(weight, config(device=device, sigma=0.1, accumulate=how), generator(3))
        for how in ("analog", "digital")
    )
    assert torch.equal(analog.cells().conductance, digital.cells().conductance)
    assert close(digital.read_weight(), analog.read_weight(), 1e-5)
    assert close(digital.matmul(x), analog.matmul(x), 1e-5)


@pytest.mark.parametrize("dac_bits", [2, 3, 8, 12])
@pytest.mark.parametrize("full_scale", [None, 1.5])
@pytest.mark.parametrize("scheme", ["differential", "offset"])
def test_bit_serial_inputs_equal_analog_ones_behind_ideal_adcs(
    scheme: str, full_scale: float | None, dac_bits: int
) -> None:
    weight, x = normal(2, 37, 21), normal(2, 5, 37, seed=1)
    own = {
        "device": "FeFET2",
        "sigma": 0.1,
        "scheme": scheme,
        "dac_bits": dac_bits,
        "dac_full_scale": full_scale,
    }
    for accumulate in ("analog", "digital"):
        both = [
            Crossbar.program(weight, config(**own, accumulate=accumulate, input_coding=coding), generator(3))
            for coding in ("analog", "bit_serial")
        ]
        assert close(both[1].matmul(x), both[0].matmul(x), 5e-5)
        assert both[0].counts.dac_clipped == both[1].counts.dac_clipped


def test_bit_serial_converts_each_bit_of_each_slice_by_itself() -> None:
    own = config(adc_bits=8, dac_bits=6, input_coding="bit_serial", accumulate="digital")
    crossbar = Crossbar.program(normal(37, 21), own, generator())
    crossbar.matmul(normal(5, 37, seed=1))
    assert crossbar.counts.adc_reads == 5 * 21 * 3 * 4 * 6  # vectors, outputs, row tiles, slices, bits


def test_bit_serial_reads_with_real_adcs_do_what_a_loop_does() -> None:
    # Cells with a spread, so that no current lies just between two codes.
    fields = {"device": "FeFET2", "sigma": 0.1, "adc_bits": 5, "dac_bits": 4, "adc_scaling": "full"}
    own = config(**fields, input_coding="bit_serial", accumulate="digital")
    weight, x = normal(20, 6), normal(3, 20, seed=1)
    crossbar = Crossbar.program(weight, own, generator())
    scale = float(weight.abs().max()) / 127
    cells = crossbar.cells().conductance[0].double()  # [2 sides * 4 slices, in, out], least significant first
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for vector, values in enumerate(x.double()):
        step = float(values.abs().max()) / 7
        codes = (values / step).round().to(torch.int64)
        for cycle in range(4):
            bits = ((codes >> cycle) & 1).double()
            worth = -(2**3) if cycle == 3 else 2**cycle
            for index in range(4):
                signed = cells[index] - cells[4 + index]
                for top in (0, 16):
                    tile, part = signed[top : top + 16], bits[top : top + 16]
                    lsb = tile.abs().sum(dim=0).max() / 15  # 6 outputs: one column tile
                    read = (part @ tile / lsb).round() * lsb
                    expected[vector] += read * worth * 3 * 4**index / 2 * scale * step  # one spare bit
    assert torch.allclose(crossbar.matmul(x).double(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 20),
    batch=st.integers(0, 4),
    rows=st.integers(1, 40),
    cols=st.integers(7, 40),
    leading=st.sampled_from([(), (1,), (3,), (2, 1, 2)]),
    scheme=st.sampled_from(["differential", "offset", "one_sided"]),
    accumulate=st.sampled_from(["analog", "digital"]),
    coding=st.sampled_from(["analog", "bit_serial"]),
    scaling=st.sampled_from(["norm", "full", "calibrated"]),
    per=st.sampled_from(["tile", "column"]),
)
def test_any_shape_fits_any_tile_in_every_mode(
    inputs: int, outputs: int, batch: int, rows: int, cols: int, leading: tuple[int, ...], scheme: str,
    accumulate: str, coding: str, scaling: str, per: str,
) -> None:  # fmt: skip
    weight, x = normal(*leading, inputs, outputs).abs(), normal(*leading, batch, inputs, seed=1)
    own = config(
        rows=rows, cols=cols, scheme=scheme, accumulate=accumulate, input_coding=coding, dac_bits=12, adc_bits=16,
        adc_scaling=scaling, adc_range_per=per,
    )  # fmt: skip
    crossbar = Crossbar.program(weight, own, generator())
    if scaling == "calibrated":
        crossbar.calibrate(torch.cat([x, normal(*leading, 1, inputs, seed=2)], dim=-2), percentile=100)
    y = crossbar.matmul(x)
    assert y.shape == (*leading, batch, outputs)
    # Half a step of the 16-bit ADC per conversion, of at most 2**12 times the weights' sum (offset: twice that), the
    # DAC's half step, and sums in float32.
    largest = x.abs().amax(dim=-1, keepdim=True) if batch else torch.ones(1)
    bound = largest * weight.abs().amax() * inputs * 2e-3
    assert bool(((y - x @ quantised(weight)).abs() <= bound).all())
    assert crossbar.counts.adc_clipped == 0


@pytest.mark.parametrize("accumulate", ["analog", "digital"])
@pytest.mark.parametrize("scheme", ["offset", "one_sided"])
@pytest.mark.parametrize("limits", [{}, {"g_min_us": 90.0, "g_max_us": 100.0}], ids=["off", "on"])
def test_bfloat16_does_not_round_what_all_cells_conduct_alike(
    limits: dict[str, float], scheme: str, accumulate: str
) -> None:
    weight, x = normal(3, 128, 20), normal(5, 128, seed=1)
    weight = weight.abs() if scheme == "one_sided" else weight
    fields = {"device": "Ideal4", "sigma": 0.0, "scheme": scheme, "accumulate": accumulate, **limits}
    base = CrossbarConfig.model_validate({**fields, "dac_bits": None, "adc_bits": None})
    whole, half = (
        Crossbar.program(weight, base.model_copy(update={"storage": storage}), generator())
        for storage in ("float32", "bfloat16")
    )
    assert half.state_dict()["weight"].dtype == torch.bfloat16
    exact, found = whole.read_weight(), half.read_weight()
    # A bfloat16 has 8 bits, so it is off by at most 2^-8 of itself; slices by that of half their ranges, which add up
    # to twice the largest weight and a sixteenth.
    own = exact.abs() * 2**-8 if accumulate == "analog" else weight.abs().amax() * 2**-8 * (1 + 1 / 16)
    assert bool(((found - exact).abs() <= own + 1e-4).all())
    expected = x @ exact
    assert float((half.matmul(x) - expected).norm() / expected.norm()) < 0.004
    again = Crossbar.from_state(half.state_dict(), half.config)
    assert torch.equal(again.matmul(x), half.matmul(x))


def test_states_in_bfloat16_that_hold_their_base_within_are_still_read() -> None:
    base = CrossbarConfig(device="Ideal4", sigma=0.0, scheme="offset", storage="bfloat16", adc_bits=None)
    crossbar = Crossbar.program(normal(20, 6), base, generator())
    state = crossbar.state_dict()
    state["weight"] = (state["weight"].float() + state.pop("base")).bfloat16()
    again = Crossbar.from_state(state, base)
    assert torch.allclose(again.read_weight(), crossbar.read_weight(), atol=0.03)  # 2^-8 of twice the largest
    x = normal(5, 20, seed=1)
    assert torch.allclose(again.matmul(x), x @ again.read_weight(), atol=0.05 * float(x.norm()))


def test_leading_devices_read_as_each_alone_in_every_scheme() -> None:
    weight, x = normal(2, 2, 37, 21), normal(2, 2, 5, 37, seed=1)
    for scheme, accumulate in (("offset", "digital"), ("offset", "analog"), ("differential", "digital")):
        own = config(device="FeFET2", sigma=0.1, scheme=scheme, accumulate=accumulate, adc_bits=8, dac_bits=8)
        together = Crossbar.program(weight, own, [generator(seed) for seed in range(4)])
        y = together.matmul(x)
        for index in range(4):
            place = (index // 2, index % 2)
            alone = Crossbar.program(weight[place], own, generator(index))
            assert torch.equal(alone.read_weight(), together.read_weight()[place])
            assert close(alone.matmul(x[place]), y[place], 1e-5)
