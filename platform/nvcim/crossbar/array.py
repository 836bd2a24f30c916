"""A crossbar: a linear map that remembers how it was written.

`Crossbar.program` draws the device once; `matmul` reads it, tile by tile:

    y_t = DAC(x)_t @ W_t + sqrt(x_t^2 @ V_t) * eps,     y = sum over row tiles of ADC_t(y_t)

W is the signed weight that the programmed cells of all pairs and slices amount to, V the variance of their
read noise. Both are exact: slices and pairs are added in the analog domain before the ADC, and independent
Gaussian reads add up to one Gaussian per output.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Generator, Tensor

from nvcim.crossbar.converters import adc_step, digitise, drive
from nvcim.crossbar.programming import program_weights, standard_normals
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.errors import ConfigError

# torch fills normals in blocks of 16; whole blocks per vector make draws independent of batching.
_NORMAL_BLOCK = 16


class Crossbar:
    """Weights [*devices, in_features, out_features] in cells; leading dimensions are independent devices.

    Made by `program`, `stack` or `from_state`. Reads are not differentiable.
    """

    def __init__(
        self,
        weight: Tensor,
        read_variance: Tensor | None,
        read_streams: Sequence[Generator],
        config: CrossbarConfig,
    ) -> None:
        self.config = config
        self._weight = weight  # [*devices, in, out]
        self._read_variance = read_variance  # [*devices, in, out], only with read noise
        self._read_streams = list(read_streams)  # one per device, in row-major order
        self._row_tiles = _row_tiles(weight.shape[-2], config.rows)
        self._adc_steps: list[
            Tensor
        ] = []  # per row tile: [*devices, 1, out], or [*devices, 1, 1] if all alike
        if config.adc_bits is not None:
            for rows in self._row_tiles:
                step = adc_step(weight[..., rows, :], config.cols, config.adc_bits, config.adc_range)
                step = step if weight.shape[-1] > config.cols else step[..., :1]
                self._adc_steps.append(step.unsqueeze(-2))

    @classmethod
    def program(
        cls, weight: Tensor, config: CrossbarConfig, generator: Generator | Sequence[Generator]
    ) -> "Crossbar":
        """Write weights into fresh cells.

        Args:
            weight: [*devices, in_features, out_features], float, finite. A device whose weights are all zero
                reads back exactly zero: its scale is zero.
            config: cell, mapping and periphery.
            generator: one for all devices, or one per device in row-major order. Each device gets its own
                write and read streams, drawn from it, so a device comes out the same whether it is written
                alone with its generator or among others.

        Raises:
            ConfigError: an empty weight, fewer than two dimensions, integers, NaN or infinity, or a number of
                generators other than that of devices; also a catalogue that cannot be read.
            DeviceError: the catalogue does not hold `config.device`.
        """
        _check_weight(weight)
        devices, (in_features, out_features) = weight.shape[:-2], weight.shape[-2:]
        seeds = _device_seeds(generator, prod(devices))
        streams = [Generator().manual_seed(int(seed)) for seed in seeds[:, 0]]
        # Draws are made on the CPU, so that a seed means the same device wherever the tensors live.
        flat = weight.detach().to("cpu", torch.float32).reshape(-1, in_features, out_features)
        programmed = program_weights(flat, config, streams)
        variance = programmed.read_variance
        return cls(
            programmed.weight.reshape(weight.shape).to(weight.device),
            None if variance is None else variance.reshape(weight.shape).to(weight.device),
            [Generator().manual_seed(int(seed)) for seed in seeds[:, 1]],
            config,
        )

    @classmethod
    def stack(cls, crossbars: Sequence["Crossbar"]) -> "Crossbar":
        """Put crossbars of one shape and periphery side by side as a new first dimension.

        Members may differ in what only programming uses: cell, sigma and its unit, weight bits, scale. The
        stack carries the first member's config.

        The stack reads as its members would and shares their read streams: a read of the stack is a read of
        each member.

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
        variances = [c._read_variance for c in crossbars if c._read_variance is not None]
        return cls(
            torch.stack([c._weight for c in crossbars]),
            torch.stack(variances) if variances else None,
            [stream for c in crossbars for stream in c._read_streams],
            first.config,
        )

    @property
    def shape(self) -> torch.Size:
        """[*devices, in_features, out_features]."""
        return self._weight.shape

    @property
    def device_shape(self) -> torch.Size:
        """The leading dimensions: [*devices]."""
        return self._weight.shape[:-2]

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self._weight.shape[-2]

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self._weight.shape[-1]

    @property
    def location(self) -> torch.device:
        """Where the tensors live."""
        return self._weight.device

    @torch.no_grad()
    def matmul(self, x: Tensor) -> Tensor:
        """Drive input vectors and read the outputs: about x @ weight.

        Args:
            x: [*devices, batch, in_features]; leading dimensions broadcast, so [batch, in_features] goes to
                every device. A vector that holds NaN or infinity spoils its own outputs only.

        Returns:
            [*devices, batch, out_features], in x's dtype (computed in float32).

        Raises:
            ConfigError: a shape that does not fit, or integers.
        """
        self._check_input(x)
        config, vectors = self.config, x.to(torch.float32)
        if config.dac_bits is not None:
            vectors = drive(vectors, config.dac_bits)
        if config.adc_bits is None and self._read_variance is None:
            return (vectors @ self._weight).to(x.dtype)
        noise = None if self._read_variance is None else self._draw_read_noise(x.shape[-2])
        total: Tensor | None = None
        for tile, rows in enumerate(self._row_tiles):
            part = vectors[..., rows]
            output = part @ self._weight[..., rows, :]
            if self._read_variance is not None and noise is not None:
                spread = (part.square() @ self._read_variance[..., rows, :]).sqrt_()
                output.addcmul_(spread, noise[..., tile, :])
            if config.adc_bits is not None:
                # vector_norm takes ten times as long on the strided patches of a convolution
                norm = part.square().sum(dim=-1, keepdim=True).sqrt_()
                output = digitise(output, norm * self._adc_steps[tile], config.adc_bits)
            total = output if total is None else total.add_(output)
        assert total is not None  # a crossbar has at least one row tile
        return total.to(x.dtype)

    def read_weight(self) -> Tensor:
        """The weight as programmed, [*devices, in_features, out_features]: no converters, no read noise."""
        return self._weight.clone()

    def to(self, device: torch.device | str) -> "Crossbar":
        """Move the tensors; read noise keeps being drawn on the CPU, from the same streams."""
        variance = None if self._read_variance is None else self._read_variance.to(device)
        return Crossbar(self._weight.to(device), variance, self._read_streams, self.config)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the config as tensors; `from_state` restores it bit-exactly.

        Keys: `weight`; with read noise also `read_variance` (both [*devices, in, out]) and `read_streams`,
        bytes [devices, state] of the generators. Safetensors takes them.
        """
        state = {"weight": self._weight.clone()}
        if self._read_variance is not None:
            state["read_variance"] = self._read_variance.clone()
            state["read_streams"] = torch.stack([stream.get_state() for stream in self._read_streams])
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: CrossbarConfig) -> "Crossbar":
        """Restore what `state_dict` saved, with the config it was programmed with.

        Raises:
            ConfigError: keys or shapes that are not those of a crossbar with this config.
        """
        expected = {"weight"} if config.read_noise == 0 else {"weight", "read_variance", "read_streams"}
        if set(state) != expected:
            found = ", ".join(sorted(state)) or "nothing"
            raise ConfigError(f"crossbar state has {found}; expected {', '.join(sorted(expected))}")
        weight, variance = state["weight"], state.get("read_variance")
        _check_weight(weight)
        count = prod(weight.shape[:-2])
        streams = [Generator() for _ in range(count)]
        if variance is not None:
            saved = state["read_streams"]
            if variance.shape != weight.shape or saved.shape[0] != count:
                raise ConfigError(
                    f"crossbar state does not fit together: weight {tuple(weight.shape)}, "
                    f"read_variance {tuple(variance.shape)}, {saved.shape[0]} read streams"
                )
            for stream, one in zip(streams, saved, strict=True):
                stream.set_state(one.cpu().clone())  # torch 2.13 crashes on a view with an offset
        return cls(weight.clone(), None if variance is None else variance.clone(), streams, config)

    def _draw_read_noise(self, batch: int) -> Tensor:
        """N(0, 1) for one read: [*devices, batch, row tiles, out_features]."""
        tiles, outputs = len(self._row_tiles), self.out_features
        padded = -(-tiles * outputs // _NORMAL_BLOCK) * _NORMAL_BLOCK
        draws = standard_normals(self._read_streams, batch, padded)[..., : tiles * outputs]
        return draws.reshape(*self.device_shape, batch, tiles, outputs).to(self._weight.device)

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


def _row_tiles(in_features: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, in_features)) for start in range(0, in_features, rows)]


def _device_seeds(generator: Generator | Sequence[Generator], devices: int) -> Tensor:
    """Seeds of the write and the read stream of every device: [devices, 2]."""
    if isinstance(generator, Generator):
        return torch.randint(2**63 - 1, (devices, 2), generator=generator)
    if len(generator) != devices:
        raise ConfigError(f"{len(generator)} generators were given for {devices} devices")
    return torch.cat([torch.randint(2**63 - 1, (1, 2), generator=one) for one in generator])


def _check_weight(weight: Tensor) -> None:
    if weight.dim() < 2 or weight.numel() == 0:
        raise ConfigError(
            f"weight has shape {tuple(weight.shape)}; a crossbar takes "
            "[*devices, in_features, out_features], each at least 1"
        )
    if not weight.is_floating_point():
        raise ConfigError(f"weight has type {weight.dtype}; a crossbar takes floating point")
    if not bool(torch.isfinite(weight).all()):
        raise ConfigError("weight holds NaN or infinity; a cell cannot be programmed to that")
