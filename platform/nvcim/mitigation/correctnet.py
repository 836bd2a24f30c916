"""CorrectNet: train values whose products do not amplify errors, and undo what noise is left by a small module.

Source: Eldebiky et al., CorrectNet (arXiv 2211.14917): a modified Lipschitz regularisation and error compensation
modules whose places reinforcement learning chooses. From memory of the paper, the regulariser is

    beta * ||W^T W - lambda^2 I||^2,   lambda falling with the variation

with log-normal variation there. Ours: W is the matrix of a token set's code, taken at a mean row norm of 1 so that beta
and lambda do not depend on the embedding's units; of W^T W and W W^T the smaller is used (tokens are fewer than the
code is wide); with Gaussian variation of relative sigma, lambda = lipschitz / (1 + 3 sigma), which bounds a factor
(1 + sigma eps) at three sigma. There is one place for a compensation module, after read-back, so nothing is searched.
It is one linear layer, fitted to many draws of the noise by least squares: where training by gradients would end. It
wants many more codes than a code is wide: of N codes, about width / N of the error's square is fitted for nothing.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from nvcim.errors import ModelError
from nvcim.mitigation.base import Mitigation, Perturbation


class LinearCompensator(nn.Module):
    """x -> x + L(x), [..., width] -> [..., width], with one linear layer L that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, device="meta").to_empty(
            device="cpu"
        )  # draws nothing from the global stream
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Codes with the expected noise taken out."""
        y: Tensor = x + self.layer(x)
        return y


class CorrectNet(Mitigation):
    """Regularised training and a compensation layer."""

    name: ClassVar[str] = "correctnet"

    beta: float = Field(0.01, ge=0, description="weight of the penalty; the paper's value is not known")
    lipschitz: float = Field(1.0, gt=0, description="largest amplification of an error that is aimed at")
    draws: int = Field(
        32, ge=1, description="of the noise on every code that the compensation layer is fitted to"
    )
    ridge: float = Field(
        1e-4, gt=0, description="pull towards the identity, relative to the codes' mean square"
    )

    def penalty(self, matrix: Tensor, sigma: float | Tensor = 0.1) -> Tensor:
        """beta * ||W W^T - lambda^2 I||^2 / n per job: [jobs]."""
        jobs, n, width = matrix.shape
        norm = matrix.detach().square().sum(-1).mean(-1).sqrt().clamp_min(1e-12)
        unit = matrix / norm[:, None, None]
        gram = unit @ unit.mT if n <= width else unit.mT @ unit
        least = min(n, width)
        bound = self.lipschitz / (1 + 3 * torch.as_tensor(sigma, dtype=matrix.dtype, device=matrix.device))
        target = bound.square().expand(jobs)[:, None, None] * torch.eye(
            least, dtype=matrix.dtype, device=matrix.device
        )
        return self.beta / least * (gram - target).square().sum((-2, -1))

    def compensator(self, codes: Tensor, perturb: Perturbation, generator: Generator) -> nn.Module:
        """Fit a `LinearCompensator` to give back codes [N, width] from what `perturb` makes of them."""
        codes = codes.detach()
        width = codes.shape[1]
        gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        aim = torch.zeros(width + 1, width, dtype=torch.float64)
        for _ in range(self.draws):
            noisy = perturb(codes, generator).double().cpu()
            rows = torch.cat([noisy, torch.ones(len(noisy), 1, dtype=torch.float64)], dim=1)
            gram += rows.T @ rows
            aim += rows.T @ (codes.double().cpu() - noisy)
        held = self.ridge * float(gram.diagonal()[:width].mean())
        solved = torch.linalg.solve(gram + max(held, 1e-300) * torch.eye(width + 1, dtype=torch.float64), aim)
        module = LinearCompensator(width)
        with torch.no_grad():
            module.layer.weight.copy_(solved[:width].T)
            module.layer.bias.copy_(solved[width])
        return module.to(codes).requires_grad_(False)

    def restored_compensator(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A `LinearCompensator` from its state."""
        weight = state.get("layer.weight")
        try:
            if weight is None:
                raise ModelError(f"no compensator of {self.name}: 'layer.weight' is missing")
            module = LinearCompensator(weight.shape[0])
            module.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ModelError(f"no compensator of {self.name}: {str(error).splitlines()[0]}") from error
        return module.requires_grad_(False)
