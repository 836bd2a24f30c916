"""Hugging Face models on crossbars: tiny, random, no download."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, T5Config, T5EncoderModel

from nvcim.analog import AnalogLinear, analogize, analogize_for_training, with_analog_attention
from nvcim.analog.attention import AnalogProducts
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError

FINE = CrossbarConfig.ideal(16)
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(model: nn.Module) -> nn.Module:
    stream = generator(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=stream))
    return model.eval()


def llama() -> nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return randomised(LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)))


def gpt2() -> nn.Module:
    return randomised(
        GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16))
    )


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_ideal_language_model_keeps_its_logits(make: object) -> None:
    model = make()
    converted = analogize(model, FINE, generator())
    with torch.no_grad():
        assert torch.allclose(converted(TOKENS).logits, model(TOKENS).logits, atol=5e-3)


def test_gpt2s_transposed_linear_layers_are_converted() -> None:
    converted = analogize(gpt2(), FINE, generator())
    layer = converted.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(layer, AnalogLinear)
    assert layer.crossbar.shape == (16, 48)


def test_a_tied_head_has_cells_of_its_own_and_the_embedding_stays() -> None:
    converted = analogize(llama(), FINE, generator())
    assert isinstance(converted.lm_head, AnalogLinear)
    assert isinstance(converted.model.embed_tokens, nn.Embedding)


def test_a_model_that_asks_its_layers_weight_for_its_type_converts() -> None:
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=30)
    model = randomised(T5EncoderModel(config))
    converted = analogize(model, FINE, generator())
    with torch.no_grad():
        own, expected = (m(TOKENS).last_hidden_state for m in (converted, model))
    assert torch.allclose(own, expected, atol=5e-3)


def test_generation_with_a_cache_runs_on_crossbars() -> None:
    model = llama()
    converted = analogize(model, FINE, generator())
    both = [
        m.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (model, converted)
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_ideal_attention_products_keep_the_logits(make: object) -> None:
    model = make()
    converted = with_analog_attention(model, FINE, generator())
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    with torch.no_grad():
        own, expected = (m(TOKENS, attention_mask=mask).logits for m in (converted, model))
    assert torch.allclose(own[0], expected[0], atol=5e-3)
    assert torch.allclose(own[1, :3], expected[1, :3], atol=5e-3)
    assert model.config._attn_implementation != converted.config._attn_implementation


def test_a_group_of_query_heads_costs_one_write() -> None:
    converted = with_analog_attention(llama(), CrossbarConfig(), generator())
    converted(TOKENS)
    products = [module for module in converted.modules() if isinstance(module, AnalogProducts)]
    assert len(products) == 2
    # batch 2, 2 key heads, 5 keys of length 4, K and V
    assert products[0].writes.cells == 2 * 2 * 5 * 4 * 2 * CrossbarConfig().mapping().cells


def test_layers_draw_their_own_writes() -> None:
    products = [
        m
        for m in with_analog_attention(llama(), CrossbarConfig(), generator()).modules()
        if isinstance(m, AnalogProducts)
    ]
    assert int(products[0].seed) != int(products[1].seed)


def test_projections_and_products_can_both_be_analog() -> None:
    both = with_analog_attention(analogize(llama(), FINE, generator()), FINE, generator(1))
    with torch.no_grad():
        assert torch.allclose(both(TOKENS).logits, llama()(TOKENS).logits, atol=1e-2)


def test_torchs_attention_takes_analog_products_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    converted = with_analog_attention(randomised(layer), FINE, generator())
    x = torch.randn(2, 5, 8, generator=generator(1))
    with torch.no_grad():
        assert torch.allclose(converted(x), layer.train()(x), atol=5e-3)
    assert converted.self_attn.products.writes.calls == 1


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="no attention"):
        with_analog_attention(nn.Linear(3, 2), FINE, generator())


def test_a_language_model_trains_with_its_crossbars_in_the_loop() -> None:
    model = analogize_for_training(llama(), CrossbarConfig(sigma=0.05), generator()).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model(TOKENS, labels=TOKENS).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
