"""DACs and ADCs against sums by hand and loops over every converter."""

import numpy as np
import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.converters import drive, make_adc, top_code
from nvcim.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def ideal(**fields: object) -> CrossbarConfig:
    """Cells without flaws; 3-bit weights on 4-level cells, which hold -3..3 exactly."""
    base = {"device": "Ideal2", "sigma": 0.0, "weight_bits": 3, "dac_bits": None, "rows": 4, "cols": 2}
    return CrossbarConfig.model_validate({**base, **fields})


WEIGHT = torch.tensor([[3.0, 0.0, 1.0], [0.0, -2.0, 1.0]])
X = torch.tensor([[2.0, 0.5], [-1.0, 2.0]])


@pytest.mark.parametrize(
    ("fields", "ranges"),
    [
        # |w|_2 by column is 3, 2, sqrt 2; the first two share a tile. |x|_2 is sqrt 4.25 and sqrt 5.
        (
            {"adc_scaling": "norm"},
            [[4.25**0.5 * f for f in (3, 3, 2**0.5)], [5**0.5 * f for f in (3, 3, 2**0.5)]],
        ),
        (
            {"adc_scaling": "norm", "adc_range_per": "column", "adc_range": 0.5},
            [[4.25**0.5 * f / 2 for f in (3, 2, 2**0.5)], [5**0.5 * f / 2 for f in (3, 2, 2**0.5)]],
        ),
        # Sums of magnitudes 3, 2, 2, times the largest input, 2 for both vectors.
        ({"adc_scaling": "full"}, [[6, 6, 4], [6, 6, 4]]),
        ({"adc_scaling": "full", "adc_range_per": "column"}, [[6, 4, 4], [6, 4, 4]]),
        ({"adc_scaling": "full", "dac_full_scale": 4.0}, [[12, 12, 8], [12, 12, 8]]),
        # Outputs of X in units of the full scale 2: |3|, |-0.5|, |1.25| and |-1.5|, |-2|, |0.5|.
        ({"adc_scaling": "calibrated"}, [[6, 6, 2.5], [6, 6, 2.5]]),
        ({"adc_scaling": "calibrated", "adc_range_per": "column"}, [[6, 4, 2.5], [6, 4, 2.5]]),
    ],
    ids=str,
)
def test_an_adc_rounds_to_steps_of_its_range(fields: dict[str, object], ranges: list[list[float]]) -> None:
    crossbar = Crossbar.program(WEIGHT, ideal(adc_bits=4, **fields), generator())
    if fields["adc_scaling"] == "calibrated":
        crossbar.calibrate(X, percentile=100)
    step = torch.tensor(ranges) / 7
    exact = torch.tensor([[6.0, -1.0, 2.5], [-3.0, -4.0, 1.0]])
    codes = (exact / step).round()
    assert torch.allclose(crossbar.matmul(X), codes.clamp(-7, 7) * step, rtol=1e-5)
    assert crossbar.counts.adc_reads == 6
    assert crossbar.counts.adc_clipped == int((codes.abs() > 7).sum())


def test_row_tiles_are_converted_one_by_one_and_then_added() -> None:
    # Rows 0 and 1 apart: 3-bit ADCs with full scales 3 and 2 x full scale 1, steps 1 and 2/3.
    config = ideal(rows=1, adc_bits=3, adc_scaling="full", dac_full_scale=1.0)
    crossbar = Crossbar.program(torch.tensor([[3.0], [2.0]]), config, generator())
    y = crossbar.matmul(torch.tensor([[0.4, 0.6], [1.0, -0.1]]))
    # 1.2 -> 1 and 1.2 -> 2 * 2/3; 3 -> 3 and -0.2 -> 0
    assert torch.allclose(y, torch.tensor([[1 + 4 / 3], [3.0]]))
    assert crossbar.counts.adc_reads == 4


@pytest.mark.parametrize("adc_scaling", ["norm", "full"])
@pytest.mark.parametrize("adc_range_per", ["tile", "column"])
def test_nothing_clips_at_the_whole_range(adc_scaling: str, adc_range_per: str) -> None:
    config = CrossbarConfig.model_validate(
        {"rows": 16, "cols": 8, "adc_scaling": adc_scaling, "adc_range_per": adc_range_per}
    )
    weight = normal(40, 12)
    crossbar = Crossbar.program(weight, config, generator())
    # The worst inputs there are: along a column (norm) and its signs (full), of what the cells hold.
    held = crossbar.read_weight().T
    crossbar.matmul(torch.cat([normal(50, 40, seed=1), held, held.sign()]))
    assert crossbar.counts.adc_clipped == 0


def test_saturated_outputs_are_counted_one_by_one() -> None:
    # Full scale 3 * 0.5 and top code 7: an input x has the code 14 x, which clips from |x| = 7.5 / 14 = 0.536 on.
    config = ideal(adc_bits=4, adc_scaling="full", adc_range=0.5, dac_full_scale=1.0)
    crossbar = Crossbar.program(torch.tensor([[3.0]]), config, generator())
    x = torch.tensor([[0.1], [0.5], [0.53], [0.54], [-0.53], [-0.54], [1.0], [float("nan")]])
    y = crossbar.matmul(x)
    assert (
        crossbar.counts.adc_clipped == 3
    )  # 0.54, -0.54 and 1; 0.53 rounds to the last code, NaN is no saturation
    assert torch.allclose(y[6], torch.tensor([1.5]))
    assert crossbar.counts.adc_reads == 8


def test_an_ideal_dac_holds_inputs_at_a_fixed_full_scale_and_counts_them() -> None:
    crossbar = Crossbar.program(
        torch.tensor([[3.0], [1.0]]), ideal(dac_full_scale=0.7, adc_bits=None), generator()
    )
    y = crossbar.matmul(torch.tensor([[0.7, 0.34], [0.701, -5.0], [-0.7, float("inf")]]))
    assert torch.allclose(y, torch.tensor([[2.1 + 0.34], [2.1 - 0.7], [-2.1 + 0.7]]), atol=1e-6)
    assert crossbar.counts.dac_clipped == 3  # 0.701, -5 and infinity


def test_inputs_beyond_a_fixed_full_scale_are_held_and_counted() -> None:
    config = ideal(adc_bits=None, dac_bits=4, dac_full_scale=0.7)  # codes of 0.1 up to 7
    crossbar = Crossbar.program(torch.tensor([[3.0], [1.0]]), config, generator())
    y = crossbar.matmul(torch.tensor([[0.74, 0.34], [0.76, -5.0], [-0.7, 0.36]]))
    assert torch.allclose(y, torch.tensor([[2.1 + 0.3], [2.1 - 0.7], [-2.1 + 0.4]]), atol=1e-6)
    assert crossbar.counts.dac_clipped == 3  # 0.74, 0.76 and -5 lie beyond 0.7
    assert Crossbar.program(WEIGHT, ideal(dac_bits=4), generator()).counts.dac_clipped == 0


def test_an_inputs_own_full_scale_never_clips() -> None:
    driven = drive(normal(30, 17) * 1e6, CrossbarConfig(dac_bits=2))
    assert driven.clipped == 0
    assert torch.equal(driven.full_scale[:, 0], (normal(30, 17) * 1e6).abs().amax(dim=-1))


@pytest.mark.parametrize("adc_range_per", ["tile", "column"])
@pytest.mark.parametrize("adc_scaling", ["norm", "full", "calibrated"])
@pytest.mark.parametrize(
    "errors",
    [
        {"offset_lsb": 0.7},
        {"gain": 0.05},
        {"dnl_lsb": 0.3},
        {"offset_lsb": 0.7, "gain": 0.05, "dnl_lsb": 0.3},
    ],
    ids=str,
)
def test_converters_with_errors_do_what_a_loop_over_them_does(
    errors: dict[str, float], adc_scaling: str, adc_range_per: str
) -> None:
    config = CrossbarConfig.model_validate(
        {
            **{"rows": 16, "cols": 5, "dac_bits": None, "adc_bits": 4, "adc_errors": errors},
            **{"adc_scaling": adc_scaling, "adc_range_per": adc_range_per, "adc_range": 0.7},
        }
    )
    weight, x = normal(30, 12), normal(9, 30, seed=1)
    crossbar = Crossbar.program(weight, config, generator())
    if adc_scaling == "calibrated":
        crossbar.calibrate(x)
    state = crossbar.state_dict()
    adc = make_adc(state["reach"], config, state["keys"])
    held = crossbar.read_weight().double().numpy()
    expected, clipped = np.zeros((9, 12)), 0
    for v, vector in enumerate(x.double().numpy()):
        for tile, top in enumerate((0, 16)):
            part = vector[top : top + 16]
            row = np.linalg.norm(part) if adc_scaling == "norm" else np.abs(vector).max()
            for o in range(12):
                step = 0.7 * float(state["reach"][0, 0, tile, o]) / 7 * row
                # codes by the ADC's own gain and offset; then comparators count the thresholds below
                ratio = float(adc.gain[0, 0, tile, o] * adc.col[0, 0, tile, o])
                code = part @ held[top : top + 16, o] / step * ratio
                code += 0.0 if adc.shift is None else float(adc.shift[0, 0, tile, o])
                if adc.thresholds is None:
                    found = round(code)
                else:
                    found = int((adc.thresholds[0, 0, tile, o].double().numpy() < code).sum()) - 7
                clipped += abs(code) > 7.5
                expected[v, o] += min(max(found, -7), 7) * step
    assert np.allclose(crossbar.matmul(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert crossbar.counts.adc_clipped == clipped


@pytest.mark.parametrize("dnl", [0.05, 0.2, 0.49])
@pytest.mark.parametrize("bits", [2, 3, 6, 8])
def test_thresholds_rise_and_their_line_through_the_ends_is_ideal(bits: int, dnl: float) -> None:
    config = CrossbarConfig.model_validate({"adc_bits": bits, "adc_errors": {"dnl_lsb": dnl}})
    adc = make_adc(torch.ones(3, 1, 2, 40), config, torch.arange(3))
    top = top_code(bits)
    assert adc.thresholds is not None
    assert adc.thresholds.shape == (3, 1, 2, 40, 2 * top)
    assert bool((adc.thresholds.diff(dim=-1) >= 0).all())
    if bits > 2 and dnl < 0.1:  # wide steps are sorted, which can move an end
        assert torch.allclose(adc.thresholds[..., 0], torch.tensor(-top + 0.5), atol=1e-4)
        assert torch.allclose(adc.thresholds[..., -1], torch.tensor(top - 0.5), atol=1e-4)


def test_statistics_of_converter_errors_are_those_of_the_settings() -> None:
    # n draws: the mean scatters by sigma / sqrt n, the deviation by sigma / sqrt(2 n); bounds of 6 of these, a false
    # alarm rarer than 1e-8 each.
    errors = {"offset_lsb": 0.7, "gain": 0.05, "dnl_lsb": 0.1}
    config = CrossbarConfig.model_validate({"adc_bits": 4, "adc_errors": errors})
    adc = make_adc(torch.ones(50, 2, 3, 40), config, torch.arange(50))
    count = 50 * 2 * 3 * 40
    assert adc.shift is not None
    assert adc.thresholds is not None
    for drawn, sigma in ((adc.shift, 0.7), (adc.gain * adc.col - 1, 0.05)):
        assert abs(float(drawn.mean())) < 6 * sigma / count**0.5
        assert abs(float(drawn.std()) - sigma) < 6 * sigma / (2 * count) ** 0.5
    # A width's error less the line's share of the whole walk: sigma sqrt(1 - 1/n), n = 13 widths, which add up to 0,
    # so that only 12 of 13 are free.
    widths = adc.thresholds.diff(dim=-1) - 1
    sigma = 0.1 * (1 - 1 / 13) ** 0.5
    assert abs(float(widths.double().square().mean().sqrt()) - sigma) < 6 * sigma / (2 * count * 12) ** 0.5


def test_errors_belong_to_the_chip_and_survive_rewrites_saving_and_stacking() -> None:
    config = CrossbarConfig.model_validate(
        {"adc_bits": 6, "sigma": 0.0, "adc_errors": {"offset_lsb": 1.0, "gain": 0.05, "dnl_lsb": 0.1}}
    )
    weight, x = normal(20, 6), normal(4, 20, seed=1)
    crossbar = Crossbar.program(weight, config, generator())
    expected = crossbar.matmul(x)
    other = Crossbar.program(weight, config, generator(1))
    assert not torch.equal(other.matmul(x), expected)
    crossbar.rewrite(weight)
    assert torch.equal(crossbar.matmul(x), expected)
    assert torch.equal(Crossbar.from_state(crossbar.state_dict(), config).matmul(x), expected)
    stack = Crossbar.stack([other, crossbar])
    assert torch.equal(stack.matmul(x)[1], expected)
    assert torch.equal(Crossbar.stack([stack, stack]).matmul(x)[1, 1], expected)


def test_codes_rise_with_the_input_whatever_the_errors() -> None:
    config = ideal(adc_bits=5, adc_scaling="full", dac_full_scale=1.0).model_copy(
        update={
            "adc_errors": CrossbarConfig.model_validate(
                {"adc_errors": {"dnl_lsb": 0.45, "gain": 0.1}}
            ).adc_errors
        }
    )
    crossbar = Crossbar.program(torch.full((1, 30), 3.0), config, generator())
    y = crossbar.matmul(torch.linspace(-1.2, 1.2, 999)[:, None])
    assert bool((y.diff(dim=0) >= 0).all())
    assert int((y.diff(dim=0) > 0).sum(dim=0).max()) > 25


def test_a_calibrated_adc_waits_for_its_calibration() -> None:
    crossbar = Crossbar.program(WEIGHT, ideal(adc_bits=4, adc_scaling="calibrated"), generator())
    with pytest.raises(ConfigError, match="call calibrate with typical inputs before reading"):
        crossbar.matmul(X)
    assert torch.equal(crossbar.read_weight(), WEIGHT)
