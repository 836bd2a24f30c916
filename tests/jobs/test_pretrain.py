"""The pre-training job: a smoke run leaves a model that loads and a card that says what was measured."""

import json
from pathlib import Path

import pytest

from jobs.pretrain import main
from nvcim.prompts.language_model import EMBEDDED_FOLDER, LanguageModel


def test_a_smoke_run_leaves_a_model_and_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--steps", "3", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    card = json.loads((tmp_path / "card.json").read_text())
    scores = {(score["method"], score["task"]): score for score in card["scores"]["scores"]}
    assert LanguageModel.load(str(tmp_path), "cpu").name == str(tmp_path)
    assert card["settings"]["steps"] == 3
    assert {method for method, task in scores if task == "all"} == {
        "untuned",
        "one-for-all",
        "mips",
        "nvcim-pt",
    }
    assert all(0 <= score["mean"] <= 1 for score in scores.values())
    assert f"{scores['nvcim-pt', 'all']['mean']:.3f}" in printed


def test_the_shipped_models_card_is_about_the_shipped_model() -> None:
    card = json.loads((EMBEDDED_FOLDER / "card.json").read_text())
    model = LanguageModel.load(device="cpu").model
    means = {s["method"]: s["mean"] for s in card["scores"]["scores"] if s["task"] == "all"}
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(card["scores"]["seeds"]) >= 3
    assert means["untuned"] < means["one-for-all"] < means["nvcim-pt"]
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.iterdir()) <= 8 * 2**20


def test_a_corpus_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--corpus", str(tmp_path), "--smoke", "--out", str(tmp_path / "model")]) == 2
    assert "dev_questions.json" in capsys.readouterr().err


def test_a_card_cannot_be_rewritten_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--card-only", "--out", str(tmp_path)]) == 2
    assert "card.json" in capsys.readouterr().err
