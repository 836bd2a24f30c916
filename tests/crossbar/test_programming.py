"""What a write does: statistics per level, persistence, seeds, independence of devices.

Statistical bounds: for n draws the sample deviation of a Gaussian scatters by sigma / sqrt(2 n), its mean by
sigma / sqrt(n). Bounds are 6 of these: a false alarm in fewer than 1 of 10^8 per check, for any seed.
"""

import math

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.programming import Writing, write_cells
from nvcim.devices import load_catalogue
from nvcim.errors import ConfigError, DeviceError
from tests.closeness import close

DRAWS = 40_000
NAMES = list(load_catalogue())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("unit", ["full_range", "level_step"])
@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_hit_with_its_own_sigma(name: str, unit: str) -> None:
    cell = load_catalogue()[name]
    bits = min(cell.bits, 4) + 1  # one slice; of the many levels of some devices, 16
    config = CrossbarConfig.model_validate(
        {"device": name, "sigma": 0.1, "sigma_unit": unit, "weight_bits": bits, "slice_bits": [bits - 1]}
    )
    integers = torch.arange(2 ** (bits - 1), dtype=torch.int16).repeat_interleave(DRAWS).reshape(1, -1, 1)
    key, none = torch.tensor([77]), torch.tensor([0])
    cells = write_cells(Writing(integers, torch.ones(1, 1, 1), key, none, None), config)
    step = 1.0 if unit == "full_range" else 1.0 / (cell.levels - 1)
    for levels, reached in zip(
        cells.levels[0, 0].split(DRAWS), cells.conductance[0, 0].split(DRAWS), strict=True
    ):
        level = int(levels[0])
        sigma = cell.level_sigma[level] * 10 * step
        assert abs(float(reached.std()) - sigma) <= 6 * sigma / math.sqrt(2 * DRAWS) + 1e-6
        miss = abs(float(reached.double().mean()) - cell.level_conductance[level])
        assert miss <= 6 * sigma / math.sqrt(DRAWS) + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_weight_error_is_the_sum_of_the_errors_of_its_cells(name: str) -> None:
    # One value everywhere, so that each slice has one level: the variance can be added by hand.
    cell = load_catalogue()[name]
    config = CrossbarConfig(device=name, sigma=0.1, sigma_unit="full_range", dac_bits=None, adc_bits=None)
    crossbar = Crossbar.program(torch.ones(200, 200), config, generator(1))
    bits, spare = cell.bits, -7 % cell.bits
    digits = [((127 << spare) >> (bits * i)) % 2**bits for i in range((7 + spare) // bits)]
    factors = [(2**bits - 1) * 2.0 ** (bits * i - spare) / 127 for i in range(len(digits))]
    both = [cell.level_sigma[digit] ** 2 + cell.level_sigma[0] ** 2 for digit in digits]
    sigma = 10 * math.sqrt(sum(f**2 * s for f, s in zip(factors, both, strict=True)))
    found = float(crossbar.read_weight().std())
    assert abs(found - sigma) <= 6 * sigma / math.sqrt(2 * 200 * 200) + 1e-6


def test_draw_persists_between_reads() -> None:
    crossbar = Crossbar.program(normal(40, 30), CrossbarConfig(), generator())
    x = normal(5, 40, seed=1)
    assert torch.equal(crossbar.matmul(x), crossbar.matmul(x))
    assert torch.equal(crossbar.read_weight(), crossbar.read_weight())


def test_reprogramming_draws_anew_and_the_seed_repeats_it() -> None:
    weight, stream = normal(20, 20), generator(5)
    first, second = (Crossbar.program(weight, CrossbarConfig(), stream).read_weight() for _ in range(2))
    again = Crossbar.program(weight, CrossbarConfig(), generator(5)).read_weight()
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_leading_dimensions_are_independent_devices() -> None:
    weight = normal(40, 30).expand(3, 2, 40, 30)
    crossbar = Crossbar.program(weight, CrossbarConfig(), generator())
    errors = (crossbar.read_weight() - weight).reshape(6, -1)
    correlation = torch.corrcoef(errors) - torch.eye(6)
    # The error's expectation depends on the weight only through FeFET2's leakage, which is far smaller.
    assert float(correlation.abs().max()) < 0.2


def test_a_device_is_the_same_alone_as_among_others() -> None:
    weight, x = normal(3, 37, 21), normal(3, 4, 37, seed=9)
    config = CrossbarConfig(rows=16, cols=8, read_noise=0.05)
    together = Crossbar.program(weight, config, [generator(seed) for seed in range(3)])
    alone = [Crossbar.program(weight[i], config, generator(i)) for i in range(3)]
    assert torch.equal(together.read_weight(), torch.stack([c.read_weight() for c in alone]))
    expected = torch.stack([c.matmul(part) for c, part in zip(alone, x, strict=True)])
    assert close(together.matmul(x), expected)


def test_scale_belongs_to_one_device() -> None:
    weight = torch.stack([normal(10, 10), 1000 * normal(10, 10)])
    config = CrossbarConfig.ideal()
    crossbar = Crossbar.program(weight, config, generator())
    small = Crossbar.program(weight[0], config, generator())
    assert torch.equal(crossbar.read_weight()[0], small.read_weight())


def test_a_scale_per_column_keeps_small_columns_precise() -> None:
    weight = normal(50, 2) * torch.tensor([1.0, 1000.0])
    errors = []
    for scale_per in ("device", "column"):
        config = CrossbarConfig.ideal().model_copy(update={"scale_per": scale_per})
        read = Crossbar.program(weight, config, generator()).read_weight()
        errors.append(float((read - weight)[:, 0].abs().max()))
    assert errors[1] < 0.02
    assert errors[0] > 20 * errors[1]


def test_tile_shape_does_not_change_the_cells() -> None:
    weight = normal(70, 50)
    read = [
        Crossbar.program(weight, CrossbarConfig(rows=rows, cols=cols), generator()).read_weight()
        for rows, cols in [(128, 128), (7, 3), (70, 50), (1, 1)]
    ]
    assert all(torch.equal(read[0], other) for other in read[1:])


def test_the_catalogue_of_a_user_serves_a_crossbar(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "devices:\n  - {name: Mine, technology: PCM, bits: 3, source: test, "
        "level_sigma: [0, 0, 0, 0, 0, 0, 0, 0]}\n",
        encoding="utf-8",
    )
    config = CrossbarConfig(device="Mine", catalogue=path, dac_bits=None, adc_bits=None)
    weight = normal(9, 5)
    step = float(weight.abs().max()) / 127
    error = (Crossbar.program(weight, config, generator()).read_weight() - weight).abs().max()
    assert float(error) <= 0.501 * step


def test_unknown_device_is_refused_at_programming() -> None:
    with pytest.raises(DeviceError, match=r"Memristor9.*allowed: RRAM1"):
        Crossbar.program(normal(2, 2), CrossbarConfig(device="Memristor9"), generator())


@pytest.mark.parametrize(
    ("weight", "complaint"),
    [
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinity"),
        (torch.zeros(0, 3), "each at least 1"),
        (torch.zeros(0, 3, 3), "each at least 1"),
        (torch.zeros(3), "each at least 1"),
        (torch.ones(3, 3, dtype=torch.int64), "floating point"),
    ],
)
def test_weights_that_no_cell_can_hold_are_refused(weight: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Crossbar.program(weight, CrossbarConfig(), generator())


def test_generators_must_match_devices() -> None:
    with pytest.raises(ConfigError, match="2 generators were given for 3 devices"):
        Crossbar.program(normal(3, 2, 2), CrossbarConfig(), [generator(), generator()])


def test_zero_weights_read_exactly_zero() -> None:
    weight = torch.stack([torch.zeros(6, 4), normal(6, 4)])
    crossbar = Crossbar.program(weight, CrossbarConfig(read_noise=0.1), generator())
    y = crossbar.matmul(normal(3, 6))
    assert not y[0].any()
    assert bool(y[1].any())
    assert bool(torch.isfinite(y).all())


def test_tiny_and_huge_weights_stay_finite() -> None:
    for size in (1e-30, 1e30):
        crossbar = Crossbar.program(normal(6, 4) * size, CrossbarConfig.ideal(), generator())
        assert torch.allclose(crossbar.read_weight(), normal(6, 4) * size, atol=0.02 * size)


def test_cells_past_their_endurance_are_counted(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "devices:\n  - {name: Frail, technology: RRAM, bits: 2, source: test, level_sigma: 0.01, endurance: 2,"
        " sources: {endurance: test}}\n",
        encoding="utf-8",
    )
    crossbar = Crossbar.program(normal(6, 4), CrossbarConfig(device="Frail", catalogue=path), generator())
    crossbar.rewrite(normal(6, 4, seed=1))
    assert not crossbar.worn_out().any()
    crossbar.rewrite(normal(6, 4, seed=2))
    assert int(crossbar.wear().min()) == 3
    assert bool(crossbar.worn_out().all())
    with pytest.raises(ConfigError, match="FeFET2: endurance is unknown"):
        Crossbar.program(normal(6, 4), CrossbarConfig(), generator()).worn_out()
