import math

import pytest
import torch

from nvcim.errors import ConfigError
from nvcim.segmentation.losses import class_weights, segmentation_loss


def test_inverse_frequency_makes_every_class_count_alike() -> None:
    maps = [torch.tensor([[0, 0, 0, 1]]), torch.tensor([0, 0, 0, 2])]
    weights = class_weights("inverse-frequency", maps, 3)
    # 8 pixels, 3 classes: 8 / (3 * 6), 8 / (3 * 1), 8 / (3 * 1)
    assert weights.tolist() == pytest.approx([8 / 18, 8 / 3, 8 / 3])
    counts = torch.tensor([6.0, 1.0, 1.0])
    assert (weights * counts).tolist() == pytest.approx([8 / 3] * 3)


def test_a_class_that_does_not_occur_weighs_one() -> None:
    weights = class_weights("inverse-frequency", [torch.tensor([0, 1])], 3)
    assert weights.tolist() == pytest.approx([1 / 3 * 2, 1 / 3 * 2, 1.0])


def test_two_classes_take_the_first_two_of_three_weights_and_one_too_few_is_refused() -> None:
    assert class_weights((1.0, 2.0, 5.0), [], 2).tolist() == [1.0, 2.0]
    assert class_weights("none", [], 3).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="2 weights given for a network of 3 classes"):
        class_weights((1.0, 2.0), [], 3)


def test_the_loss_is_the_formula_worked_by_hand() -> None:
    # One row of two pixels, true classes object and background; probabilities 3/4, 1/4 and 1/2, 1/2.
    logits = torch.tensor([[[[math.log(0.25), 0.0]], [[math.log(0.75), 0.0]]]])
    truth = torch.tensor([[[1, 0]]])
    entropy = (-2.0 * math.log(0.75) - 1.0 * math.log(0.5)) / 3.0
    weights = torch.tensor([1.0, 2.0])
    assert float(segmentation_loss(logits, truth, weights, 0.0)) == pytest.approx(entropy, rel=1e-6)
    dice = (2 * 0.75 + 1) / (0.75 + 0.5 + 1 + 1)
    expected = entropy + 0.5 * (1 - dice)
    assert float(segmentation_loss(logits, truth, weights, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_soft_dice_vanishes_on_a_certain_and_right_answer() -> None:
    truth = torch.randint(3, (2, 5, 6), generator=torch.Generator().manual_seed(0))
    logits = 100.0 * torch.nn.functional.one_hot(truth, 3).permute(0, 3, 1, 2).float()
    assert float(segmentation_loss(logits, truth, torch.ones(3), 1.0)) == pytest.approx(0.0, abs=1e-6)
