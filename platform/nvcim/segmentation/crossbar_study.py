"""Segmentation networks on crossbars: scores against device, write variation and bits of the cells' integers.

Two lines through the settings rather than their whole product: every device at every sigma with the base config's bits,
and every number of bits with the base config's device and sigma. A chip is the same for every model and point (its
cells draw the same normal numbers), so that differences between rows of one chip are paired; only a reference column,
which makes a matrix wider, moves the draws of its layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pydantic import Field
from torch import nn

from nvcim.analog.layers import AnalogConv2d, AnalogLayer
from nvcim.config import Settings, parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.images import LabelledImage
from nvcim.errors import DataError
from nvcim.quantization.inference import inference_copy
from nvcim.randomness import named_generator
from nvcim.segmentation.crossbar_weights import (
    LevelFit,
    Step,
    level_fit,
    matrix_of,
    on_crossbars,
    steps_by_error,
)
from nvcim.segmentation.inference import PredictionSettings
from nvcim.segmentation.instances import predict
from nvcim.segmentation.metrics import score_set
from nvcim.segmentation.network import SegmentationNetwork

Row = dict[str, Any]
OnPoint = Callable[[str, int, int], None]
"""Called with (what was scored, points done, points in all)."""

Mapped = Literal["largest", "by_error"]
"""How every convolution's step is chosen: by its largest weight, or as `steps_by_error` does."""


class CrossbarStudySettings(Settings):
    """Which crossbars the networks are scored on.

    `crossbar` gives everything that is not varied; its weight_bits hold while device and sigma vary, its device and
    sigma while the bits vary. Points that both lines hold are scored once.
    """

    devices: tuple[str, ...] = Field(default=("FeFET2", "RRAM4"), min_length=1)
    sigmas: tuple[float, ...] = Field(default=(0.0, 0.05, 0.1), min_length=1)
    weight_bits: tuple[int, ...] = (4, 5, 6, 8)
    steps: tuple[Mapped, ...] = Field(default=("largest", "by_error"), min_length=1)
    chips: int = Field(default=3, ge=1, description="independently written; one where nothing varies")
    images: int = Field(default=8, ge=1, description="test images that are scored, the first ones")
    crossbar: CrossbarConfig = CrossbarConfig()

    def points(self) -> list[CrossbarConfig]:
        """The configs of both lines, without repeats, devices and sigmas first.

        Raises:
            ConfigError: values that no crossbar can have.
        """
        base = self.crossbar.model_dump()
        varied: list[dict[str, object]] = [
            {"device": device, "sigma": sigma} for device in self.devices for sigma in self.sigmas
        ]
        varied += [{"weight_bits": bits} for bits in self.weight_bits]
        found: list[CrossbarConfig] = []
        for fields in varied:
            config = parse_settings({**base, **fields}, CrossbarConfig, "crossbar study")
            if config not in found:
                found.append(config)
        return found


@dataclass(frozen=True)
class _Point:
    """A config, and how the steps of its arrays are chosen."""

    config: CrossbarConfig
    step: Mapped


def crossbar_rows(
    models: Mapping[str, SegmentationNetwork],
    test: Sequence[LabelledImage],
    settings: CrossbarStudySettings,
    seed: int,
    on_point: OnPoint | None = None,
    prediction: PredictionSettings | None = None,
) -> list[Row]:
    """Score every model on digital arithmetic and on every crossbar of the settings.

    Args:
        models: by name, on the CPU; quantized ones are written as their weights read. Left as they are.
        test: images with their instances.
        settings: the crossbars.
        seed: of the chips. Rows depend on it, the model, the config and the chip's number alone.
        on_point: called after each point of each model.
        prediction: how instances are made, on digital arithmetic and on crossbars alike.

    Returns:
        One row per model (arithmetic "ideal"), and one per model, point and chip ("crossbar"), with model, arithmetic,
        device, technology, sigma, weight_bits, cell_bits, step, reference_columns (matrices whose step is a power of
        two), chip, images, object_f1, object_dice, object_hausdorff (pixels), weight_error (rms of the weights as the
        cells hold them less the digital ones, over the digital rms; layers pooled by their number of weights),
        level_error (the same without variation), zeroed (share of the nonzero weights that become zero) and basis.
        A point whose cells do not vary has one chip. `by_error` rows are left out where they would repeat `largest`.

    Raises:
        DataError: no test image.
        ConfigError, DeviceError: a crossbar that cannot be made.
    """
    images = list(test[: settings.images])
    if not images:
        raise DataError("scoring on crossbars needs at least one test image")
    points = [_Point(config, step) for config in settings.points() for step in settings.steps]
    rows: list[Row] = []
    total, done = len(models) * len(points), 0
    for name, model in models.items():
        digital = inference_copy(model)
        assert isinstance(digital, SegmentationNetwork)
        rows.append({"model": name, "arithmetic": "ideal", **_scores(digital, images, prediction)})
        for point in points:
            found = _point_rows(digital, images, settings, point, seed, prediction)
            rows += [{"model": name, **row} for row in found]
            done += 1
            if on_point is not None:
                on_point(f"{name} on {point.config.device}", done, total)
    return rows


def level_rows(
    models: Mapping[str, nn.Module], settings: CrossbarStudySettings, bits: Sequence[int] = (4, 5, 6, 8)
) -> list[Row]:
    """What the weights themselves lose, without a chip or an image: every device, sigma, number of bits and step.

    Closed forms (`level_fit`) over each model's convolutions, so the whole product costs less than one scored chip.

    Args:
        models: by name.
        settings: its devices, sigmas and base config.
        bits: of the cells' integers.

    Returns:
        Rows of model, device, sigma, weight_bits, step ("largest", "power_of_two"), level_error, spread_error,
        expected_error (root of the sum of both's squares), zeroed and basis "modelled"; errors as in `crossbar_rows`.

    Raises:
        ConfigError, DeviceError: a crossbar that cannot be made.
    """
    rows = []
    base = settings.crossbar.model_dump()
    for name, model in models.items():
        digital = inference_copy(model)
        for device, sigma, count in product(settings.devices, settings.sigmas, bits):
            where: Row = {"device": device, "sigma": sigma, "weight_bits": count}
            config = parse_settings({**base, **where}, CrossbarConfig, "crossbar study")
            for step in _steps_of(config):
                fits = _fits(digital, config, dict.fromkeys((n for n, _ in _convolutions(digital)), step))
                spread = _pooled([(n, fit.relative_spread) for n, fit in fits])
                about = _about_levels(fits)
                expected = math.hypot(about["level_error"], spread)
                errors = {**about, "spread_error": spread, "expected_error": expected, "basis": "modelled"}
                rows.append({"model": name, **where, "step": step, **errors})
    return rows


@dataclass(frozen=True)
class Curve:
    """A score along one axis of the study, everything else fixed; one entry per place on the axis, ascending.

    mean, low and high are over chips; ideal is the model's score on digital arithmetic.
    """

    model: str
    device: str
    step: str
    fixed: tuple[str, float]
    axis: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    chips: tuple[int, ...]
    ideal: float


def curves(
    rows: Sequence[Row], axis: Literal["sigma", "weight_bits"], score: str = "object_f1"
) -> list[Curve]:
    """Put rows of `crossbar_rows` in order for a figure: a curve per model, device, step and value of the other axis.

    A `by_error` curve takes the `largest` row where its own was left out as the same. Curves of one place are dropped.

    Args:
        rows: of `crossbar_rows`, in any order.
        axis: what runs along the curve.
        score: the column.
    """
    other = "weight_bits" if axis == "sigma" else "sigma"
    ideal = {row["model"]: row[score] for row in rows if row["arithmetic"] == "ideal"}
    places: dict[tuple[str, str, str, float], dict[float, list[float]]] = {}
    for row in rows:
        if row["arithmetic"] == "crossbar":
            key = (row["model"], row["device"], row["step"], row[other])
            places.setdefault(key, {}).setdefault(row[axis], []).append(row[score])
    found = []
    for (model, device, step, value), own in places.items():
        same = places.get((model, device, "largest", value), {}) if step == "by_error" else {}
        along = sorted((same | own).items())
        if len(along) < 2:
            continue
        scores = [tuple(kept) for _, kept in along]
        found.append(
            Curve(
                model=model,
                device=device,
                step=step,
                fixed=(other, value),
                axis=tuple(place for place, _ in along),
                mean=tuple(math.fsum(kept) / len(kept) for kept in scores),
                low=tuple(min(kept) for kept in scores),
                high=tuple(max(kept) for kept in scores),
                chips=tuple(len(kept) for kept in scores),
                ideal=ideal[model],
            )
        )
    return found


def _point_rows(
    model: SegmentationNetwork,
    images: Sequence[LabelledImage],
    settings: CrossbarStudySettings,
    point: _Point,
    seed: int,
    prediction: PredictionSettings | None,
) -> list[Row]:
    """Rows of one point, one per chip; none where `by_error` is what `largest` is."""
    config = point.config
    steps: dict[str, Step] = {} if point.step == "largest" else steps_by_error(model, config)
    columns = sum(step == "power_of_two" for step in steps.values())
    if point.step == "by_error" and columns == 0 and "largest" in settings.steps:
        return []
    fits = _fits(model, config, steps)
    about = {
        "arithmetic": "crossbar",
        "device": config.device,
        "technology": config.cell().technology,
        "sigma": config.sigma,
        "weight_bits": config.weight_bits,
        "cell_bits": config.cell().bits,
        "step": point.step,
        "reference_columns": columns,
        **_about_levels(fits),
    }
    rows = []
    for chip in range(settings.chips if varies(config) else 1):
        generator = named_generator(seed, "segmentation", "crossbar", chip)
        analog = on_crossbars(model, config, generator, steps)
        assert isinstance(analog, SegmentationNetwork)
        error = weight_error(model, analog)
        scores = _scores(analog, images, prediction)
        rows.append({**about, "chip": chip, **scores, "weight_error": error})
    return rows


def varies(config: CrossbarConfig) -> bool:
    """Whether two chips of this config differ."""
    written = config.sigma > 0 and max(config.cell().level_sigma) > 0
    return (
        written
        or any(config.stuck_rates())
        or config.array_spread() > 0
        or config.noisy
        or bool(config.adc_errors)
    )


def weight_error(model: nn.Module, analog: nn.Module) -> float:
    """Relative rms of convolutions' weights as cells hold them against the digital ones, layers pooled by size.

    Args:
        model: the digital network.
        analog: what `on_crossbars` made of it.

    Raises:
        ModelError: `analog` has none of the convolutions.
    """
    found = []
    for name, conv in _convolutions(model):
        layer = analog.get_submodule(name)
        held_by = layer if isinstance(layer, AnalogLayer) else layer.conv
        assert isinstance(held_by, AnalogConv2d)
        wanted = conv.weight.detach()
        matrix = held_by.shape.matrix(wanted).double()
        held = held_by.crossbar.read_weight()[..., : matrix.shape[-1]].double()
        found.append((wanted.numel(), float((held - matrix).norm() / matrix.norm())))
    return _pooled(found)


def _fits(model: nn.Module, config: CrossbarConfig, steps: Mapping[str, Step]) -> list[tuple[int, LevelFit]]:
    """Number of weights and fit of every convolution that has a nonzero weight."""
    return [
        (conv.weight.numel(), level_fit(matrix_of(conv), config, steps.get(name, "largest")))
        for name, conv in _convolutions(model)
    ]


def _about_levels(fits: Sequence[tuple[int, LevelFit]]) -> Row:
    """What rounding and leakage cost, over all layers."""
    return {
        "level_error": _pooled([(count, fit.relative_error) for count, fit in fits]),
        "zeroed": sum(count * fit.zeroed for count, fit in fits) / sum(count for count, _ in fits),
    }


def _steps_of(config: CrossbarConfig) -> tuple[Step, ...]:
    return ("largest",) if config.scale_per == "column" else ("largest", "power_of_two")


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and bool(module.weight.any())
    ]


def _pooled(errors: Sequence[tuple[int, float]]) -> float:
    """Root of the mean square of relative errors, weighted by numbers of weights."""
    return math.sqrt(sum(n * e * e for n, e in errors) / sum(n for n, _ in errors))


def _scores(
    model: SegmentationNetwork, images: Sequence[LabelledImage], prediction: PredictionSettings | None
) -> Row:
    found = [predict(model, image.pixels, prediction) for image in images]
    scores = score_set(zip(found, [i.instances for i in images], strict=True), [i.name for i in images])
    return {
        "images": len(images),
        "object_f1": scores.pooled.f1,
        "object_dice": scores.pooled.dice,
        "object_hausdorff": scores.pooled.hausdorff,
        "basis": "measured",
    }
