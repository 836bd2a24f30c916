"""LaMP's JSON layout: `{split}_questions.json` and `{split}_outputs.json`, read as one stream per user.

Layout and the way a profile becomes training pairs follow the LaMP benchmark (Salemi et al., arXiv 2304.11406):
LaMP-1 title -> abstract, 2 text -> tag, 3 text -> score, 4 and 5 text -> title, 7 a tweet's beginning -> its rest.
The pairs of LaMP-1 and of LaMP-7's paraphrase questions are of another form than the question: see
`nvcim.data.lamp_prompts.PAIR_INSTRUCTIONS`.
"""

import json
import re
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvcim.data.lamp_prompts import PAIR_INSTRUCTIONS
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

    `fields` are the source fields in order of preference, `target` the answer's field, `marker` the last words of
    the instruction: a question's input up to its marker is the instruction of its whole profile. `unread` are fields
    that official items have besides; no sample holds them, and they are written empty.
    """

    fields: tuple[str, ...]
    target: str
    marker: str
    unread: tuple[str, ...] = ()


TASKS: dict[str, TaskFormat] = {
    "LaMP_1": TaskFormat(("title",), "abstract", ""),
    "LaMP_2": TaskFormat(("description", "text"), "tag", "description:"),
    "LaMP_2N": TaskFormat(("text",), "category", "article:", ("title",)),
    "LaMP_3": TaskFormat(("text",), "score", "review:"),
    "LaMP_4": TaskFormat(("text",), "title", "article:"),
    "LaMP_5": TaskFormat(("abstract", "text"), "title", "paper:"),
    "LaMP_7": TaskFormat(("text",), "", "after it:"),
}

TWEET_BEGINNING = 0.25
"""Share of a tweet's words that is given; LaMP's code draws it from 10 to 25 %, here it is fixed."""

_DATE = re.compile(r"\d+(-\d+)*([T ]\d+(:\d+)*(\.\d+)?Z?)?")


def read_lamp(folder: Path, split: str = "dev") -> list[UserStream]:
    """Read one task's folder in LaMP's layout.

    Questions with the same `user_id` become one stream, whose history is the shortest of their profiles (LaMP's code
    takes the first question's; a later question's profile may hold an earlier question's answer), by `date` where
    items carry one. A question without `user_id` is a user of its own. The benchmark's first release has the news
    categories under the name LaMP_2: its questions are told by their "article:" and read as LaMP_2N.

    Raises:
        DataError: a missing or malformed file, or a missing key (file, id and key are named).
    """
    questions_path, outputs_path = folder / f"{split}_questions.json", folder / f"{split}_outputs.json"
    questions = _read_json(questions_path)
    outputs = _read_json(outputs_path)
    if not isinstance(questions, list):
        raise DataError(f"{questions_path}: expected a list of questions")
    if not isinstance(outputs, Mapping):
        raise DataError(f"{outputs_path}: expected a mapping with the keys 'task' and 'golds'")
    task = str(_key(outputs, "task", outputs_path, "top level"))
    if task not in TASKS:
        raise DataError(f"{outputs_path}: task '{task}' is not known; allowed: {', '.join(TASKS)}")
    golds: dict[str, str] = {}
    for i, gold in enumerate(_key(outputs, "golds", outputs_path, "top level", list)):
        identity = _identity(gold, outputs_path, f"golds[{i}]", golds)
        golds[identity] = str(_key(gold, "output", outputs_path, identity))
    by_user: dict[str, list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for i, question in enumerate(questions):
        identity = _identity(question, questions_path, f"question {i}", seen)
        seen.add(identity)
        _key(question, "input", questions_path, identity, str)
        for item in _key(question, "profile", questions_path, identity, list):
            if not isinstance(item, Mapping):
                raise DataError(f"{questions_path}: '{identity}' has a profile item that is no object")
        if identity not in golds:
            raise DataError(f"{outputs_path}: id '{identity}' of {questions_path.name} has no gold output")
        by_user.setdefault(str(question.get("user_id", identity)), []).append(question)
    if task == "LaMP_2" and questions and _asks_for_news(questions[0]["input"]):
        task = "LaMP_2N"
    return [_stream(user, task, asked, golds, questions_path) for user, asked in by_user.items()]


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


def _stream(
    user: str, task: str, asked: Iterable[Mapping[str, Any]], golds: Mapping[str, str], path: Path
) -> UserStream:
    """One user's stream from that user's questions."""
    asked = list(asked)
    oldest = min(asked, key=lambda question: len(question["profile"]))
    profile = sorted(oldest["profile"], key=lambda item: _date(item, path))
    instruction = _instruction(task, oldest["input"])
    history: list[Sample] = []
    for item in profile:
        source, target = _pair(task, item, path)
        if source and target:
            history.append(
                Sample(user, len(history), task, f"{instruction} {source}", target, item.get("domain"))
            )
    queries = tuple(
        Sample(user, i, task, question["input"], golds[str(question["id"])], question.get("domain"))
        for i, question in enumerate(asked)
    )
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
    if "date" not in item:
        return ()
    date = str(item["date"])
    if not _DATE.fullmatch(date):
        identity = item.get("id", "?")
        raise DataError(
            f"{path}: profile item '{identity}' has '{date}' as 'date'; expected year, year-month or year-month-day"
        )
    return tuple(int(number) for number in re.findall(r"\d+", date))


def _pair(task: str, item: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """(what was asked, what the user wrote) of a profile item."""
    form = TASKS[task]
    identity = item.get("id", "?")
    source = next((str(item[field]) for field in form.fields if field in item), None)
    if source is None:
        raise DataError(f"{path}: profile item '{identity}' has no key '{form.fields[0]}'")
    if task == "LaMP_7":
        return split_tweet(source)
    return source, str(_key(item, form.target, path, identity))


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
    """The id of a question or gold output, as text; an id that comes twice is refused."""
    identity = str(_key(mapping, "id", path, place))
    if identity in known:
        raise DataError(f"{path}: id '{identity}' comes twice")
    return identity


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
