"""Weight levels on cells: hand-worked examples, the crossbar itself, and a search over all level sets."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import INQ, INQSettings
from nvcim.quantization.inq import exponent_range, power_levels
from nvcim.segmentation.crossbar_weights import (
    Step,
    array_integers,
    best_levels,
    cell_table,
    crossbar_inq,
    level_fit,
    matrix_of,
    on_crossbars,
    on_levels,
    steps_by_error,
    with_best_levels,
    with_reference_columns,
)
from tests.closeness import close

IDEAL = CrossbarConfig.ideal(4).model_copy(update={"device": "Ideal4"})
EXACT = 1e-14  # sums of a cell's levels in float64, which are thirds or fifteenths
STEPS: tuple[Step, ...] = ("largest", "power_of_two")


def ideal(bits: int) -> CrossbarConfig:
    return IDEAL.model_copy(update={"weight_bits": bits})


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_two_bit_pair_reads_back_as_worked_by_hand() -> None:
    # FeFET2's levels conduct 0.01, 1/3, 2/3, 1 and spread by 0.0067, 0.0135, 0.0135, 0.0067 at a sigma of 0.01.
    # A weight of 3 bits is one cell a side; full conductance is worth 3, a level step a third; sigma 0.1 is tenfold.
    table = cell_table(CrossbarConfig(device="FeFET2", weight_bits=3, sigma=0.1))
    assert table.top == 3
    assert table.mean.tolist() == pytest.approx([-2.97, -1.97, -0.97, 0, 0.97, 1.97, 2.97])
    edge, middle = 0.067**2, 0.135**2
    assert table.variance.tolist() == pytest.approx(
        [2 * edge, edge + middle, edge + middle, 2 * edge, edge + middle, edge + middle, 2 * edge]
    )


@pytest.mark.parametrize(
    "config",
    [
        CrossbarConfig(device="FeFET2", weight_bits=6),
        CrossbarConfig(device="RRAM1", weight_bits=4, sigma_unit="full_range", sigma=0.02),
        CrossbarConfig(device="PCM_Joshi2020", weight_bits=5, slice_bits=(1, 3), sigma=0.01),
        CrossbarConfig(device="RRAM4", weight_bits=4, scheme="offset"),
        CrossbarConfig(device="RRAM4", weight_bits=4, g_min_us=10, g_max_us=50),
    ],
)
def test_mean_and_variance_are_those_of_programmed_chips(config: CrossbarConfig) -> None:
    table, chips = cell_table(config), 4000
    integers = torch.arange(-table.top, table.top + 1)
    weight = (integers * 0.5)[None, :, None].float().expand(chips, -1, 1)
    held = Crossbar.program(weight, config, torch.Generator().manual_seed(1)).read_weight()[..., 0] / 0.5
    spread = table.variance.sqrt()
    # Five standard errors of a mean of 4000, and of a variance (sqrt(2 / 4000) of it).
    assert bool(((held.mean(dim=0) - table.mean).abs() <= 5 * spread / chips**0.5 + 1e-5).all())
    assert held.var(dim=0).double() == pytest.approx(table.variance.numpy(), rel=5 * (2 / chips) ** 0.5)


def test_halves_of_the_largest_weight_miss_the_grid_unless_the_step_is_a_power_of_two() -> None:
    weight = torch.tensor([[1.0, 0.5, -0.25]])
    integers, step = array_integers(weight, ideal(4))
    # 3.5 and 1.75 steps; float32's 1/7 is a little too large, so the tie falls to 3.
    assert integers.tolist() == [[7, 3, -2]]
    assert float(step[0, 0]) == pytest.approx(1 / 7)
    fit = level_fit(weight, ideal(4))
    missed = ((3 / 7 - 0.5) ** 2 + (2 / 7 - 0.25) ** 2) ** 0.5
    assert fit.relative_error == pytest.approx(missed / 1.3125**0.5, rel=1e-6)
    assert (fit.values, fit.kept, fit.on_grid) == (3, 3, 1)

    integers, step = array_integers(weight, ideal(4), "power_of_two")
    assert integers.tolist() == [[4, 2, -1]]
    assert float(step[0, 0]) == 0.25
    fit = level_fit(weight, ideal(4), "power_of_two")
    assert fit.relative_error < EXACT
    assert (fit.zeroed, fit.on_grid) == (0.0, 3)


def test_levels_below_half_a_step_are_lost() -> None:
    fit = level_fit(torch.tensor([[0.0, 1.0, 0.25, 0.125, 0.0625]]), ideal(3), "power_of_two")
    # Steps of 1/2: 2, 0.5, 0.25, 0.125 of them; the half rounds to even. Zero is no nonzero weight.
    assert (fit.values, fit.kept, fit.on_grid) == (5, 2, 2)
    assert fit.zeroed == pytest.approx(3 / 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("largest", [1.0, 3e-12, 1.4e9])
def test_inq_for_the_crossbar_has_the_powers_that_lie_on_its_grid_and_no_more_fit(
    bits: int, largest: float
) -> None:
    settings, config = crossbar_inq(ideal(bits)), ideal(bits)
    assert settings.exponents == bits - 1
    _, top = exponent_range(largest, settings.bits)
    held = power_levels(top - settings.exponents + 1, top)
    fit = level_fit(held[None], config, "power_of_two")
    assert fit.relative_error < EXACT
    assert fit.kept == fit.on_grid == 2 * settings.exponents + 1
    more = power_levels(top - settings.exponents, top)
    assert level_fit(more[None], config, "power_of_two").on_grid < len(more)


def test_a_quantizer_with_these_settings_leaves_every_weight_on_the_grid() -> None:
    config, layer = ideal(5), nn.Conv2d(6, 4, 3)
    layer.weight.data = gaussian(4, 6, 3, 3)
    quantizer = INQ(crossbar_inq(config))
    quantizer.attach(layer)
    quantizer.advance(layer, 1.0)
    matrix = layer.weight.detach().reshape(4, -1).T
    fit = level_fit(matrix, config, "power_of_two")
    assert fit.relative_error < EXACT
    assert fit.on_grid == fit.values
    assert level_fit(matrix, config, "largest").relative_error > 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("largest", [1.0, 0.75, 7.0, 3.5, 0.1, 5e-8])
def test_the_power_is_the_smallest_step_that_holds_the_largest_weight(bits: int, largest: float) -> None:
    weight = gaussian(5, 3).clamp(-1, 1) * 0.9
    weight[1, 2] = 1.0
    weight = weight * largest
    biggest = float(weight.abs().max())
    _, step = array_integers(weight, ideal(bits), "power_of_two")
    size, top = float(step[0, 0]), 2 ** (bits - 1) - 1
    assert torch.frexp(step[0, 0])[0] == 0.5
    assert size * top >= biggest > size / 2 * top


def test_uniform_levels_are_held_exactly_and_a_step_per_column_each() -> None:
    weight = torch.tensor([[7, 6, -3, 0, 1], [1, -5, 2, 4, 7]]).T * 0.125
    assert level_fit(weight, ideal(4)).relative_error < 1e-7
    columns = ideal(4).model_copy(update={"scale_per": "column"})
    wide = weight * torch.tensor([1.0, 0.3])
    assert level_fit(wide, columns).relative_error < 1e-7
    assert level_fit(wide, ideal(4)).relative_error > 1e-3


def test_more_bits_never_cost_accuracy_on_nested_grids() -> None:
    weight = gaussian(40, 30)
    errors = [level_fit(weight, ideal(bits), "power_of_two").relative_error for bits in range(2, 17)]
    assert all(after < before for before, after in pairwise(errors))


def test_the_spread_grows_with_sigma_and_with_the_step() -> None:
    weight = torch.tensor([[1.0, 0.5, 0.25]])
    spread = {
        (sigma, step): level_fit(weight, CrossbarConfig(weight_bits=4, sigma=sigma), step).relative_spread
        for sigma in (0.0, 0.1, 0.2)
        for step in STEPS
    }
    assert spread[0.0, "largest"] == spread[0.0, "power_of_two"] == 0.0
    assert spread[0.2, "largest"] == pytest.approx(2 * spread[0.1, "largest"])
    assert spread[0.1, "power_of_two"] > spread[0.1, "largest"]


def _cost(matrix: Tensor, config: CrossbarConfig, magnitudes: tuple[int, ...]) -> float:
    """Expected squared error in steps^2, level by level; the largest weight on the top."""
    table, w = cell_table(config), matrix.abs().double().flatten()
    w = w / w.max() * table.top
    at = torch.tensor(magnitudes) + table.top
    error = (table.mean[at] - w[:, None]).square() + table.variance[at]
    least = torch.where(w == table.top, error[:, -1], error.amin(dim=1))
    return float(least.sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("device", "sigma"), [("FeFET2", 0.0), ("FeFET6", 0.5), ("RRAM4", 1.5)])
@pytest.mark.parametrize("bits", [3, 4])
def test_chosen_levels_are_the_best_of_all_level_sets(
    seed: int, device: str, sigma: float, bits: int
) -> None:
    config = CrossbarConfig(device=device, sigma=sigma, weight_bits=bits)
    matrix, top = gaussian(3, 6, seed=seed), 2 ** (bits - 1) - 1
    for count in range(1, min(top, 5) + 1):
        every = [(*lower, top) for lower in combinations(range(top), count - 1)]
        least = min(_cost(matrix, config, magnitudes) for magnitudes in every)
        chosen = best_levels(matrix, config, count)
        assert chosen in every
        assert _cost(matrix, config, chosen) == pytest.approx(least, rel=1e-6)


def test_levels_of_many_weights_are_no_worse_than_powers_or_even_steps() -> None:
    config, matrix = CrossbarConfig(device="FeFET2", sigma=0.1, weight_bits=6), gaussian(20, 30)
    chosen = best_levels(matrix, config, 6)
    least = _cost(matrix, config, chosen)
    for other in ((1, 2, 4, 8, 16, 31), (0, 6, 12, 19, 25, 31), (0, 2, 4, 8, 16, 31)):
        assert least <= _cost(matrix, config, other)


def test_a_level_that_spreads_less_is_worth_a_larger_distance() -> None:
    # Levels 2 and 3 read back as 1.97 and 2.97; 2.45 lies nearer to the first, which spreads more.
    # 0.48^2 + s (0.0067^2 + 0.0135^2) 100^2 against 0.52^2 + s 2 * 0.0067^2 100^2, s = sigma^2: they cross at 0.17.
    matrix = torch.tensor([[3.0, -2.45]])
    for sigma, wanted in ((0.0, 2.0), (0.15, 2.0), (0.2, 3.0)):
        config = CrossbarConfig(device="FeFET2", weight_bits=3, sigma=sigma)
        assert on_levels(matrix, config, range(4))[0].tolist() == pytest.approx([3.0, -wanted])


def test_weights_on_levels_stay_there_on_the_array() -> None:
    config, matrix = ideal(4), gaussian(20, 8)
    put = on_levels(matrix, config, (0, 2, 7))
    assert sorted(set((put.abs() / matrix.abs().max() * 7).round(decimals=3).flatten().tolist())) == [0, 2, 7]
    assert level_fit(put, config).relative_error < 1e-6


@pytest.mark.parametrize(
    ("config", "count", "words"),
    [
        (ideal(4), 9, r"1\.\.8"),
        (ideal(4), 0, r"1\.\.8"),
        (ideal(4).model_copy(update={"scheme": "offset"}), 3, "differential"),
        (ideal(4).model_copy(update={"scale_per": "column"}), 3, "scale_per"),
    ],
)
def test_levels_that_cannot_be_chosen_are_refused(config: CrossbarConfig, count: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        best_levels(gaussian(3, 3), config, count)


def test_matrices_and_magnitudes_that_make_no_sense_are_refused() -> None:
    for call in (
        lambda: level_fit(torch.zeros(2, 2), ideal(4)),
        lambda: best_levels(torch.zeros(2, 2), ideal(4), 2),
        lambda: on_levels(gaussian(2, 2), ideal(4), (0, 1, 6)),
        lambda: on_levels(gaussian(2, 2), ideal(4), (1, 7, 8)),
        lambda: on_levels(gaussian(2, 2), ideal(4), ()),
        lambda: array_integers(
            gaussian(2, 2), ideal(4).model_copy(update={"scale_per": "column"}), "power_of_two"
        ),
    ):
        with pytest.raises(ConfigError):
            call()


def _layers() -> nn.Sequential:
    convolutions = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(6, 3, (3, 1), padding=2, dilation=2, padding_mode="reflect", bias=False),
        nn.Conv2d(3, 5, 1),
    )
    for index, conv in enumerate(convolutions):
        conv.weight.data = gaussian(*conv.weight.shape, seed=index)
    return convolutions.eval()


@torch.no_grad()
def test_reference_columns_leave_the_network_what_it_is() -> None:
    model, x = _layers(), gaussian(2, 4, 11, 9)
    wide = with_reference_columns(model, ideal(4), ["0", "1", "2"])
    assert close(wide(x), model(x))
    assert isinstance(model[0], nn.Conv2d)
    assert [part.conv.out_channels for part in wide.children()] == [8, 4, 6]  # type: ignore[union-attr]


@torch.no_grad()
def test_powers_of_two_are_held_exactly_by_the_chip_that_has_reference_columns() -> None:
    model, config, x = _layers(), ideal(5), gaussian(2, 4, 11, 9)
    INQ(settings := crossbar_inq(config)).attach(model)
    INQ(settings).advance(model, 1.0)
    plain = on_crossbars(model, config, torch.Generator().manual_seed(0))
    powers = on_crossbars(
        model, config, torch.Generator().manual_seed(0), dict.fromkeys("012", "power_of_two")
    )
    wanted = model(x)
    assert close(powers(x), wanted)
    assert float((plain(x) - wanted).norm() / wanted.norm()) > 0.02


def test_the_reference_column_does_not_widen_the_adc_of_the_others() -> None:
    model = _layers()
    config = ideal(4).model_copy(update={"adc_bits": 8})
    chip = on_crossbars(model, config, torch.Generator().manual_seed(0), {"2": "power_of_two"})
    layer = chip.get_submodule("2.conv")
    matrix = layer.crossbar.read_weight()[0]  # type: ignore[union-attr,operator]
    reach = layer.crossbar.state_dict()["reach"][0, 0, 0]  # type: ignore[union-attr,operator]
    assert matrix[:, -1].norm() > 0
    assert float(reach[0]) == pytest.approx(float(matrix[:, :-1].norm(dim=0).max()), rel=1e-6)


def test_the_step_is_a_power_only_where_that_errs_less() -> None:
    model = _layers()
    assert set(steps_by_error(model, ideal(5)).values()) == {"largest"}
    INQ(settings := crossbar_inq(ideal(5))).attach(model)
    INQ(settings).advance(model, 1.0)
    assert steps_by_error(model, ideal(5)) == dict.fromkeys("012", "power_of_two")
    noisy = CrossbarConfig(device="RRAM1", weight_bits=5, sigma=1.0)
    assert steps_by_error(model, noisy) == dict.fromkeys("012", "largest")


def test_a_module_that_is_no_convolution_is_refused() -> None:
    with pytest.raises(ModelError, match="'3' is no convolution of the model; allowed: 0, 1, 2"):
        with_reference_columns(_layers(), ideal(4), ["3"])


def test_the_papers_seven_bits_lose_their_small_powers_on_few_levels() -> None:
    layer = nn.Conv2d(16, 16, 3)
    layer.weight.data = gaussian(16, 16, 3, 3) * 0.1
    quantizer = INQ(INQSettings(bits=7))
    quantizer.attach(layer)
    quantizer.advance(layer, 1.0)
    matrix = layer.weight.detach().reshape(16, -1).T
    fits = [level_fit(matrix, ideal(bits), "power_of_two") for bits in (4, 6, 8)]
    assert fits[0].values > 2 * 5  # more than five powers are in use
    for bits, fit in zip((4, 6, 8), fits, strict=True):
        assert fit.on_grid <= 2 * (bits - 1) + 1
    assert fits[0].zeroed > fits[1].zeroed > fits[2].zeroed > 0


@torch.no_grad()
def test_a_network_on_its_best_levels_is_held_exactly_and_errs_less_with_more_levels() -> None:
    model, errors = _layers(), []
    for count in (2, 4, 8):
        placed = with_best_levels(model, ideal(4), count)
        chip = on_crossbars(placed, ideal(4), torch.Generator().manual_seed(0))
        x = gaussian(2, 4, 11, 9)
        assert close(chip(x), placed(x))
        pairs = list(zip(placed.children(), model.children(), strict=True))
        assert all(
            len(torch.unique(matrix.abs())) <= count for after, _ in pairs for matrix in _matrices(after)
        )
        errors.append(sum(float((a.weight - b.weight).square().sum()) for a, b in pairs))  # type: ignore[union-attr,operator]
    assert errors[0] > errors[1] > errors[2] > 0
    # All eight magnitudes: nothing but rounding to the nearest is left, group by group.
    nearest = 0.0
    for conv in model:
        for matrix in _matrices(conv):
            step = matrix.abs().max() / 7
            nearest += float(((matrix / step).round() * step - matrix).square().sum())
    assert errors[2] == pytest.approx(nearest, rel=1e-4)


def _matrices(conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return matrix_of(conv)
