from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError

from nvcim.data.images import read_image
from nvcim.errors import ConfigError, DataError, ModelError
from nvcim.segmentation import (
    FCNSettings,
    PredictionSettings,
    ResidualFCN,
    normalise_colours,
    predict,
    predict_probabilities,
    predict_with_descriptor,
)
from tests.closeness import close

SMALL = FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8)
MODEL = ResidualFCN(SMALL, seed=0).eval()
PIXELS = np.random.default_rng(0).integers(0, 256, (200, 170, 3), dtype=np.uint8)
TILED: dict[str, Any] = {"tile": 96, "overlap": 32}


def bare(model: ResidualFCN, pixels: np.ndarray) -> torch.Tensor:
    x = normalise_colours(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    with torch.inference_mode():
        return model(x)[0][0].softmax(dim=0)


def test_an_image_of_one_tile_is_what_the_network_says_of_it() -> None:
    assert torch.allclose(predict_probabilities(MODEL, PIXELS), bare(MODEL, PIXELS), atol=1e-5)


def test_tiles_agree_with_the_whole_image_but_for_seams_that_overlap_heals() -> None:
    # Untrained on noise, which is the worst case: the network is sure of something else at every pixel.
    expected = bare(MODEL, PIXELS)
    errors = []
    for overlap in (0, 16, 32):
        found = predict_probabilities(MODEL, PIXELS, PredictionSettings(tile=96, overlap=overlap))
        error = (found - expected).abs()
        assert float(error[:, :16, :16].max()) < 1e-5  # farther from any seam than the network sees
        assert torch.allclose(found.sum(dim=0), torch.ones(200, 170), atol=1e-5)
        errors.append(float(error.mean()))
    assert errors[2] < 0.5 * errors[0]
    assert errors[2] < 0.01


def test_no_result_depends_on_how_many_tiles_go_at_once() -> None:
    one, three = (
        predict_probabilities(MODEL, PIXELS, PredictionSettings(**TILED, batch=batch)) for batch in (1, 3)
    )
    assert close(one, three, 1e-5)


def test_the_overlap_is_64_or_a_quarter_of_a_smaller_tile() -> None:
    assert [PredictionSettings(tile=tile).overlap for tile in (64, 100, 256, 1280)] == [16, 25, 64, 64]
    assert PredictionSettings().overlap == 64
    assert PredictionSettings(tile=64, overlap=32).overlap == 32


def test_an_ensembles_order_does_not_matter() -> None:
    networks = [ResidualFCN(SMALL, seed=seed).eval() for seed in range(3)]
    for network, smallest in zip(networks, (1, 40, 4000), strict=True):
        network.smallest_object = smallest
    settings = PredictionSettings(certainty=0.0)
    found = [predict([networks[i] for i in order], PIXELS, settings) for order in permutations(range(3))]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    # The median of what the three leave out.
    expected = predict(networks, PIXELS, settings.model_copy(update={"smallest_object": 40}))
    assert np.array_equal(found[0], expected)
    assert expected.any()
    assert not np.array_equal(
        expected, predict(networks, PIXELS, settings.model_copy(update={"smallest_object": 1}))
    )


def test_networks_of_different_contours_are_no_ensemble() -> None:
    wide = ResidualFCN(SMALL.model_copy(update={"contour_width": 9}))
    with pytest.raises(
        ModelError, match=rf"same contour_width, given contour_width \[{SMALL.contour_width}, 9\]"
    ):
        predict([MODEL, wide], PIXELS)


def test_a_tile_smaller_than_the_stride_of_the_overlap_is_seen_all_the_same() -> None:
    deep = ResidualFCN(SMALL.model_copy(update={"depth": 5})).eval()
    assert deep.stride == 64
    found = predict_probabilities(deep, PIXELS[:70], PredictionSettings(tile=64, overlap=32))
    assert found.shape == (3, 70, 170)
    assert torch.allclose(found.sum(dim=0), torch.ones(70, 170), atol=1e-5)


def test_eight_views_make_the_result_follow_a_turned_image() -> None:
    square = PIXELS[:160, :160]
    settings = PredictionSettings(flips=8)
    found = predict_probabilities(MODEL, square, settings)
    turned = predict_probabilities(MODEL, np.rot90(square), settings)
    assert torch.allclose(found.rot90(1, (1, 2)), turned, atol=1e-5)
    once = predict_probabilities(MODEL, square)
    assert not torch.allclose(
        once.rot90(1, (1, 2)), predict_probabilities(MODEL, np.rot90(square)), atol=1e-3
    )


def test_an_ensemble_is_the_mean_of_its_networks() -> None:
    models = [ResidualFCN(SMALL, seed=seed).eval() for seed in range(3)]
    expected = torch.stack([predict_probabilities(model, PIXELS) for model in models]).mean(dim=0)
    assert torch.allclose(predict_probabilities(models, PIXELS), expected, atol=1e-6)


def test_an_ensemble_of_different_classes_or_none_is_refused() -> None:
    other = ResidualFCN(SMALL.model_copy(update={"classes": 2}))
    with pytest.raises(ModelError, match=r"same classes, given classes \[2, 3\]"):
        predict_probabilities([MODEL, other], PIXELS)
    with pytest.raises(ModelError, match="no network"):
        predict_probabilities([], PIXELS)


def test_the_descriptor_is_the_networks_own_and_the_tiles_mean_in_large_images() -> None:
    x = normalise_colours(torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)[None])
    with torch.inference_mode():
        expected = MODEL(x)[1][0]
    probabilities, descriptor = predict_with_descriptor(MODEL, PIXELS)
    assert close(descriptor, expected)
    assert torch.equal(probabilities, predict_probabilities(MODEL, PIXELS))
    tiled = predict_with_descriptor(MODEL, PIXELS, PredictionSettings(**TILED))[1]
    assert torch.nn.functional.cosine_similarity(tiled, expected, dim=0) > 0.99


def test_two_classes_are_split_by_distance_and_cannot_be_by_contour() -> None:
    model = ResidualFCN(SMALL.model_copy(update={"classes": 2}))
    assert predict(model, PIXELS).shape == (200, 170)
    with pytest.raises(ConfigError, match="needs a network of 3 classes"):
        predict(model, PIXELS, PredictionSettings(split="contour"))


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most half the tile"):
        PredictionSettings(tile=64, overlap=40)
    with pytest.raises(DataError, match="RGB"):
        predict_probabilities(MODEL, PIXELS[..., :2])


def test_a_hot_pixel_in_a_deep_image_changes_what_is_seen_at_no_other_place(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(60, 4, (96, 96)).astype(np.uint16)
    values[20:40, 20:40] += 180  # a 16-bit file whose largest value is about 250
    expected = bare(MODEL, np.dstack([values.astype(np.float32)] * 3))
    hot = values.copy()
    hot[90, 90] = 65535
    for image in (values, hot):
        tifffile.imwrite(tmp_path / "x.tif", image)
        found = predict_probabilities(MODEL, read_image(tmp_path / "x.tif"))
        # 16-bit values as they are, normalised; the hot pixel is out of sight of the upper left.
        assert torch.allclose(found[:, :60, :60], expected[:, :60, :60], atol=0.02)
