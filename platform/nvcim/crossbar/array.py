"""A crossbar: a linear map that remembers how it was written.

`Crossbar.program` draws the devices once; `matmul` reads them (reading.py). Between the two lies `collapse.py`, which
turns cells into the linear map that a read sees. The cells themselves are a function of the integers that were written
and of a device's key (programming.py), so a crossbar keeps those and makes its cells again when it needs them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, prod

import torch
from torch import Generator, Tensor

from nvcim.crossbar.calibration import (
    CalibrationMethod,
    calibrated_ranges,
    range_after_rewrite,
    range_where_nothing_flowed,
)
from nvcim.crossbar.cell_reads import read_every_cell
from nvcim.crossbar.converters import Driven, make_adc
from nvcim.crossbar.mapping import quantize_symmetric
from nvcim.crossbar.network import make_network, read_method
from nvcim.crossbar.programming import Cells, Writing, remapped, write_cells
from nvcim.crossbar.reading import Counts, ReadPlan, read_array, read_driven
from nvcim.crossbar.remapping import place_shapes
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.crossbar.written import Written, ages, write_arrays
from nvcim.errors import ConfigError


class Crossbar:
    """Weights [*devices, in_features, out_features] in cells; leading dimensions are independent devices.

    Made by `program`, `stack` or `from_state`. Reads are not differentiable (`nvcim.analog` trains through them).

    Attributes:
        config: what it was programmed with.
        counts: conversions and saturations so far.
        clock_s: seconds since it was last written, as far as `age` was told.
    """

    def __init__(
        self, written: Written, read_keys: Tensor, devices: torch.Size, config: CrossbarConfig
    ) -> None:
        self.config = config
        self.counts = Counts()
        self.clock_s = 0.0
        self._written = written
        self._read_keys = read_keys  # [devices], int64
        self._reads = torch.zeros_like(read_keys)
        self._devices = devices
        self._plan: ReadPlan | None = None

    @classmethod
    def program(
        cls,
        weight: Tensor,
        config: CrossbarConfig,
        generator: Generator | Sequence[Generator],
        importance: Tensor | None = None,
    ) -> "Crossbar":
        """Write weights into fresh cells.

        Args:
            weight: [*devices, in_features, out_features], float, finite. A device whose weights are all zero
                reads back exactly zero: its scale is zero.
            config: cell, mapping and periphery.
            generator: one for all devices, or one per device in row-major order. Each device gets its own
                write and read streams, drawn from it, so a device comes out the same whether it is written
                alone with its generator or among others.
            importance: like `weight`; which weights selective write-verify reads back first. Left out, the largest.

        Raises:
            ConfigError: an empty weight, fewer than two dimensions, integers, NaN or infinity, negative weights in the
                one-sided scheme, or a number of generators other than that of devices; slices that the cell cannot
                hold, wires on a cell of unknown conductance; also a catalogue that cannot be read.
            DeviceError: the catalogue does not hold `config.device`.
        """
        _check_weight(weight, config)
        # Drawn on the CPU, so that a seed means the same device wherever the tensors live.
        keys = _device_keys(generator, prod(weight.shape[:-2])).to(weight.device)
        writing = _writing(weight, config, keys[:, 0].contiguous(), torch.zeros_like(keys[:, 0]), importance)
        return cls(write_arrays(writing, config), keys[:, 1].contiguous(), weight.shape[:-2], config)

    def rewrite(self, weight: Tensor, importance: Tensor | None = None) -> None:
        """Write other weights into the same cells: a new draw, the same stuck cells, and one write more of wear.

        Calibrated ADCs stay set to the currents they are set to: in units of outputs their ranges go with the scale.

        Args:
            weight, importance: as `program`, of this crossbar's shape.

        Raises:
            ConfigError: as `program`; another shape; a stack.
        """
        _check_weight(weight, self.config)
        if weight.shape != self.shape:
            raise ConfigError(f"weight has shape {tuple(weight.shape)}; these cells take {tuple(self.shape)}")
        old = self._writing()
        again = write_arrays(_writing(weight, self.config, old.keys, old.writes + 1, importance), self.config)
        reach = again.reach
        if self._written.reach is not None and self.config.adc_scaling == "calibrated":
            assert again.writing is not None
            reach = range_after_rewrite(self._written.reach, old.scale, again.writing.scale)
        self._written = replace(again, wear=self._written.wear + again.wear, reach=reach)
        self.clock_s, self._plan = 0.0, None

    def age(self, seconds: float) -> None:
        """Let time pass on the cells: drift, loss of retention and relaxation, as far as the device has them.

        The ADCs keep the ranges they were given when the cells were written.

        Raises:
            ConfigError: a negative time, or a stack (age its members).

        Warns:
            UserWarning: no ageing of the device is known: the clock moves on, and nothing else.
        """
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"a crossbar can age by 0 seconds or more (given: {seconds})")
        aged = write_arrays(self._writing(), self.config, self.clock_s + seconds)
        if seconds > 0 and not ages(self.config):
            warnings.warn(_no_ageing(self.config.device), stacklevel=2)
        self._written = replace(aged, wear=self._written.wear, reach=self._written.reach)
        self.clock_s, self._plan = self.clock_s + seconds, None

    @torch.no_grad()
    def calibrate(
        self, x: Tensor, method: CalibrationMethod = "percentile", percentile: float = 99.9
    ) -> None:
        """Set the ADCs' ranges from input vectors like those to come (`adc_scaling: calibrated`).

        Args:
            x: as `matmul`.
            method, percentile: see `calibration.calibrated_ranges`.

        Raises:
            ConfigError: ADCs that are ideal or scaled otherwise, or inputs that do not fit or cannot serve.
        """
        if self.config.adc_bits is None or self.config.adc_scaling != "calibrated":
            raise ConfigError("calibrate needs adc_bits and adc_scaling: calibrated")
        if self._written.writing is None and self.config.adc_errors is not None:
            raise ConfigError("a stack does not know the errors of its members' ADCs; calibrate the members")
        self._check_input(x)
        plan = self._plan_of(replace(self._written, reach=None))
        reach = calibrated_ranges(self._vectors(x), plan, self.config, method, percentile)
        reach = reach if plan.unit is None else reach * plan.unit[:, None]
        if self._written.writing is not None:
            scale = self._written.writing.scale
            reach = range_where_nothing_flowed(reach, scale, self.config, self.in_features)
        self._written, self._plan = replace(self._written, reach=reach), None

    @classmethod
    def stack(cls, crossbars: Sequence["Crossbar"]) -> "Crossbar":
        """Put crossbars of one shape and periphery side by side as a new first dimension.

        Members may differ in what only programming uses: cell, sigma and its unit, weight bits, scale. The
        stack carries the first member's config.

        The stack reads as its members would: its reads go on where theirs stood, in their streams. Its cells cannot be
        rewritten or aged; a member's can, before it is stacked anew.

        Raises:
            ConfigError: no crossbars, or shapes or peripheries that differ.
        """
        if not crossbars:
            raise ConfigError("a stack needs at least one crossbar")
        first = crossbars[0]
        for other in crossbars[1:]:
            if other.shape != first.shape or other.config.periphery() != first.config.periphery():
                raise ConfigError(
                    "crossbars of a stack must share shape and periphery; got "
                    f"{tuple(first.shape)}, {first.config.periphery()} and "
                    f"{tuple(other.shape)}, {other.config.periphery()}"
                )
        members = [c._written for c in crossbars]
        for index, member in enumerate(members):
            if member.layout != members[0].layout:
                raise ConfigError(
                    f"crossbars of a stack must be read alike; the first has {members[0].layout}, "
                    f"number {index + 1} has {member.layout}"
                )
        keys = torch.cat([c._read_keys for c in crossbars])
        devices = torch.Size([len(crossbars), *first.device_shape])
        stacked = cls(Written.stack(members), keys, devices, first.config)
        stacked._reads = torch.cat([c._reads for c in crossbars])
        # What comes from the chips' own keys and cells: the errors of their ADCs, and circuits to solve.
        own_plan = first.config.adc_errors or first.config.cell_current == "device" or first.config.gated_rows
        stacked._plan = ReadPlan.stack([c._read_plan() for c in crossbars]) if own_plan else None
        return stacked

    @property
    def shape(self) -> torch.Size:
        """[*devices, in_features, out_features]."""
        return torch.Size([*self._devices, *self._written.weight.shape[-2:]])

    @property
    def device_shape(self) -> torch.Size:
        """The leading dimensions: [*devices]."""
        return self._devices

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self._written.weight.shape[-2]

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self._written.weight.shape[-1]

    @property
    def location(self) -> torch.device:
        """Where the tensors live."""
        return self._written.weight.device

    @property
    def read_method(self) -> str:
        """How reads are computed, and why: a matrix product or the iterative solver."""
        return read_method(self.config)

    @torch.no_grad()
    def matmul(self, x: Tensor) -> Tensor:
        """Drive input vectors and read the outputs: about x @ weight.

        Args:
            x: [*devices, batch, in_features]; leading dimensions broadcast, so [batch, in_features] goes to
                every device. A vector that holds NaN or infinity spoils its own outputs only.

        Returns:
            [*devices, batch, out_features], in x's dtype (computed in float32).

        Raises:
            ConfigError: a shape that does not fit, integers, or ADCs that wait for `calibrate`.
        """
        self._check_input(x)
        vectors, plan = self._vectors(x), self._read_plan()
        if self.config.read_mode == "cell" and self.config.noisy:
            y = read_every_cell(
                vectors,
                plan,
                self._writing(),
                self.config,
                self._read_keys,
                self._reads,
                self.clock_s,
                self.counts,
            )
        else:
            y = read_array(vectors, plan, self.config, self._read_keys, self._reads, self.counts)
        self._reads = self._reads + vectors.shape[1]
        return y.reshape(*self._devices, *y.shape[-2:]).to(x.dtype)

    @torch.no_grad()
    def read_driven(self, driven: Driven) -> Tensor:
        """`matmul` of vectors that were driven before (`patches.drive_patches`).

        Args:
            driven: its `x` is [devices or 1, vectors, in_features], devices flattened.

        Returns:
            [*devices, vectors, out_features], float32.

        Raises:
            ConfigError: vectors that do not fit, ADCs that wait for `calibrate`, or noisy reads per cell, which drive
                vector by vector.
        """
        count, tiles = prod(self._devices), -(-self.in_features // self.config.rows)
        fits = (
            driven.x.dim() == 3 and driven.x.shape[0] in (1, count) and driven.x.shape[-1] == self.in_features
        )
        if not fits or driven.norms.shape[-1] != tiles or driven.x.dtype != torch.float32:
            raise ConfigError(
                f"driven vectors have shape {tuple(driven.x.shape)} and type {driven.x.dtype}; this crossbar takes "
                f"(1 or {count}, vectors, {self.in_features}), float32, in {tiles} row tiles"
            )
        if self.config.read_mode == "cell" and self.config.noisy:
            raise ConfigError("read_mode cell drives vectors itself: use matmul")
        y = read_driven(driven, self._read_plan(), self.config, self._read_keys, self._reads, self.counts)
        self._reads = self._reads + driven.x.shape[1]
        return y.reshape(*self._devices, *y.shape[-2:])

    @torch.no_grad()
    def read_weight(self) -> Tensor:
        """The weight as the cells hold it now, [*devices, in_features, out_features]: no converters, no read noise."""
        return self._written.combined().reshape(self.shape)

    def cells(self) -> Cells:
        """Every cell as it was written, [devices, sides * slices, in, out] (a plane per side and slice).

        Cells are where their weights are, wherever `remap` put them.

        Raises:
            ConfigError: a stack, which does not know its members' cells.
        """
        return write_cells(self._writing(), self.config)

    def wear(self) -> Tensor:
        """Pulses that each cell has had, int32 [devices, sides * slices, in, out], by place in the array (see `remap`).

        Raises:
            ConfigError: a stack.
        """
        devices, *shape = self._writing().integers.shape
        return self._written.wear.expand(devices, self.config.mapping().cells, *shape)

    def worn_out(self) -> Tensor:
        """Which cells have had more pulses than the device endures: bool, like `wear`. They still work in this model.

        Raises:
            ConfigError: a device of unknown endurance, or a stack.
        """
        endurance = self.config.cell().endurance
        if endurance is None:
            raise ConfigError(
                f"device {self.config.device}: endurance is unknown; give it in a catalogue of your own"
            )
        return self.wear() > endurance

    def to(self, device: torch.device | str) -> "Crossbar":
        """Move the tensors; draws are functions of the keys and stay what they are."""
        moved = Crossbar(self._written.to(device), self._read_keys.to(device), self._devices, self.config)
        moved._reads, moved.counts, moved.clock_s = self._reads.to(device), replace(self.counts), self.clock_s
        moved._plan = None if self._plan is None else self._plan.to(device)
        return moved

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the config as tensors; `from_state` restores it bit-exactly. Safetensors takes them.

        Raises:
            ConfigError: a stack; save its members.
        """
        writing = self._writing()
        state = {**self._written.tensors(), **writing.tensors()}
        state["read_keys"], state["reads"] = self._read_keys, self._reads
        state["clock_s"] = torch.tensor(self.clock_s, dtype=torch.float64)
        state["devices"] = torch.tensor(self._devices, dtype=torch.int64)
        return {name: value.clone().contiguous() for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: CrossbarConfig) -> "Crossbar":
        """Restore what `state_dict` saved, with the config it was programmed with.

        Raises:
            ConfigError: keys or shapes that are not those of a crossbar with this config.
        """
        expected = (
            Written.names(config) | Writing.names(config) | {"read_keys", "reads", "clock_s", "devices"}
        )
        optional = {"base"}  # states of one-sided arrays in bfloat16 once held it within their weights
        if config.adc_scaling == "calibrated" and config.adc_bits is not None:
            optional.add("reach")
        if set(state) - optional != expected - optional:
            found = ", ".join(sorted(state)) or "nothing"
            raise ConfigError(f"crossbar state has {found}; expected {', '.join(sorted(expected))}")
        own = {name: value.clone() for name, value in state.items()}
        weight, devices = own["weight"], torch.Size(own["devices"].tolist())
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        if weight.dim() != 4 or prod(devices) != len(weight) or shapes["reads"] != (len(weight),):
            raise ConfigError(f"crossbar state does not fit together: {shapes}")
        if (
            shapes["integers"] != (len(weight), *weight.shape[2:])
            or shapes.get("variance", weight.shape) != weight.shape
        ):
            raise ConfigError(f"crossbar state does not fit together: {shapes}")
        lines = tuple(shapes.get(name) for name in ("row_places", "column_places"))
        if config.remap != "none" and lines != place_shapes(own["integers"].shape, config):
            raise ConfigError(f"crossbar state has row_places and column_places for other tiles: {lines}")
        written = Written.from_tensors(own, config)
        groups, tiles = len(written.alphas), ceil(weight.shape[2] / config.rows)
        reach = (len(weight), groups, tiles, weight.shape[3])
        if weight.shape[1] != groups or shapes.get("reach", reach) != reach:
            raise ConfigError(f"crossbar state is not one of {groups} groups and {tiles} row tiles: {shapes}")
        crossbar = cls(written, own["read_keys"], devices, config)
        crossbar._reads, crossbar.clock_s = own["reads"], float(own["clock_s"])
        return crossbar

    def _writing(self) -> Writing:
        if self._written.writing is None:
            raise ConfigError("a stack of crossbars does not know its members' cells; ask the members")
        return self._written.writing

    def _read_plan(self) -> ReadPlan:
        if self._plan is None:
            if self.config.adc_bits is not None and self._written.reach is None:
                raise ConfigError(
                    "adc_scaling is calibrated: call calibrate with typical inputs before reading"
                )
            self._plan = self._plan_of(self._written)
        return self._plan

    def _plan_of(self, written: Written) -> ReadPlan:
        written = written.for_reads()
        adc = None
        if written.reach is not None:
            keys = self._read_keys if written.writing is None else written.writing.keys
            places = None if written.writing is None else written.writing.places
            adc = make_adc(written.reach, self.config, keys, places)
        network = (
            None if written.writing is None else make_network(written.writing, self.config, self.clock_s)
        )
        return ReadPlan(
            *(written.weight, written.variance, written.uniform, adc, written.alphas, written.pedestal),
            network=network,
            unit=written.unit,
            base=written.base,
        )

    def _vectors(self, x: Tensor) -> Tensor:
        """Inputs with one device dimension: [devices or 1, vectors, in], float32."""
        x = x.to(torch.float32)
        if prod(x.shape[:-2]) == 1:
            return x.reshape(1, *x.shape[-2:])
        return x.expand(*self._devices, *x.shape[-2:]).reshape(prod(self._devices), *x.shape[-2:])

    def _check_input(self, x: Tensor) -> None:
        leading = x.shape[:-2]
        devices = self.device_shape
        fits = x.dim() >= 2 and x.shape[-1] == self.in_features and len(leading) <= len(devices)
        pairs = zip(reversed(leading), reversed(devices), strict=False)
        if not fits or any(given not in (1, own) for given, own in pairs):
            expected = (*devices, "batch", self.in_features)
            raise ConfigError(f"input has shape {tuple(x.shape)}; this crossbar takes {expected}")
        if not x.is_floating_point():
            raise ConfigError(f"input has type {x.dtype}; a crossbar takes floating point")


def _no_ageing(device: str) -> str:
    return (
        f"device {device}: its drift, retention and relaxation are unknown, so time changes nothing in this model; "
        "give them in a catalogue of your own"
    )


def _device_keys(generator: Generator | Sequence[Generator], devices: int) -> Tensor:
    """Keys of the write and the read streams of every device: [devices, 2]."""
    if isinstance(generator, Generator):
        return torch.randint(2**63 - 1, (devices, 2), generator=generator)
    if len(generator) != devices:
        raise ConfigError(f"{len(generator)} generators were given for {devices} devices")
    return torch.cat([torch.randint(2**63 - 1, (1, 2), generator=one) for one in generator])


def _writing(
    weight: Tensor, config: CrossbarConfig, keys: Tensor, writes: Tensor, importance: Tensor | None
) -> Writing:
    """Quantise weights [*devices, in, out] and choose which cells are verified."""
    flat = weight.detach().to(torch.float32).reshape(-1, *weight.shape[-2:])
    integers, scale = quantize_symmetric(flat, config.weight_bits, config.scale_per == "column")
    return remapped(Writing(integers, scale, keys, writes, _verified(flat, importance, config)), config)


def _verified(flat: Tensor, importance: Tensor | None, config: CrossbarConfig) -> Tensor | None:
    """Which weights are read back: bool like `flat` [devices, in, out], None for none."""
    if importance is not None and config.programming.method != "selective":
        raise ConfigError("importance is for programming.method: selective")
    if config.programming.method == "open_loop":
        return None
    if config.programming.method == "write_verify":
        return torch.ones(flat.shape, dtype=torch.bool, device=flat.device)
    ranked = flat.abs() if importance is None else _ranked(importance, flat)
    count = round(config.programming.share * flat[0].numel())
    chosen = ranked.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
    marked = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device).flatten(1)
    return marked.scatter_(1, chosen, True).reshape(flat.shape)


def _ranked(importance: Tensor, flat: Tensor) -> Tensor:
    if importance.shape[-2:] != flat.shape[-2:] or importance.numel() != flat.numel():
        raise ConfigError(
            f"importance has shape {tuple(importance.shape)}; it takes one number for each weight"
        )
    ranked = importance.detach().to(flat).reshape(flat.shape)
    if bool(ranked.isnan().any()):
        raise ConfigError("importance holds NaN, which has no rank")
    return ranked


def _check_weight(weight: Tensor, config: CrossbarConfig) -> None:
    if weight.dim() < 2 or weight.numel() == 0:
        raise ConfigError(
            f"weight has shape {tuple(weight.shape)}; a crossbar takes "
            "[*devices, in_features, out_features], each at least 1"
        )
    if not weight.is_floating_point():
        raise ConfigError(f"weight has type {weight.dtype}; a crossbar takes floating point")
    # aminmax passes NaN on, and takes a tenth of the time of isfinite; one matrix for many devices is looked at once
    once = weight[(0,) * (weight.dim() - 2)] if not any(weight.stride()[:-2]) else weight
    # as float32, in which crossbars compute and which ends earlier than float64
    if not all(bool(torch.isfinite(end.to(torch.float32))) for end in torch.aminmax(once)):
        raise ConfigError("weight holds NaN or infinity (as float32); a cell cannot be programmed to that")
    if config.scheme == "one_sided" and bool((weight < 0).any()):
        raise ConfigError("scheme one_sided holds no negative weights; allowed: differential, offset")
