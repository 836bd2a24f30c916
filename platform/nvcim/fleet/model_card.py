"""The card of a base LM: what it was trained on, and how it answers users it never saw, untuned and tuned."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import DataError
from nvcim.fleet.node import UNTUNED, EdgeNode
from nvcim.fleet.streams import COMPARED, answer_queries, fitted, take_in
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.methods import NVCIM_PT
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.randomness import named_seed
from nvcim.storage.files import atomic_write_text

CARD_FILE = "card.json"


@dataclass(frozen=True)
class MethodScore:
    """Score of a method on one task ('all': the mean of the tasks): mean and standard deviation over seeds."""

    method: str
    task: str
    mean: float
    spread: float


@dataclass(frozen=True)
class BaseScores:
    """What was scored: users and queries per seed, the seeds, and a score per method and task."""

    users: int
    queries: int
    seeds: tuple[int, ...]
    crossbar: CrossbarConfig
    scores: tuple[MethodScore, ...]

    def gain(self) -> float:
        """How much tuned token sets raise the mean score over the untuned model."""
        mean = {score.method: score.mean for score in self.scores if score.task == "all"}
        return mean[NVCIM_PT.name] - mean[UNTUNED]


def score_base(
    lm: LanguageModel,
    streams: Sequence[UserStream] | None,
    settings: PromptSettings,
    seeds: Sequence[int],
    users: int,
) -> BaseScores:
    """Let users live with the LM and score every method.

    Args:
        lm: the base.
        streams: users that the base was not trained on; None generates them.
        settings: of tuning.
        seeds: each has users, devices' draws and tuning noise of its own.
        users: most users per seed.

    Raises:
        DataError: fewer than one given user per seed.
    """
    crossbar = CrossbarConfig()
    per_seed = []
    queries = 0
    for turn, seed in enumerate(seeds):
        given = generate_users(users, UserSettings(), named_seed(seed, "card")) if streams is None else None
        chosen, _ = fitted(given or _share(streams or (), users, turn, len(seeds)), lm, settings)
        samples = [sample for user in chosen for sample in user.history]
        personaliser = Personaliser.fit(lm, samples, settings, seed)
        nodes = {u.user_id: EdgeNode.new(u.user_id, crossbar, seed, personaliser) for u in chosen}
        take_in(nodes, chosen, personaliser)
        rows = answer_queries(nodes, chosen, personaliser)
        queries += len(rows) // len(COMPARED)
        per_seed.append(_means(rows))
    scores = []
    for method, task in per_seed[0]:
        values = [means[method, task] for means in per_seed if (method, task) in means]
        scores.append(MethodScore(method, task, *_mean_and_spread(values)))
    return BaseScores(users, queries // len(seeds), tuple(seeds), crossbar, tuple(scores))


def write_card(folder: Path, about: dict[str, Any], scores: BaseScores) -> str:
    """Write `card.json` and `README.md` beside the model and return the latter.

    Args:
        folder: of the model.
        about: what was recorded at training: data, seed, settings, loss.
        scores: of `score_base`.
    """
    content = {**about, "scores": {**asdict(scores), "crossbar": scores.crossbar.model_dump(mode="json")}}
    atomic_write_text(folder / CARD_FILE, json.dumps(content, indent=1) + "\n")
    text = _markdown(folder, about, scores)
    atomic_write_text(folder / "README.md", text)
    return text


def _share(streams: Sequence[UserStream], users: int, turn: int, turns: int) -> list[UserStream]:
    """A seed's own users out of the given ones."""
    share = list(streams[turn::turns])[:users]
    if not share:
        raise DataError(f"{len(streams)} held-back users are too few to score {turns} seeds")
    return share


def _means(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Mean score per method and task, and per method the mean of its tasks."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["method"], row["task"]), []).append(row["score"])
    means = {key: sum(values) / len(values) for key, values in found.items()}
    for method in COMPARED:
        tasks = [value for (name, _), value in means.items() if name == method]
        means[method, "all"] = sum(tasks) / len(tasks)
    return means


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one value)."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0


def _markdown(folder: Path, about: dict[str, Any], scores: BaseScores) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    tasks = sorted({score.task for score in scores.scores} - {"all"})
    cells = {(score.method, score.task): score for score in scores.scores}
    table = ["| method | " + " | ".join([*tasks, "mean of tasks"]) + " |", "|---" * (len(tasks) + 2) + "|"]
    for method in COMPARED:
        values = [cells.get((method, task)) for task in [*tasks, "all"]]
        shown = [f"{v.mean:.3f} ± {v.spread:.3f}" if v else "-" for v in values]
        table.append(f"| {method} | " + " | ".join(shown) + " |")
    lines = [f"- {name}: {value}" for name, value in about.items() if name != "settings"]
    array = scores.crossbar
    return "\n".join(
        [
            "# Base LM",
            "",
            *lines,
            f"- size on disk: {size:.2f} MB",
            "",
            f"Scores (accuracy for LaMP_1, 2, 2N, 3; ROUGE-1 for 4, 5, 7) on up to {scores.users} users and "
            f"{scores.queries} queries per seed that the model was not trained on; mean ± standard deviation over "
            f"seeds {', '.join(map(str, scores.seeds))}. Token sets live on a crossbar of {array.device} cells, "
            f"sigma {array.sigma} in units of {array.sigma_unit}, {array.weight_bits} bits.",
            "",
            *table,
            "",
            f"Tuned token sets (nvcim-pt) against the untuned model: {scores.gain():+.3f}.",
            "",
        ]
    )
