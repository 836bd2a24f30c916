"""Models whose shape, padding or tokenizer differ from Llama's: right, or refused by name when they are loaded."""

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForCausalLM,
    ElectraConfig,
    ElectraForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from nvcim.errors import DataError, ModelError
from nvcim.prompts.adapter_files import save_adapter
from nvcim.prompts.baselines.registry import get_baseline
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.representation import represent
from nvcim.prompts.tuning import TuningJob, TuningSettings, tune

TEXTS = ("is it good ?", "a movie about a robot and a dragon and a quick brown fox")
PAIRS = (("is it good ?", "yes"), ("rate this film from 1 to 5", "no , maybe"))
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2}


def made(kind: Any, config: Any) -> Any:
    """A random model whose logits are lively, so that an error shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def wrapped(kind: Any, config: Any, tokenizer: Any) -> LanguageModel:
    return LanguageModel.wrap("mine", made(kind, config), tokenizer, "cpu")


@pytest.fixture(scope="module")
def tokenizer(embedded: LanguageModel) -> Any:
    return copy.deepcopy(embedded.tokenizer)


@pytest.fixture(params=["rwkv", "mamba"])
def recurrent(request: pytest.FixtureRequest, tokenizer: Any) -> LanguageModel:
    if request.param == "mamba":
        return wrapped(
            MambaForCausalLM, MambaConfig(vocab_size=len(tokenizer), **SHAPE, state_size=4, **IDS), tokenizer
        )
    config = RwkvConfig(
        vocab_size=len(tokenizer), **SHAPE, attention_hidden_size=32, context_length=256, **IDS
    )
    return wrapped(RwkvForCausalLM, config, tokenizer)


def virtual_tokens(lm: LanguageModel) -> list[Tensor]:
    draws = torch.randn(2, 3, lm.hidden, generator=torch.Generator().manual_seed(1))
    return list(draws * lm.embedding_rms)


@torch.no_grad()
def whole_reads(lm: LanguageModel, text: str, tokens: Tensor, steps: int) -> str:
    """The likeliest answer, each token from a pass over everything before it, without padding and cache."""
    embedded = torch.cat([tokens[None], lm.embed(torch.tensor([lm.question_ids(text)]))], 1)
    written: list[int] = []
    for _ in range(steps):
        token = int(lm.model(inputs_embeds=embedded, use_cache=False).logits[0, -1].argmax())
        if token in lm.ends:
            break
        written.append(token)
        embedded = torch.cat([embedded, lm.embed(torch.tensor([[token]]))], 1)
    return lm.decode(written)


def test_whether_padding_is_hidden_is_seen_from_the_model(
    tokenizer: Any, recurrent: LanguageModel, embedded: LanguageModel
) -> None:
    assert recurrent.can_pad == (recurrent.model.config.model_type == "mamba")
    assert embedded.can_pad


def test_a_recurrent_models_answers_in_a_batch_are_those_of_whole_reads(recurrent: LanguageModel) -> None:
    sets = virtual_tokens(recurrent)
    got = [one.text for one in generate(recurrent, TEXTS, sets, 5)]
    assert got == [whole_reads(recurrent, text, one, 5) for text, one in zip(TEXTS, sets, strict=True)]


def test_a_recurrent_models_texts_look_the_same_alone_and_in_a_batch(recurrent: LanguageModel) -> None:
    together = represent(recurrent, TEXTS, 2, 1)
    alone = torch.cat([represent(recurrent, [text], 2, 1) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@torch.no_grad()
def test_a_recurrent_models_tuning_loss_is_that_of_each_sample_alone(recurrent: LanguageModel) -> None:
    tokens = virtual_tokens(recurrent)[0]
    losses = []
    for question, answer in PAIRS:
        asked, said = recurrent.question_ids(question), recurrent.answer_ids(answer)
        embedded = torch.cat([tokens[None], recurrent.embed(torch.tensor([asked + said]))], 1)
        logits = recurrent.model(inputs_embeds=embedded).logits[0]
        losses.append(functional.cross_entropy(logits[3 + len(asked) - 1 : -1], torch.tensor(said)))
    with torch.enable_grad():
        (got,) = tune(
            recurrent,
            [TuningJob("j", PAIRS, tokens, torch.ones(3), 0)],
            TuningSettings(tokens=3, steps=1),
        )
    assert got.first_loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21's
def test_tokens_tuned_on_a_model_without_heads_load_in_peft(recurrent: LanguageModel, tmp_path: Any) -> None:
    tokens = virtual_tokens(recurrent)[0]
    save_adapter(tokens, recurrent, tmp_path)
    ids = torch.tensor([recurrent.question_ids(TEXTS[0])])
    with torch.no_grad():
        embedded = torch.cat([tokens[None], recurrent.embed(ids)], 1)
        ours = recurrent.model(inputs_embeds=embedded).logits
        theirs = PeftModel.from_pretrained(copy.deepcopy(recurrent.model), tmp_path).eval()
        got = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(got, ours)


def test_baselines_read_the_text_again_where_a_model_keeps_no_keys(recurrent: LanguageModel) -> None:
    fitted = get_baseline("zero-shot").fit(recurrent, PAIRS, BaselineSettings(), seed=0)
    none = torch.empty(0, recurrent.hidden)
    assert fitted.answer(TEXTS, 4) == [whole_reads(recurrent, text, none, 4) for text in TEXTS]
    with pytest.raises(ModelError, match=r"\((rwkv|mamba)\) takes no keys and values"):
        get_baseline("prefix-tuning").fit(recurrent, PAIRS, BaselineSettings(steps=1), seed=0)


@torch.no_grad()
def test_wide_hidden_states_go_through_the_models_own_map_to_the_embeddings_width(tokenizer: Any) -> None:
    """OPT-350m's shape: embeddings 16 wide, hidden states 32 wide."""
    config = OPTConfig(
        vocab_size=len(tokenizer),
        **SHAPE,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        max_position_embeddings=256,
        **IDS,
    )
    lm = wrapped(OPTForCausalLM, config, tokenizer)
    ids = torch.tensor([lm.question_ids(TEXTS[0])])
    wide = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
    narrow = wide @ lm.model.model.decoder.project_out.weight.T
    pooled = narrow.mean(0, keepdim=True)  # one vector: the mean of the whole text
    expected = pooled * lm.embedding_rms / pooled.square().mean().sqrt()
    torch.testing.assert_close(represent(lm, TEXTS[:1], 1, 1)[0], expected, rtol=1e-4, atol=1e-5)
    assert [represent(lm, TEXTS, 2, layer).shape for layer in range(3)] == [(2, 2, 16)] * 3


def test_other_widths_without_such_a_map_are_refused(tokenizer: Any) -> None:
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        **SHAPE,
        num_attention_heads=4,
        intermediate_size=48,
        is_decoder=True,
    )
    expected = r"\(electra\) has embeddings 16 wide and hidden states 32 wide"
    with pytest.raises(ModelError, match=expected):
        wrapped(ElectraForCausalLM, config, tokenizer)


def test_a_model_that_cannot_answer_behind_virtual_tokens_is_refused(tokenizer: Any) -> None:
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256)
    with pytest.raises(ModelError, match=r"\(openai-gpt\) cannot answer behind virtual tokens"):
        wrapped(OpenAIGPTLMHeadModel, config, tokenizer)


def gpt2(rows: int) -> Any:
    return made(
        GPT2LMHeadModel, GPT2Config(vocab_size=rows, n_embd=32, n_layer=2, n_head=4, n_positions=256, **IDS)
    )


def test_a_pad_token_without_an_embedding_changes_nothing(tokenizer: Any) -> None:
    """As users add one: `tokenizer.add_special_tokens({"pad_token": "[PAD]"})`, the model not resized."""
    added = copy.deepcopy(tokenizer)
    added.add_special_tokens({"pad_token": "[PAD]"})
    assert added.pad_token_id == len(tokenizer)
    model = gpt2(len(tokenizer))
    lm, other = (LanguageModel.wrap("mine", model, one, "cpu") for one in (tokenizer, added))
    torch.testing.assert_close(represent(other, TEXTS, 2, 1), represent(lm, TEXTS, 2, 1))
    torch.testing.assert_close(represent(other, TEXTS, 2, 0), represent(lm, TEXTS, 2, 0))
    sets = virtual_tokens(lm)
    assert generate(other, TEXTS, sets, 4) == generate(lm, TEXTS, sets, 4)
    job = TuningJob("j", PAIRS, sets[0], torch.ones(3), 0)
    first, second = (tune(one, [job], TuningSettings(tokens=3, steps=2))[0] for one in (lm, other))
    assert second.last_loss == pytest.approx(first.last_loss, rel=1e-5)


def test_a_text_with_a_token_that_has_no_embedding_is_refused(tokenizer: Any) -> None:
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["<user>"])
    lm = LanguageModel.wrap("mine", gpt2(len(tokenizer)), added, "cpu")
    for ids_of in (lm.question_ids, lm.answer_ids):
        with pytest.raises(DataError, match=r"'hello <user> you.* the token '<user>' \(id 1253\)"):
            ids_of("hello <user>\nyou")
    assert lm.question_ids("hello user")


def test_an_end_of_text_without_an_embedding_is_refused(tokenizer: Any) -> None:
    added = copy.deepcopy(tokenizer)
    added.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(ModelError, match=r"tokenizer's '<end>' has id 1253, but the model has 1253 embed"):
        LanguageModel.wrap("mine", gpt2(len(tokenizer)), added, "cpu")


def bart(tokenizer: Any) -> LanguageModel:
    """A decoder whose learned positions count masked tokens, too."""
    size = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    config = BartConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **size, **IDS)
    config.forced_eos_token_id = None
    return wrapped(BartForCausalLM, config, tokenizer)


def test_a_model_whose_positions_count_padding_answers_alone_as_in_a_batch(tokenizer: Any) -> None:
    lm = bart(tokenizer)
    assert not lm.can_pad
    together = generate(lm, TEXTS, [None, None], 6)
    for text, one in zip(TEXTS, together, strict=True):
        assert generate(lm, [text], [None], 6)[0].text == one.text


@torch.no_grad()
def test_a_model_that_knows_no_logits_to_keep_learns_the_answers_alone(tokenizer: Any) -> None:
    lm = bart(tokenizer)
    tokens, (question, answer) = virtual_tokens(lm)[0], PAIRS[0]
    asked, said = lm.question_ids(question), lm.answer_ids(answer)
    logits = lm.model(
        inputs_embeds=torch.cat([tokens[None], lm.embed(torch.tensor([asked + said]))], 1)
    ).logits[0]
    expected = functional.cross_entropy(logits[3 + len(asked) - 1 : -1], torch.tensor(said))
    with torch.enable_grad():
        (got,) = tune(
            lm, [TuningJob("j", PAIRS[:1], tokens, torch.ones(3), 0)], TuningSettings(tokens=3, steps=1)
        )
    assert got.first_loss == pytest.approx(float(expected), rel=1e-4)


def test_a_model_whose_own_code_fails_at_generation_is_refused_by_name(tokenizer: Any) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    # All layers are state spaces: transformers' cache then asks for an attention layer that is not there.
    layers = {"attn_layer_period": 8, "attn_layer_offset": 4}
    config = JambaConfig(vocab_size=len(tokenizer), **SHAPE, **heads, **layers, **IDS)
    with pytest.raises(ModelError, match=r"model 'mine' \(jamba\) cannot answer behind virtual tokens"):
        wrapped(JambaForCausalLM, config, tokenizer)
