"""Embeddings of texts to cluster: from the LM, or from a tiny random BERT in a folder."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from nvcim.errors import ModelError
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.representation import represent
from nvcim.prompts.sentence_encoder import EmbeddingSource, SentenceEncoder, text_embedder

WORDS = ["whale", "reef", "tide", "broth", "soup", "ladle", "rail", "depot", "ticket", "of", "the", "a"]
TEXTS = ["whale reef", "a ladle of the broth", "the rail of the depot a ticket", "tide"]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[CLS]", "[UNK]", *WORDS])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def save_bert(folder: Path) -> Path:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=3 + len(WORDS), max_position_embeddings=12, **shape))
        model.embeddings.position_embeddings.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_pooling(
    folder: Path, *, steps: tuple[str, ...] = ("Transformer", "Pooling"), **mode: object
) -> None:
    names = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if step == "Transformer" else f"{i}_{step}",
            "type": f"st.{step}",
        }
        for i, step in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(names))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **mode}))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


def token_vectors(folder: Path, text: str) -> torch.Tensor:
    """[CLS] and words through the saved model, one text, no padding."""
    ids = [1, *(3 + WORDS.index(word) for word in text.split())]
    with torch.no_grad():
        hidden: torch.Tensor = (
            BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
        )
    return hidden


def test_a_text_is_the_unit_mean_of_its_tokens_whatever_it_is_padded_to(bert: Path) -> None:
    found = SentenceEncoder.load(str(bert), "cpu").embed(TEXTS)
    expected = torch.stack([functional.normalize(token_vectors(bert, text).mean(0), dim=0) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_texts_keep_their_order_over_batches(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SentenceEncoder.load(str(bert), "cpu")
    whole = encoder.embed(TEXTS)
    monkeypatch.setattr("nvcim.prompts.sentence_encoder.TEXTS_PER_BATCH", 2)
    torch.testing.assert_close(encoder.embed(TEXTS), whole, atol=1e-6, rtol=0)
    assert float(functional.cosine_similarity(whole[0], whole[1], dim=0)) < 0.999  # or order would not show


def test_a_text_longer_than_the_encoder_takes_keeps_its_end(bert: Path) -> None:
    encoder = SentenceEncoder.load(str(bert), "cpu")
    assert encoder.context == 12
    end = "whale reef tide broth soup ladle rail depot ticket of the"
    torch.testing.assert_close(encoder.embed([f"soup {end}"]), encoder.embed([end]), atol=1e-6, rtol=0)


def test_robertas_table_of_positions_is_shorter_by_its_unused_rows(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = RobertaConfig(vocab_size=3 + len(WORDS), max_position_embeddings=12, pad_token_id=0, **shape)
    RobertaModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = SentenceEncoder.load(str(tmp_path), "cpu")
    assert encoder.context == 11
    assert encoder.embed(["whale " * 40]).shape == (1, 16)


def test_the_older_layout_of_sentence_transformers_is_read(tmp_path: Path, bert: Path) -> None:
    save_bert(tmp_path / "old" / "0_Transformer")
    found = SentenceEncoder.load(str(tmp_path / "old"), "cpu").embed(TEXTS)
    torch.testing.assert_close(found, SentenceEncoder.load(str(bert), "cpu").embed(TEXTS))


def test_an_encoder_that_pools_by_its_first_token_does_so_here(bert: Path) -> None:
    save_pooling(bert, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    found = SentenceEncoder.load(str(bert), "cpu").embed(TEXTS)
    expected = torch.stack([functional.normalize(token_vectors(bert, text)[0], dim=0) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_pooling_and_steps_that_are_not_supported_are_refused(bert: Path, tmp_path: Path) -> None:
    save_pooling(bert, pooling_mode_max_tokens=True)
    with pytest.raises(ModelError, match=r"bert' pools by pooling_mode_max_tokens; allowed: mean"):
        SentenceEncoder.load(str(bert), "cpu")
    other = save_bert(tmp_path / "dense")
    save_pooling(other, steps=("Transformer", "Pooling", "Dense"), pooling_mode_mean_tokens=True)
    with pytest.raises(ModelError, match="dense' has a step 'Dense'; allowed"):
        SentenceEncoder.load(str(other), "cpu")


def test_the_lm_gives_the_direction_of_its_mean_hidden_state(embedded: LanguageModel) -> None:
    found = text_embedder(EmbeddingSource(layer=1), embedded)(["a whale", "the broth , a ladle"])
    expected = represent(embedded, ["a whale", "the broth , a ladle"], 1, 1)[:, 0]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(functional.cosine_similarity(found, expected), torch.ones(2))


def test_a_folder_in_place_of_the_lm_is_loaded_as_an_encoder(embedded: LanguageModel, bert: Path) -> None:
    found = text_embedder(EmbeddingSource(source=str(bert)), embedded)(TEXTS)
    torch.testing.assert_close(found, SentenceEncoder.load(str(bert), "cpu").embed(TEXTS))


def test_no_texts_give_no_rows(bert: Path) -> None:
    assert SentenceEncoder.load(str(bert), "cpu").embed([]).shape == (0, 16)


def test_a_folder_that_is_missing_empty_or_broken_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere': no such folder; allowed: 'lm'"):
        SentenceEncoder.load(str(tmp_path / "nowhere"), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty' cannot be loaded"):
        SentenceEncoder.load(str(tmp_path / "empty"), "cpu")
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="bert' cannot be loaded"):
        SentenceEncoder.load(str(bert), "cpu")


def test_an_encoder_without_all_its_weights_is_refused(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"bert' is incomplete: it has no weights 'encoder\.layer\.2"):
        SentenceEncoder.load(str(bert), "cpu")
