"""LaMP's JSON layout: `{split}_questions.json` and `{split}_outputs.json`, read as one stream per user.

Layout and the way a profile becomes training pairs follow the LaMP benchmark (Salemi et al., arXiv 2304.11406):
LaMP-1 title -> abstract, 2 text -> tag, 3 text -> score, 4 and 5 text -> title, 7 a tweet's beginning -> its rest.
The pairs of LaMP-1 and of LaMP-7's paraphrase questions are of another form than the question: see
`nvcim.data.lamp_prompts.PAIR_INSTRUCTIONS`.
"""

import json
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvcim.data.lamp_prompts import PAIR_INSTRUCTIONS
from nvcim.data.lamp_values import (
    DATES,
    Notes,
    date_of,
    id_of,
    is_missing,
    rating_of,
    read_json,
    text_of,
)
from nvcim.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One thing a user wrote: what was asked (`input`, a whole prompt) and what the user answered (`output`)."""

    user_id: str
    seq: int
    task: str
    input: str
    output: str
    domain: str | None = None


@dataclass(frozen=True)
class UserStream:
    """A user's past in the order it was written, and the questions to be scored on."""

    user_id: str
    task: str
    history: tuple[Sample, ...]
    queries: tuple[Sample, ...]


@dataclass(frozen=True)
class TaskFormat:
    """How a task's prompt is made from a profile item.

    `fields` are the source fields in order of preference, `target` the answer's field (empty for a tweet, whose rest
    is the answer), `marker` the last words of the instruction: a question's input up to its marker is the instruction
    of its whole profile. `unread` are fields that official items have besides; no sample holds them, and they are
    written empty. `rates`: answers are numbers, whose labels have no point.
    """

    fields: tuple[str, ...]
    target: str
    marker: str
    unread: tuple[str, ...] = ()
    rates: bool = False


TASKS: dict[str, TaskFormat] = {
    "LaMP_1": TaskFormat(("title",), "abstract", ""),
    "LaMP_2": TaskFormat(("description", "text"), "tag", "description:"),
    "LaMP_2N": TaskFormat(("text",), "category", "article:", ("title",)),
    "LaMP_3": TaskFormat(("text",), "score", "review:", rates=True),
    "LaMP_4": TaskFormat(("text",), "title", "article:"),
    "LaMP_5": TaskFormat(("abstract", "text"), "title", "paper:"),
    "LaMP_7": TaskFormat(("text",), "", "after it:"),
}

TWEET_BEGINNING = 0.25
"""Share of a tweet's words that is given; LaMP's code draws it from 10 to 25 %, here it is fixed."""


def read_lamp(folder: Path, split: str = "dev") -> list[UserStream]:
    """Read one task's folder in LaMP's layout.

    Questions with the same `user_id` become one stream, whose history is the shortest of their profiles (LaMP's code
    takes the first question's; a later question's profile may hold an earlier question's answer), by `date` where
    items carry one. A question without `user_id`, or with an empty one, is a user of its own. The benchmark's first
    release has the news categories under the name LaMP_2: its questions are told by their "article:" and read as
    LaMP_2N. A profile item whose text or answer is null, NaN or blank is left out, and a line of the log names it.

    Raises:
        DataError: a missing or malformed file, a missing key, or a question or gold output without a value (file, id
            and key are named).
    """
    questions_path, outputs_path = folder / f"{split}_questions.json", folder / f"{split}_outputs.json"
    questions = read_json(questions_path)
    outputs = read_json(outputs_path)
    if not isinstance(questions, list):
        raise DataError(f"{questions_path}: expected a list of questions")
    if not isinstance(outputs, Mapping):
        raise DataError(f"{outputs_path}: expected a mapping with the keys 'task' and 'golds'")
    task = str(_key(outputs, "task", outputs_path, "top level"))
    if task not in TASKS:
        raise DataError(f"{outputs_path}: task '{task}' is not known; allowed: {', '.join(TASKS)}")
    golds = _golds(outputs, task, Notes(outputs_path))
    notes = Notes(questions_path)
    by_user: dict[str, list[_Question]] = {}
    alone: set[str] = set()
    seen: set[str] = set()
    for i, content in enumerate(questions):
        identity = _identity(content, questions_path, f"question {i}", seen)
        seen.add(identity)
        if identity not in golds:
            raise DataError(f"{outputs_path}: id '{identity}' of {questions_path.name} has no gold output")
        question = _question(content, identity, golds[identity], notes)
        user = _user(content, identity, questions_path)
        alone |= {identity} if user is None else set()
        by_user.setdefault(identity if user is None else user, []).append(question)
    shared = next((user for user in sorted(alone) if len(by_user[user]) > 1), None)
    if shared is not None:
        raise DataError(
            f"{questions_path}: '{shared}' has no 'user_id', and its id is another question's user"
        )
    if task == "LaMP_2" and questions and _asks_for_news(next(iter(by_user.values()))[0].input):
        task = "LaMP_2N"
    streams = [_stream(user, task, asked, notes) for user, asked in by_user.items()]
    notes.tell()
    return streams


def read_lamp_folders(root: Path, split: str = "dev") -> list[UserStream]:
    """Read every LaMP folder below `root` (those that hold `{split}_questions.json`), in order of name.

    Users of different tasks are different streams; their ids get the task as a prefix. Several folders may hold the
    same task, for example parts of it, if no id is in two of them: it need not be the same person there.

    Raises:
        DataError: no such folder below `root`, two folders that hold the same user of a task, or what `read_lamp`
            raises.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{split}_questions.json"))
    if not folders:
        raise DataError(f"{root}: no folder below it holds {split}_questions.json")
    streams = []
    folder_of: dict[str, Path] = {}
    for folder in folders:
        for stream in read_lamp(folder, split):
            user = f"{stream.task}-{stream.user_id}"
            if user in folder_of:
                raise DataError(
                    f"{folder_of[user]} and {folder}: both hold user '{stream.user_id}' of {stream.task}; allowed: "
                    f"each user of a task in one folder below {root}"
                )
            folder_of[user] = folder
            history = tuple(replace(sample, user_id=user) for sample in stream.history)
            queries = tuple(replace(sample, user_id=user) for sample in stream.queries)
            streams.append(UserStream(user, stream.task, history, queries))
    return streams


def spread_evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples at even distances."""
    step = max(1.0, len(samples) / count)
    return [samples[int(i * step)] for i in range(min(count, len(samples)))]


def held_back(user_id: str) -> bool:
    """Whether a user belongs to the quarter (by a hash of the id) that no base model is trained on."""
    return zlib.crc32(user_id.rpartition("-")[2].encode("utf-8")) % 4 == 0


def write_lamp(streams: Sequence[UserStream], folder: Path, split: str = "dev") -> None:
    """Write streams of one task in LaMP's layout (plus the extra keys `user_id` and `domain`).

    Raises:
        DataError: no streams, streams of several tasks, a user without queries (LaMP holds a profile in a question),
            or an input that does not open with an instruction of its task.
    """
    tasks = sorted({stream.task for stream in streams})
    if len(tasks) != 1:
        raise DataError(f"{folder}: one LaMP folder holds one task, given: {', '.join(tasks) or 'none'}")
    questions, golds = [], []
    for stream in streams:
        if not stream.queries:
            raise DataError(
                f"{folder}: user '{stream.user_id}' has no queries, and so no place in a LaMP file"
            )
        profile = [_profile_item(sample) for sample in stream.history]
        for i, sample in enumerate(stream.queries):
            identity = f"{stream.user_id}-q{i}"
            questions.append(
                {"id": identity, "user_id": stream.user_id, "input": sample.input, "profile": profile}
                | ({"domain": sample.domain} if sample.domain else {})
            )
            golds.append({"id": identity, "output": sample.output})
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("questions", questions), ("outputs", {"task": tasks[0], "golds": golds})):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / f"{split}_{name}.json").write_text(text, encoding="utf-8")


def split_tweet(text: str) -> tuple[str, str]:
    """Split a tweet into its given beginning and the rest (both non-empty when it has two words or more)."""
    words = text.split()
    given = max(1, round(len(words) * TWEET_BEGINNING))
    return " ".join(words[:given]), " ".join(words[given:])


@dataclass(frozen=True)
class _Question:
    """A question as it was read: what was asked, the gold output, and the profile, its items still unread."""

    input: str
    output: str
    domain: str | None
    profile: Sequence[Mapping[str, Any]]


def _golds(outputs: Mapping[str, Any], task: str, notes: Notes) -> dict[str, str]:
    """Gold outputs by id."""
    golds: dict[str, str] = {}
    for i, gold in enumerate(_key(outputs, "golds", notes.path, "top level", list)):
        identity = _identity(gold, notes.path, f"golds[{i}]", golds)
        if _key(gold, "output", notes.path, identity) == "":
            golds[identity] = ""  # an answer without words is one, a missing one is not
            continue
        text = text_of(gold, "output", notes, identity)
        text = rating_of(text) if text is not None and TASKS[task].rates else text
        if text is None:
            raise DataError(f"{notes.path}: '{identity}' has no value as 'output'")
        golds[identity] = text
    notes.tell()
    return golds


def _question(content: Mapping[str, Any], identity: str, output: str, notes: Notes) -> _Question:
    _key(content, "input", notes.path, identity, str)
    asked = text_of(content, "input", notes, identity)
    if asked is None:
        raise DataError(f"{notes.path}: '{identity}' has no text as 'input'")
    profile = _key(content, "profile", notes.path, identity, list)
    if not all(isinstance(item, Mapping) for item in profile):
        raise DataError(f"{notes.path}: '{identity}' has a profile item that is no object")
    return _Question(asked, output, _domain(content, notes, identity), profile)


def _user(content: Mapping[str, Any], identity: str, path: Path) -> str | None:
    """The user who asked, None where the question names none."""
    given = content.get("user_id")
    user = id_of(given)
    if user is None and not is_missing(given):
        raise DataError(f"{path}: '{identity}' has {given!a} as 'user_id'; expected a text or a number")
    return user


def _domain(content: Mapping[str, Any], notes: Notes, identity: object) -> str | None:
    return text_of(content, "domain", notes, identity) if "domain" in content else None


def _stream(user: str, task: str, asked: Sequence[_Question], notes: Notes) -> UserStream:
    """One user's stream from that user's questions."""
    oldest = min(asked, key=lambda question: len(question.profile))
    profile = sorted(oldest.profile, key=lambda item: _date(item, notes.path))
    instruction = _instruction(task, oldest.input)
    history: list[Sample] = []
    for item in profile:
        source, target = _pair(task, item, notes)
        if source and target:
            domain = _domain(item, notes, item.get("id", "?"))
            history.append(Sample(user, len(history), task, f"{instruction} {source}", target, domain))
    queries = tuple(Sample(user, i, task, q.input, q.output, q.domain) for i, q in enumerate(asked))
    return UserStream(user, task, tuple(history), queries)


def _instruction(task: str, question_input: str) -> str:
    """The instruction of a user's pairs: the question's input up to and with the task's marker.

    Where a question says nothing that fits a pair (LaMP-1, LaMP-7's paraphrase, a question without the marker) it is
    what LaMP's own code asks.
    """
    marker = TASKS[task].marker
    head, found, _ = question_input.partition(marker) if marker else ("", "", "")
    if not found or (task == "LaMP_7" and head.startswith("Paraphrase")):
        return PAIR_INSTRUCTIONS[task]
    return head + found


def _asks_for_news(question_input: str) -> bool:
    return TASKS["LaMP_2"].marker not in question_input and TASKS["LaMP_2N"].marker in question_input


def _date(item: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """An item's date as numbers, so that 2020-5-1 comes before 2020-10-1; items without one come first."""
    date = date_of(item.get("date"))
    if date is None:
        identity, given = item.get("id", "?"), item["date"]
        raise DataError(f"{path}: profile item '{identity}' has '{given}' as 'date'; expected {DATES}")
    return date


def _pair(task: str, item: Mapping[str, Any], notes: Notes) -> tuple[str, str]:
    """(what was asked, what the user wrote) of a profile item; empty where one is missing."""
    form = TASKS[task]
    identity = item.get("id", "?")
    present = [field for field in form.fields if field in item]
    if not present:
        raise DataError(f"{notes.path}: profile item '{identity}' has no key '{form.fields[0]}'")
    source = next(filter(None, (text_of(item, field, notes, identity) for field in present)), None)
    if form.target:
        _key(item, form.target, notes.path, identity)
        target = text_of(item, form.target, notes, identity)
        target = rating_of(target) if target is not None and form.rates else target
        pair = (source, target)
    else:
        pair = (None, None) if source is None else split_tweet(source)
    if pair[0] is None or pair[1] is None:
        notes.add("left out, without a text or an answer, profile items", f"'{identity}'")
        return "", ""
    return pair[0], pair[1]


def _profile_item(sample: Sample) -> dict[str, Any]:
    """The profile item that `_pair` turns back into the sample."""
    form = TASKS[sample.task]
    instruction = PAIR_INSTRUCTIONS[sample.task]
    marker = form.marker if form.marker and form.marker in sample.input else instruction
    _, found, source = sample.input.partition(marker)
    source = source.strip()
    if not found or not source:
        shape = f"... {form.marker or instruction} <text>"
        raise DataError(f"user '{sample.user_id}': input {sample.seq} is not '{shape}' as {sample.task} asks")
    item: dict[str, Any] = {"id": f"{sample.user_id}-{sample.seq}"} | dict.fromkeys(form.unread, "")
    if sample.task == "LaMP_7":
        item["text"] = f"{source} {sample.output}"
    else:
        item |= {form.fields[0]: source, form.target: sample.output}
    return item | ({"domain": sample.domain} if sample.domain else {})


def _key(mapping: Any, key: str, path: Path, identity: object, kind: type = object) -> Any:
    """`mapping[key]` of a kind, or a DataError that names file, id and key."""
    if not isinstance(mapping, Mapping) or key not in mapping:
        raise DataError(f"{path}: '{identity}' has no key '{key}'")
    if not isinstance(mapping[key], kind):
        found = type(mapping[key]).__name__
        raise DataError(f"{path}: '{identity}' has a {found} as '{key}'; expected a {kind.__name__}")
    return mapping[key]


def _identity(mapping: Any, path: Path, place: str, known: Container[str]) -> str:
    """The id of a question or gold output, as text; an id that is none, or comes twice, is refused."""
    given = _key(mapping, "id", path, place)
    identity = id_of(given)
    if identity is None:
        raise DataError(f"{path}: '{place}' has {given!a} as 'id'; expected a text or a number")
    if identity in known:
        raise DataError(f"{path}: id '{identity}' comes twice")
    return identity
