"""Settings of a crossbar: the cell, how weights are mapped to it, and the periphery."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from nvcim.config import Settings
from nvcim.devices import CellDevice, get_device, load_catalogue


class CrossbarConfig(Settings):
    """What a crossbar is made of. `None` bits mean an ideal converter.

    `sigma` is the global programming variation (NVCiM-PT's default is 0.1); a write to level l has the
    standard deviation `level_sigma[l] / 0.01 * sigma`, times the cell's conductance range (`full_range`, as
    in the code of NeFT) or times one level step (`level_step`, as in SWIM's). For 8-bit weights on 2-bit
    cells each side of a pair then adds an error of 0.78 or 0.26 sigma times the largest weight; the papers
    do not settle which is meant. The default follows two of the group's three published codes (SWIM, EvaXB).
    """

    device: str = "FeFET2"
    catalogue: Path | None = Field(default=None, description="YAML file with devices of the user's own")
    sigma: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    sigma_unit: Literal["full_range", "level_step"] = "level_step"
    weight_bits: int = Field(default=8, ge=2, le=16, description="sign included")
    scale_per: Literal["device", "column"] = Field(
        default="device", description="the largest weight of which fills the cells"
    )
    rows: int = Field(default=128, ge=1, description="word lines of a tile")
    cols: int = Field(default=128, ge=1, description="outputs of a tile, which share the ADC's range")
    dac_bits: int | None = Field(default=8, ge=2, le=16)
    adc_bits: int | None = Field(default=8, ge=2, le=16)
    adc_range: float = Field(
        default=1.0, gt=0, le=1, description="full scale of the ADC, as a fraction of what a tile can reach"
    )
    read_noise: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="sigma of a read, relative to the cell's conductance",
    )

    @classmethod
    def ideal(cls, weight_bits: int = 8) -> "CrossbarConfig":
        """No variation, no leakage, ideal converters: only the quantisation of the weights is left."""
        return cls(device="RRAM4", sigma=0.0, weight_bits=weight_bits, dac_bits=None, adc_bits=None)

    def periphery(self) -> dict[str, object]:
        """What a read depends on besides the cells; crossbars that share it can be read in one call."""
        fields = ("rows", "cols", "dac_bits", "adc_bits", "adc_range")
        return {field: getattr(self, field) for field in fields} | {"noisy": self.read_noise > 0}

    def cell(self) -> CellDevice:
        """The device that `device` names.

        Raises:
            DeviceError: the catalogue has no such device.
            ConfigError: the user's catalogue cannot be read.
        """
        return get_device(self.device, load_catalogue(self.catalogue))
