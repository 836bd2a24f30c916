"""LaMP's files: what is written is read back, and what is broken is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from nvcim.data.lamp import (
    TASKS,
    Sample,
    UserStream,
    held_back,
    read_lamp,
    read_lamp_folders,
    split_tweet,
    spread_evenly,
    write_lamp,
)
from nvcim.data.lamp_prompts import PAIR_INSTRUCTIONS, TWEET_QUESTION, citation_question
from nvcim.data.users import ALL_GENERATED_TASKS, UserSettings, generate_users
from nvcim.errors import DataError


def put(folder: Path, questions: Any, outputs: Any, split: str = "dev") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / f"{split}_outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    return folder


def question(identity: str, profile: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": identity, "input": "Rate it. review: it was fine", "profile": profile} | more


def golds(*identities: str, task: str = "LaMP_3") -> dict[str, Any]:
    return {"task": task, "golds": [{"id": identity, "output": "4"} for identity in identities]}


def item(identity: str, text: str = "good", **more: Any) -> dict[str, Any]:
    return {"id": identity, "text": text, "score": "5"} | more


@pytest.mark.parametrize("task", ALL_GENERATED_TASKS)
def test_what_is_written_is_read_back(tmp_path: Path, task: Any) -> None:
    streams = generate_users(3, UserSettings(tasks=(task,), period=3), seed=4)
    assert all(sample.domain for stream in streams for sample in (*stream.history, *stream.queries))
    write_lamp(streams, tmp_path, "train")
    assert read_lamp(tmp_path, "train") == streams


@pytest.mark.parametrize("task", [task for task, form in TASKS.items() if form.marker])
def test_a_question_gives_its_instruction_to_the_profile(tmp_path: Path, task: str) -> None:
    start = f"Do it, {TASKS[task].marker}"
    history = tuple(Sample("u", i, task, f"{start} text{i}", "so it went") for i in range(3))
    query = Sample("u", 0, task, f"{start} what now", "gold")
    stream = UserStream("u", task, history, (query,))
    write_lamp([stream], tmp_path)
    assert read_lamp(tmp_path) == [stream]


# One item of each official profile and the pair that LaMP's own code (PEFT/data/datasets.py) makes of it.
OFFICIAL: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "LaMP_1": (
        citation_question("On whales", "Krill", "Trains"),
        {"title": "On reefs", "abstract": "Reefs grow."},
        ("Write an abstract for this title: On reefs", "Reefs grow."),
    ),
    "LaMP_2": (
        PAIR_INSTRUCTIONS["LaMP_2"] + " a heist",
        {"description": "a duel", "tag": "action"},
        (PAIR_INSTRUCTIONS["LaMP_2"] + " a duel", "action"),
    ),
    "LaMP_2N": (
        PAIR_INSTRUCTIONS["LaMP_2N"] + " a vote",
        {"text": "a match", "title": "Goal", "category": "sports"},
        (PAIR_INSTRUCTIONS["LaMP_2N"] + " a match", "sports"),
    ),
    "LaMP_3": (
        PAIR_INSTRUCTIONS["LaMP_3"] + " so so",
        {"text": "great", "score": 5},
        (PAIR_INSTRUCTIONS["LaMP_3"] + " great", "5"),
    ),
    "LaMP_4": (
        "Generate a headline for the following article: It rained.",
        {"text": "It snowed.", "title": "Snow"},
        ("Generate a headline for the following article: It snowed.", "Snow"),
    ),
    "LaMP_5": (
        "Generate a title for the following abstract of a paper: We count.",
        {"title": "Sums", "abstract": "We add."},
        ("Generate a title for the following abstract of a paper: We add.", "Sums"),
    ),
    "LaMP_7": (
        TWEET_QUESTION + " the bus is late",
        {"text": "i like my new red bike a lot"},
        ("Complete the following tweet: i like", "my new red bike a lot"),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_profile_item_becomes_the_pair_that_lamp_trains_on(tmp_path: Path, task: str) -> None:
    asked, profile_item, pair = OFFICIAL[task]
    questions = [{"id": "110", "input": asked, "profile": [{"id": "1"} | profile_item]}]
    (stream,) = read_lamp(put(tmp_path / "a", questions, golds("110", task=task)))
    assert [(sample.input, sample.output) for sample in stream.history] == [pair]
    assert [sample.input for sample in stream.queries] == [asked]
    write_lamp([stream], tmp_path / "b")
    assert read_lamp(tmp_path / "b") == [stream]
    written = json.loads((tmp_path / "b" / "dev_questions.json").read_text(encoding="utf-8"))
    assert set(profile_item) <= set(written[0]["profile"][0])


def test_the_first_release_s_news_under_the_name_of_the_movies_are_read_as_news(tmp_path: Path) -> None:
    asked, profile_item, pair = OFFICIAL["LaMP_2N"]
    questions = [{"id": "1", "input": asked, "profile": [{"id": "p"} | profile_item]}]
    (stream,) = read_lamp(put(tmp_path, questions, golds("1", task="LaMP_2")))
    assert stream.task == "LaMP_2N"
    assert (stream.history[0].input, stream.history[0].output) == pair


def test_a_question_without_the_marker_leaves_the_profile_the_official_instruction(tmp_path: Path) -> None:
    asked = {"id": "1", "input": "How good is it?", "profile": [item("p", "fine")]}
    (stream,) = read_lamp(put(tmp_path, [asked], golds("1")))
    assert stream.history[0].input == PAIR_INSTRUCTIONS["LaMP_3"] + " fine"


def test_the_written_files_have_the_official_keys(tmp_path: Path) -> None:
    write_lamp(generate_users(1, UserSettings(tasks=("LaMP_5",), period=2), seed=1), tmp_path)
    asked = json.loads((tmp_path / "dev_questions.json").read_text(encoding="utf-8"))
    gold = json.loads((tmp_path / "dev_outputs.json").read_text(encoding="utf-8"))
    assert {"id", "input", "profile"} <= set(asked[0])
    assert {"id", "title", "abstract"} <= set(asked[0]["profile"][0])
    assert gold["task"] == "LaMP_5"
    assert [entry["id"] for entry in gold["golds"]] == [entry["id"] for entry in asked]


def test_the_shortest_profile_of_a_user_is_the_history(tmp_path: Path) -> None:
    later = [item("1"), item("2", "answer of the first question")]
    questions = [question("10", later, user_id="u"), question("11", later[:1], user_id="u")]
    (stream,) = read_lamp(put(tmp_path, questions, golds("10", "11")))
    assert [sample.input for sample in stream.history] == ["Rate it. review: good"]
    assert len(stream.queries) == 2


def test_a_profile_with_dates_is_put_in_order(tmp_path: Path) -> None:
    profile = [item("1", "new", date="2020-05-01"), item("2", "old", date="2019-12-31")]
    (stream,) = read_lamp(put(tmp_path, [question("10", profile)], golds("10")))
    assert [sample.input.split()[-1] for sample in stream.history] == ["old", "new"]
    assert stream.user_id == "10"


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("2020-9-30", "2020-10-01"),
        (1999, 2014),
        ("2014", "2014-02"),
        ("2020-05-01 09:10:00", "2020-05-01 10:00:00"),
    ],
)
def test_dates_are_compared_as_dates(tmp_path: Path, early: Any, late: Any) -> None:
    profile = [item("1", "new", date=late), item("2", "old", date=early), item("3", "undated")]
    (stream,) = read_lamp(put(tmp_path, [question("10", profile)], golds("10")))
    assert [sample.input.split()[-1] for sample in stream.history] == ["undated", "old", "new"]


def test_a_tweet_is_split_into_its_beginning_and_its_rest(tmp_path: Path) -> None:
    assert split_tweet("one two three four five six seven eight") == (
        "one two",
        "three four five six seven eight",
    )
    assert split_tweet("one two") == ("one", "two")
    assert split_tweet("alone") == ("alone", "")
    profile = [{"id": "1", "text": "a b c d"}, {"id": "2", "text": "alone"}]
    asked = {"id": "9", "input": "Say it after it: x", "profile": profile}
    (stream,) = read_lamp(put(tmp_path, [asked], golds("9", task="LaMP_7")))
    assert [(s.input, s.output) for s in stream.history] == [("Say it after it: a", "b c d")]


@pytest.mark.parametrize(
    ("questions", "outputs", "parts"),
    [
        ([{"input": "x", "profile": []}], golds("1"), ("dev_questions.json", "question 0", "'id'")),
        ([{"id": "77", "profile": []}], golds("77"), ("dev_questions.json", "'77'", "'input'")),
        ([{"id": "77", "input": "x"}], golds("77"), ("dev_questions.json", "'77'", "'profile'")),
        ([question("77", [{"id": "p3", "score": 1}])], golds("77"), ("questions", "'p3'", "'text'")),
        ([question("77", [{"id": "p3", "text": "a"}])], golds("77"), ("questions", "'p3'", "'score'")),
        (
            [question("77", [item("p3", date="in May")])],
            golds("77"),
            ("questions", "'p3'", "'in May'", "'date'"),
        ),
        ([question("77", [])], {"golds": []}, ("dev_outputs.json", "top level", "'task'")),
        ([question("77", [])], {"task": "LaMP_3"}, ("dev_outputs.json", "top level", "'golds'")),
        ([question("77", [])], {"task": "LaMP_3", "golds": [{"id": "77"}]}, ("outputs", "'77'", "'output'")),
        ([question("77", [])], golds("78"), ("dev_outputs.json", "'77'", "no gold output")),
        ([question("77", [])], golds("77", task="LaMP_9"), ("'LaMP_9' is not known", "LaMP_1, LaMP_2")),
        ([question("77", [])], {"task": "LaMP_3", "golds": 3}, ("'golds'", "expected a list")),
        ([question("77", 5)], golds("77"), ("'77'", "'profile'", "expected a list")),  # type: ignore[arg-type]
        ([question("77", ["x"])], golds("77"), ("'77'", "no object")),
        ([question("77", [], input=3)], golds("77"), ("'77'", "'input'", "expected a str")),
        ([question("77", []), question("77", [])], golds("77"), ("'77' comes twice",)),
        (["text"], golds("77"), ("question 0", "'id'")),
        ({"id": 1}, golds("77"), ("expected a list of questions",)),
        ([question("77", [])], [], ("expected a mapping",)),
    ],
)
def test_a_broken_file_is_refused_by_file_id_and_key(
    tmp_path: Path, questions: Any, outputs: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        read_lamp(put(tmp_path, questions, outputs))
    message = str(caught.value)
    assert str(tmp_path) in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("content", [b'[{"id": ', b"\xff\xfe"])
def test_truncated_json_is_refused(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, [], golds())
    (tmp_path / "dev_questions.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dev_questions\.json: not valid JSON"):
        read_lamp(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev_questions\.json: cannot be read"):
        read_lamp(tmp_path)
    with pytest.raises(DataError, match=r"no folder below it holds test_questions\.json"):
        read_lamp_folders(tmp_path, "test")


def test_folders_of_several_tasks_give_users_with_the_task_in_their_id(tmp_path: Path) -> None:
    for task in ("LaMP_3", "LaMP_5"):
        write_lamp(generate_users(2, UserSettings(tasks=(task,), period=2), seed=1), tmp_path / task)  # type: ignore[arg-type]
    streams = read_lamp_folders(tmp_path)
    assert [s.user_id for s in streams] == [
        f"{task}-user-00{i}" for task in ("LaMP_3", "LaMP_5") for i in range(2)
    ]
    assert {sample.user_id for s in streams for sample in (*s.history, *s.queries)} == {
        s.user_id for s in streams
    }


def test_two_folders_with_the_same_user_of_a_task_are_refused(tmp_path: Path) -> None:
    """Users of one id in two folders may be two people; ids that differ, or tasks that do, are fine."""
    put(tmp_path / "a", [question("110", [item("1")]), question("111", [])], golds("110", "111"))
    put(tmp_path / "b", [question("112", [item("2")])], golds("112"))
    asked, profile_item, _ = OFFICIAL["LaMP_5"]
    papers = [{"id": "110", "input": asked, "profile": [{"id": "1"} | profile_item]}]
    put(tmp_path / "c", papers, golds("110", task="LaMP_5"))
    assert [stream.user_id for stream in read_lamp_folders(tmp_path)] == [
        "LaMP_3-110",
        "LaMP_3-111",
        "LaMP_3-112",
        "LaMP_5-110",
    ]
    put(tmp_path / "d", [question("113", []), question("111", [])], golds("111", "113"))
    with pytest.raises(DataError) as caught:
        read_lamp_folders(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'a'} and {tmp_path / 'd'}: both hold user '111' of LaMP_3; allowed: each user of a task in one "
        f"folder below {tmp_path}"
    )


def test_a_user_is_held_back_alike_with_and_without_the_task_in_the_id() -> None:
    share = sum(held_back(f"LaMP_3-{i}") for i in range(400)) / 400
    assert 0.15 < share < 0.35
    assert all(held_back(f"LaMP_3-{i}") == held_back(str(i)) for i in range(50))


def test_streams_that_no_lamp_file_can_hold_are_refused(tmp_path: Path) -> None:
    one, two = generate_users(2, UserSettings(period=2), seed=1)
    with pytest.raises(DataError, match="one LaMP folder holds one task, given: LaMP_2, LaMP_3"):
        write_lamp([one, two], tmp_path)
    with pytest.raises(DataError, match="given: none"):
        write_lamp([], tmp_path)
    with pytest.raises(DataError, match="'user-000' has no queries"):
        write_lamp([UserStream(one.user_id, one.task, one.history, ())], tmp_path)
    odd = Sample("u", 3, "LaMP_3", "no instruction here", "5")
    with pytest.raises(DataError, match="input 3 is not"):
        write_lamp([UserStream("u", "LaMP_3", (odd,), one.queries)], tmp_path)


def test_samples_are_spread_over_the_history() -> None:
    (user,) = generate_users(1, UserSettings(period=5), seed=0)
    assert [sample.seq for sample in spread_evenly(user.history, 5)] == [0, 3, 6, 9, 12]
    assert spread_evenly(user.history, 99) == list(user.history)


def pairs(folder: Path) -> list[tuple[str, str]]:
    """(what was asked without the instruction, the answer) of the only user's history."""
    (stream,) = read_lamp(folder)
    return [(sample.input.partition("review: ")[2], sample.output) for sample in stream.history]


@pytest.mark.parametrize("none", [None, float("nan"), "", "  \n"])
def test_a_profile_item_without_a_text_or_an_answer_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, none: Any
) -> None:
    profile = [item("p1", none), item("p2", score=none), item("p3", "kept")]
    assert pairs(put(tmp_path, [question("10", profile)], golds("10"))) == [("kept", "5")]
    assert (
        "dev_questions.json: left out, without a text or an answer, profile items: 'p1', 'p2'" in caplog.text
    )


def test_a_missing_preferred_text_gives_way_to_the_other(tmp_path: Path) -> None:
    profile = [{"id": "p", "description": None, "text": "a duel", "tag": "action"}]
    asked = {"id": "1", "input": "Tag it. description: x", "profile": profile}
    (stream,) = read_lamp(put(tmp_path, [asked], golds("1", task="LaMP_2")))
    assert [(s.input, s.output) for s in stream.history] == [("Tag it. description: a duel", "action")]


@pytest.mark.parametrize(
    ("score", "label"),
    [(5, "5"), (1.0, "1"), ("4.0", "4"), ("4", "4"), (" 3 ", "3"), (4.5, "4.5"), ("good", "good")],
)
def test_a_rating_is_taught_as_its_label(tmp_path: Path, score: Any, label: str) -> None:
    outputs = {"task": "LaMP_3", "golds": [{"id": "10", "output": score}]}
    folder = put(tmp_path, [question("10", [item("p", score=score)])], outputs)
    assert [answer for _, answer in pairs(folder)] == [label]
    assert read_lamp(folder)[0].queries[0].output == label


@pytest.mark.parametrize(("title", "text"), [(1984, "1984"), (1984.0, "1984"), (3.5, "3.5")])
def test_a_number_where_a_text_is_due_is_that_number(tmp_path: Path, title: float, text: str) -> None:
    profile = [{"id": "p", "title": title, "abstract": "On it."}]
    asked = {"id": "1", "input": "Title it, paper: x", "profile": profile}
    (stream,) = read_lamp(put(tmp_path, [asked], golds("1", task="LaMP_5")))
    assert stream.history[0].output == text


@pytest.mark.parametrize(
    ("questions", "outputs", "parts"),
    [
        ([question("77", [item("p3", ["a"])])], golds("77"), ("'p3'", "a list as 'text'")),  # type: ignore[arg-type]
        ([question("77", [item("p3", score={"x": 1})])], golds("77"), ("'p3'", "a dict as 'score'")),
        ([question("77", [item("p3", score=True)])], golds("77"), ("'p3'", "a bool as 'score'")),
        ([question("77", [], input=" ")], golds("77"), ("dev_questions.json", "'77'", "no text as 'input'")),
        ([question("77", [], user_id=["u"])], golds("77"), ("'77'", "['u'] as 'user_id'")),
        ([question("77", [], user_id="\ud83d")], golds("77"), ("'77'", r"'\ud83d' as 'user_id'")),
        ([question(None, [])], golds("77"), ("'question 0' has None as 'id'",)),  # type: ignore[arg-type]
        ([question("77", [])], golds(None), ("'golds[0]' has None as 'id'",)),  # type: ignore[arg-type]
        (
            [question("77", [])],
            {"task": "LaMP_3", "golds": [{"id": "77", "output": None}]},
            ("dev_outputs.json", "'77' has no value as 'output'"),
        ),
        (
            [question("77", [])],
            {"task": "LaMP_3", "golds": [{"id": "77", "output": ["a"]}]},
            ("dev_outputs.json", "'77' has a list as 'output'"),
        ),
        (
            [question("77", []), question("78", [], user_id="77")],
            golds("77", "78"),
            ("'77' has no 'user_id', and its id is another question's user",),
        ),
    ],
)
def test_a_value_that_is_none_is_refused_by_file_id_and_key(
    tmp_path: Path, questions: Any, outputs: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        read_lamp(put(tmp_path, questions, outputs))
    assert [part for part in (str(tmp_path), *parts) if part not in str(caught.value)] == []
    assert str(caught.value).isascii()


@pytest.mark.parametrize("none", [None, float("nan"), "", " "])
def test_questions_whose_user_is_missing_are_users_of_their_own(tmp_path: Path, none: Any) -> None:
    questions = [question("10", [], user_id=none), question("11", [], user_id=none)]
    streams = read_lamp(put(tmp_path, questions, golds("10", "11")))
    assert [(stream.user_id, len(stream.queries)) for stream in streams] == [("10", 1), ("11", 1)]


def test_ids_that_pandas_made_floats_are_the_same_ids(tmp_path: Path) -> None:
    questions = [question(10.0, [], user_id=7.0), question("11", [], user_id=7)]  # type: ignore[arg-type]
    (stream,) = read_lamp(put(tmp_path, questions, golds("10", "11")))
    assert (stream.user_id, len(stream.queries)) == ("7", 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_is_read_in_every_encoding_that_json_knows(tmp_path: Path, encoding: str) -> None:
    put(tmp_path, [], golds("10"))
    content = json.dumps([question("10", [item("p", "naïve 😀")])], ensure_ascii=False)
    (tmp_path / "dev_questions.json").write_text(content, encoding=encoding)
    assert pairs(tmp_path) == [("naïve 😀", "5")]


def test_half_an_emoji_is_read_as_the_replacement_character_and_a_whole_one_as_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profile = [item("p1", "so happy \ud83d yes"), item("p2", "\ud83d\ude00"), item("p3", "\ude00")]
    folder = put(tmp_path, [question("10", profile, input="Rate it. review: \ud83d")], golds("10"))
    assert [text for text, _ in pairs(folder)] == ["so happy \ufffd yes", "😀", "\ufffd"]
    assert read_lamp(folder)[0].queries[0].input == "Rate it. review: \ufffd"
    assert "half characters (lone surrogates) read as U+FFFD, in: '10', 'p1', 'p3'" in caplog.text


def test_many_ids_are_told_in_one_line_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path, [question("10", [item(f"p{i}", None) for i in range(9)])], golds("10"))  # type: ignore[arg-type]
    read_lamp(folder)
    read_lamp(folder)
    assert [message.partition("items: ")[2] for message in caplog.messages] == [
        "'p0', 'p1', 'p2', 'p3', 'p4' and 4 more"
    ]
