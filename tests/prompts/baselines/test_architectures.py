"""Every baseline on every architecture: grouped queries, sliding windows, scaled embeddings, absolute positions."""

import pytest

from nvcim.prompts.baselines import BASELINES, BaselineSettings, get_baseline
from nvcim.prompts.language_model import LanguageModel

SAMPLES = [
    ("Which tag does this movie relate to? description: cars chase and explode .", "action"),
    ("Complete the tweet: sailor whale", "reef sang all night"),
]
QUESTIONS = ["whale", SAMPLES[0][0]]
SETTINGS = BaselineSettings(steps=2, prefix_encoder_width=16)


@pytest.mark.parametrize("name", BASELINES)
def test_answers_and_losses_do_not_depend_on_the_batch(name: str, any_lm: LanguageModel) -> None:
    fitted = get_baseline(name).fit(any_lm, SAMPLES, SETTINGS, seed=1)
    assert fitted.answer(QUESTIONS, 3) == [fitted.answer([question], 3)[0] for question in QUESTIONS]
    alone = [fitted.loss([sample]) for sample in SAMPLES]
    assert fitted.loss(SAMPLES) == pytest.approx(sum(alone) / 2, rel=1e-5)
    if name != "zero-shot":
        untrained = get_baseline("zero-shot").fit(any_lm, SAMPLES, SETTINGS, seed=1)
        assert fitted.loss(SAMPLES) != pytest.approx(untrained.loss(SAMPLES), rel=1e-5)
