"""What texts look like to the prompt memory."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from nvcim.data.lamp import UserStream
from nvcim.errors import ConfigError
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.representation import represent


def test_a_text_looks_the_same_alone_and_in_a_batch(any_lm: LanguageModel) -> None:
    texts = ["a whale", "the conductor at the depot , a ticket and a brake in the tunnel", "broth"]
    for layer in (0, 1):
        together = represent(any_lm, texts, 4, layer)
        assert together.shape == (3, 4, any_lm.hidden)
        for i, text in enumerate(texts):
            alone = represent(any_lm, [text], 4, layer)[0]
            torch.testing.assert_close(together[i], alone, atol=1e-4 * any_lm.embedding_rms, rtol=1e-3)


def test_layer_0_is_the_mean_of_equal_stretches_of_the_text(embedded: LanguageModel) -> None:
    ids = embedded.question_ids("sailor whale reef lagoon tide")[:]
    half = len(ids) // 2
    ids_text = embedded.embed(torch.tensor(ids))
    expected = torch.stack([ids_text[: len(ids) - half].mean(0), ids_text[half:].mean(0)])
    found = represent(embedded, ["sailor whale reef lagoon tide"], 2, 0)[0]
    cosine = functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert float(cosine) > 0.9999
    assert float(found.square().mean().sqrt()) - embedded.embedding_rms < 1e-5


def test_texts_of_one_domain_lie_nearer_than_those_of_another(
    embedded: LanguageModel, users: list[UserStream]
) -> None:
    near, far = [], []
    for user in users:
        vectors = functional.normalize(
            represent(embedded, [s.input for s in user.history], 5, 2).flatten(1), dim=1
        )
        cosine = vectors @ vectors.T
        domains = [sample.domain for sample in user.history]
        for i, one in enumerate(domains):
            for j, other in enumerate(domains[:i]):
                (near if one == other else far).append(float(cosine[i, j]))
    assert sum(near) / len(near) > sum(far) / len(far)


def test_a_text_longer_than_the_context_keeps_its_end(embedded: LanguageModel) -> None:
    long = "whale " * 700 + "the end"
    found = represent(embedded, [long], 3, 1)
    assert torch.isfinite(found).all()
    more = represent(embedded, ["whale " * 50 + long], 3, 1)
    torch.testing.assert_close(found, more)


def test_a_text_keeps_its_place_and_its_vectors_over_batches_of_any_make_up(
    embedded: LanguageModel, users: list[UserStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [sample.input for user in users for sample in user.history][:20]
    assert len({len(embedded.question_ids(text)) for text in texts}) > 5
    for layer, bound in ((0, 0.0), (2, 1e-5)):
        together = represent(embedded, texts, 4, layer)
        monkeypatch.setattr("nvcim.prompts.representation.TEXTS_PER_BATCH", 3)
        apart = represent(embedded, texts, 4, layer)
        backwards = represent(embedded, texts[::-1], 4, layer).flip(0)
        monkeypatch.undo()
        for other in (apart, backwards):
            assert float((together - other).abs().max()) <= bound * embedded.embedding_rms


def test_a_bfloat16_model_gives_float32_vectors_near_those_of_its_float32_twin(
    embedded: LanguageModel, users: list[UserStream]
) -> None:
    texts = [sample.input for sample in users[0].history]
    half = replace(embedded, name="half", model=deepcopy(embedded.model).to(torch.bfloat16))
    found = represent(half, texts, 4, 2)
    assert found.dtype == torch.float32
    cosine = functional.cosine_similarity(found.flatten(1), represent(embedded, texts, 4, 2).flatten(1))
    assert float(cosine.min()) > 0.999
    alone = torch.cat([represent(half, [text], 4, 2) for text in texts])
    assert float((found - alone).abs().max()) < 0.1 * half.embedding_rms


def test_no_texts_give_no_vectors(embedded: LanguageModel) -> None:
    assert represent(embedded, [], 4, 1).shape == (0, 4, embedded.hidden)


def test_a_layer_that_the_lm_does_not_have_is_refused(embedded: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="field 'layer' is 5; model 'embedded' has layers 0 to 4"):
        represent(embedded, ["a whale"], 4, 5)
