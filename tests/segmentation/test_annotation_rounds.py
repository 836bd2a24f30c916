"""Rounds of annotation: budgets, kills in every place, and what does and does not decide the result."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nvcim.config import parse_settings
from nvcim.data.images import LabelledImage
from nvcim.errors import ConfigError, DataError, RunError
from nvcim.randomness import named_seed
from nvcim.segmentation import annotation_rounds
from nvcim.segmentation.annotation_rounds import (
    Round,
    RoundsSettings,
    annotation_sets,
    image_counts,
    run_rounds,
)
from nvcim.segmentation.ensemble import MemberJob, train_member, train_members
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.model_files import save_fcn
from nvcim.segmentation.training import TrainingLog, TrainingSettings

NETWORK = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=4)
SETTINGS = RoundsSettings(
    networks=2, start=3, budget=9, k=2, candidates=4, network=NETWORK, training=TrainingSettings(device="cpu")
)


STEPS = SETTINGS.training.steps


class Killed(Exception):
    """Stands for a process that ends in the middle of a round."""


class FakeTraining:
    """Members without training: their weights depend on the job and the images, as trained ones do.

    As `train_member` does, a job that is complete is not done again. `kill_at` raises before that job.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.trained: list[tuple[MemberJob, tuple[str, ...]]] = []
        self.kill_at = kill_at

    def __call__(self, jobs: Sequence[MemberJob], images: Sequence[LabelledImage]) -> list[TrainingLog]:
        names = tuple(image.name for image in images)
        for job in jobs:
            if (job.out / "fcn.json").exists():
                continue
            if len(self.trained) == self.kill_at:
                raise Killed
            begin = (job.start / "model.safetensors").read_bytes()[-64:].hex() if job.start else ""
            seed = named_seed(job.seed, *names, job.quantizer, begin)
            save_fcn(ResidualFCN(NETWORK, seed), job.out)
            self.trained.append((job, names))
        return [TrainingLog((1.0,), 0.0, job.quantizer) for job in jobs]


def make_pool(count: int = 14) -> list[LabelledImage]:
    generator = np.random.default_rng(0)
    images = []
    for index in range(count):
        size = (16, 20) if index % 3 else (12, 12)
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        instances = np.zeros(size, np.int32)
        instances[2:9, 2:9] = 1
        images.append(LabelledImage(f"image-{index:02d}", pixels, instances))
    return images


POOL = make_pool()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_rounds_annotate_until_the_budget_and_never_an_image_twice(tmp_path: Path) -> None:
    heard: list[Round] = []
    training = FakeTraining()
    rounds = run_rounds(POOL, SETTINGS, tmp_path, 1, training, heard.append)
    assert [len(entry.annotated) for entry in rounds] == [3, 5, 7]
    assert [len(entry.suggested) for entry in rounds] == [2, 2, 2]
    assert len(set(rounds[-1].annotated_after)) == 9
    assert all(entry.annotated == before.annotated_after for before, entry in itertools.pairwise(rounds))
    assert [len(names) for names in annotation_sets(rounds)] == [3, 5, 7, 9]
    assert heard == rounds
    # Every network of a round (two starts and their continuations) learned from just what was annotated then.
    expected = [tuple(sorted(entry.annotated)) for entry in rounds for _ in range(4)]
    assert [names for _, names in training.trained] == expected


def test_last_round_asks_only_for_what_the_budget_leaves(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"budget": 8})
    rounds = run_rounds(POOL, settings, tmp_path, 1, FakeTraining())
    assert [len(entry.suggested) for entry in rounds] == [2, 2, 1]


def test_a_budget_of_the_whole_pool_annotates_every_image(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"budget": 1.0, "k": 4})
    rounds = run_rounds(POOL, settings, tmp_path, 1, FakeTraining())
    assert set(rounds[-1].annotated_after) == {image.name for image in POOL}


def test_shares_are_of_the_whole_pool(tmp_path: Path) -> None:
    shares = {"start": 0.2, "budget": 0.5, "k": 0.1, "candidates": 0.2}  # of 14: 3, 7, 1, 3
    rounds = run_rounds(POOL, SETTINGS.model_copy(update=shares), tmp_path, 1, FakeTraining())
    assert [len(names) for names in annotation_sets(rounds)] == [3, 4, 5, 6, 7]


def test_same_seed_same_rounds_whatever_the_pools_order(tmp_path: Path) -> None:
    first = run_rounds(POOL, SETTINGS, tmp_path / "a", 1, FakeTraining())
    assert run_rounds(POOL[::-1], SETTINGS, tmp_path / "b", 1, FakeTraining()) == first
    assert run_rounds(POOL, SETTINGS, tmp_path / "c", 2, FakeTraining()) != first


def test_every_rule_and_quantizer_starts_from_the_same_images(tmp_path: Path) -> None:
    starts = set()
    for rule, quantizer in (("suggestive", "float"), ("suggestive", "inq-7"), ("random", "float")):
        settings = SETTINGS.model_copy(update={"rule": rule, "quantizer": quantizer})
        rounds = run_rounds(POOL, settings, tmp_path / f"{rule} {quantizer}", 1, FakeTraining())
        starts.add(rounds[0].annotated)
    assert len(starts) == 1


def test_random_rule_trains_nothing_and_other_rules_differ_from_it(tmp_path: Path) -> None:
    training = FakeTraining()
    settings = SETTINGS.model_copy(update={"rule": "random"})
    drawn = run_rounds(POOL, settings, tmp_path / "random", 1, training)
    assert not training.trained
    assert all(suggestion.uncertainty is None for entry in drawn for suggestion in entry.suggested)
    # Rounds draw anew: the two pairs are not the same places of one shuffling.
    assert len(set(drawn[-1].annotated_after)) == 9


def test_uncertainty_rule_takes_the_greatest_of_the_scores_on_disk(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"rule": "uncertainty"})
    rounds = run_rounds(POOL, settings, tmp_path, 1, FakeTraining())
    for entry in rounds:
        rows = pq.ParquetFile(tmp_path / f"round-{entry.number:03d}" / "scores.parquet").read().to_pylist()
        assert len(rows) == len(POOL) - len(entry.annotated)
        rows.sort(key=lambda row: -row["uncertainty"])
        assert [row["name"] for row in rows[:2]] == [suggestion.name for suggestion in entry.suggested]
        assert [row["chosen"] for row in rows[:3]] == [1, 2, None]
        assert [row["uncertainty"] for row in rows[:2]] == [s.uncertainty for s in entry.suggested]


@pytest.mark.parametrize("rule", ["suggestive", "uncertainty"])
def test_float_and_quantized_networks_are_trained_alike_but_for_their_weights(
    tmp_path: Path, rule: str
) -> None:
    trained = {}
    for quantizer in ("float", "inq-7"):
        training = FakeTraining()
        settings = SETTINGS.model_copy(update={"rule": rule, "quantizer": quantizer, "budget": 5})
        run_rounds(POOL, settings, tmp_path / quantizer, 1, training)
        jobs = [job for job, _ in training.trained]
        assert [job.quantizer for job in jobs] == ["float", "float", quantizer, quantizer]
        assert [job.start for job in jobs] == [None, None, jobs[0].out, jobs[1].out]
        assert [job.training.steps for job in jobs] == [STEPS, STEPS, STEPS // 2, STEPS // 2]
        assert [job.seed for job in jobs[2:]] == [job.seed for job in jobs[:2]]
        assert jobs[0].seed != jobs[1].seed
        assert all(job.bootstrap for job in jobs)
        trained[quantizer] = [(job.training, job.seed, job.out.name) for job in jobs]
    assert trained["float"] == trained["inq-7"]


@pytest.mark.parametrize("quantizer", ["float", "inq-5"])
def test_networks_go_on_from_the_last_rounds_starts_when_asked(tmp_path: Path, quantizer: str) -> None:
    training = FakeTraining()
    settings = SETTINGS.model_copy(update={"networks_start": "last round", "quantizer": quantizer})
    run_rounds(POOL, settings, tmp_path, 1, training)
    starts = [job for job, _ in training.trained if job.training.steps == STEPS]
    assert len(starts) == 6
    assert [job.start for job in starts] == [None, None, *(job.out for job in starts[:-2])]


@pytest.mark.parametrize("networks_start", ["afresh", "last round"])
def test_networks_are_removed_when_nothing_needs_them(tmp_path: Path, networks_start: str) -> None:
    settings = SETTINGS.model_copy(update={"networks_start": networks_start})
    run_rounds(POOL, settings, tmp_path, 1, FakeTraining())
    assert not list(tmp_path.glob("*/networks"))
    kept = settings.model_copy(update={"keep_networks": True})
    run_rounds(POOL, kept, tmp_path / "kept", 1, FakeTraining())
    assert len(list((tmp_path / "kept").glob("round-*/networks/*/model.safetensors"))) == 12


def test_a_finished_folder_is_read_and_nothing_is_done(tmp_path: Path) -> None:
    rounds = run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining())
    heard: list[Round] = []
    assert run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining(kill_at=0), heard.append) == rounds
    assert not heard


@pytest.mark.parametrize(
    ("networks_start", "kill_at"), [("afresh", 0), *(("last round", n) for n in range(8))]
)
def test_a_run_killed_in_training_goes_on_to_the_same_rounds(
    tmp_path: Path, kill_at: int, networks_start: str
) -> None:
    changes = {"networks_start": networks_start, "quantizer": "inq-7", "budget": 7}
    settings = SETTINGS.model_copy(update=changes)
    expected = run_rounds(POOL, settings, tmp_path / "whole", 1, FakeTraining())
    with pytest.raises(Killed):
        run_rounds(POOL, settings, tmp_path / "killed", 1, FakeTraining(kill_at))
    rest = FakeTraining()
    assert run_rounds(POOL, settings, tmp_path / "killed", 1, rest) == expected
    assert len(rest.trained) == 8 - kill_at  # what was trained before the kill is not trained again
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    "place", ["score_pool", "suggest", "atomic_write_table", "_write_round", "_remove_networks"]
)
def test_a_run_killed_between_goes_on_to_the_same_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: int
) -> None:
    expected = run_rounds(POOL, SETTINGS, tmp_path / "whole", 1, FakeTraining())
    honest, calls = getattr(annotation_rounds, place), iter(range(100))

    def killed(*arguments: Any) -> Any:
        if next(calls) == after:
            raise Killed
        return honest(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(annotation_rounds, place, killed)
        with pytest.raises(Killed):
            run_rounds(POOL, SETTINGS, tmp_path / "killed", 1, FakeTraining())
    assert run_rounds(POOL, SETTINGS, tmp_path / "killed", 1, FakeTraining()) == expected
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    for name in tree(tmp_path / "whole"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_killed_by_its_listener_goes_on(tmp_path: Path) -> None:
    expected = run_rounds(POOL, SETTINGS, tmp_path / "whole", 1, FakeTraining())

    def listener(entry: Round) -> None:
        raise Killed

    for _ in expected:
        with pytest.raises(Killed):
            run_rounds(POOL, SETTINGS, tmp_path / "killed", 1, FakeTraining(), listener)
    assert run_rounds(POOL, SETTINGS, tmp_path / "killed", 1, FakeTraining(kill_at=0)) == expected


@pytest.mark.parametrize(
    ("change", "seed", "pool", "what"),
    [
        ({"rule": "random"}, 1, POOL, "settings"),
        ({}, 2, POOL, "seed"),
        ({}, 1, POOL[:-1], "images, pool"),
        ({}, 1, [*POOL[:-1], dataclasses.replace(POOL[-1], pixels=POOL[-1].pixels // 2)], "pool"),
    ],
)
def test_a_folder_of_other_rounds_is_refused(
    tmp_path: Path, change: dict[str, Any], seed: int, pool: list[LabelledImage], what: str
) -> None:
    run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining())
    with pytest.raises(RunError, match=f"rounds of another {what}; take another folder"):
        run_rounds(pool, SETTINGS.model_copy(update=change), tmp_path, seed, FakeTraining())


@pytest.mark.parametrize(
    "change",
    [
        {"keep_networks": True},
        {"training": SETTINGS.training.model_copy(update={"device": "cuda:7"})},
        {"scoring": SETTINGS.scoring.model_copy(update={"batch_pixels": 1})},
    ],
)
def test_rounds_go_on_with_settings_that_do_not_change_them(tmp_path: Path, change: dict[str, Any]) -> None:
    rounds = run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining())
    elsewhere = SETTINGS.model_copy(update=change)
    assert run_rounds(POOL, elsewhere, tmp_path, 1, FakeTraining(kill_at=0)) == rounds


@pytest.mark.parametrize("content", ["{", "[]", '{"number": 0}', '{"suggested": [{"nom": 1}]}'])
def test_a_damaged_round_is_named(tmp_path: Path, content: str) -> None:
    run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining())
    (tmp_path / "round-001" / "round.json").write_text(content)
    with pytest.raises(RunError, match=r"round-001/round\.json"):
        run_rounds(POOL, SETTINGS, tmp_path, 1, FakeTraining())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 15}, "field 'budget': 15 images, but the pool holds 14"),
        ({"start": 9}, "field 'start': 9 images leave nothing of the budget of 9"),
        ({"k": 5}, "field 'k': 5 images cannot be chosen among 4 candidates"),
        ({"quantizer": "inq7"}, "inq7"),
    ],
)
def test_amounts_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_rounds(POOL, SETTINGS.model_copy(update=change), tmp_path, 1, FakeTraining())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "pool", "annotated"),
    [
        ({}, 14, [3, 5, 7, 9]),
        ({"budget": 8}, 14, [3, 5, 7, 8]),
        ({"start": 0.1, "budget": 0.5, "k": 8, "candidates": 16}, 100, [10, 18, 26, 34, 42, 50]),
        ({"start": 0.001, "budget": 1.0, "k": 0.5, "candidates": 0.5}, 10, [1, 6, 10]),
        ({"rule": "uncertainty", "k": 5}, 9, [3, 8, 9]),  # candidates are the suggestive rule's alone
    ],
)
def test_counts_of_images_are_those_of_the_rounds(
    change: dict[str, Any], pool: int, annotated: list[int]
) -> None:
    assert image_counts(SETTINGS.model_copy(update=change), pool).annotated == annotated


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_an_amount_is_a_count_or_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match="field 'budget"):
        parse_settings({"budget": value}, RoundsSettings, "test")


def test_one_is_one_image_and_one_point_zero_is_all() -> None:
    settings = parse_settings(json.loads('{"start": 1, "budget": 1.0}'), RoundsSettings, "test")
    assert (settings.start, type(settings.start)) == (1, int)
    assert (settings.budget, type(settings.budget)) == (1.0, float)


def test_pools_that_cannot_be_annotated_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the pool holds no image"):
        run_rounds([], SETTINGS, tmp_path, 1, FakeTraining())
    with pytest.raises(DataError, match="image 'image-00' is in the pool twice"):
        run_rounds([*POOL, POOL[0]], SETTINGS, tmp_path, 1, FakeTraining())


def test_real_members_however_they_are_run(tmp_path: Path) -> None:
    training = TrainingSettings(steps=4, batch=2, crop=16, device="cpu")
    settings = SETTINGS.model_copy(update={"training": training, "quantizer": "inq-7", "budget": 5})

    def last_first(jobs: Sequence[MemberJob], images: Sequence[LabelledImage]) -> list[TrainingLog]:
        return [train_member(job, images) for job in reversed(jobs)][::-1]

    first = run_rounds(POOL, settings, tmp_path / "a", 1, train_members)
    assert run_rounds(POOL, settings, tmp_path / "b", 1, last_first) == first
    uncertainties = [s.uncertainty for entry in first for s in entry.suggested]
    assert all(value is not None and 0 < value < 0.5 for value in uncertainties)
