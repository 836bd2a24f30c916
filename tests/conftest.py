"""Fixtures that several rooms' tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nvcim.data.users import UserSettings, generate_users
from nvcim.fleet.ray_session import RaySession, ray_session

# Two cores: threads of one test must not starve its workers. The variable is for processes that tests start; in this
# one torch was imported above and has read it already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[RaySession]:
    """One Ray of two CPUs for all tests (starting one takes seconds)."""
    with ray_session("local", num_cpus=2) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal LM of a few kilobytes in the Hugging Face layout, its tokenizer fitted to users' text."""
    # Late: importing transformers takes seconds, and most tests need none of it.
    from nvcim.prompts.pretraining import PretrainSettings, instructions_of, new_model, train_tokenizer

    users = generate_users(4, UserSettings(period=6), seed=1)
    texts = [f"{sample.input} {sample.output}" for user in users for sample in user.history]
    tokenizer = train_tokenizer(texts, instructions_of(users), 400)
    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer.save_pretrained(folder)
    new_model(tokenizer, PretrainSettings(hidden=32, layers=2, heads=2), seed=0).save_pretrained(folder)
    return folder
