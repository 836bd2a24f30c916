"""What texts look like to the prompt memory."""

import torch
from torch.nn import functional

from nvcim.data.lamp import UserStream
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
