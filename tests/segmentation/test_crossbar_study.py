"""Networks scored on crossbars: what the rows say, and that nothing but their own point decides them."""

import math

import pytest
import torch
from torch import nn

from nvcim.crossbar import CrossbarConfig
from nvcim.data.images import LabelledImage
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError, DeviceError
from nvcim.quantization import INQ
from nvcim.randomness import named_generator
from nvcim.segmentation.crossbar_study import (
    CrossbarStudySettings,
    Row,
    crossbar_rows,
    curves,
    level_rows,
    varies,
    weight_error,
)
from nvcim.segmentation.crossbar_weights import crossbar_inq, on_crossbars
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.inference import PredictionSettings
from nvcim.segmentation.instances import predict
from nvcim.segmentation.metrics import score_set
from nvcim.segmentation.network import SegmentationNetwork

TINY = FCNSettings(width=8, depth=1, descriptor_dim=8, fused_width=8)
ARRAY = CrossbarConfig(adc_bits=None, dac_bits=None)
SETTINGS = CrossbarStudySettings(
    devices=("RRAM4", "Ideal2"),
    sigmas=(0.0, 0.2),
    weight_bits=(3,),
    steps=("largest",),
    chips=2,
    images=1,
    crossbar=ARRAY.model_copy(update={"weight_bits": 5, "device": "RRAM4", "sigma": 0.2}),
)


@pytest.fixture(scope="module")
def images() -> list[LabelledImage]:
    tissue = TissueSettings(height=48, width=40, smallest_radius=8, largest_radius=14)
    return generate_tissue(2, tissue, seed=3)


@pytest.fixture(scope="module")
def model() -> SegmentationNetwork:
    return ResidualFCN(TINY, seed=1).eval()


@pytest.fixture(scope="module")
def scored(images: list[LabelledImage], model: SegmentationNetwork) -> list[Row]:
    """The study that several tests look at."""
    return crossbar_rows({"a": model}, images, SETTINGS, 7)


def quantized(config: CrossbarConfig) -> SegmentationNetwork:
    network = ResidualFCN(TINY, seed=1).eval()
    quantizer = INQ(crossbar_inq(config))
    network.quantize(quantizer)
    quantizer.advance(network, 1.0)
    return network


def test_points_are_two_lines_through_the_settings_each_once() -> None:
    settings = SETTINGS.model_copy(update={"weight_bits": (3, 5)})
    found = [(p.device, p.sigma, p.weight_bits) for p in settings.points()]
    assert found == [
        ("RRAM4", 0.0, 5),
        ("RRAM4", 0.2, 5),
        ("Ideal2", 0.0, 5),
        ("Ideal2", 0.2, 5),
        ("RRAM4", 0.2, 3),
    ]


def test_a_study_scores_digital_weights_once_and_each_chip_of_each_point(
    images: list[LabelledImage], model: SegmentationNetwork
) -> None:
    seen: list[tuple[int, int]] = []
    rows = crossbar_rows({"a": model}, images, SETTINGS, 7, lambda _, done, total: seen.append((done, total)))
    place = [
        (r["arithmetic"], r.get("device"), r.get("sigma"), r.get("weight_bits"), r.get("chip")) for r in rows
    ]
    assert place == [
        ("ideal", None, None, None, None),
        ("crossbar", "RRAM4", 0.0, 5, 0),  # nothing varies: one chip
        ("crossbar", "RRAM4", 0.2, 5, 0),
        ("crossbar", "RRAM4", 0.2, 5, 1),
        ("crossbar", "Ideal2", 0.0, 5, 0),
        ("crossbar", "Ideal2", 0.2, 5, 0),
        ("crossbar", "RRAM4", 0.2, 3, 0),
        ("crossbar", "RRAM4", 0.2, 3, 1),
    ]
    assert seen == [(done, 5) for done in range(1, 6)]
    assert {(r["cell_bits"], r["technology"]) for r in rows[1:]} == {(2, "RRAM"), (2, "ideal")}
    assert all(r["images"] == 1 and r["basis"] == "measured" for r in rows)


def test_rows_depend_on_their_own_model_point_and_chip_alone(
    images: list[LabelledImage], model: SegmentationNetwork, scored: list[Row]
) -> None:
    both = crossbar_rows({"b": ResidualFCN(TINY, seed=2), "a": model}, images, SETTINGS, 7)
    assert [row for row in both if row["model"] == "a"] == scored
    fewer = SETTINGS.model_copy(
        update={"devices": ("RRAM4",), "sigmas": (0.2,), "chips": 1, "weight_bits": ()}
    )
    wanted = [r for r in scored if (r["model"], r.get("sigma"), r.get("chip")) == ("a", 0.2, 0)]
    assert crossbar_rows({"a": model}, images, fewer, 7)[1] == wanted[0]
    assert crossbar_rows({"a": model}, images, fewer, 8)[1] != wanted[0]


def test_scores_and_errors_are_those_of_the_chip(
    images: list[LabelledImage], model: SegmentationNetwork, scored: list[Row]
) -> None:
    config = SETTINGS.crossbar
    row = next(r for r in scored if (r.get("device"), r.get("sigma"), r.get("chip")) == ("RRAM4", 0.2, 1))
    chip = on_crossbars(model, config, named_generator(7, "segmentation", "crossbar", 1))
    assert isinstance(chip, SegmentationNetwork)
    scores = score_set([(predict(chip, images[0].pixels), images[0].instances)], [images[0].name]).pooled
    assert (row["object_f1"], row["object_dice"]) == (scores.f1, scores.dice)
    assert row["weight_error"] == weight_error(model, chip)
    # Variation comes on top of what rounding loses.
    assert row["weight_error"] > row["level_error"] > 0


def test_without_variation_the_measured_error_is_the_one_worked_out(scored: list[Row]) -> None:
    still = [r for r in scored[1:] if r["sigma"] == 0 or r["device"] == "Ideal2"]
    assert len(still) == 3
    for row in still:
        assert row["weight_error"] == pytest.approx(row["level_error"], rel=1e-4)


def test_the_error_pools_layers_by_their_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False))
    for layer, weights in zip(network, ([4.0, 1.2, 0.0], [7.0, 2.4, -7.0]), strict=True):
        layer.weight.data = torch.tensor(weights).reshape(layer.weight.shape)
    # Steps of 4/3 and 7/3: 1.2 becomes 4/3, 2.4 becomes 7/3.
    first = (4 / 3 - 1.2) ** 2 / (16 + 1.44)
    second = (7 / 3 - 2.4) ** 2 / (98 + 5.76)
    chip = on_crossbars(network, CrossbarConfig.ideal(3), torch.Generator().manual_seed(0))
    assert weight_error(network, chip) == pytest.approx(math.sqrt((first + second) / 2), rel=1e-5)


def test_levels_made_for_the_grid_cost_nothing_where_the_step_is_chosen_by_error(
    images: list[LabelledImage],
) -> None:
    base = CrossbarConfig.ideal(4)
    settings = CrossbarStudySettings(
        devices=("RRAM4",), sigmas=(0.0,), weight_bits=(), images=2, crossbar=base
    )
    digital, largest, by_error = crossbar_rows({"inq": quantized(base)}, images, settings, 0)
    assert (largest["step"], by_error["step"]) == ("largest", "by_error")
    assert largest["reference_columns"] == 0
    assert largest["weight_error"] > 0.05
    assert by_error["reference_columns"] > 0
    assert by_error["weight_error"] < 1e-6
    for score in ("object_f1", "object_dice", "object_hausdorff"):
        assert by_error[score] == pytest.approx(digital[score], rel=1e-3)


def test_rows_by_error_that_would_repeat_the_largest_weights_are_left_out(
    images: list[LabelledImage], model: SegmentationNetwork
) -> None:
    few = SETTINGS.model_copy(update={"devices": ("Ideal2",), "sigmas": (0.0,), "weight_bits": ()})
    both = few.model_copy(update={"steps": ("largest", "by_error")})
    assert [r.get("step") for r in crossbar_rows({"a": model}, images, both, 7)] == [None, "largest"]
    alone = few.model_copy(update={"steps": ("by_error",)})
    assert [r.get("step") for r in crossbar_rows({"a": model}, images, alone, 7)] == [None, "by_error"]


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, True),
        ({"sigma": 0.0}, False),
        ({"device": "Ideal2"}, False),
        ({"sigma": 0.0, "stuck_on": 0.01}, True),
        ({"sigma": 0.0, "array_sigma": 0.1}, True),
        ({"sigma": 0.0, "read_noise": 0.1}, True),
    ],
)
def test_what_makes_chips_differ(fields: dict[str, object], answer: bool) -> None:
    assert varies(CrossbarConfig.model_validate(fields)) is answer


def test_a_network_that_is_handed_in_stays_what_it_was(images: list[LabelledImage]) -> None:
    network = quantized(ARRAY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    few = SETTINGS.model_copy(update={"devices": ("RRAM4",), "weight_bits": (), "chips": 1})
    crossbar_rows({"a": network}, images, few, 0)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert network.quantizer is not None


def test_what_cannot_be_scored_is_refused(images: list[LabelledImage], model: SegmentationNetwork) -> None:
    with pytest.raises(DataError, match="at least one test image"):
        crossbar_rows({"a": model}, [], SETTINGS, 0)
    with pytest.raises(ConfigError, match="weight_bits"):
        crossbar_rows({"a": model}, images, SETTINGS.model_copy(update={"weight_bits": (1,)}), 0)
    with pytest.raises(DeviceError, match="RRAM9"):
        crossbar_rows({"a": model}, images, SETTINGS.model_copy(update={"devices": ("RRAM9",)}), 0)


def test_level_rows_are_the_errors_that_scored_chips_have(
    model: SegmentationNetwork, scored: list[Row]
) -> None:
    rows = level_rows({"a": model}, SETTINGS, bits=(3, 5))
    assert len(rows) == 2 * 2 * 2 * 2  # devices, sigmas, bits, steps
    assert {row["basis"] for row in rows} == {"modelled"}
    for row in scored[1:]:
        place = {name: row[name] for name in ("device", "sigma", "weight_bits", "step")}
        (modelled,) = (r for r in rows if place.items() <= r.items())
        assert modelled["level_error"] == row["level_error"]
        # A chip has some thousands of weights, each with errors of its own.
        assert row["weight_error"] == pytest.approx(modelled["expected_error"], rel=0.1)
        assert modelled["expected_error"] >= modelled["spread_error"]


def _row(model: str, score: float, step: str = "largest", **place: object) -> dict[str, object]:
    return {
        "model": model,
        "arithmetic": "crossbar",
        "device": "D",
        "step": step,
        "object_f1": score,
        **place,
    }


def test_curves_gather_chips_along_one_axis() -> None:
    rows = [
        {"model": "a", "arithmetic": "ideal", "object_f1": 0.9},
        _row("a", 0.5, sigma=0.1, weight_bits=8),
        _row("a", 0.7, sigma=0.1, weight_bits=8),
        _row("a", 0.8, sigma=0.0, weight_bits=8),
        _row("a", 0.4, sigma=0.1, weight_bits=4),
        _row("a", 0.85, step="by_error", sigma=0.0, weight_bits=8),
    ]
    largest, by_error = curves(rows, "sigma")
    assert (largest.axis, largest.low, largest.high) == ((0.0, 0.1), (0.8, 0.5), (0.8, 0.7))
    assert largest.mean == pytest.approx((0.8, 0.6))
    assert (largest.chips, largest.fixed, largest.ideal) == ((1, 2), ("weight_bits", 8), 0.9)
    assert (by_error.step, by_error.mean) == ("by_error", pytest.approx((0.85, 0.6)))
    (bits,) = curves(rows, "weight_bits")
    assert (bits.axis, bits.fixed, bits.mean) == ((4, 8), ("sigma", 0.1), pytest.approx((0.4, 0.6)))


def test_the_prediction_settings_hold_on_digital_arithmetic_and_on_crossbars(
    images: list[LabelledImage], model: SegmentationNetwork, scored: list[Row]
) -> None:
    everything_is_too_small = PredictionSettings(smallest_object=10**6)
    rows = crossbar_rows({"a": model}, images, SETTINGS, 7, prediction=everything_is_too_small)
    assert {row["object_dice"] for row in rows} == {0.0}
    assert all(row["object_dice"] > 0 for row in scored)
