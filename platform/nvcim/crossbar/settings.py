"""Settings of a crossbar: the cell, how weights are mapped to it, wires, programming, and the periphery."""

from typing import Literal

from pydantic import Field, model_validator

from nvcim.config import LocalPath, Settings
from nvcim.crossbar.mapping import Mapping, Scheme, make_mapping
from nvcim.crossbar.wires import Wires
from nvcim.devices import CellDevice, get_device, load_catalogue
from nvcim.devices.reading import ReadCondition
from nvcim.errors import ConfigError

Remap = Literal["none", "rows", "columns", "both"]


class ConverterErrors(Settings):
    """How real ADCs differ from ideal ones; each is a standard deviation over ADCs (one per tile and column).

    The integral non-linearity of a code is the sum of the widths' errors below it, less the straight line through both
    ends: what is left once gain and offset are taken out.
    """

    offset_lsb: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="in codes")
    gain: float = Field(default=0.0, ge=0, lt=0.2, description="relative")
    dnl_lsb: float = Field(default=0.0, ge=0, lt=0.5, description="width of a code, in codes")


class Programming(Settings):
    """How cells are written.

    `open_loop` pulses once. `write_verify` reads each cell back and writes it anew until it lies within `tolerance` of
    its level, at most `max_pulses` times; of a cell that never does, the pulse that came nearest stays. `selective`
    does so for the `share` of the weights that matter most (SWIM, Yan et al., DAC 2022: by importance, else by
    magnitude) and writes the others open-loop.
    """

    method: Literal["open_loop", "write_verify", "selective"] = "open_loop"
    tolerance: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="in level steps")
    max_pulses: int = Field(default=20, ge=1, le=255)
    share: float = Field(default=0.1, gt=0, le=1)


class CrossbarConfig(Settings):
    """What a crossbar is made of. `None` bits mean an ideal converter.

    `sigma` is the global programming variation (NVCiM-PT's default is 0.1); a write to level l has the
    standard deviation `level_sigma[l] / 0.01 * sigma`, times the cell's conductance range (`full_range`, as
    in the code of NeFT) or times one level step (`level_step`, as in SWIM's). For 8-bit weights on 2-bit
    cells each side of a pair then adds an error of 0.78 or 0.26 sigma times the largest weight; the papers
    do not settle which is meant. The default follows two of the group's three published codes (SWIM, EvaXB).

    Every side and every slice of a weight lies in an array of its own, `rows` x `cols` cells.
    """

    # the cell
    device: str = "FeFET2"
    catalogue: LocalPath | None = Field(default=None, description="YAML file with devices of the user's own")
    g_min_us: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="microsiemens; null: device's"
    )
    g_max_us: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="microsiemens; null: device's"
    )
    stuck_on: float | None = Field(default=None, ge=0, le=1, description="share of cells; null: the device's")
    stuck_off: float | None = Field(
        default=None, ge=0, le=1, description="share of cells; null: the device's"
    )
    array_sigma: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="relative spread from array to array; null: the device's",
    )
    temperature_k: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="null: the device's reference temperature"
    )

    # writing
    sigma: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    sigma_unit: Literal["full_range", "level_step"] = "level_step"
    programming: Programming = Programming()

    # mapping
    weight_bits: int = Field(default=8, ge=2, le=16, description="sign included")
    scale_per: Literal["device", "column"] = Field(
        default="device", description="the largest weight of which fills the cells"
    )
    scheme: Scheme = "differential"
    slice_bits: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="bits per cell, most significant slice first; null: the cell's",
    )
    accumulate: Literal["analog", "digital"] = Field(
        default="analog", description="slices are added before one ADC, or each is converted and then added"
    )
    rows: int = Field(default=128, ge=1, description="word lines of a tile")
    cols: int = Field(default=128, ge=1, description="outputs of a tile, which share the ADC's range")
    wires: Wires | None = Field(default=None, description="null: wires without resistance")
    remap: Remap = Field(
        default="none",
        description="lines of a tile that are reordered around its stuck cells; needs a chip whose cells were tested, "
        "and a table of addresses per tile where its inputs (rows) or outputs (columns) are buffered",
    )

    cell_current: Literal["linear", "device"] = Field(
        default="linear", description="Ohm's law, or the device's I = G v0 sinh(V / v0), at read_voltage_v"
    )
    gated_rows: bool = Field(
        default=False,
        description="cells whose transistor the input opens: rows with input 0 are not connected",
    )
    read_voltage_v: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="volts at the DAC's full scale; for cell_current: device",
    )

    storage: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="how reads keep the weights in memory; bfloat16 takes half, and rounds each by at most 0.4 % (each "
        "slice by at most 0.4 % of half its range with scheme offset and accumulate digital)",
    )

    # converters
    dac_bits: int | None = Field(default=8, ge=2, le=16)
    input_coding: Literal["analog", "bit_serial"] = Field(
        default="analog", description="one read per vector, or one per bit of it (two's complement)"
    )
    dac_full_scale: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="largest input; null: each vector's own"
    )
    adc_bits: int | None = Field(default=8, ge=2, le=16)
    adc_scaling: Literal["norm", "full", "calibrated"] = Field(
        default="norm",
        description="full scale: from the input's norm; the largest possible sum; what `calibrate` measured",
    )
    adc_range: float = Field(
        default=1.0, gt=0, le=1, description="full scale of the ADC, as a fraction of what `adc_scaling` says"
    )
    adc_range_per: Literal["tile", "column"] = "tile"
    adc_errors: ConverterErrors | None = None

    # reading
    read_noise: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="sigma of a read, relative to the cell's conductance",
    )
    read_noise_floor: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="sigma of a read that is the same at every level, as a fraction of the conductance range",
    )
    read: ReadCondition | None = Field(
        default=None,
        description="thermal, shot and 1/f noise of the device, aged by its `elapsed_s` and by `Crossbar.age`; "
        "null: only the two settings above",
    )
    read_mode: Literal["output", "cell"] = Field(
        default="output",
        description="noise drawn per output (exact for Gaussian cells), or slowly per cell as the reference",
    )

    @classmethod
    def ideal(cls, weight_bits: int = 8) -> "CrossbarConfig":
        """No variation, no leakage, ideal converters: only the quantisation of the weights is left."""
        return cls(device="RRAM4", sigma=0.0, weight_bits=weight_bits, dac_bits=None, adc_bits=None)

    @property
    def noisy(self) -> bool:
        """Whether reads of one vector differ."""
        return self.read_noise > 0 or self.read_noise_floor > 0 or self.read is not None

    def periphery(self) -> dict[str, object]:
        """What a read depends on besides the cells; crossbars that share it can be read in one call."""
        fields = (
            *(
                "rows",
                "cols",
                "dac_bits",
                "input_coding",
                "dac_full_scale",
                "adc_bits",
                "adc_scaling",
                "adc_range",
            ),
            *("adc_range_per", "adc_errors", "read_mode", "cell_current", "gated_rows", "read_voltage_v"),
        )
        own: dict[str, object] = {field: getattr(self, field) for field in fields}
        return own | {
            "noisy": self.noisy,
            "digital": self.accumulate == "digital",
            "offset": self.scheme == "offset",
        }

    def read_condition(self) -> ReadCondition | None:
        """All read noise as one condition, at the cells' temperature where that is set; None without any.

        Raises:
            ConfigError: `read.elapsed_s` for a device whose noise no source says to grow with time.
            DeviceError: as `cell`.
        """
        if not self.noisy:
            return None
        base = self.read or ReadCondition()
        if base.elapsed_s and self.cell().read_noise is None:
            raise ConfigError(
                f"read.elapsed_s: device {self.device} has no read_noise in the catalogue, so its noise does not grow "
                f"with time; allowed: 0 (given: {base.elapsed_s:g})"
            )
        own: dict[str, object] = {"relative": self.read_noise, "full_range": self.read_noise_floor}
        if self.temperature_k is not None:
            own["temperature_k"] = self.temperature_k
        return base.model_copy(update=own)

    def cell(self) -> CellDevice:
        """The device that `device` names, with the settings' conductances.

        Raises:
            DeviceError: the catalogue has no such device.
            ConfigError: the user's catalogue cannot be read, or g_min_us is not below g_max_us.
        """
        cell = get_device(self.device, load_catalogue(self.catalogue))
        if self.g_min_us is None and self.g_max_us is None:
            return cell
        given = [None if value is None else value * 1e-6 for value in (self.g_min_us, self.g_max_us)]
        low, high = (
            own if value is None else value
            for value, own in zip(given, (cell.g_min, cell.g_max), strict=True)
        )
        if low is None or high is None:
            missing = "g_min_us" if low is None else "g_max_us"
            raise ConfigError(
                f"device {cell.name}: a conductance range has two ends; {missing} is not known, give it too"
            )
        if low >= high:
            raise ConfigError(
                f"device {cell.name}: g_min_us must be below g_max_us "
                f"(given, or the device's own: {low * 1e6:g} and {high * 1e6:g})"
            )
        return cell.with_range(*given)

    def stuck_rates(self) -> tuple[float, float]:
        """Shares of cells stuck on and off: the settings', else the device's, else none.

        Raises:
            DeviceError, ConfigError: as `cell`.
        """
        cell = self.cell()
        on = cell.stuck_on if self.stuck_on is None else self.stuck_on
        off = cell.stuck_off if self.stuck_off is None else self.stuck_off
        return on or 0.0, off or 0.0

    def array_spread(self) -> float:
        """Relative spread from array to array: the settings', else the device's, else none.

        Raises:
            DeviceError, ConfigError: as `cell`.
        """
        return (self.cell().array_sigma if self.array_sigma is None else self.array_sigma) or 0.0

    def mapping(self) -> Mapping:
        """The cells of a weight.

        Raises:
            ConfigError: slices that the cell cannot hold.
            DeviceError: as `cell`.
        """
        return make_mapping(self.weight_bits, self.cell(), self.scheme, self.slice_bits)

    @model_validator(mode="after")
    def _check_together(self) -> "CrossbarConfig":
        if self.slice_bits is not None and min(self.slice_bits) < 1:
            raise ValueError(f"slice_bits must be at least 1 each (given: {list(self.slice_bits)})")
        if self.slice_bits is not None and len(self.slice_bits) > self.cols:
            raise ValueError(
                f"slice_bits has {len(self.slice_bits)} slices, more than the {self.cols} columns of a tile"
            )
        if self.input_coding == "bit_serial" and self.dac_bits is None:
            raise ValueError("input_coding bit_serial needs dac_bits: the number of bits to drive one by one")
        if self.cell_current == "device" and self.read_voltage_v is None:
            raise ValueError("cell_current device needs read_voltage_v, the volts at the DAC's full scale")
        solved = self.cell_current == "device" or self.gated_rows
        if solved and self.read_mode == "cell":
            raise ValueError(
                "read_mode cell is for linear cells; with cell_current device or gated_rows: output"
            )
        if solved and self.wires is not None and self.remap != "none":
            raise ValueError(
                "remap moves cells along wires that are solved for linear cells only; with wires and cell_current "
                "device or gated_rows: none"
            )
        if self.input_coding == "bit_serial" and self.read_mode == "cell":
            raise ValueError(
                "read_mode cell draws a cell's noise once per vector; with input_coding bit_serial: output"
            )
        if self.adc_errors is not None and self.adc_bits is None:
            raise ValueError("adc_errors needs adc_bits: an ideal converter has none")
        if self.read is not None and (self.read.relative or self.read.full_range):
            raise ValueError("read.relative and read.full_range are set by read_noise and read_noise_floor")
        return self
