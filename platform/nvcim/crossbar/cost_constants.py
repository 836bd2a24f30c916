"""The cost model's constants: each with its unit, source and node, brought to one technology node.

Scaling rule: a constant says how it scales from the node it was published for. `linear` (energy and delay of
logic: capacitance and gate delay shrink with the feature size, the supply voltage does not) multiplies by
node / published node, `quadratic` (area) by its square, `none` leaves it. The published fits of Stillmaker and
Baas (Integration 58, 2017, Table 5, high-performance models at 0.9 V) fall faster, so the rule errs towards a
dear crossbar: 32 to 20 nm they give energy x 0.44 where the rule gives 0.63, and area x 0.46 where it gives
0.39; 45 to 20 nm energy x 0.29 against 0.44, area x 0.21 against 0.20.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from nvcim.config import Settings, load_settings, parse_settings
from nvcim.crossbar.cost_table import Figure

BUILT_IN = Path(__file__).with_name("cost_constants.yaml")

_EXPONENT = {"none": 0, "linear": 1, "quadratic": 2}


class Constant(Settings):
    """One published number. `value` None: nobody published it, and `note` says so."""

    value: NonNegativeFloat | None = Field(allow_inf_nan=False)
    unit: str = Field(min_length=1)
    node_nm: PositiveFloat | None = Field(default=None, description="technology it was published for")
    scaling: Literal["none", "linear", "quadratic"] = "none"
    source: str = Field(min_length=1)
    note: str = ""

    def at(self, name: str, node_nm: float) -> Figure:
        """The constant at a technology node (nm); unknown, with `name` and the note, where it has no value."""
        if self.value is None:
            return Figure.unknown(f"{name}: {self.note}")
        if self.scaling == "none" or self.node_nm is None:
            return Figure(self.value)
        return Figure(self.value * (node_nm / self.node_nm) ** _EXPONENT[self.scaling])

    @model_validator(mode="after")
    def _check(self) -> "Constant":
        if self.value is None and not self.note:
            raise ValueError("a constant without a value needs a note that says why")
        if self.scaling != "none" and self.node_nm is None:
            raise ValueError(f"scaling '{self.scaling}' needs node_nm, the technology it was published for")
        return self


class CostConstants(Settings):
    """What one operation of each component costs; see `cost_constants.yaml` for values and sources.

    A "step" is one code of a converter, of which b bits have 2**b: Walden's figure of merit, taken with the
    nominal bits (IEEE JSAC 17(4), 1999).
    """

    node_nm: PositiveFloat = 22.0
    cell_area: Constant = Field(description="of one cell with its access transistor, in squared node sizes")
    read_pulse: Constant = Field(description="seconds that a word line is driven for one read")
    read_voltage: Constant = Field(description="volts of a full-scale input")
    driver_energy: Constant = Field(description="joules to pulse a word line once, per cell on it")
    driver_area: Constant = Field(description="mm2 per word line")
    dac_energy: Constant = Field(description="joules per conversion and step")
    dac_area: Constant = Field(description="mm2 per step")
    sample_energy: Constant = Field(description="joules to sample and hold one bit line")
    sample_area: Constant = Field(description="mm2 per bit line")
    adc_energy: Constant = Field(description="joules per conversion and step")
    adc_area: Constant = Field(description="mm2 per step")
    adc_time: Constant = Field(description="seconds per conversion and bit")
    add_energy: Constant = Field(description="joules per addition of a partial sum")
    add_area: Constant = Field(description="mm2 of one shift-and-add unit")
    add_time: Constant = Field(description="seconds per addition")
    buffer_energy: Constant = Field(description="joules per bit written or read")
    buffer_area: Constant = Field(description="mm2 per bit")
    bus_time: Constant = Field(description="seconds per bit between a buffer and the arrays on its bus")

    def figure(self, name: str) -> Figure:
        """The constant `name` at `node_nm`, scaled by the stated rule; unknown where nobody published it."""
        constant = getattr(self, name)
        assert isinstance(constant, Constant)
        return constant.at(name, self.node_nm)


class CostFile(Settings):
    """What a file of cost constants holds: the crossbar's constants, and edge CPUs by name."""

    crossbar: Mapping[str, Any]
    edge_cpus: Mapping[str, Mapping[str, Any]] = {}


def load_cost_constants(path: Path | None = None) -> CostConstants:
    """Return the constants of a YAML file, or the built-in 22 nm ones.

    Raises:
        ConfigError: unreadable file, unknown or absent field (with the allowed ones), value out of range.
    """
    return _built_in() if path is None else _read(path)


@lru_cache(maxsize=1)
def _built_in() -> CostConstants:
    return _read(BUILT_IN)


def _read(path: Path) -> CostConstants:
    content = load_settings(path, CostFile)
    return parse_settings(content.crossbar, CostConstants, source=f"{path}: crossbar")
