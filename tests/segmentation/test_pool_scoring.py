"""Scores of a pool against forward passes done one by one."""

import numpy as np
import pytest
import torch

from nvcim.data.images import PlainImage
from nvcim.errors import DataError
from nvcim.quantization import quantizer_named
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.network import SegmentationNetwork, normalise_colours
from nvcim.segmentation.pool_scoring import ScoringSettings, score_pool, uncertainty_map

NETWORK = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=4)
MODELS: list[SegmentationNetwork] = [ResidualFCN(NETWORK, seed).eval() for seed in range(3)]


def make_pool(sizes: list[tuple[int, int]]) -> list[PlainImage]:
    generator = np.random.default_rng(1)
    return [
        PlainImage(f"image-{i}", generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        for i, size in enumerate(sizes)
    ]


POOL = make_pool([(20, 24), (17, 30), (20, 24), (24, 20), (20, 24), (5, 3)])


def one_by_one(image: PlainImage) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty map [H, W] and descriptor [D] in numpy from one forward pass per network."""
    colours = normalise_colours(torch.from_numpy(image.pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        seen = [model(colours) for model in MODELS]
    objects = np.stack([logits.softmax(dim=1)[0, 1].numpy() for logits, _ in seen])
    return objects.std(axis=0), np.mean([descriptor[0].numpy() for _, descriptor in seen], axis=0)


@pytest.mark.parametrize("batch_pixels", [1, 2 * 20 * 24, 10**6])
def test_scores_are_those_of_single_passes_in_the_pools_order(batch_pixels: int) -> None:
    heard: list[tuple[int, int]] = []
    settings = ScoringSettings(batch_pixels=batch_pixels)
    scores = score_pool(MODELS, POOL, settings, lambda done, total: heard.append((done, total)))
    assert scores.names == tuple(image.name for image in POOL)
    for index, image in enumerate(POOL):
        heat, descriptor = one_by_one(image)
        assert float(scores.uncertainty[index]) == pytest.approx(heat.mean(), rel=1e-4)
        np.testing.assert_allclose(scores.descriptors[index].numpy(), descriptor, rtol=1e-4, atol=1e-6)
    assert heard[-1] == (6, 6)
    assert heard == sorted(heard)


def test_heat_map_is_the_deviation_at_every_pixel() -> None:
    found = uncertainty_map(MODELS, POOL[1].pixels)
    assert found.shape == (17, 30)
    np.testing.assert_allclose(found, one_by_one(POOL[1])[0], rtol=1e-4, atol=1e-6)


def test_large_images_are_seen_in_tiles_and_score_nearly_the_same() -> None:
    large = make_pool([(150, 200)])
    whole = score_pool(MODELS, large)
    tiled = score_pool(MODELS, large, ScoringSettings(tile=96))
    assert float(tiled.uncertainty[0]) == pytest.approx(float(whole.uncertainty[0]), rel=0.02)
    torch.testing.assert_close(tiled.descriptors, whole.descriptors, rtol=0.1, atol=0.02)


def test_foreground_takes_the_contour_in() -> None:
    objects = score_pool(MODELS, POOL).uncertainty
    foreground = score_pool(MODELS, POOL, ScoringSettings(uncertainty_of="foreground")).uncertainty
    colours = normalise_colours(torch.from_numpy(POOL[0].pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        background = np.stack([model(colours)[0].softmax(dim=1)[0, 0].numpy() for model in MODELS])
    assert float(foreground[0]) == pytest.approx(background.std(axis=0).mean(), rel=1e-4)
    assert not torch.allclose(objects, foreground)


def test_quantized_networks_are_scored_with_their_levels_and_stay_as_they_were() -> None:
    quantized = []
    for seed in range(2):
        model, quantizer = ResidualFCN(NETWORK, seed), quantizer_named("uniform-2")
        assert quantizer is not None
        model.quantize(quantizer)
        quantizer.advance(model, 1.0)
        quantized.append(model.eval())
    colours = normalise_colours(torch.from_numpy(POOL[0].pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        objects = np.stack([model(colours)[0].softmax(dim=1)[0, 1].numpy() for model in quantized])
    found = score_pool(quantized, POOL[:1]).uncertainty
    assert float(found[0]) == pytest.approx(objects.std(axis=0).mean(), rel=1e-4)
    assert not torch.allclose(found, score_pool(MODELS[:2], POOL[:1]).uncertainty)
    assert all(torch.nn.utils.parametrize.is_parametrized(model.head) for model in quantized)


def test_equal_networks_are_certain_everywhere() -> None:
    assert score_pool([MODELS[0], MODELS[0]], POOL).uncertainty.tolist() == [0.0] * 6


def test_an_empty_pool_and_a_single_network_are_refused() -> None:
    with pytest.raises(DataError, match="every image is annotated already"):
        score_pool(MODELS, [])
    with pytest.raises(DataError, match="at least 2 networks, given 1"):
        score_pool(MODELS[:1], POOL)
