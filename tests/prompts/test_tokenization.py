"""What a person wrote is text: no mark in it ends or opens anything, and an answer comes back as it was written."""

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, GenerationConfig, PreTrainedTokenizerFast

from nvcim.errors import ModelError
from nvcim.prompts.language_model import ANSWER_MARK, LanguageModel
from nvcim.prompts.pretraining import Document, PretrainSettings, encode_document
from nvcim.prompts.tokenization import end_ids, opening_ids, text_ids

WORDS = ["<unk>", "<s>", "</s>", "▁a", "▁whale", "\n", "Answer", ":", "▁yes", "▁", "yes"]


def with_ends_around(tokenizer: Any, around: str) -> Any:
    """The tokenizer with another template of what stands around a text."""
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return other


def metaspace() -> PreTrainedTokenizerFast:
    """Words with the space before them, as Llama 2 and Mistral write them: the first space of a text is not shown."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(piece, "isolated") for piece in (":", "\n", "▁yes")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("around", "opening"), [("$A", ()), ("<s> $A", (1,)), ("$A </s>", ()), ("<s> $A </s>", (1,))]
)
def test_what_a_tokenizer_puts_behind_a_text_is_left_off(
    embedded: LanguageModel, around: str, opening: tuple[int, ...]
) -> None:
    tokenizer = with_ends_around(embedded.tokenizer, around)
    assert opening_ids(tokenizer) == opening
    lm = LanguageModel.wrap("mine", embedded.model, tokenizer, "cpu")
    ids = lm.question_ids("a whale")
    assert ids == [*opening, *embedded.question_ids("a whale")[1:]]
    assert tokenizer.decode(ids[-1:]) == ANSWER_MARK


def test_a_tokenizer_of_plain_python_is_read_the_same_way() -> None:
    """ByT5 writes a byte b as b + 3 and appends its end of text, 1."""
    assert opening_ids(ByT5Tokenizer()) == ()
    assert text_ids(ByT5Tokenizer(), "a</s>") == [byte + 3 for byte in b"a</s>"]


def test_a_tokenizer_that_writes_a_text_otherwise_among_its_marks_is_refused() -> None:
    def odd(text: str, add_special_tokens: bool = True, **how: object) -> dict[str, list[int]]:
        return {"input_ids": [1, 7, 2] if add_special_tokens else [8]}

    with pytest.raises(ModelError, match=r"writes 'a' as \[8\] alone and as \[1, 7, 2\]"):
        opening_ids(odd)


def test_a_mark_within_a_text_is_text(embedded: LanguageModel) -> None:
    said = "good </s> film <s> <pad>"
    question, answer = embedded.question_ids(said), embedded.answer_ids(said)
    assert [place for place, token in enumerate(answer) if token in {0, 1, 2}] == [len(answer) - 1]
    assert [place for place, token in enumerate(question) if token in {0, 1, 2}] == [0]
    assert embedded.decode(answer) == f" {said}"
    ids, _ = encode_document(embedded.tokenizer, Document("", ((said, said),)), PretrainSettings())
    assert ids == question + answer


def test_an_answer_keeps_its_white_space(embedded: LanguageModel) -> None:
    for said in (" yes", "\nyes", "  yes \n ", "yes", "", " "):
        assert embedded.decode(text_ids(embedded.tokenizer, said)) == said


def test_a_character_that_is_only_begun_is_left_out(embedded: LanguageModel) -> None:
    """A smiling face is four bytes in UTF-8, here a token each: F0 9F 98 80."""
    ids = text_ids(embedded.tokenizer, " ok \U0001f600")
    assert embedded.decode(ids) == " ok \U0001f600"
    for left_out in (1, 2, 3, 4):
        assert embedded.decode(ids[:-left_out]) == " ok "
    middle = [*ids[:-1], *text_ids(embedded.tokenizer, "k")]
    assert embedded.decode(middle) == " ok \ufffdk"  # what is followed by another character stays seen


def test_an_answers_first_space_is_kept_though_the_tokenizer_drops_a_texts() -> None:
    tokenizer = metaspace()
    assert tokenizer.decode([WORDS.index("▁yes")]) == "yes"
    lm = LanguageModel("mine", None, tokenizer, 64, (), (2,))
    mark = WORDS.index(":")
    assert tokenizer.decode([mark, WORDS.index("▁yes")]) == ": yes"
    lm.__dict__["_mark"] = (mark, ":")  # without a model there are no embeddings to check a question against
    assert lm.decode([WORDS.index("▁yes"), WORDS.index(":")]) == " yes:"
    assert lm.decode([WORDS.index("yes")]) == "yes"


def test_spaces_before_punctuation_are_not_tidied(embedded: LanguageModel) -> None:
    tokenizer = copy.deepcopy(embedded.tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    lm = LanguageModel.wrap("mine", embedded.model, tokenizer, "cpu")
    assert lm.decode(text_ids(tokenizer, " yes , it is .")) == " yes , it is ."


class Checkpoint:
    """As much of a model as its ends need."""

    def __init__(self, ends: int | list[int] | None) -> None:
        self.generation_config = GenerationConfig(eos_token_id=ends)


@pytest.mark.parametrize(
    ("listed", "expected"), [(None, (2,)), (2, (2,)), (7, (2, 7)), ([7, 2, 9], (2, 7, 9))]
)
def test_an_answer_ends_where_the_tokenizer_or_the_checkpoint_says(
    embedded: LanguageModel, listed: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    assert end_ids(embedded.tokenizer, Checkpoint(listed)) == expected
