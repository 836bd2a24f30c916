import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.data import immunohistochemistry

from nvcim.data.images import LabelledImage
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError, ModelError
from nvcim.quantization import quantizer_named
from nvcim.quantization.base import weighted_layers
from nvcim.segmentation import (
    FCNSettings,
    PredictionSettings,
    ResidualFCN,
    SetScores,
    TrainingSettings,
    predict,
    score_set,
    train,
)
from nvcim.segmentation.augmentation import prepare_image, whole_crop
from nvcim.segmentation.losses import segmentation_loss
from nvcim.segmentation.network import baked
from nvcim.segmentation.training import drawing_chances

NETWORK = FCNSettings(width=8, depth=3, descriptor_dim=32, fused_width=16)
QUICK = TrainingSettings(steps=4, batch=2, crop=32, device="cpu")
BARE = {"kind_balance": 0.0, "size_bias": 0.0}
TISSUE = TissueSettings(height=112, width=112, malignant_share=0.25, crowding=0.45)


def scored(model: ResidualFCN, images: list[LabelledImage]) -> SetScores:
    return score_set([(predict(model, image.pixels), image.instances) for image in images])


def otsu_objects(pixels: np.ndarray) -> np.ndarray:
    """Trivial baseline: Otsu's threshold on blurred darkness, holes filled, connected components."""
    darkness = ndimage.gaussian_filter(255.0 - pixels.mean(axis=2), 2)
    levels = np.linspace(darkness.min(), darkness.max(), 64)[1:-1]

    def between_class_variance(level: float) -> float:
        above = darkness > level
        share = above.mean()
        if share in (0.0, 1.0):
            return 0.0
        return share * (1 - share) * (darkness[above].mean() - darkness[~above].mean()) ** 2

    mask = ndimage.binary_fill_holes(darkness > max(levels, key=between_class_variance))
    return np.asarray(ndimage.label(mask)[0], dtype=np.int32)


@pytest.fixture(scope="module")
def trained() -> ResidualFCN:
    model = ResidualFCN(NETWORK, seed=0)
    settings = TrainingSettings(steps=120, batch=4, crop=96, learning_rate=8e-3, device="cpu")
    train(model, generate_tissue(10, TISSUE, seed=1), settings, seed=0)
    return model


@pytest.fixture(scope="module")
def unseen() -> list[LabelledImage]:
    return generate_tissue(6, TISSUE, seed=2)


def test_a_short_training_beats_the_threshold_and_the_untrained_net(
    trained: ResidualFCN, unseen: list[LabelledImage]
) -> None:
    learnt = scored(trained, unseen).pooled.dice
    threshold = score_set([(otsu_objects(i.pixels), i.instances) for i in unseen]).pooled.dice
    untrained = scored(ResidualFCN(NETWORK, seed=0), unseen).pooled.dice
    assert learnt > threshold + 0.08
    assert learnt > untrained + 0.2


@pytest.mark.parametrize("name", ["inq-5", "uniform-4"])
def test_quantized_models_keep_the_score_with_weights_on_levels(
    name: str, trained: ResidualFCN, unseen: list[LabelledImage]
) -> None:
    model, quantizer = copy.deepcopy(trained), quantizer_named(name)
    assert quantizer is not None
    settings = TrainingSettings(steps=30, batch=4, crop=96, learning_rate=2e-3, device="cpu")
    log = train(model, generate_tissue(10, TISSUE, seed=1), settings, seed=1, quantizer=quantizer)
    assert log.weights == name
    for _, layer in weighted_layers(model):
        levels = quantizer.levels(layer)
        rows = layer.weight.detach().flatten(1)
        on_level = (rows[:, :, None] == levels.view(-1, 1, levels.shape[-1])).any(dim=-1)
        assert bool(on_level.all())
    assert scored(model, unseen).pooled.dice > scored(trained, unseen).pooled.dice - 0.15


def test_training_is_the_same_for_the_same_seed() -> None:
    images = generate_tissue(2, TissueSettings(height=48, width=48), seed=0)
    states = []
    for seed in (0, 0, 1):
        model = ResidualFCN(NETWORK, seed=0)
        log = train(model, images, QUICK, seed)
        states.append((log.losses, model.state_dict()["head.weight"]))
    assert states[0][0] == states[1][0]
    assert torch.equal(states[0][1], states[1][1])
    assert states[0][0] != states[2][0]


@pytest.mark.parametrize(("name", "steps"), [("float", 5), ("inq-3", 7), ("inq-3", 2), ("uniform-3", 3)])
def test_every_step_is_reported_and_none_is_lost_between_stages(name: str, steps: int) -> None:
    images = generate_tissue(1, TissueSettings(height=48, width=48), seed=0)
    seen: list[tuple[int, int]] = []
    settings = QUICK.model_copy(update={"steps": steps})
    log = train(
        ResidualFCN(NETWORK), images, settings, quantizer=quantizer_named(name),
        on_step=lambda done, total, _: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, steps) for i in range(1, steps + 1)]
    assert len(log.losses) == steps


@pytest.mark.parametrize("name", ["float", "inq-4", "ttq", "dorefa-2"])
@pytest.mark.parametrize("last", [3, 5, 8])
def test_a_killed_training_goes_on_to_the_same_weights(name: str, last: int, tmp_path: Path) -> None:
    images = generate_tissue(3, TissueSettings(height=48, width=48), seed=0)
    small = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=8)
    settings = QUICK.model_copy(update={"steps": 9, "checkpoint_every": 2, "validate_every": 2})

    def run(on_step: Callable[[int, int, float], None] | None, path: Path | None) -> tuple[object, ...]:
        model = ResidualFCN(small, seed=0)
        quantizer = quantizer_named(name)
        log = train(
            model, images[1:], settings, 3, quantizer, on_step, validation=images[:1], checkpoint=path
        )
        return model.state_dict(), log.losses, log.validations

    def kill(done: int, total: int, loss: float) -> None:
        if done == last:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(kill, path)
    seen: list[int] = []
    resumed = run(lambda done, *_: seen.append(done), path)
    whole = run(None, None)
    assert seen[0] == last // 2 * 2 + 1
    assert resumed[1:] == whole[1:]
    assert isinstance(resumed[0], dict)
    assert isinstance(whole[0], dict)
    assert all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


@pytest.mark.parametrize("last", [4, 5, 10, 11])
def test_a_killed_training_that_stops_early_goes_on_to_the_same_weights(last: int, tmp_path: Path) -> None:
    images = generate_tissue(3, TissueSettings(height=48, width=48), seed=0)
    small = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=8)
    # At this rate a validation hardly ever beats the one before, so that stages end by patience.
    every = {"steps": 40, "checkpoint_every": 2, "validate_every": 2, "patience": 1, "learning_rate": 0.5}
    settings = QUICK.model_copy(update=every)

    def run(on_step: Callable[[int, int, float], None] | None, path: Path | None) -> tuple[object, ...]:
        model, quantizer = ResidualFCN(small, seed=0), quantizer_named("inq-5")
        log = train(
            model, images[1:], settings, 3, quantizer, on_step, validation=images[:1], checkpoint=path
        )
        return [t.tolist() for t in model.state_dict().values()], log.losses, log.validations

    def kill(done: int, total: int, loss: float) -> None:
        if done == last:
            raise KeyboardInterrupt

    whole = run(None, None)
    assert isinstance(whole[1], tuple)
    assert last < len(whole[1]) < 40
    with pytest.raises(KeyboardInterrupt):
        run(kill, tmp_path / "checkpoint.pt")
    assert run(None, tmp_path / "checkpoint.pt") == whole


def test_a_checkpoint_of_other_masks_pixels_or_first_weights_is_refused(tmp_path: Path) -> None:
    [image] = generate_tissue(1, TissueSettings(height=48, width=48), seed=0)
    path = tmp_path / "checkpoint.pt"
    settings = QUICK.model_copy(update={"checkpoint_every": 1})
    train(ResidualFCN(NETWORK), [image], settings, 0, checkpoint=path)
    instances, pixels = image.instances.copy(), image.pixels.copy()
    instances[0, 0] += 1
    pixels[0, 0, 0] ^= 1
    for other in (
        dataclasses.replace(image, instances=instances),
        dataclasses.replace(image, pixels=pixels),
    ):
        with pytest.raises(ModelError, match="images or first weights"):
            train(ResidualFCN(NETWORK), [other], settings, 0, checkpoint=path)
    with pytest.raises(ModelError, match="images or first weights"):
        train(ResidualFCN(NETWORK, seed=1), [image], settings, 0, checkpoint=path)
    train(ResidualFCN(NETWORK), [image], settings, 0, checkpoint=path)  # the same one is taken up


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    images = generate_tissue(1, TissueSettings(height=48, width=48), seed=0)
    path = tmp_path / "checkpoint.pt"
    settings = QUICK.model_copy(update={"checkpoint_every": 1})
    train(ResidualFCN(NETWORK), images, settings, 0, checkpoint=path)
    for changes, seed in (({}, 1), ({"steps": 5}, 0)):
        with pytest.raises(ModelError, match="other settings, seed, images or first weights"):
            train(ResidualFCN(NETWORK), images, settings.model_copy(update=changes), seed, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"checkpoint\.pt: cannot be read"):
        train(ResidualFCN(NETWORK), images, settings, 0, checkpoint=path)


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    # Trained on noise, whose labels say nothing of other noise, the validation loss soon rises.
    def noise(seed: int) -> LabelledImage:
        draw = np.random.default_rng(seed)
        instances = np.zeros((40, 40), dtype=np.int32)
        row, column = draw.integers(0, 20, 2)
        instances[row : row + 18, column : column + 18] = 1
        return LabelledImage(str(seed), draw.integers(0, 256, (40, 40, 3), dtype=np.uint8), instances)

    settings = TrainingSettings(
        steps=400, batch=2, crop=32, learning_rate=2e-2, validate_every=5, patience=3, device="cpu"
    )
    model = ResidualFCN(FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=8))
    log = train(model, [noise(0)], settings, validation=[noise(1), noise(2)])
    losses = [loss for _, loss in log.validations]
    best = losses.index(min(losses))
    assert len(log.losses) < 400
    assert len(losses) == best + 1 + 3
    total = 0.0
    with torch.inference_mode():
        for image in (noise(1), noise(2)):
            pixels, classes = whole_crop(prepare_image(image, 3, 3), 64)
            logits, _ = model(pixels[None])
            total += float(segmentation_loss(logits, classes[None], torch.tensor([1.0, 1.0, 3.0]), 0.0))
    assert total / 2 == pytest.approx(min(losses), rel=1e-5)


def test_kinds_are_drawn_in_balance_and_large_images_more_often() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 20, 1), dtype=np.uint8).repeat(3, axis=2)
    pixels = [grey, grey, grey, np.tile(np.array([200, 40, 120], dtype=np.uint8), (40, 20, 1))]
    images = [
        prepare_image(LabelledImage(str(i), p, np.ones(p.shape[:2], dtype=np.int32)), 3, 3)
        for i, p in enumerate(pixels)
    ]
    for changes, expected in (
        ({}, [1 / 4] * 4),
        ({"kind_balance": 1.0}, [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        ({"size_bias": 1.0}, [1 / 5, 1 / 5, 1 / 5, 2 / 5]),
    ):
        chances = drawing_chances(images, TrainingSettings().model_copy(update=BARE | changes))
        assert (chances / chances.sum()).tolist() == pytest.approx(expected)


def test_images_smaller_than_the_crop_train() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 13, 3), dtype=np.uint8)
    instances = np.zeros((20, 13), dtype=np.int32)
    instances[3:12, 3:10] = 1
    log = train(ResidualFCN(NETWORK), [LabelledImage("small", pixels, instances)], QUICK)
    assert np.isfinite(log.losses).all()


def test_smallest_object_is_learnt_from_the_masks() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    instances = np.zeros((40, 40), dtype=np.int32)
    instances[2:12, 2:12], instances[20:36, 20:36] = 1, 2
    model = ResidualFCN(NETWORK)
    train(model, [LabelledImage("two", pixels, instances)], QUICK)
    assert model.smallest_object == int(np.percentile([100, 256], 5) / 2)


def test_what_cannot_be_trained_is_refused() -> None:
    [image] = generate_tissue(1, TissueSettings(height=48, width=48), seed=0)
    with pytest.raises(DataError, match="at least one"):
        train(ResidualFCN(NETWORK), [], QUICK)
    blank = LabelledImage("blank", image.pixels, np.zeros((48, 48), dtype=np.int32))
    with pytest.raises(DataError, match="no image of the training set"):
        train(ResidualFCN(NETWORK), [blank], QUICK)
    with pytest.raises(ConfigError, match="device"):
        train(ResidualFCN(NETWORK), [image], QUICK.model_copy(update={"device": "tpu"}))
    model = ResidualFCN(NETWORK)
    train(model, [image], QUICK, quantizer=quantizer_named("inq-5"))
    with pytest.raises(ModelError, match="quantized already"):
        train(model, [image], QUICK)
    with pytest.raises(ModelError, match="copy to predict with"):
        train(baked(model), [image], QUICK)
    with pytest.raises(ModelError, match="diverged"):
        train(ResidualFCN(NETWORK), [image], QUICK.model_copy(update={"learning_rate": 1e30, "steps": 20}))


@pytest.mark.slow
def test_generated_tissue_transfers_to_a_real_photograph() -> None:
    # Colon with a brown (DAB) marker of epithelium, which scikit-image bundles; glands are larger there.
    model = ResidualFCN(seed=0)
    train(model, generate_tissue(20, seed=1), TrainingSettings(device="cpu"), seed=0)
    pixels = np.asarray(immunohistochemistry())
    instances = predict(model, pixels, PredictionSettings(scale=0.3))
    brown = ndimage.gaussian_filter(pixels[..., 0].astype(float) - pixels[..., 2], 4) > 40
    assert 0.2 < brown.mean() < 0.8
    assert instances.max() >= 2
    assert (instances[brown] > 0).mean() > (instances[~brown] > 0).mean() + 0.4
