"""Give every ADC of a model its range from data that runs through it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from nvcim.analog.layers import AnalogLayer
from nvcim.crossbar import Crossbar
from nvcim.crossbar.calibration import CalibrationMethod
from nvcim.errors import ConfigError
from nvcim.quantization.computed import in_eval_mode

# Currents of one layer that its calibration looks at: 32 MiB of float32.
_CURRENTS = 2**23
_LEAST_VECTORS = 16


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: CalibrationMethod = "percentile",
    percentile: float = 99.9,
    vectors: int = 1024,
) -> None:
    """Calibrate every array of `model` whose config says `adc_scaling: calibrated`, in place.

    The model runs over all batches in eval mode, its arrays computing with the weights their cells hold and without
    converters, while each layer keeps some of its input vectors, evenly spread. Then each array is calibrated on its
    own. The reads of this run are not counted.

    Args:
        model: of analog layers.
        batches: each a tensor or a tuple of positional arguments, or a mapping of named ones, of `model`.
        method, percentile: as `Crossbar.calibrate`.
        vectors: kept per layer at most; a layer of very many outputs keeps fewer.

    Raises:
        ConfigError: no array to calibrate, a layer that no batch reached, or as `Crossbar.calibrate`.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AnalogLayer) and _takes_calibration(module.crossbar)
    }
    if not layers:
        raise ConfigError("no array to calibrate: none has adc_bits and adc_scaling: calibrated")
    recorders = {name: _Recorder(layer.crossbar, vectors) for name, layer in layers.items()}
    with torch.no_grad(), in_eval_mode(model), _recording(layers, recorders):
        for batch in batches:
            _run(model, batch)
    for name, recorder in recorders.items():
        if not recorder.kept:
            raise ConfigError(f"no batch reached layer '{name}', so there is nothing to calibrate it on")
    for name, layer in layers.items():
        try:
            layer.crossbar.calibrate(torch.cat(recorders[name].kept, dim=-2), method, percentile)
        except ConfigError as error:
            raise ConfigError(f"layer '{name}': {error}") from error


class _Recorder:
    """Reads an array without converters, and keeps every `step`-th input vector; `step` doubles when memory is full."""

    def __init__(self, crossbar: Crossbar, vectors: int) -> None:
        config, (inputs, outputs) = crossbar.config, crossbar.shape[-2:]
        cycles = config.dac_bits or 1 if config.input_coding == "bit_serial" else 1
        per_vector = prod(crossbar.device_shape) * ceil(inputs / config.rows) * outputs * cycles
        self.limit = min(vectors, max(_LEAST_VECTORS, _CURRENTS // per_vector))
        self.kept: list[Tensor] = []
        self._weight = crossbar.read_weight()
        self._step, self._seen = 1, 0

    def __call__(self, _: Crossbar, x: Tensor) -> Tensor:
        """x: [*devices, vectors, in]."""
        self._keep(x.detach().to(torch.float32))
        return (x.to(torch.float32) @ self._weight).to(x.dtype)

    def _keep(self, x: Tensor) -> None:
        chosen = x[..., (-self._seen) % self._step :: self._step, :]
        self._seen += x.shape[-2]
        if chosen.shape[-2]:
            self.kept.append(chosen.clone())
        while sum(part.shape[-2] for part in self.kept) > self.limit:
            self.kept = [torch.cat(self.kept, dim=-2)[..., ::2, :].clone()]
            self._step *= 2


def _takes_calibration(crossbar: Crossbar) -> bool:
    return crossbar.config.adc_bits is not None and crossbar.config.adc_scaling == "calibrated"


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


@contextmanager
def _recording(layers: Mapping[str, AnalogLayer], recorders: Mapping[str, _Recorder]) -> Iterator[None]:
    for name, layer in layers.items():
        layer.read = recorders[name]
    try:
        yield
    finally:
        for layer in layers.values():
            layer.read = None
