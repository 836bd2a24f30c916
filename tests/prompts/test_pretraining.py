"""Pre-training of the embedded LM: reproducible documents, tokenizer and weights."""

import itertools
from typing import Any

import pytest
import torch

from nvcim.data.users import INSTRUCTIONS, UserSettings, generate_users
from nvcim.errors import DataError
from nvcim.prompts.language_model import ANSWER_MARK, LanguageModel
from nvcim.prompts.pretraining import (
    ANSWER_ROOM,
    GENERATED_INSTRUCTIONS,
    Document,
    PretrainSettings,
    corpus_documents,
    encode_document,
    generated_documents,
    instructions_of,
    new_model,
    pretrain,
    train_tokenizer,
)

TINY = PretrainSettings(
    vocabulary=500, hidden=16, layers=1, heads=2, intermediate=24, steps=4, batch=2, context=128
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    documents = itertools.islice(generated_documents(TINY, 0), 60)
    texts = [f"{given} {said}" for document in documents for given, said in document.samples]
    return train_tokenizer(texts, GENERATED_INSTRUCTIONS, TINY.vocabulary)


def trained(
    tokenizer: Any, seed: int, settings: PretrainSettings = TINY
) -> tuple[dict[str, torch.Tensor], float]:
    model = new_model(tokenizer, settings, seed)
    loss = pretrain(model, tokenizer, generated_documents(settings, seed), settings, lambda *_: None)
    return model.state_dict(), loss


def test_the_same_seed_gives_the_same_weights_bit_by_bit(tokenizer: Any) -> None:
    (first, loss), (again, loss_again), (other, _) = (trained(tokenizer, seed) for seed in (5, 5, 6))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert loss == loss_again
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_training_lowers_the_loss_of_answers(tokenizer: Any) -> None:
    losses: list[float] = []
    settings = TINY.model_copy(update={"steps": 40, "batch": 4})
    model = new_model(tokenizer, settings, 0)
    before = torch.get_rng_state()
    pretrain(
        model, tokenizer, generated_documents(settings, 0), settings, lambda _, loss: losses.append(loss)
    )
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert not model.training
    assert torch.equal(before, torch.get_rng_state())


def test_the_tokenizer_turns_each_instruction_into_one_token(tokenizer: Any) -> None:
    for instruction in INSTRUCTIONS.values():
        bos, one, *rest = tokenizer(f"{instruction} a whale")["input_ids"]
        assert bos == tokenizer.bos_token_id
        assert tokenizer.decode([one]) == instruction
        assert tokenizer.decode(rest).strip() == "a whale"
    assert len(tokenizer(ANSWER_MARK, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer) <= TINY.vocabulary


def test_the_tokenizer_takes_any_text_and_gives_it_back(tokenizer: Any) -> None:
    text = "naïve 鲸鱼 \t <odd> Answer: 🐋"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_shipped_model_has_the_instructions_as_tokens(embedded: LanguageModel) -> None:
    for instruction in INSTRUCTIONS.values():
        assert len(embedded.question_ids(f"{instruction} x")) <= 5


def test_answers_weigh_1_and_the_rest_the_text_weight(tokenizer: Any) -> None:
    document = Document("about me : i am fair .", (("first ?", "yes"), ("second ?", "no")))
    ids, weights = encode_document(tokenizer, document, TINY)
    assert len(ids) == len(weights)
    heavy = [i for i, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(heavy) == " yes</s> no</s>"
    assert {weight for weight in weights if weight != 1.0} == {TINY.text_weight}
    text = tokenizer.decode(ids)
    asked = [f"<s>{q}{ANSWER_MARK} {a}</s>" for q, a in document.samples]
    assert text == document.about + "".join(asked)


def test_a_document_is_encoded_as_questions_are_asked(embedded: LanguageModel) -> None:
    given, said = f"{INSTRUCTIONS['LaMP_3']} the price is awful .", "1"
    ids, _ = encode_document(embedded.tokenizer, Document("", ((given, said),)), PretrainSettings())
    assert ids == embedded.question_ids(given) + embedded.answer_ids(said)


def test_a_long_question_leaves_room_for_its_answer(tokenizer: Any) -> None:
    document = Document("", (("whale " * 300, "the answer"), ("never reached", "at all")))
    ids, weights = encode_document(tokenizer, document, TINY)
    assert len(ids) <= TINY.context
    heavy = [i for i, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(heavy) == " the answer</s>"
    assert len(ids) > TINY.context - ANSWER_ROOM


def test_documents_depend_on_the_seed_and_their_number_alone() -> None:
    first = list(itertools.islice(generated_documents(TINY, 1), 40))
    assert first[:10] == list(itertools.islice(generated_documents(TINY, 1), 10))
    assert first != list(itertools.islice(generated_documents(TINY, 2), 40))
    assert all(1 <= len(document.samples) <= TINY.samples for document in first)
    assert 0 < sum(bool(document.about) for document in first) < 40
    never = TINY.model_copy(update={"personas": 0.0, "blank": 1.0})
    plain = list(itertools.islice(generated_documents(never, 1), 20))
    assert all(document.about == "" and len(document.samples) == 1 for document in plain)


def test_a_corpus_gives_runs_of_a_users_own_samples() -> None:
    users = generate_users(3, UserSettings(period=4), seed=0)
    histories = {
        tuple((s.input, s.output) for s in user.history[start : start + count])
        for user in users
        for count in range(1, 5)
        for start in range(len(user.history))
    }
    found = list(itertools.islice(corpus_documents(users, TINY, 0), 30))
    assert all(document.samples in histories for document in found)
    assert len({document.samples for document in found}) > 10


def test_a_corpus_without_histories_is_refused() -> None:
    with pytest.raises(DataError, match="no user has a history"):
        next(corpus_documents([], TINY, 0))


def test_instructions_are_found_in_streams() -> None:
    users = generate_users(4, UserSettings(period=2), seed=0)
    assert instructions_of(users) == sorted(INSTRUCTIONS.values())
