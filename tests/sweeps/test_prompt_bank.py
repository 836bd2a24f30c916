"""Tuned prompts keep their codes until a trial programs them, and noise costs what it must."""

from pathlib import Path

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import DataError, RunError
from nvcim.prompts.autoencoder import AutoencoderSettings
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.selection import SelectionSettings
from nvcim.prompts.tuning import TuningSettings
from nvcim.sweeps.prompt_bank import PromptBank, tune_bank
from nvcim.sweeps.space import TrialPoint
from nvcim.sweeps.trial import prompt_score

EXACT = CrossbarConfig(device="RRAM4", dac_bits=None, adc_bits=None)
USERS = generate_users(2, UserSettings(domains=2, period=6, queries_per_domain=2), seed=1)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """The prompts of two users, tuned a little for a random LM: what counts here is how they are stored."""
    settings = PromptSettings(
        buffer=6,
        selection=SelectionSettings(k=2),
        layer=1,
        max_new_tokens=4,
        tuning=TuningSettings(steps=2),
        autoencoder=AutoencoderSettings(code=16, steps=5),
    )
    lm = LanguageModel.load(str(tiny_lm), "cpu")
    personaliser = Personaliser.fit(lm, [s for u in USERS for s in u.history], settings, seed=0)
    steps: list[tuple[int, int]] = []
    made = tune_bank(USERS, personaliser, EXACT, 3, lambda *step: steps.append(step))
    assert steps
    place = tmp_path_factory.mktemp("bank")
    made.save(place)
    return place


def test_a_bank_holds_a_set_per_representative_and_every_query(bank: Path) -> None:
    stored = PromptBank.load(bank)
    assert {s.user_id for s in stored.sets} == {user.user_id for user in USERS}
    assert len(stored.sets) == 2 * 2 * 2  # users, buffers, representatives
    assert stored.queries == tuple(query for user in USERS for query in user.queries)


def test_programming_without_variation_gives_the_codes_back(bank: Path) -> None:
    stored = PromptBank.load(bank)
    nodes = stored.programmed(EXACT.model_copy(update={"sigma": 0.0, "weight_bits": 16}), seed=1)
    first = stored.sets[0]
    read = nodes[first.user_id].memories["nvcim-pt"].read(0)
    torch.testing.assert_close(read, first.codes, atol=2e-4 * float(first.codes.abs().max()), rtol=0)


def test_a_trial_scores_in_bounds_and_repeats(bank: Path) -> None:
    point = TrialPoint("FeFET2", 8, 0.1, 0)
    scores = prompt_score(point, bank, EXACT, seed=2)
    assert set(scores) == {"prompt_score", "hit_rate"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert prompt_score(point, bank, EXACT, seed=2) == scores


def test_users_without_history_are_refused(bank: Path) -> None:
    personaliser = PromptBank.load(bank).personaliser
    empty = USERS[0].__class__("nobody", "LaMP_2", (), USERS[0].queries)
    with pytest.raises(DataError, match="nobody"):
        tune_bank([empty], personaliser, EXACT, 0)
    with pytest.raises(DataError, match="at least one user"):
        tune_bank([], personaliser, EXACT, 0)


@pytest.mark.parametrize("broken", ["bank.json", "codes.safetensors"])
def test_an_incomplete_bank_is_a_run_error(bank: Path, tmp_path: Path, broken: str) -> None:
    for file in bank.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name != broken else b"{")
    with pytest.raises(RunError, match="not a prompt bank"):
        PromptBank.load(tmp_path)
