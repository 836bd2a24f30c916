"""A fleet's life without Ray: nodes take in their users' streams, learn when buffers are full, and are scored.

A host runs these functions on the nodes it holds. Results do not depend on which nodes share a host.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nvcim.data.lamp import Sample, UserStream, spread_evenly
from nvcim.errors import DataError
from nvcim.fleet.node import METHODS, UNTUNED, Answer, EdgeNode, answer, learn, learn_one_for_all
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.methods import ONE_FOR_ALL
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.scoring import metric_name, score_answer

Row = dict[str, Any]
COMPARED = (UNTUNED, ONE_FOR_ALL.name, *reversed(METHODS))
"""Methods in the order tables show them: no tuning, the baselines, NVCiM-PT."""


def take_in(
    nodes: Mapping[str, EdgeNode],
    streams: Sequence[UserStream],
    personaliser: Personaliser,
    on_step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Feed every node its user's history in order; returns a row per token set written.

    Buffers that fill at the same point of their streams are learnt from in one batch; what is left at the end is
    learnt from as well. The one-for-all baseline is tuned last, on samples spread evenly over the whole history.

    Raises:
        DataError: a user without history.
    """
    empty = [stream.user_id for stream in streams if not stream.history]
    if empty:
        raise DataError(f"user '{empty[0]}' has no history to learn from")
    rows = []
    fed = [nodes[stream.user_id] for stream in streams]
    coming = [deque(stream.history) for stream in streams]
    while any(coming):
        for node, samples in zip(fed, coming, strict=True):
            while samples and not node.buffer.is_full:
                node.observe(samples.popleft())
        rows += learn(fed, personaliser, on_step=on_step)
    spread = [spread_evenly(stream.history, personaliser.settings.one_for_all_samples) for stream in streams]
    rows += learn_one_for_all(fed, spread, personaliser, on_step)
    return rows


def fitted(
    streams: Sequence[UserStream], lm: LanguageModel, settings: PromptSettings
) -> tuple[list[UserStream], int]:
    """Cut texts that do not fit the LM's context beside the virtual tokens and an answer.

    Returns:
        The streams (questions and learnt answers shortened from their ends; a query's reference answer is never
        touched), and how many samples were cut.
    """
    room = lm.context - settings.tuning.tokens - settings.max_new_tokens - 1
    cut = 0

    def fit(sample: Sample, answer_limit: int | None) -> Sample:
        nonlocal cut
        given = lm.shortened(sample.input, room)
        said = sample.output if answer_limit is None else lm.shortened(sample.output, answer_limit)
        cut += given != sample.input or said != sample.output
        return replace(sample, input=given, output=said)

    new = [
        UserStream(
            stream.user_id,
            stream.task,
            tuple(fit(sample, settings.max_new_tokens) for sample in stream.history),
            tuple(fit(sample, None) for sample in stream.queries),
        )
        for stream in streams
    ]
    return new, cut


def answer_queries(
    nodes: Mapping[str, EdgeNode],
    streams: Sequence[UserStream],
    personaliser: Personaliser,
    methods: Sequence[str] = COMPARED,
) -> list[Row]:
    """Every node answers its user's queries by every method; returns a row per answer, scored."""
    asked = [(nodes[stream.user_id], query) for stream in streams for query in stream.queries]
    rows = []
    for method in methods:
        answers = answer([n for n, _ in asked], [q.input for _, q in asked], personaliser, method)
        rows += [_row(node, query, method, got) for (node, query), got in zip(asked, answers, strict=True)]
    return rows


def score_nodes(rows: Sequence[Row]) -> list[Row]:
    """Mean score and retrieval hit rate per node and method, from rows of `answer_queries`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["node_id"], row["method"]), []).append(row)
    scores = []
    for (node_id, method), group in groups.items():
        hits = [row["hit"] for row in group if row["hit"] is not None]
        scores.append(
            {
                "node_id": node_id,
                "device": group[0]["device"],
                "sigma": group[0]["sigma"],
                "method": method,
                "task": group[0]["task"],
                "metric": group[0]["metric"],
                "queries": len(group),
                "score": sum(row["score"] for row in group) / len(group),
                "hit_rate": sum(hits) / len(hits) if hits else None,
                "basis": "measured",
            }
        )
    return scores


def _row(node: EdgeNode, query: Sample, method: str, got: Answer) -> Row:
    known = query.domain is not None and got.label and method in METHODS
    return {
        "node_id": node.node_id,
        "user_id": query.user_id,
        "device": node.config.device,
        "sigma": node.config.sigma,
        "method": method,
        "task": query.task,
        "seq": query.seq,
        "input": query.input,
        "reference": query.output,
        "output": got.text,
        "slot": got.slot,
        "similarity": got.score,
        "hit": got.label == query.domain if known else None,
        "metric": metric_name(query.task),
        "score": score_answer(query.task, got.text, query.output),
        "prompt_tokens": got.prompt_tokens,
        "completion_tokens": got.completion_tokens,
        "basis": "measured",
    }
