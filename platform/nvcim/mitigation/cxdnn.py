"""CxDNN's compensation: a digital gain and an offset per column, fitted by reading the array once it is written.

Source: Jain and Raghunathan, CxDNN, ACM TECS 2019, which maps weights to conductances with chosen ranges, retrains on
the converted network, and compensates each instance's errors by cheap factors. Details are from memory of the paper.

Ours: only the third part is kept (a code's column already has a range of its own, and tuning through the noise would
be NVCiM-PT). After a write, calibration vectors are driven into the array, and gain and offset are the least-squares
fit of the ideal outputs to the measured ones:

    min over g, o of  sum over vectors x of (g * y(x) + o - x @ w)^2,   |x| = 1
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nvcim.crossbar import Crossbar
from nvcim.mitigation.base import Correction, Mitigation, fixed_vectors


class CxDNN(Mitigation):
    """Gain and offset per column."""

    name: ClassVar[str] = "cxdnn"

    vectors: int = Field(
        256,
        ge=3,
        description="calibration vectors (the paper's number is not known); two fitted numbers add about "
        "2 / vectors to the squared error of independent cells",
    )
    seed: int = Field(0, ge=0, description="of the calibration vectors, the same for every array")

    def correction(self, written: Crossbar, intended: Tensor) -> Correction:
        """The least-squares gain and offset of every column [*devices, out]; 1 and 0 for a column that gives 0."""
        x = fixed_vectors(self.vectors, written.in_features, self.seed)
        measured = written.matmul(x).double()
        ideal = x.double() @ intended.detach().double()
        centre, aim = measured.mean(-2, keepdim=True), ideal.mean(-2, keepdim=True)
        spread = (measured - centre).square().sum(-2)
        together = ((measured - centre) * (ideal - aim)).sum(-2)
        gain = torch.where(spread > 0, together / spread.clamp_min(1e-300), 1.0)
        offset = torch.where(spread > 0, aim[..., 0, :] - gain * centre[..., 0, :], 0.0)
        return Correction(gain.float(), offset.float())
