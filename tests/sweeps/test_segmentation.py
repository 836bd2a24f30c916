"""The segmentation comparison: its split, its points counted by hand, its run on Ray, and going on after a kill."""

from pathlib import Path
from typing import Any

import pytest

from nvcim.config import parse_settings
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError, RunError
from nvcim.fleet.ray_session import RaySession
from nvcim.segmentation.ensemble import MemberJob, train_members
from nvcim.segmentation.fcn import FCNSettings
from nvcim.segmentation.model_files import load_fcn, save_fcn
from nvcim.segmentation.training import TrainingSettings
from nvcim.storage import RunFolder
from nvcim.storage.files import read_parquet
from nvcim.sweeps.segmentation import run_segmentation
from nvcim.sweeps.segmentation_memory import measure_memory
from nvcim.sweeps.segmentation_scoring import sizes_on_disk
from nvcim.sweeps.segmentation_settings import (
    BudgetPart,
    Point,
    Recipe,
    SegmentationSettings,
    Strategy,
    planned_points,
    split_names,
)
from nvcim.sweeps.segmentation_work import RayTrainMembers, store

NETWORK = {"width": 4, "depth": 1, "descriptor_dim": 8, "fused_width": 4}
TRAINING = {"steps": 2, "batch": 2, "crop": 32}
SMALL: dict[str, Any] = {
    "generated": 8,
    "tissue": {"height": 40, "width": 48},
    "seeds": 1,
    "network": NETWORK,
    "full": {"quantizers": ["float", "inq-5"], "recipe": {"training": TRAINING}},
    "budget": {
        "strategies": ["SA", "random"],
        "rounds": {
            "networks": 2,
            "start": 2,
            "budget": 4,
            "k": 1,
            "candidates": 2,
            "network": NETWORK,
            "training": TRAINING,
        },
        "curve": {"training": TRAINING},
    },
    "grid": {"quantizers": ["twn"], "networks": [1, 2], "recipe": {"training": TRAINING}, "scored_images": 1},
}


def small(**changes: Any) -> SegmentationSettings:
    return parse_settings({**SMALL, **changes}, SegmentationSettings, "test")


def test_a_split_is_drawn_by_repetition_and_does_not_depend_on_order() -> None:
    names = [f"image-{place}" for place in range(20)]
    first, second = (split_names(names, 0.25, seed=3, repeat=repeat) for repeat in (0, 1))
    assert (len(first.pool), len(first.held_back)) == (15, 5)
    assert {*first.pool, *first.held_back} == {*names}
    assert first != second
    assert split_names(names[::-1], 0.25, seed=3, repeat=0) == first
    with pytest.raises(DataError, match="1 images cannot be split"):
        split_names(names[:1], 0.25, seed=3, repeat=0)


def test_points_are_those_counted_by_hand() -> None:
    settings = SegmentationSettings()
    # Defaults: 3 seeds. Whole pool: 3 weights. Budget: of a pool of 80, 8 at the start, 8 a round, 40 in the end: 4
    # rounds; the shared start set, 4 strategies x 4 rounds, and the whole pool. Grid: SA, QSA x 8 weights.
    points = planned_points(settings, 80)
    by_part = {part: sum(point.part == part for point in points) for part in ("full", "budget", "grid")}
    assert by_part == {"full": 3 * 3, "budget": 3 * (1 + 4 * 4 + 1), "grid": 3 * 2 * 8}
    assert len({point.folder for point in points}) == len(points)
    start = next(point for point in points if point.round == 0)
    assert [strategy.label for strategy in start.strategies] == ["SA", "QSA", "uncertainty", "random"]
    assert {point.round for point in points if point.part == "grid"} == {4}
    # 5 networks of each point of the grid; all of them, the float ones too, go on from the same five
    assert {point.networks for point in points if point.part == "grid"} == {(1, 5)}
    grid = [point for point in points if point.part == "grid" and point.repeat == 0]
    assert len({point.start() for point in grid}) == 2  # SA's and QSA's
    assert {point.start().quantizer for point in grid if point.start()} == {"start"}
    assert all(point.start() is None for point in points if point.part == "budget")


def test_all_weights_go_on_for_as_many_steps_at_the_same_rate() -> None:
    recipe = Recipe(training=TrainingSettings(steps=10, learning_rate=0.1))
    assert (recipe.continued().steps, recipe.continued().learning_rate) == (5, 0.1)
    shorter = Recipe(training=recipe.training, continued_steps=3, continued_learning_rate=0.2)
    assert (shorter.continued().steps, shorter.continued().learning_rate) == (3, 0.2)


@pytest.mark.parametrize(("pool", "counts"), [(80, [8, 16, 24, 32, 40]), (30, [3, 11, 15]), (20, [2, 10])])
def test_the_budget_is_counted_in_images(pool: int, counts: list[int]) -> None:
    assert BudgetPart().annotated_counts(pool) == counts


def test_a_budget_beyond_the_pool_is_refused() -> None:
    settings = small()
    assert settings.budget is not None
    with pytest.raises(ConfigError, match=r"2 images at the start, 4 in the end, 3 in the pool"):
        settings.budget.annotated_counts(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full": None, "budget": None, "grid": None}, "nothing to compare"),
        ({"budget": None}, "`grid` needs `budget`"),
        ({"budget": {**SMALL["budget"], "strategies": ["random"]}}, "`grid` needs `budget` with SA or QSA"),
        ({"budget": {**SMALL["budget"], "strategies": ["best"]}}, "field 'budget.strategies.0'"),
        ({"budget": {**SMALL["budget"], "rounds": {"rule": "random"}}}, "rounds.rule: set by `strategies`"),
        (
            {"budget": {**SMALL["budget"], "suggestive_quantizer": "float"}},
            "QSA's suggestive networks are quantized",
        ),
        ({"full": None, "crossbar": {}}, "`crossbar` needs the networks of `full`"),
        ({"crossbar": {"repeats": 2}}, "crossbar.repeats: at most the 1"),
        ({"crossbar": {"best_levels": 129}}, "best_levels: study.crossbar.weight_bits has 128 magnitudes"),
        ({"full": {"networks": [0]}}, "field 'full.networks.0'"),
        ({"held_back": 1.0}, "field 'held_back'"),
        ({"fulll": {}}, "did you mean 'full'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small(**changes)
    assert message in str(refused.value)


def test_an_unknown_quantizer_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="inq-99"):
        small(grid={"quantizers": ["inq-99"]}).check()


def test_labels_tell_float_from_quantized_suggestion() -> None:
    labels = [BudgetPart().strategy(name).label for name in ("SA", "QSA", "uncertainty", "random")]
    assert labels == ["SA", "QSA", "uncertainty", "random"]
    assert BudgetPart().strategy("QSA") == Strategy("suggestive", "inq-7")


def test_quantized_networks_take_fewer_bytes_on_disk_and_float_ones_all(tmp_path: Path) -> None:
    job = MemberJob(FCNSettings(**NETWORK), TrainingSettings(**TRAINING), tmp_path / "float", 0)
    images = generate_tissue(2, TissueSettings(height=40, width=48), 0)
    train_members(
        [job, MemberJob(job.network, job.training, tmp_path / "inq", 0, "inq-5", start=job.out)], images
    )
    model = load_fcn(tmp_path / "float")
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 4)
    plain, packed = sizes_on_disk(tmp_path / "float"), sizes_on_disk(tmp_path / "inq")
    assert plain.weight_bytes == plain.float32_bytes == packed.float32_bytes == 4 * weights
    assert 5 * weights / 8 <= packed.weight_bytes < 0.3 * plain.weight_bytes
    assert packed.file_bytes == (tmp_path / "inq" / "model.safetensors").stat().st_size
    save_fcn(model, tmp_path / "again")
    assert sizes_on_disk(tmp_path / "again") == plain


def test_members_trained_on_ray_are_those_trained_here(ray_local: RaySession, tmp_path: Path) -> None:
    images = generate_tissue(3, TissueSettings(height=40, width=48), 0)

    def jobs(root: Path) -> list[MemberJob]:
        shape, training = FCNSettings(**NETWORK), TrainingSettings(**TRAINING)
        twin = MemberJob(shape, training, root / "float", 5)
        return [twin, MemberJob(shape, training, root / "inq", 5, "inq-5", start=twin.out)]

    here = train_members(jobs(tmp_path / "here"), images)
    there = RayTrainMembers(store(images))(jobs(tmp_path / "there"), images)
    assert [log.losses for log in there] == [log.losses for log in here]
    for name in ("float", "inq"):
        files = [(tmp_path / side / name / "model.safetensors").read_bytes() for side in ("here", "there")]
        assert files[0] == files[1]


def test_a_run_has_every_row_and_goes_on_with_the_networks_it_lacks(
    ray_local: RaySession, tmp_path: Path
) -> None:
    study = {"devices": ["RRAM4"], "sigmas": [0.1], "weight_bits": [3], "chips": 1, "images": 1}
    study |= {"steps": ["largest"], "crossbar": {"weight_bits": 4, "device": "RRAM4"}}
    settings = small(crossbar={"best_levels": 3, "study": study})
    run = RunFolder.create(tmp_path, "segmentation", settings, settings.seed)
    tasks = run_segmentation(settings, run)
    assert [(row["task"], row["error"]) for row in tasks if row["status"] != "done"] == []
    # 2 strategies' rounds; whole pool 2; budget 1 start + 2 x 2 rounds + 1 whole pool; grid 1; crossbars
    assert len(tasks) == 2 + 2 + 6 + 1 + 1
    scores = run.read_table("segmentation_scores").to_pylist()
    # the start set's row stands for both strategies, the grid's point has a row for 1 and for 2 networks
    assert len(scores) == 2 + (2 + 4 + 1) + 2
    assert {(row["rule"], row["round"], row["annotated"]) for row in scores if row["part"] == "budget"} == {
        *((rule, number, 2 + number) for rule in ("suggestive", "random") for number in range(3)),
        ("all", None, 6),
    }
    one, two = (row for row in scores if row["part"] == "grid")
    assert (one["networks"], two["networks"], one["images"]) == (1, 2, 1)
    assert two["weight_bytes"] == 2 * one["weight_bytes"]
    on_arrays = run.read_table("segmentation_crossbars").to_pylist()
    assert {row["model"] for row in on_arrays} == {"float", "inq-5", "float on 3 levels"}
    # what lies on levels of 4 bits has no row along the bits
    assert {(row["model"], row["weight_bits"]) for row in on_arrays if row["arithmetic"] == "crossbar"} == {
        ("float", 3),
        ("float", 4),
        ("inq-5", 3),
        ("inq-5", 4),
        ("float on 3 levels", 4),
    }
    levels = run.read_table("segmentation_levels").to_pylist()
    assert len(levels) == 3 * 2 * 2  # models, bits, steps
    memory = {(row["network"], row["model"]): row for row in measure_memory(settings, run)}
    assert {*memory} == {
        *(("this run's", name) for name in ("float", "inq-5", "twn")),
        *(("paper-sized", name) for name in ("float", "inq-5", "twn")),
    }
    assert memory["this run's", "float"]["ratio"] == 1.0
    # 32 bits against 5, with 0.1 MB of normalisation
    assert 6.2 < memory["paper-sized", "inq-5"]["ratio"] < 6.4
    packed = run.path / "networks" / "full-0-all-inq-5" / "0" / "model.safetensors"
    assert memory["this run's", "inq-5"]["file_bytes"] == packed.stat().st_size
    assert measure_memory(settings, run) == run.read_table("segmentation_memory").to_pylist()
    split = run.read_table("segmentation_split").to_pylist()
    held_back = {row["image"] for row in split if row["role"] == "held back"}
    assert len(held_back) == 2
    images = run.read_table("segmentation_images").to_pylist()
    assert {row["image"] for row in images if row["part"] == "full"} == held_back
    rounds = run.read_table("segmentation_rounds").to_pylist()
    assert not held_back & {row["image"] for row in rounds}
    # what the grid's only weights go on from is trained, but not scored
    assert {path.name for path in (run.path / "networks").iterdir() if path.name.startswith("grid")} == {
        "grid-0-SA-round2-start",
        "grid-0-SA-round2-twn",
    }

    # A kill in the middle: one score and one network are lost, another network's file stays as it is.
    lost = run.path / "networks" / "full-0-all-inq-5" / "0"
    kept = run.path / "networks" / "full-0-all-float" / "0" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    (lost / "training.json").unlink()
    for file in (run.path / "segmentation_ledger").glob("full-0-all-inq-5.*"):
        file.unlink()
    untouched = run.path / "segmentation_ledger" / "full-0-all-float.segmentation_tasks.parquet"
    ledger_before = untouched.stat().st_mtime_ns
    run_segmentation(settings, RunFolder.open(run.path))
    again = run.read_table("segmentation_scores").to_pylist()
    assert [{**row, "trained_seconds": 0} for row in again] == [
        {**row, "trained_seconds": 0} for row in scores
    ]
    assert (lost / "training.json").is_file()
    assert kept.stat().st_mtime_ns == before
    assert untouched.stat().st_mtime_ns == ledger_before


def test_a_task_that_fails_is_named_and_the_rest_goes_on(ray_local: RaySession, tmp_path: Path) -> None:
    settings = small(budget=None, grid=None)
    run = RunFolder.create(tmp_path, "segmentation", settings, settings.seed)
    blocked = run.path / "networks" / "full-0-all-inq-5"
    blocked.parent.mkdir()
    blocked.write_text("no folder")
    tasks = {row["task"]: row for row in run_segmentation(settings, run)}
    assert tasks["full-0-all-float"]["status"] == "done"
    assert tasks["full-0-all-inq-5"]["status"] == "failed"
    assert "its training failed" in tasks["full-0-all-inq-5"]["error"]
    assert {row["quantizer"] for row in run.read_table("segmentation_scores").to_pylist()} == {"float"}
    blocked.unlink()
    assert {row["status"] for row in run_segmentation(settings, run)} == {"done"}


def test_a_run_where_nothing_works_says_why(ray_local: RaySession, tmp_path: Path) -> None:
    settings = small(budget=None, grid=None, full={"quantizers": ["float"], "recipe": {"training": TRAINING}})
    run = RunFolder.create(tmp_path, "segmentation", settings, settings.seed)
    (run.path / "networks").write_text("no folder")
    with pytest.raises(
        RunError, match=r"no task of the comparison succeeded; the first failed with: .*training"
    ):
        run_segmentation(settings, run)
    assert read_parquet(run.table_path("segmentation_scores")).num_rows == 0


@pytest.mark.parametrize("asked", [{"cpus_per_task": 64}, {"gpus_per_task": 99}])
def test_a_training_that_no_machine_can_run_is_refused_and_not_waited_for(
    ray_local: RaySession, tmp_path: Path, asked: dict[str, int]
) -> None:
    settings = small(budget=None, grid=None, **asked)
    run = RunFolder.create(tmp_path, "segmentation", settings, settings.seed)
    with pytest.raises(RunError, match=r"cpus_per_task, gpus_per_task\) needs .* at most 2 CPUs"):
        run_segmentation(settings, run)


def test_a_points_folder_names_all_it_depends_on() -> None:
    points = [
        Point("grid", repeat, (Strategy("suggestive", weights),), quantizer, number, (1,))
        for repeat in (0, 1)
        for weights in ("float", "inq-7")
        for quantizer in ("float", "inq-5")
        for number in (1, 2)
    ]
    assert len({point.folder for point in points}) == len(points)
