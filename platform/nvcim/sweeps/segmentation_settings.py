"""What the segmentation comparison compares: its settings, its split of the images, and every point in order.

A repetition has a split of its own: a share of the images is held back for scoring, the rest is the pool. All
that is compared within a repetition shares the split, the start set and the networks' seeds, so that it can be
compared repetition by repetition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_validator

from nvcim.config import LocalPath, Settings
from nvcim.data.images import LabelledImage, read_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_seed
from nvcim.segmentation.annotation_rounds import RoundsSettings
from nvcim.segmentation.architectures import NetworkSettings
from nvcim.segmentation.crossbar_study import CrossbarStudySettings
from nvcim.segmentation.fcn import FCNSettings
from nvcim.segmentation.inference import PredictionSettings
from nvcim.segmentation.suggestive import Rule
from nvcim.segmentation.training import TrainingSettings

FULL, GRID, BUDGET, CROSSBAR = "full", "grid", "budget", "crossbar"
PARTS = (FULL, GRID, BUDGET, CROSSBAR)
FLOAT = "float"
START = "start"
"""The float networks that a part's networks, float and quantized, go on from; trained and not scored."""
EVERYTHING = "all"
"""The rule of what is trained on the whole pool."""
QUANTIZERS = (FLOAT, "inq-3", "inq-4", "inq-5", "inq-7", "twn", "ttq", "dorefa-1")
StrategyName = Literal["SA", "QSA", "uncertainty", "random"]
STRATEGIES: tuple[StrategyName, ...] = ("SA", "QSA", "uncertainty", "random")
_RULES: dict[str, Rule] = {
    "SA": "suggestive",
    "QSA": "suggestive",
    "uncertainty": "uncertainty",
    "random": "random",
}


class Strategy(NamedTuple):
    """How training images are chosen: a rule, and the weights of the networks that choose (None: there are none)."""

    rule: str
    suggestive: str | None

    @property
    def label(self) -> str:
        """The strategy's short name in tables and figures."""
        if self.rule == "suggestive":
            return "SA" if self.suggestive == FLOAT else "QSA"
        return self.rule


WHOLE_POOL = Strategy(EVERYTHING, None)
Networks = Annotated[int, Field(ge=1)]
"""How many networks are averaged."""


class Recipe(Settings):
    """How a part's networks are trained: float ones from scratch, which each kind of weights then goes on from.

    Float weights go on as long as quantized ones, so that a difference between them is not that of more steps.
    """

    training: TrainingSettings = TrainingSettings()
    continued_steps: int | None = Field(None, ge=1, description="null: half as many as from scratch")
    continued_learning_rate: float | None = Field(None, gt=0, description="null: as from scratch")

    def continued(self) -> TrainingSettings:
        """The training of a network that goes on from a trained float one."""
        rate = self.continued_learning_rate or self.training.learning_rate
        again = self.training.continued().model_copy(update={"learning_rate": rate})
        return again.model_copy(update={"steps": self.continued_steps}) if self.continued_steps else again


class FullPart(Settings):
    """Networks trained on the whole pool, scored on every held-back image: what quality is to be had."""

    quantizers: tuple[str, ...] = Field((FLOAT, "inq-5", "inq-7"), min_length=1)
    networks: tuple[Networks, ...] = Field((1,), min_length=1)
    recipe: Recipe = Recipe()


class BudgetPart(Settings):
    """Rounds of annotation by each strategy, and a float network trained on what every round had annotated."""

    strategies: tuple[StrategyName, ...] = Field(STRATEGIES, min_length=1)
    suggestive_quantizer: str = Field("inq-7", description="weights of QSA's suggestive networks")
    rounds: RoundsSettings = Field(RoundsSettings(), description="the strategies set its rule and quantizer")
    pool: int | None = Field(None, ge=2, description="images of the pool to choose from, by seed; null: all")
    curve: Recipe | None = Field(Recipe(), description="null: no curves, the rounds alone")
    whole_pool: bool = Field(True, description="a network on the whole pool too, where the curves end")
    scored_images: int | None = Field(None, ge=1, description="of those held back; null: all")

    @model_validator(mode="after")
    def _strategies_set_the_rule(self) -> "BudgetPart":
        given = self.rounds.model_fields_set & {"rule", "quantizer"}
        if given and (self.rounds.rule, self.rounds.quantizer) != ("suggestive", FLOAT):
            raise ValueError(f"rounds.{sorted(given)[0]}: set by `strategies` and `suggestive_quantizer`")
        return self

    @field_validator("suggestive_quantizer")
    @classmethod
    def _quantized(cls, name: str) -> str:
        if name == FLOAT:
            raise ValueError("QSA's suggestive networks are quantized; SA's are the float ones")
        return name

    def strategy(self, name: StrategyName) -> Strategy:
        """What a strategy's name stands for."""
        weights = {"QSA": self.suggestive_quantizer, "random": None}.get(name, FLOAT)
        return Strategy(_RULES[name], weights)

    def settings_of(self, strategy: Strategy) -> RoundsSettings:
        """The rounds' settings under a strategy."""
        return self.rounds.model_copy(
            update={"rule": strategy.rule, "quantizer": strategy.suggestive or FLOAT}
        )

    def choose_from(self, pool: Sequence[str]) -> tuple[str, ...]:
        """The images of a repetition's pool (in its drawn order) that the rounds know of."""
        return tuple(pool[: self.pool])

    def annotated_counts(self, pool: int) -> list[int]:
        """Images annotated at the start and after each round, of a pool of so many.

        Raises:
            ConfigError: amounts that do not fit the pool or each other.
        """
        start, budget, k, candidates = (
            amount if isinstance(amount, int) else max(round(amount * pool), 1)
            for amount in (self.rounds.start, self.rounds.budget, self.rounds.k, self.rounds.candidates)
        )
        if k > candidates and {"SA", "QSA"} & {*self.strategies}:
            raise ConfigError(
                f"field 'budget.rounds.k': {k} images cannot be chosen among {candidates} candidates; "
                "k <= candidates is allowed"
            )
        if not start < budget <= pool:
            raise ConfigError(
                f"field 'budget.rounds': {start} images at the start, {budget} in the end, {pool} in the pool; "
                "start < budget <= pool is allowed"
            )
        return [min(start + number * k, budget) for number in range(math.ceil((budget - start) / k) + 1)]


class GridPart(Settings):
    """Segmentation networks on what SA and QSA had annotated in the end, with each kind of weights."""

    quantizers: tuple[str, ...] = Field(QUANTIZERS, min_length=1)
    networks: tuple[Networks, ...] = Field((1, 5), min_length=1, description="how many are averaged")
    bootstrap: bool = Field(
        False, description="train each network on a resample of its own, not on all images"
    )
    recipe: Recipe = Recipe()
    scored_images: int | None = Field(None, ge=1, description="of those held back; null: all")


class CrossbarPart(Settings):
    """The networks of the part `full` on crossbars."""

    study: CrossbarStudySettings = CrossbarStudySettings()
    repeats: int = Field(1, ge=1, description="repetitions whose networks are used, the first ones")
    best_levels: int | None = Field(
        None,
        ge=1,
        description="magnitudes (zero is one) that the float network is put on, too; null: it is not",
    )

    @model_validator(mode="after")
    def _levels_fit_the_bits(self) -> "CrossbarPart":
        most = 2 ** (self.study.crossbar.weight_bits - 1)
        if self.best_levels is not None and self.best_levels > most:
            raise ValueError(f"best_levels: study.crossbar.weight_bits has {most} magnitudes at most")
        return self


def levels_name(count: int) -> str:
    """What the float network on so many magnitudes is called among the models on crossbars."""
    return f"float on {count} levels"


class SegmentationSettings(Settings):
    """What is compared with what, and on what."""

    data: LocalPath | None = Field(None, description="labelled image set; without it tissue is generated")
    images: int | None = Field(None, ge=4, description="images drawn of the data by seed; null: all")
    generated: int = Field(60, ge=4, description="images of generated tissue")
    tissue: TissueSettings = TissueSettings()
    held_back: float = Field(0.25, gt=0, lt=1, description="share of the images kept for scoring")
    seeds: int = Field(3, ge=1, le=1000, description="repetitions, each with a split and networks of its own")
    network: NetworkSettings = FCNSettings()
    full: FullPart | None = FullPart()
    budget: BudgetPart | None = BudgetPart()
    grid: GridPart | None = GridPart()
    crossbar: CrossbarPart | None = None
    prediction: PredictionSettings = PredictionSettings()
    overlays: int = Field(4, ge=0, description="best, and as many worst images drawn")
    cpus_per_task: int = Field(1, ge=1)
    gpus_per_task: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "SegmentationSettings":
        if self.full is None and self.budget is None:
            raise ValueError("nothing to compare: `full` and `budget` are both null")
        if self.grid is not None and not (self.budget and {"SA", "QSA"} & {*self.budget.strategies}):
            raise ValueError("`grid` needs `budget` with SA or QSA among its strategies")
        if self.crossbar is not None and self.full is None:
            raise ValueError("`crossbar` needs the networks of `full`, which is null")
        if self.crossbar is not None and self.crossbar.repeats > self.seeds:
            raise ValueError(f"crossbar.repeats: at most the {self.seeds} of `seeds`")
        return self

    def check(self) -> None:
        """Refuse settings that cannot run, before anything starts.

        Raises:
            ConfigError: an unknown quantizer, or a budget that does not fit the number of images.
            DataError: no such folder of images.
        """
        named = [*(self.full.quantizers if self.full else ()), *(self.grid.quantizers if self.grid else ())]
        if self.budget:
            named.append(self.budget.suggestive_quantizer)
        for name in named:
            quantizer_named(name)
        if self.data is not None and not self.data.is_dir():
            raise DataError(f"{self.data}: no such folder of labelled images")

    def load_images(self) -> list[LabelledImage]:
        """The images in name order (raises DataError as `read_image_set`)."""
        if self.data is not None:
            return read_image_set(self.data, self.images, self.seed)
        made = generate_tissue(self.generated, self.tissue, named_seed(self.seed, "segmentation", "tissue"))
        return sorted(made, key=lambda image: image.name)


class Split(NamedTuple):
    """Names of a repetition's images, each in a drawn order."""

    pool: tuple[str, ...]
    held_back: tuple[str, ...]


def split_names(names: Sequence[str], share: float, seed: int, repeat: int) -> Split:
    """Draw a repetition's split; it depends on the names, not on their order.

    Raises:
        DataError: too few images for both sides.
    """
    held = max(round(share * len(names)), 1)
    if len(names) - held < 1:
        raise DataError(f"{len(names)} images cannot be split: both pool and held-back images are needed")
    ordered = sorted(names)
    drawn = np.random.default_rng(named_seed(seed, "segmentation comparison", "split", repeat))
    order = [ordered[index] for index in drawn.permutation(len(ordered))]
    return Split(tuple(order[held:]), tuple(order[:held]))


@dataclass(frozen=True)
class Point:
    """Networks that are trained and scored together.

    `strategies` are several where they share it (the start set, round 0). `networks`: how many are averaged, each
    number a row of its own; the first `n` of them are those of the row for n.
    """

    part: str
    repeat: int
    strategies: tuple[Strategy, ...]
    quantizer: str
    round: int | None
    networks: tuple[int, ...]

    @property
    def folder(self) -> str:
        """Where its networks are, relative to the run's `networks/`; also its name in the ledger."""
        return self.folder_of(self.part, self.repeat, self.strategies[0].label, self.round, self.quantizer)

    @staticmethod
    def folder_of(part: str, repeat: int, strategy: str, round_number: int | None, quantizer: str) -> str:
        """The folder of a point with these; all strategies share the start set's, round 0."""
        who = "start" if round_number == 0 else strategy
        place = f"-round{round_number}" if round_number else ""
        return f"{part}-{repeat}-{who}{place}-{quantizer}"

    def start(self) -> "Point | None":
        """The float networks that this point's go on from; None for those that are trained from scratch."""
        if self.part == BUDGET or self.quantizer == START:
            return None
        return Point(self.part, self.repeat, self.strategies, START, self.round, self.networks)


def planned_points(settings: SegmentationSettings, pool: int) -> list[Point]:
    """Every scored point in the order of the tables, for pools of so many images (ConfigError as `annotated_counts`).

    The networks that a part's go on from (`Point.start`) are trained and not scored.
    """
    made: list[Point] = []
    for repeat in range(settings.seeds):
        if settings.full is not None:
            made += [
                Point(FULL, repeat, (WHOLE_POOL,), name, None, tuple(sorted({*settings.full.networks})))
                for name in dict.fromkeys(settings.full.quantizers)
            ]
    if settings.budget is None:
        return made
    last = len(settings.budget.annotated_counts(min(pool, settings.budget.pool or pool))) - 1
    strategies = [settings.budget.strategy(name) for name in dict.fromkeys(settings.budget.strategies)]
    for repeat in range(settings.seeds):
        if settings.budget.curve is not None:
            made.append(Point(BUDGET, repeat, tuple(strategies), FLOAT, 0, (1,)))
            made += [
                Point(BUDGET, repeat, (strategy,), FLOAT, number, (1,))
                for strategy in strategies
                for number in range(1, last + 1)
            ]
            if settings.budget.whole_pool:
                made.append(Point(BUDGET, repeat, (WHOLE_POOL,), FLOAT, None, (1,)))
    if settings.grid is not None:
        made += [
            Point(GRID, repeat, (strategy,), name, last, tuple(sorted({*settings.grid.networks})))
            for repeat in range(settings.seeds)
            for strategy in strategies
            if strategy.label in ("SA", "QSA")
            for name in dict.fromkeys(settings.grid.quantizers)
        ]
    return made


def recipe_of(point: Point, settings: SegmentationSettings) -> Recipe:
    """How a point's networks are trained."""
    if point.part == FULL and settings.full is not None:
        return settings.full.recipe
    if point.part == GRID and settings.grid is not None:
        return settings.grid.recipe
    assert settings.budget is not None
    assert settings.budget.curve is not None
    return settings.budget.curve


def scored_images(part: str, settings: SegmentationSettings) -> int | None:
    """How many of the held-back images a part is scored on; None for all."""
    if part == BUDGET and settings.budget is not None:
        return settings.budget.scored_images
    if part == GRID and settings.grid is not None:
        return settings.grid.scored_images
    if part == CROSSBAR and settings.crossbar is not None:
        return settings.crossbar.study.images
    return None
