"""Write-verify: a pulse is a fresh Gaussian draw, and a cell takes pulses until it lies within the tolerance.

So the pulses of a cell are geometric with p = erf(tolerance / (sigma sqrt 2)), cut off at max_pulses = m, and where it
ends is a Gaussian truncated at the tolerance, with the share (1 - p)^m that never arrived left outside of it, each at
the nearest of its pulses.
Bounds are 6 standard errors: a false alarm rarer than 1e-8 for each check.
"""

import math

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig

# Devices without ageing data warn when they age.
pytestmark = pytest.mark.filterwarnings("ignore:device .* its drift")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


STEP = 1 / 3  # between the levels of RRAM4


def verified(
    tolerance: float, max_pulses: int = 20, method: str = "write_verify", **fields: object
) -> CrossbarConfig:
    programming = {"method": method, "tolerance": tolerance, "max_pulses": max_pulses}
    if "share" in fields:
        programming["share"] = fields.pop("share")
    base = {"device": "RRAM4", "sigma": 0.1, "weight_bits": 3, "programming": programming}
    return CrossbarConfig.model_validate({**base, "dac_bits": None, "adc_bits": None, **fields})


def at_one_level(config: CrossbarConfig, level: int, count: int = 200) -> Crossbar:
    """Many weights whose positive side sits at one level of its only cell; one at the top keeps the scale."""
    weight = torch.full((count, count), float(level))
    weight[0, 0] = 3.0
    return Crossbar.program(weight, config, generator(level))


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("tolerance", [0.05, 0.15, 0.3])
def test_statistics_of_pulses_are_geometric(tolerance: float, level: int) -> None:
    config = verified(tolerance, max_pulses=255)
    pulses = at_one_level(config, level).cells().pulses
    assert pulses is not None
    drawn = pulses[0, 0].flatten()[1:].double()
    sigma = config.cell().level_sigma[level] * 10 * STEP
    p = math.erf(tolerance * STEP / (sigma * math.sqrt(2)))
    count = len(drawn)
    # geometric: mean 1/p, deviation sqrt(1-p)/p; the cut at 255 is beyond (1 - 0.066)^255 = 3e-8
    assert abs(float(drawn.mean()) - 1 / p) < 6 * math.sqrt(1 - p) / p / math.sqrt(count) + 1e-4
    for number in (1, 2, 3, 5):
        share = p * (1 - p) ** (number - 1)
        found = float((drawn == number).double().mean())
        assert abs(found - share) < 6 * math.sqrt(share * (1 - share) / count) + 6 / count


@pytest.mark.parametrize("max_pulses", [1, 2, 5])
def test_statistics_of_cells_that_run_out_of_pulses(max_pulses: int) -> None:
    config = verified(0.1, max_pulses)
    cells = at_one_level(config, 1).cells()
    assert cells.pulses is not None
    assert int(cells.pulses.max()) == max_pulses
    sigma = config.cell().level_sigma[1] * 10 * STEP
    p = math.erf(0.1 * STEP / (sigma * math.sqrt(2)))
    outside = ((cells.conductance[0, 0] - STEP).abs() > 0.1 * STEP).flatten()[1:].double()
    share = (1 - p) ** max_pulses
    assert abs(float(outside.mean()) - share) < 6 * math.sqrt(share * (1 - share) / len(outside))


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("tolerance", [0.05, 0.15, 0.3])
def test_statistics_of_verified_cells_are_a_truncated_gaussian(tolerance: float, level: int) -> None:
    config = verified(tolerance, max_pulses=255)
    reached = at_one_level(config, level).cells().conductance[0, 0].flatten()[1:].double() - level * STEP
    sigma = config.cell().level_sigma[level] * 10 * STEP
    a = tolerance * STEP / sigma
    p = math.erf(a / math.sqrt(2))
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    variance = sigma**2 * (1 - 2 * a * density / p)
    assert float(reached.abs().max()) <= tolerance * STEP * 1.0001
    count = len(reached)
    assert abs(float(reached.mean())) < 6 * math.sqrt(variance / count)
    # the fourth moment of a bounded variable is at most that bound^2 times its second
    scatter = math.sqrt((tolerance * STEP) ** 2 * variance / count)
    assert abs(float(reached.square().mean()) - variance) < 6 * scatter


def test_cells_within_the_tolerance_keep_their_first_pulse() -> None:
    once, again = (Crossbar.program(normal(60, 40), verified(0.2, m), generator()).cells() for m in (1, 20))
    assert again.pulses is not None
    same = again.pulses == 1
    assert torch.equal(once.conductance[same], again.conductance[same])
    assert not torch.equal(once.conductance, again.conductance)


def test_a_tighter_tolerance_reads_closer_and_wears_more() -> None:
    weight = normal(60, 40)
    errors, pulses = [], []
    for tolerance in (1.0, 0.3, 0.1, 0.03):
        crossbar = Crossbar.program(weight, verified(tolerance, 255, weight_bits=8), generator())
        errors.append(float((crossbar.read_weight() - weight).norm()))
        pulses.append(float(crossbar.wear().double().mean()))
    assert errors == sorted(errors, reverse=True)
    assert pulses == sorted(pulses)


def test_without_variation_one_pulse_each_is_enough() -> None:
    pulses = Crossbar.program(normal(20, 10), verified(0.01, sigma=0.0), generator()).cells().pulses
    assert pulses is not None
    assert bool((pulses == 1).all())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_selective_writes_exactly_its_share_of_every_device(share: float) -> None:
    # so tight a tolerance that a pulse hits it with p < 1e-4, both cells of a weight at once with p < 1e-8
    config = verified(1e-6, 3, "selective", share=share)
    weight, importance = normal(2, 40, 30), normal(2, 40, 30, seed=3)
    pulses = Crossbar.program(weight, config, generator(), importance).cells().pulses
    assert pulses is not None
    chosen = (pulses > 1).any(dim=1)
    for device in range(2):
        ranked = importance[device].flatten().argsort(descending=True)[: round(share * 1200)]
        assert torch.equal(chosen[device].flatten().nonzero().flatten(), ranked.sort().values)


def test_selective_takes_the_largest_weights_where_no_importance_is_given() -> None:
    weight = normal(40, 30)
    config = verified(1e-6, 3, "selective", share=0.2)
    pulses = Crossbar.program(weight, config, generator()).cells().pulses
    assert pulses is not None
    chosen = (pulses > 1).any(dim=1)[0]
    assert float(weight.abs()[chosen].min()) >= float(weight.abs()[~chosen].max())
    assert int(chosen.sum()) == 240


def test_selective_lies_between_open_loop_and_write_verify() -> None:
    weight = normal(80, 40)
    errors = []
    for method in ("open_loop", "selective", "write_verify"):
        crossbar = Crossbar.program(
            weight, verified(0.05, 100, method, share=0.3, weight_bits=8), generator()
        )
        errors.append(float((crossbar.read_weight() - weight).square().sum()))
    assert errors[0] > 1.1 * errors[1] > 1.1 * 1.1 * errors[2]


@pytest.mark.parametrize("method", ["open_loop", "selective", "write_verify"])
def test_wear_adds_up_over_rewrites(method: str) -> None:
    crossbar = Crossbar.program(normal(2, 20, 10), verified(0.1, 9, method), generator())
    total = crossbar.wear().clone()
    assert total.shape == (2, 2, 20, 10)
    for seed in range(1, 4):
        crossbar.rewrite(normal(2, 20, 10, seed=seed))
        pulses = crossbar.cells().pulses
        total = total + (1 if pulses is None else pulses.int())
        assert torch.equal(crossbar.wear(), total)
    crossbar.age(100.0)
    assert torch.equal(crossbar.wear(), total)


def test_every_rewrite_is_a_draw_of_its_own() -> None:
    weight = normal(60, 40)
    crossbar = Crossbar.program(weight, verified(0.1, 9), generator())
    errors = []
    for _ in range(3):
        errors.append((crossbar.read_weight() - weight).flatten())
        crossbar.rewrite(weight)
    # 2400 weights share their quantisation error, which is taken off by differences of draws
    first, second = errors[0] - errors[1], errors[1] - errors[2]
    # cov(a - b, b - c) = -var, var(a - b) = 2 var: a correlation of -1/2; 6 standard errors of 1/sqrt(n)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1]) + 0.5) < 6 / math.sqrt(2400)


def test_stuck_cells_stay_stuck_however_often_they_are_verified() -> None:
    crossbar = Crossbar.program(normal(60, 40), verified(0.2, 7, stuck_on=0.1, stuck_off=0.1), generator())
    first = crossbar.cells()
    crossbar.rewrite(normal(60, 40, seed=1))
    second = crossbar.cells()
    assert first.stuck is not None
    assert second.stuck is not None
    assert torch.equal(first.stuck, second.stuck)
    assert not torch.equal(first.levels, second.levels)
    for cells in (first, second):
        assert bool((cells.conductance[cells.stuck == 1] == 1).all())
        assert bool((cells.conductance[cells.stuck == -1] == 0).all())


def test_a_cell_that_never_arrives_keeps_its_nearest_pulse() -> None:
    # Nothing lies within 1e-6 of a step, so each cell ends at the nearest of m Gaussian pulses. For 8 of them the mean
    # of min |z| is the integral of erfc(x / sqrt 2)^8 over x from 0 (scipy.integrate.quad).
    config = verified(1e-6, max_pulses=8)
    cells = at_one_level(config, 1).cells()
    sigma = config.cell().level_sigma[1] * 10 * STEP
    off = ((cells.conductance[0, 0] - STEP).abs() / sigma).flatten()[1:].double()
    assert float(off.mean()) == pytest.approx(0.14141, rel=6 / math.sqrt(len(off)))
    assert cells.pulses is not None
    assert float((cells.pulses[0, 0] == 8).double().mean()) > 0.999


def test_more_pulses_never_leave_a_cell_further_off() -> None:
    last = None
    for pulses in (1, 2, 5, 20):
        cells = at_one_level(verified(0.02, pulses), 1).cells()
        off = (cells.conductance[0, 0] - STEP).abs().flatten()[1:]
        assert last is None or bool((off <= last).all())
        last = off


@pytest.mark.parametrize("device", ["FeFET2", "FeFET6"])
def test_sigma_of_the_full_range_is_verified_to_a_thirtieth_of_a_step(device: str) -> None:
    settings = {"device": device, "sigma_unit": "full_range", "weight_bits": 8}
    config = verified(0.05, **settings)
    cells = Crossbar.program(normal(150, 150), config, generator()).cells()
    nominal = torch.tensor(config.cell().level_conductance)[cells.levels]
    off = (cells.conductance - nominal) * 3  # level steps
    # evenly within 0.05: 0.029; the 4 % that never arrive lie near it
    assert 0.028 < float(off.square().mean().sqrt()) < 0.035
