"""Virtual tokens' keys and values, kept, give what the model computes when it reads the tokens again."""

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from nvcim.errors import ModelError
from nvcim.prompts import prefix_cache
from nvcim.prompts.generation import Batch
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.prefix_cache import GrowingLayer, PrefixCache
from tests.closeness import close

TEXTS = (
    "the conductor at the depot , a ticket and a brake in the tunnel , the price is awful",
    "a",
    "broth , a sourdough , a knife",
    "the staff were superb",
)


def virtual_tokens(lm: LanguageModel, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, lm.hidden, generator=torch.Generator().manual_seed(seed)) * lm.embedding_rms


@torch.no_grad()
def whole_logits(lm: LanguageModel, tokens: Tensor | None, ids: list[int]) -> Tensor:
    """Of the last token of a text read whole, with no cache of any kind."""
    text = lm.embed(torch.tensor([ids]))
    whole = text if tokens is None else torch.cat([tokens[None], text], dim=1)
    logits: Tensor = lm.model(inputs_embeds=whole, use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@torch.no_grad()
def test_logits_are_those_of_each_row_read_whole(any_lm: LanguageModel, cached: bool) -> None:
    """Rows without tokens and of different n share the batch; the tiny Gemmas' window of 16 is left behind."""
    rows = [any_lm.question_ids(text) for text in TEXTS]
    tokens = [virtual_tokens(any_lm, 20), virtual_tokens(any_lm, 3, 1), None, virtual_tokens(any_lm, 7, 2)]
    assert len({len(row) for row in rows}) > 2
    prefixes = PrefixCache(any_lm).of(tokens) if cached else [None] * 4
    batch = Batch(any_lm, rows, tokens, prefixes, steps=4)
    for step in range(4):
        logits = batch.advance()
        for row, token, got in zip(rows, tokens, logits, strict=True):
            torch.testing.assert_close(got, whole_logits(any_lm, token, row), atol=1e-5, rtol=1e-5)
        following = torch.tensor([3 + step, 5, 6 + step, 7])
        rows = [[*row, int(new)] for row, new in zip(rows, following, strict=True)]
        batch.next_ids = following


@torch.no_grad()
def test_rows_that_stay_are_not_touched_by_those_that_leave(any_lm: LanguageModel) -> None:
    rows = [any_lm.question_ids(text) for text in TEXTS]
    tokens = [virtual_tokens(any_lm, 4, seed) for seed in range(4)]
    batch = Batch(any_lm, rows, tokens, PrefixCache(any_lm).of(tokens), steps=3)
    batch.advance()
    batch.next_ids = torch.tensor([5, 6, 7, 8])
    batch.keep(torch.tensor([1, 3]))
    for row, token, got in zip((rows[1] + [6], rows[3] + [8]), tokens[1::2], batch.advance(), strict=True):
        torch.testing.assert_close(got, whole_logits(any_lm, token, row), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prefix_is_what_the_models_own_cache_holds(any_lm: LanguageModel) -> None:
    tokens = virtual_tokens(any_lm, 6)
    (prefix,) = PrefixCache(any_lm).of([tokens])
    assert prefix is not None
    theirs = DynamicCache()
    any_lm.model(inputs_embeds=tokens[None], past_key_values=theirs, use_cache=True)
    config = any_lm.model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert prefix.keys.shape[:3] == (config.num_hidden_layers, heads, 6)
    assert len(prefix) == 6
    for layer, states in enumerate(theirs.layers):
        assert isinstance(states, DynamicLayer)
        assert states.keys is not None
        assert states.values is not None
        assert close(prefix.keys[layer], states.keys[0])
        assert close(prefix.values[layer], states.values[0])


def test_tokens_are_computed_once(embedded: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    original = prefix_cache.compute_prefixes

    def counting(lm: LanguageModel, tokens: Tensor) -> list[prefix_cache.Prefix]:
        computed.append(len(tokens))
        return original(lm, tokens)

    monkeypatch.setattr(prefix_cache, "compute_prefixes", counting)
    cache = PrefixCache(embedded)
    one, other, longer = (virtual_tokens(embedded, n, seed) for n, seed in ((4, 0), (4, 1), (6, 2)))
    first = cache.of([one, None, other, one.clone(), longer])
    assert computed == [2, 1]  # both of 4 tokens together, then the one of 6; equal content counts as one
    assert first[0] is first[3]
    assert first[1] is None
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 3)
    again = cache.of([longer, one])
    assert computed == [2, 1]
    assert again[0] is first[4]
    assert again[1] is first[0]
    assert (cache.hits, cache.misses) == (2, 3)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_what_is_unused_for_longest_goes_first(embedded: LanguageModel) -> None:
    # 4 layers x 4 heads x 5 tokens x 32 wide x 4 bytes, keys and values
    each = 2 * 4 * 4 * 5 * 32 * 4
    cache = PrefixCache(embedded, capacity=2 * each + each // 2)
    a, b, c = (virtual_tokens(embedded, 5, seed) for seed in range(3))
    cache.of([a])
    assert cache.nbytes == each
    cache.of([b])
    cache.of([a])
    cache.of([c])  # b leaves
    assert cache.nbytes == 2 * each
    cache.of([a, c])
    assert (cache.hits, cache.misses) == (3, 3)
    cache.of([b])
    assert (cache.hits, cache.misses) == (3, 4)


def test_a_cache_too_small_for_one_prefix_still_answers(embedded: LanguageModel) -> None:
    cache = PrefixCache(embedded, capacity=10)
    (prefix,) = cache.of([virtual_tokens(embedded, 5)])
    assert prefix is not None
    assert (len(cache), cache.nbytes) == (0, 0)
    with pytest.raises(ValueError, match="capacity is -1 bytes; at least 0"):
        PrefixCache(embedded, capacity=-1)


def test_a_model_whose_rotation_changes_with_length_is_refused(dynamic_lm: LanguageModel) -> None:
    assert not dynamic_lm.can_cache_prefix
    with pytest.raises(ModelError, match="cannot be computed apart from a question"):
        PrefixCache(dynamic_lm)


def test_a_layer_keeps_rows_apart_while_it_shifts_and_grows() -> None:
    layer = GrowingLayer(0, [None, None], columns=0, room=5)
    states = torch.arange(1.0, 7.0).view(2, 1, 3, 1)
    layer.update(states, -states)
    layer.shift(torch.tensor([0, 2]))  # the second row's two last columns were padding
    keys, values = layer.update(torch.full((2, 1, 1, 1), 9.0), torch.full((2, 1, 1, 1), 9.0))
    assert keys[0, 0, :, 0].tolist() == [1, 2, 3, 9]
    assert keys[1, 0, 2:, 0].tolist() == [4, 9]
    assert values[1, 0, 2:, 0].tolist() == [-4, 9]
    layer.keep(torch.tensor([1]))
    assert layer.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))[0][0, 0, 2:, 0].tolist() == [4, 9, 1]
    assert layer.get_seq_length() == 5
