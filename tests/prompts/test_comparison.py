"""One point of the comparison: what methods share, what they differ in, and what the rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import write_lamp
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import ConfigError, DataError, DeviceError
from nvcim.prompts.autoencoder import AutoencoderSettings
from nvcim.prompts.comparison import KNOWN_METHODS, ComparisonPoint, compare, population
from nvcim.prompts.methods import METHODS, get_method
from nvcim.prompts.personaliser import PromptSettings
from nvcim.prompts.tuning import TuningSettings
from nvcim.storage.schemas import table_schema

QUICK = PromptSettings(
    layer=1,
    tuning=TuningSettings(tokens=4, steps=2),
    autoencoder=AutoencoderSettings(code=8, steps=5),
    max_new_tokens=3,
    one_for_all_samples=3,
)
POINT: dict[str, Any] = {
    "data": None,
    "task": "LaMP_2",
    "repeat": 0,
    "users": 2,
    "sigma": 0.1,
    "buffer": 40,
    "devices": ("RRAM1", "FeFET2"),
    "methods": ("nvcim-pt",),
}
ON_CROSSBARS = tuple(METHODS)


def point(lm: Path, **changes: Any) -> ComparisonPoint:
    return ComparisonPoint.model_validate({"model": str(lm), **POINT, **changes})


def test_every_method_gives_a_row_per_query_and_device(tiny_lm: Path) -> None:
    methods = (*ON_CROSSBARS, "zero-shot", "vanilla")
    answers, sets = compare(point(tiny_lm, methods=methods), CrossbarConfig(), QUICK, 3)
    places = [(m, d) for m in ON_CROSSBARS for d in POINT["devices"]]
    places += [("zero-shot", "none"), ("vanilla", "none")]
    for method, device in places:
        own = [row for row in answers if (row["method"], row["device"]) == (method, device)]
        assert [(row["user_id"], row["query"]) for row in own] == [
            (f"user-00{user}", query) for user in range(2) for query in range(12)
        ]
        assert {row["sigma"] for row in own} == ({None} if device == "none" else {0.1})
        kept = [row for row in sets if (row["method"], row["device"]) == (method, device)]
        assert [row["user_id"] for row in kept] == ["user-000", "user-001"]
    assert len(answers) == 24 * len(places)
    assert len(sets) == 2 * len(places)


def test_rows_fill_their_tables(tiny_lm: Path) -> None:
    answers, sets = compare(point(tiny_lm, methods=("nvcim-pt", "dept")), CrossbarConfig(), QUICK, 3)
    for name, rows in (("comparison", answers), ("comparison_sets", sets)):
        columns = set(table_schema(name).names) - {"part"}  # the runner's
        assert all(set(row) == columns for row in rows)


def test_what_is_kept_is_counted(tiny_lm: Path) -> None:
    """Two buffers of 40 and 35 samples, three sets each: 6 sets of 4 tokens, 8 codes of a byte, and a scale."""
    _, sets = compare(point(tiny_lm, devices=("FeFET2",)), CrossbarConfig(), QUICK, 3)
    assert [row["sets"] for row in sets] == [6, 6]
    assert [row["storage_bytes"] for row in sets] == [6 * (4 * 8 + 4)] * 2
    assert [row["trained_parameters"] for row in sets] == [6 * 4 * 32] * 2
    assert [row["tuning_steps"] for row in sets] == [12, 12]
    assert all(row["failed"] == row["truncated"] == row["unanswered"] == 0 for row in sets)
    assert all(0 < row["reconstruction_error"] < 2 for row in sets)


def test_a_point_is_the_same_whatever_else_is_compared(tiny_lm: Path) -> None:
    """Methods and devices share tuning, but none of them changes another's rows."""
    alone, _ = compare(point(tiny_lm, devices=("FeFET2",)), CrossbarConfig(), QUICK, 3)
    among, _ = compare(
        point(tiny_lm, methods=("no-mitigation", "no-noise-training", "nvcim-pt")), CrossbarConfig(), QUICK, 3
    )
    own = [row for row in among if row["method"] == "nvcim-pt" and row["device"] == "FeFET2"]
    assert own == alone


def test_a_point_repeats_itself_and_repetitions_have_users_of_their_own(tiny_lm: Path) -> None:
    first, again = (compare(point(tiny_lm), CrossbarConfig(), QUICK, 3)[0] for _ in range(2))
    assert first == again
    drawn = [population(point(tiny_lm, repeat=repeat), repeat)[0].history for repeat in (0, 1)]
    assert not {sample.input for sample in drawn[0]} & {sample.input for sample in drawn[1]}


def test_mitigations_that_do_not_train_share_their_tokens(tiny_lm: Path) -> None:
    """Without variation and rounding to speak of, no mitigation has anything to correct."""
    exact = CrossbarConfig(weight_bits=15, dac_bits=None, adc_bits=None)
    methods = ("no-mitigation", "swv", "cxdnn")
    answers, _ = compare(point(tiny_lm, sigma=0.0, devices=("Ideal8",), methods=methods), exact, QUICK, 3)
    outputs = {m: [row["output"] for row in answers if row["method"] == m] for m in methods}
    assert outputs["swv"] == outputs["cxdnn"] == outputs["no-mitigation"]


@pytest.fixture
def lamp_folder(tmp_path: Path) -> Path:
    users = generate_users(5, UserSettings(tasks=("LaMP_2",), domains=1, period=4), seed=8)
    write_lamp(users, tmp_path / "LaMP_2")
    return tmp_path


def test_users_of_data_are_new_as_long_as_there_are_any(tiny_lm: Path, lamp_folder: Path) -> None:
    drawn = [
        {user.user_id for user in population(point(tiny_lm, data=lamp_folder, repeat=repeat), repeat)}
        for repeat in range(3)
    ]
    assert [len(users) for users in drawn] == [2, 2, 2]
    assert not drawn[0] & drawn[1]
    assert drawn[2] <= drawn[0] | drawn[1] | drawn[2]
    with pytest.raises(DataError, match="no user of task 'LaMP_5'"):
        population(point(tiny_lm, data=lamp_folder, task="LaMP_5"), 0)


def test_a_question_longer_than_the_context_stays_unanswered_and_a_long_sample_is_cut(
    tiny_lm: Path, lamp_folder: Path
) -> None:
    file = lamp_folder / "LaMP_2" / "dev_questions.json"
    questions = json.loads(file.read_text())
    for question in questions:
        question["profile"][0]["description"] += " word" * 2000
    questions[0]["input"] += " word" * 2000
    file.write_text(json.dumps(questions))
    changed = point(tiny_lm, data=lamp_folder, users=5, devices=("FeFET2",), methods=("nvcim-pt", "vanilla"))
    answers, sets = compare(changed, CrossbarConfig(), QUICK.model_copy(update={"buffer": 4}), 3)
    for method in ("nvcim-pt", "vanilla"):
        assert sum(row["unanswered"] for row in sets if row["method"] == method) == 1
        long = [row for row in answers if row["method"] == method and row["user_id"].endswith("user-000")]
        assert [row["output"] for row in long if row["query"] == 0] == [""]
    assert sum(row["truncated"] for row in sets) > 0


def test_names_that_do_not_exist_are_refused_before_work(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match="method 'magic' is not known; allowed: nvcim-pt"):
        compare(point(tiny_lm, methods=("magic",)), CrossbarConfig(), QUICK, 3)
    with pytest.raises(DeviceError, match="PCM9"):
        compare(point(tiny_lm, devices=("PCM9",)), CrossbarConfig(), QUICK, 3)
    with pytest.raises(ConfigError, match="allowed"):
        get_method("magic")


def test_a_points_name_depends_on_all_of_it(tiny_lm: Path) -> None:
    base = point(tiny_lm)
    others = [
        point(tiny_lm, **change)
        for change in ({"sigma": 0.2}, {"repeat": 1}, {"buffer": 5}, {"devices": ("RRAM1",)}, {"users": 3})
    ]
    assert len({base.point_id, *(other.point_id for other in others)}) == 6
    assert base.point_id == point(tiny_lm).point_id


def test_every_method_is_known_once() -> None:
    assert len(set(KNOWN_METHODS)) == len(KNOWN_METHODS)


def test_what_cannot_be_scored_or_asked_is_refused_before_work(tiny_lm: Path, lamp_folder: Path) -> None:
    changed = point(tiny_lm, data=lamp_folder, users=5, devices=("FeFET2",))
    folder = lamp_folder / "LaMP_2"
    outputs = (folder / "dev_outputs.json").read_text()
    content = json.loads(outputs)
    content["golds"][0]["output"] = "heist"
    (folder / "dev_outputs.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="heist"):
        compare(changed, CrossbarConfig(), QUICK, 3)
    (folder / "dev_outputs.json").write_text(outputs)
    questions = json.loads((folder / "dev_questions.json").read_text())
    for question in questions:
        question["input"] += " word" * 2000
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    with pytest.raises(DataError, match="no question of LaMP_2 fits"):
        compare(changed, CrossbarConfig(), QUICK, 3)
