"""The resistance of a crossbar's wires: which resistances there are, and which ends of the lines are connected."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.errors import ConfigError


class Wires(Settings):
    """Parasitic resistances of an array in ohm, and which ends of its lines are connected.

    A driver feeds a word line through `r_driver_ohm` and one segment, a sense amplifier (virtual ground) takes
    a bit line's current through one segment and `r_sense_ohm`; neighbouring cells of a line are one segment
    apart. With `both`, each end has its own driver or amplifier, and an output is the sum of its two currents.
    """

    r_word_ohm: float = Field(ge=0, allow_inf_nan=False, description="one segment of a word line")
    r_bit_ohm: float = Field(ge=0, allow_inf_nan=False, description="one segment of a bit line")
    r_driver_ohm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    r_sense_ohm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drive: Literal["left", "right", "both"] = "left"
    sense: Literal["bottom", "top", "both"] = "bottom"
    method: Literal["exact", "fast"] = "exact"

    @property
    def ideal(self) -> bool:
        """Whether no wire, driver or amplifier has any resistance."""
        return not (self.r_word_ohm or self.r_bit_ohm or self.r_driver_ohm or self.r_sense_ohm)


def check_conductance(conductance: Tensor) -> None:
    """Refuse conductances that no array of cells can have.

    Raises:
        ConfigError: as `effective_conductance`.
    """
    if conductance.dim() < 2:
        raise ConfigError(f"conductance: expected [..., rows, cols], found {conductance.dim()} dimension(s)")
    if conductance.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"conductance: expected float32 or float64, found {conductance.dtype}")
    if not bool(torch.isfinite(conductance).all()):
        raise ConfigError("conductance: every value must be finite (siemens), found NaN or infinity")
    if bool((conductance < 0).any()):
        raise ConfigError(f"conductance: must be at least 0 siemens, found {conductance.min().item():.3g}")
