"""CorrectNet's regulariser, by hand, and its compensation layer."""

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ModelError
from nvcim.mitigation.correctnet import CorrectNet
from nvcim.randomness import named_generator
from tests.mitigation.conftest import codes, perturbation


def test_the_penalty_of_two_equal_rows() -> None:
    """Rows (1, 0) and (1, 0): the Gram matrix is all ones; with lambda^2 = 1/4 its parts are 3/4, 3/4, 1, 1."""
    own = CorrectNet(beta=0.5, lipschitz=0.5)
    matrix = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    assert own.penalty(matrix, 0.0).tolist() == pytest.approx([0.5 / 2 * (2 * 0.75**2 + 2)])


def test_orthogonal_rows_of_one_length_cost_nothing_at_lambda_one() -> None:
    matrix = 7.0 * torch.eye(4)[None, :3]
    assert CorrectNet().penalty(matrix, 0.0).tolist() == pytest.approx([0.0], abs=1e-6)
    assert CorrectNet().penalty(matrix.mT, 0.0).item() == pytest.approx(
        CorrectNet(beta=0.01).penalty(matrix.mT * 3, 0.0).item()
    )


def test_lambda_falls_with_the_variation() -> None:
    """Rows of length 1, orthogonal: (1 - lambda^2)^2 each, lambda = 1 / 1.3 at sigma 0.1 and 1 / 1.6 at 0.2."""
    found = CorrectNet(beta=1.0).penalty(torch.eye(3).expand(2, 3, 3), torch.tensor([0.1, 0.2]))
    assert found.tolist() == pytest.approx([(1 - 1 / 1.69) ** 2, (1 - 1 / 2.56) ** 2], rel=1e-5)


def test_the_compensator_takes_noise_out_of_codes_it_has_not_seen() -> None:
    config = CrossbarConfig(device="RRAM1", sigma=0.2)
    perturb = perturbation(config)
    module = CorrectNet().compensator(codes(200).flatten(0, 1), perturb, named_generator(0))
    fresh = codes(100, seed=7).flatten(0, 1)
    noisy = perturb(fresh, named_generator(1))
    before, after = ((one - fresh).square().mean() for one in (noisy, module(noisy)))
    assert after < 0.9 * before


def test_it_is_the_wiener_filter_of_independent_noise() -> None:
    """Codes of variance s^2 per axis under noise of variance 1/4: an axis is multiplied by s^2 / (s^2 + 1/4)."""
    sizes = torch.tensor([2.0, 1.0, 0.5])
    seen = torch.randn(20000, 3, generator=named_generator(2)) * sizes

    def perturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + 0.5 * torch.randn(x.shape, generator=generator)

    module = CorrectNet().compensator(seen, perturb, named_generator(3))
    expected = torch.diag(sizes.square() / (sizes.square() + 0.25))
    torch.testing.assert_close(module(torch.eye(3)) - module(torch.zeros(1, 3)), expected, atol=0.01, rtol=0)


def test_without_noise_the_compensator_is_the_identity() -> None:
    module = CorrectNet().compensator(codes(10).flatten(0, 1), lambda x, _: x, named_generator(0))
    fresh = codes(3, seed=5)
    assert torch.equal(module(fresh), fresh)


@pytest.mark.parametrize("state", [{}, {"layer.weight": torch.zeros(3, 3)}])
def test_a_state_that_is_no_compensator_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="no compensator of correctnet") as caught:
        CorrectNet().restored_compensator(state)
    assert "\n" not in str(caught.value)
