"""Stands in for `nvcim.prompts.comparison.compare` where a test is about what surrounds it: rows of its shape."""

import random
from typing import Any

from nvcim.crossbar import CrossbarConfig
from nvcim.prompts.comparison import ComparisonPoint
from nvcim.prompts.personaliser import PromptSettings
from nvcim.randomness import named_seed
from nvcim.sweeps.comparison_methods import DIGITAL, NO_DEVICE, ONE_FOR_ALL

Row = dict[str, Any]
QUERIES = 4
CHANCE_OF_RIGHT = {"nvcim-pt": 0.8, "no-mitigation": 0.4, "one-for-all": 0.5, "zero-shot": 0.2}
"""Others: 0.5."""


def plausible(
    point: ComparisonPoint, crossbar: CrossbarConfig, prompts: PromptSettings, seed: int
) -> tuple[list[Row], list[Row]]:
    """Rows of `comparison` and `comparison_sets` for a point; answers are drawn, not computed."""
    answers, sets = [], []
    for method in point.methods:
        for device in (NO_DEVICE,) if method in DIGITAL else point.devices:
            draw = random.Random(named_seed(seed, point.point_id, method, device))
            chance = CHANCE_OF_RIGHT.get(method, 0.5) * (1 - point.sigma * (device != NO_DEVICE))
            for user in range(point.users):
                shared = _shared(point, method, device, f"user-{user}")
                answers += [_answer(shared, query, chance, draw) for query in range(QUERIES)]
                sets.append(_sets(shared))
    return answers, sets


def _shared(point: ComparisonPoint, method: str, device: str, user: str) -> Row:
    digital = device == NO_DEVICE
    return {
        "model": point.model,
        "data": "generated" if point.data is None else point.data.name,
        "task": point.task,
        "method": method,
        "device": device,
        "sigma": None if digital else point.sigma,
        "sigma_unit": None if digital else "level_step",
        "buffer": point.buffer,
        "repeat": point.repeat,
        "user_id": user,
        "basis": "measured",
    }


def _answer(shared: Row, query: int, chance: float, draw: random.Random) -> Row:
    right = draw.random() < chance
    searched = shared["device"] != NO_DEVICE and shared["method"] != ONE_FOR_ALL
    reference = "comedy" if shared["task"] == "LaMP_2" else "a title of two words"
    output = reference if right else "action"
    return {
        **shared,
        "query": query,
        "domain": "kitchen",
        "found": ("kitchen" if right else "ocean") if searched else "",
        "hit": right if searched else None,
        "domains": 3,
        "reference": reference,
        "output": output,
        "parsed": True,
        "score": float(right),
        "rouge_l": None if shared["task"] == "LaMP_2" else float(right),
        "error": None,
    }


def _sets(shared: Row) -> Row:
    digital = shared["device"] == NO_DEVICE
    return {
        **shared,
        "sets": 1 if digital else 3,
        "storage_bytes": 32768 if digital else 1536,
        "trained_parameters": 0 if shared["method"] == "zero-shot" else 2048,
        "tuning_steps": 60,
        "trained_tokens": 60 * 64,
        "reconstruction_error": None if digital else 0.1,
        "truncated": 0,
        "unanswered": 0,
        "failed": 0,
    }
