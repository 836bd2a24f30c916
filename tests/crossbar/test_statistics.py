"""Statistics of writes: where the cells of each level land, and that no draw knows of another.

The distance of an empirical distribution of n draws from the true one exceeds d with a probability of at most
2 exp(-2 n d^2) (Dvoretzky, Kiefer and Wolfowitz; constant by Massart, 1990): d = sqrt(ln(2e8) / (2 n)) is passed by
chance in 1 of 10^8 checks. Means and deviations are held to 6 standard errors, rarer than 1e-8 as well.
"""

import math

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.counter_rng import normals, uniforms
from nvcim.devices import load_catalogue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


NAMES = [name for name, cell in load_catalogue().items() if max(cell.level_sigma) > 0]
COUNT = 200


def distance_to_normal(drawn: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's distance of draws from the standard normal distribution."""
    ordered = torch.special.ndtr(drawn.flatten().double().sort().values)
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())


def allowed(count: int) -> float:
    return math.sqrt(math.log(2e8) / (2 * count))


def at_level(name: str, level: int, sigma: float, unit: str) -> Crossbar:
    """COUNT^2 weights that sit at one level of their only cell; the first is at the top and keeps the scale."""
    cell = load_catalogue()[name]
    config = CrossbarConfig.model_validate(
        {
            **{"device": name, "sigma": sigma, "sigma_unit": unit, "weight_bits": cell.bits + 1},
            **{"scheme": "one_sided", "dac_bits": None, "adc_bits": None},
        }
    )
    weight = torch.full((COUNT, COUNT), float(level))
    weight[0, 0] = cell.levels - 1
    return Crossbar.program(weight, config, generator(level))


@pytest.mark.parametrize("unit", ["full_range", "level_step"])
@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_each_level_have_its_mean_its_sigma_and_the_shape_of_a_gaussian(
    name: str, unit: str
) -> None:
    cell = load_catalogue()[name]
    if cell.bits == 1:  # 2-bit weights: the smallest there are
        assert at_level(name, 1, 0.1, unit).config.mapping().top == 1
    levels = range(cell.levels) if cell.levels <= 4 else (0, 1, 40, 128, 200, 255)
    step = 1.0 if unit == "full_range" else 1 / (cell.levels - 1)
    for level in levels:
        crossbar = at_level(name, level, 0.1, unit)
        cells = crossbar.cells()
        assert bool((cells.levels[0, 0].flatten()[1:] == level).all())
        sigma = cell.level_sigma[level] * 10 * step
        drawn = (cells.conductance[0, 0].flatten()[1:].double() - cell.level_conductance[level]) / sigma
        count = len(drawn)
        assert abs(float(drawn.mean())) < 6 / math.sqrt(count) + 1e-6 / sigma
        assert abs(float(drawn.std()) - 1) < 6 / math.sqrt(2 * count) + 1e-6 / sigma
        assert distance_to_normal(drawn) < allowed(count)
        # Beyond 4 sigma, where a distance says little: a Poisson count of mean 2.5, above 18 in 1 of 10^10 cases; and
        # 32-bit words give sqrt(2 ln 2^33) = 6.76 at most.
        assert int((drawn.abs() > 4).sum()) <= 18
        assert float(drawn.abs().max()) < 6.77
        # the array, made in one pass, holds the same cells
        leak = 0.0 if not cell.g_min or not cell.g_max else cell.g_min / (cell.g_max - cell.g_min)
        held = crossbar.read_weight() / (cell.levels - 1)
        assert torch.allclose(held, cells.conductance[0, 0], atol=2e-6 * (1 + leak))


def test_statistics_of_normals_hold_over_streams_indices_and_keys() -> None:
    keys = torch.tensor([0, 1, 2**62, 2**63 - 2])
    for purpose in (0, 1, 0x10000, 0x60003):
        drawn = normals(keys, purpose, torch.tensor([0, 5, 2**31, 2**40]), 997, 11)
        assert distance_to_normal(drawn) < allowed(drawn.numel())
        skew, tail = drawn.double().pow(3).mean(), drawn.double().pow(4).mean()
        # standard errors of the third and fourth moments: sqrt(15 / n) and sqrt(96 / n)
        assert abs(float(skew)) < 6 * math.sqrt(15 / drawn.numel())
        assert abs(float(tail) - 3) < 6 * math.sqrt(96 / drawn.numel())


def test_statistics_of_uniforms_are_flat() -> None:
    drawn = uniforms(torch.arange(4), 7, torch.zeros(4, dtype=torch.int64), 10_000).flatten().double()
    steps = torch.arange(len(drawn) + 1, dtype=torch.float64) / len(drawn)
    ordered = drawn.sort().values
    assert float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()) < allowed(len(drawn))


def test_statistics_of_neighbouring_draws_show_no_relation() -> None:
    # by position (also at the lag of one Philox counter's words), index, stream and key
    drawn = normals(torch.arange(20, 24), 3, torch.zeros(4, dtype=torch.int64), 4096, 8).double()
    pairs = [(drawn[..., :-lag], drawn[..., lag:]) for lag in (1, 2, 3, 4, 16, 32, 48, 64)]
    pairs += [(drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:])]
    other = normals(torch.arange(20, 24), 4, torch.zeros(4, dtype=torch.int64), 4096, 8).double()
    pairs.append((drawn, other))
    for one, two in pairs:
        for power in (1, 2):  # Box and Muller's two share a radius: their squares must not be related either
            both = torch.stack([one.pow(power).flatten(), two.pow(power).flatten()])
            assert abs(float(torch.corrcoef(both)[0, 1])) < 6 / math.sqrt(both.shape[1])


def test_statistics_of_cells_show_no_relation_between_planes_devices_and_writes() -> None:
    config = CrossbarConfig(device="RRAM4", dac_bits=None, adc_bits=None)
    crossbar = Crossbar.program(torch.ones(2, 80, 50), config, generator())
    drawn = []
    for _ in range(3):
        cells = crossbar.cells()
        nominal = cells.levels / 3
        drawn.append((cells.conductance - nominal).reshape(2 * 8, -1))
        crossbar.rewrite(torch.ones(2, 80, 50))
    series = torch.cat(drawn)
    correlation = torch.corrcoef(series) - torch.eye(len(series))
    assert float(correlation.abs().max()) < 6 / math.sqrt(4000)


def test_statistics_of_a_weights_error_follow_its_slices_in_every_scheme() -> None:
    # Expected: the sum over planes of (factor * sigma of the level)^2, averaged over the weights there are.
    for scheme in ("differential", "offset", "one_sided"):
        config = CrossbarConfig.model_validate(
            {"device": "RRAM4", "scheme": scheme, "sigma": 0.1, "dac_bits": None, "adc_bits": None}
        )
        weight = normal(200, 200).abs()
        crossbar = Crossbar.program(weight, config, generator())
        clean = Crossbar.program(weight, config.model_copy(update={"sigma": 0.0}), generator())
        error = (crossbar.read_weight() - clean.read_weight()).double()
        sigma = torch.tensor(config.cell().level_sigma, dtype=torch.float64) * 10 / 3
        factors = [piece.factor for piece in config.mapping().slices] * len(config.mapping().signs)
        levels = crossbar.cells().levels[0]
        variance = sum((sigma[plane] * f) ** 2 for plane, f in zip(levels, factors, strict=True))
        scaled = error / (variance.sqrt() * float(weight.max()) / 127)
        assert distance_to_normal(scaled) < allowed(40_000)
        assert abs(float(scaled.std()) - 1) < 6 / math.sqrt(2 * 40_000)
