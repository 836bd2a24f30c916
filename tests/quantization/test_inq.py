import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import INQ, INQSettings, quantizer_settings_from
from nvcim.quantization.base import parametrization_of
from nvcim.quantization.inq import INQWeight, exponent_range, power_levels, round_to_powers


@pytest.mark.parametrize(
    ("largest", "bits", "expected"),
    [
        (1.0, 5, (-7, 0)),  # floor(log2(4/3)) = 0; 0 + 1 - 16/2 = -7
        (0.75, 5, (-7, 0)),  # 4s/3 = 1 exactly
        (0.7499, 5, (-8, -1)),
        (1.5, 3, (0, 1)),  # 4s/3 = 2 exactly; 1 + 1 - 4/2 = 0
        (0.3, 3, (-3, -2)),  # 4s/3 = 0.4
        (3.0, 2, (2, 2)),  # one power: ternary
        (1.0, 7, (-31, 0)),
        (0.0, 4, (-3, 0)),
    ],
)
def test_the_papers_exponents_by_hand(largest: float, bits: int, expected: tuple[int, int]) -> None:
    assert exponent_range(largest, INQSettings(bits=bits).powers) == expected


@pytest.mark.parametrize(("bits", "exponents"), [(7, 4), (3, 3), (8, 127)])
def test_the_number_of_exponents_can_be_chosen(bits: int, exponents: int) -> None:
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[1.0, 0.26, 0.001, -0.5]])
    quantizer = INQ(INQSettings(bits=bits, exponents=exponents))
    quantizer.attach(layer)
    quantizer.advance(layer, 1.0)
    levels = quantizer.levels(layer)
    assert levels.shape == (2 * exponents + 1,)
    assert float(levels[-1]) == 1.0
    # The smallest power is 2^(1 - exponents); 0.001 is below half of it until 2^-10 is a level.
    assert layer.weight[0].tolist() == [1.0, 0.25, 2.0**-10 if exponents > 10 else 0.0, -0.5]


def test_more_exponents_than_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 bits hold at most 3 exponents, given: 4"):
        quantizer_settings_from({"kind": "inq", "bits": 3, "exponents": 4}, "test")


def test_levels_by_hand() -> None:
    assert power_levels(-2, 0).tolist() == [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    assert len(power_levels(*exponent_range(1.0, 8))) == 2**4 + 1


def test_rounding_by_hand() -> None:
    # Levels 0, 1/4, 1/2, 1: edges at 1/8 (half the smallest power), 3/8, 3/4.
    weight = torch.tensor([0.1249, 0.125, 0.3749, 0.375, 0.7499, 0.75, 1.4, -0.3, -0.8, 0.0, 5.0])
    expected = [0.0, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, -0.25, -1.0, 0.0, 1.0]
    assert round_to_powers(weight, -2, 0).tolist() == expected


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.integers(2, 7))
def test_rounding_follows_the_papers_rule(values: list[float], bits: int) -> None:
    weight = torch.tensor(values)
    bottom, top = exponent_range(float(weight.abs().max()), 2 ** (bits - 2))
    levels = [0.0] + [2.0**e for e in range(bottom, top + 1)]

    def by_the_rule(w: float) -> float:
        for alpha, beta in itertools.pairwise(levels):
            if (alpha + beta) / 2 <= abs(w) < 3 * beta / 2:
                return beta if w > 0 else -beta
        return 0.0

    assert round_to_powers(weight, bottom, top).tolist() == [by_the_rule(w) for w in weight.tolist()]


def test_largest_weights_freeze_first() -> None:
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[0.1, -1.0, 0.6, 0.3]])
    quantizer = INQ(INQSettings(bits=4))
    quantizer.attach(layer)
    quantizer.advance(layer, 0.5)
    assert layer.weight.tolist()[0] == pytest.approx([0.1, -1.0, 0.5, 0.3])


def test_masks_only_grow_and_frozen_values_never_move() -> None:
    layer = nn.Linear(20, 10)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(layer.weight, generator=generator)
    quantizer = INQ(INQSettings(bits=5))
    quantizer.attach(layer)
    state = parametrization_of(layer)
    assert isinstance(state, INQWeight)
    mask, value = torch.zeros(10, 20, dtype=torch.bool), torch.zeros(10, 20)
    for fraction in (0.3, 0.6, 0.2, 0.8, 1.0):
        quantizer.advance(layer, fraction)
        assert bool(state.frozen[mask].all())
        assert torch.equal(layer.weight[mask], value[mask])
        mask, value = state.frozen.clone(), layer.weight.detach().clone()
        # Whatever an optimiser does to the stored weights, frozen ones read the same.
        original = layer.parametrizations["weight"].original
        original.data += torch.randn(original.shape, generator=generator)
        assert torch.equal(layer.weight[mask], value[mask])
    assert bool(mask.all())


def test_frozen_weights_get_no_gradient() -> None:
    layer = nn.Linear(8, 8, bias=False)
    quantizer = INQ(INQSettings(bits=5))
    quantizer.attach(layer)
    quantizer.advance(layer, 0.5)
    layer(torch.ones(2, 8)).sum().backward()
    state = parametrization_of(layer)
    assert isinstance(state, INQWeight)
    gradient = layer.parametrizations["weight"].original.grad
    assert bool((gradient[state.frozen] == 0).all())
    assert bool((gradient[~state.frozen] != 0).all())
    assert quantizer.frozen_fraction(layer) == 0.5


def test_divergence_is_reported() -> None:
    layer = nn.Linear(2, 2)
    quantizer = INQ()
    quantizer.attach(layer)
    layer.parametrizations["weight"].original.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="diverged"):
        quantizer.advance(layer, 1.0)


@pytest.mark.parametrize("schedule", [(), (0.5,), (0.5, 0.5, 1.0), (0.8, 0.5, 1.0), (0.0, 1.0), (0.5, 1.1)])
def test_schedule_must_rise_to_one(schedule: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        quantizer_settings_from({"kind": "inq", "schedule": schedule}, "test")
