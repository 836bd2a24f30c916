"""Attention split into layers, and its products on arrays that are written per call."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvcim.analog import AnalogLinear, AnalogProducts, SplitAttention, analogize
from nvcim.analog.attention import DigitalProducts
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError
from tests.closeness import close

FINE = CrossbarConfig.ideal(16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def randomised(module: nn.Module) -> nn.Module:
    stream = generator(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=stream))
    return module.eval()


@pytest.mark.parametrize(
    "kwargs", [{"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 4, "batch_first": True}], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_split_attention_computes_what_torchs_does(kwargs: dict, masked: bool) -> None:
    attention = randomised(nn.MultiheadAttention(8, 2, **kwargs))
    shapes = [(3, 5, 8), (3, 7, kwargs.get("kdim", 8)), (3, 7, kwargs.get("vdim", 8))]
    inputs = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if not kwargs.get("batch_first"):
        inputs = [x.transpose(0, 1) for x in inputs]
    masks = {}
    if masked:
        hidden = torch.zeros(3, 7, dtype=torch.bool)
        hidden[1, 4:] = True
        masks = {"key_padding_mask": hidden, "attn_mask": normal(6, 5, 7) > 1.5}
    split = SplitAttention(attention)
    for own, expected in zip(split(*inputs, **masks), attention(*inputs, **masks), strict=True):
        assert close(own, expected, 5e-6)


def test_split_attention_takes_one_sequence_and_can_leave_out_the_weights() -> None:
    attention, x = randomised(nn.MultiheadAttention(8, 2)), normal(5, 8)
    y, weights = SplitAttention(attention)(x, x, x, need_weights=False)
    assert close(y, attention(x, x, x)[0], 5e-6)
    assert weights is None


@pytest.mark.parametrize("mode", [True, False])
def test_a_transformer_converts_whole_and_runs_in_either_mode(mode: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(randomised(layer), 2)
    converted = analogize(encoder, FINE, generator()).train(mode)
    attention = converted.get_submodule("layers.0.self_attn")
    assert isinstance(attention, SplitAttention)
    assert isinstance(attention.q_proj, AnalogLinear)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        own = converted(normal(2, 5, 8), src_key_padding_mask=hidden)
        expected = encoder.train()(normal(2, 5, 8), src_key_padding_mask=hidden)
    assert torch.allclose(own[0], expected[0], atol=5e-3)
    assert torch.allclose(own[1, :3], expected[1, :3], atol=5e-3)


def test_attention_with_added_keys_stays_digital() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert isinstance(analogize(model, FINE, generator())[1], nn.MultiheadAttention)


def test_skipped_attention_stays_digital() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    converted = analogize(model, FINE, generator(), skip=["self_attn"])
    assert isinstance(converted.self_attn, nn.MultiheadAttention)


def test_ideal_products_attend_as_digital_ones_do() -> None:
    q, k, v, mask = normal(2, 4, 5, 8), normal(2, 4, 7, 8, seed=1), normal(2, 4, 7, 8, seed=2), normal(5, 7)
    expected = DigitalProducts()(q, k, v, mask, 0.3)
    for own, other in zip(AnalogProducts(FINE, generator())(q, k, v, mask, 0.3), expected, strict=True):
        assert torch.allclose(own, other, atol=1e-3)


def test_query_heads_share_the_arrays_of_their_group() -> None:
    q, k, v = normal(2, 6, 5, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 8, seed=2)
    products = AnalogProducts(FINE, generator())
    repeated = [x.repeat_interleave(3, dim=1) for x in (k, v)]
    expected = functional.scaled_dot_product_attention(q, *repeated, scale=0.3)
    assert torch.allclose(products(q, k, v, None, 0.3)[0], expected, atol=1e-3)
    weights = 2 * 2 * 7 * 8 * 2  # batch, key heads, keys, d; K and V
    assert products.writes.cells == weights * FINE.mapping().cells
    with pytest.raises(ConfigError, match="evenly"):
        products(q[:, :5], k, v, None, 0.3)


def test_each_call_writes_anew_and_is_counted() -> None:
    config = CrossbarConfig(sigma=0.1, adc_bits=None)
    q, k = normal(1, 2, 3, 4), normal(1, 2, 6, 4, seed=1)
    products, twin = AnalogProducts(config, generator()), AnalogProducts(config, generator())
    first, second = (products(q, k, k, None, 0.5)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.equal(twin(q, k, k, None, 0.5)[0], first)
    assert products.writes.calls == 2
    assert products.writes.pulses == products.writes.cells == 2 * 2 * 48 * config.mapping().cells


def test_write_verify_costs_more_pulses_and_so_a_shorter_life() -> None:
    verified = CrossbarConfig(device="RRAM1", sigma=0.1, programming={"method": "write_verify"})
    products = AnalogProducts(verified, generator())
    products(normal(1, 1, 3, 4), normal(1, 1, 6, 4), normal(1, 1, 6, 4), None, 0.5)
    assert products.writes.pulses > products.writes.cells
    endurance = verified.cell().endurance
    assert (
        products.calls_until_worn() is None if endurance is None else products.calls_until_worn() < endurance
    )


def test_products_pass_gradients_to_queries_keys_and_values() -> None:
    inputs = [normal(1, 2, 3, 4, seed=seed).requires_grad_() for seed in range(3)]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    upstream = normal(1, 2, 3, 4, seed=4)
    AnalogProducts(FINE, generator())(*inputs, None, 0.5)[0].backward(upstream)
    DigitalProducts()(*twins, None, 0.5)[0].backward(upstream)
    for own, twin in zip(inputs, twins, strict=True):
        assert torch.allclose(own.grad, twin.grad, atol=1e-3)


def test_write_counts_and_draws_go_on_after_a_state_dict() -> None:
    config = CrossbarConfig(sigma=0.1)
    products, other = AnalogProducts(config, generator()), AnalogProducts(config, generator(9))
    q = normal(1, 2, 3, 4)
    products(q, q, q, None, 0.5)
    other.load_state_dict(products.state_dict())
    assert other.writes == products.writes
    assert torch.equal(other(q, q, q, None, 0.5)[0], products(q, q, q, None, 0.5)[0])


def test_calibrated_converters_are_refused_for_arrays_of_one_call() -> None:
    with pytest.raises(ConfigError, match="calibrated"):
        AnalogProducts(CrossbarConfig(adc_scaling="calibrated"), generator())
