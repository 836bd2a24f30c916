"""Layers that train with their crossbar in the loop: float masters, reads of real cells, straight-through gradients.

    y = read(cells written from W)        dL/dx = dL/dy @ W_cells^T        dL/dW = x^T @ dL/dy

Written anew at every forward, the cells carry a fresh write draw each time, which trains against the noise of any chip
(noise-aware). Written on request, one chip stays in the loop with the errors it has (hardware-aware).
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from nvcim.analog.convolution import (
    Convolution,
    read_convolution,
    read_convolution_straight_through,
)
from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear, linear_matrix
from nvcim.analog.recomputation import recomputing
from nvcim.analog.straight_through import read_trained
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.quantization.computed import computed, computed_weight, in_eval_mode

Writes = Literal["every_forward", "on_request"]
"""When the cells are written: at each forward in train(), or by `reprogram` alone."""


class TrainableLayer(AnalogLayer, ABC):
    """Cells and the digital layer whose weights they are written from.

    In eval() a forward reads the cells as they were last written: call `reprogram` after the last step.

    Attributes:
        master: the digital layer; its parameters are what an optimiser trains. Parametrizations (quantizers), pruning
            and normalisation of its weight stay and act at every forward.
        writes: see `Writes`. Every write counts as wear.
    """

    def __init__(self, master: nn.Module, crossbar: Crossbar, writes: Writes) -> None:
        super().__init__(crossbar, None)
        self.master = master
        self.writes = writes

    @abstractmethod
    def matrix(self) -> Tensor:
        """The master weight in the crossbar's shape, differentiable."""

    @abstractmethod
    def deployed(self) -> AnalogLayer:
        """An inference layer on these cells as they were last written."""

    @torch.no_grad()
    def reprogram(self) -> None:
        """Write the master weight into the cells: a new write draw, the same stuck cells.

        Raises:
            ConfigError: the weight holds NaN or infinity.
        """
        self.crossbar.rewrite(self.matrix())

    @property
    def master_bias(self) -> Tensor | None:
        """The master's bias."""
        return computed(self.master, "bias")

    @property
    def _writes_now(self) -> bool:
        return self.training and self.writes == "every_forward"

    @property
    def _moves_on(self) -> bool:
        return self._writes_now or super()._moves_on

    def _written(self, x: Tensor) -> tuple[Tensor, Crossbar]:
        """The master weight and what to read for x, after the one was written if this forward is to write it."""
        matrix = self.matrix()
        if self._writes_now and not recomputing():
            self.crossbar.rewrite(matrix.detach())
        return matrix, self._array_for(x)


class TrainableAnalogLinear(TrainableLayer):
    """A linear layer in training; `master` is nn.Linear or Hugging Face's Conv1D."""

    @classmethod
    def from_linear(
        cls, linear: nn.Module, config: CrossbarConfig, generator: Generator, writes: Writes = "every_forward"
    ) -> "TrainableAnalogLinear":
        """Program a linear layer's weight into fresh cells and keep the layer as master.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
            ModelError: as `quantization.computed`.
        """
        with in_eval_mode(linear):
            matrix = linear_matrix(linear).detach()
        return cls(linear, Crossbar.program(matrix, config, generator), writes)

    def matrix(self) -> Tensor:
        """[in, out]."""
        return linear_matrix(self.master)

    def deployed(self) -> AnalogLinear:
        """An inference layer on these cells."""
        return AnalogLinear(self.crossbar, self.master_bias).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        (master, array), flat = self._written(x), x.reshape(-1, x.shape[-1])
        y = read_trained(array, flat, master) if self.read is None else self.read(array, flat)
        y = y.reshape(*x.shape[:-1], self.crossbar.out_features)
        return y if self.master_bias is None else y + self.master_bias.to(y.dtype)


class TrainableAnalogConv2d(TrainableLayer):
    """A convolution in training; see `AnalogConv2d` for its arrays."""

    def __init__(self, master: nn.Conv2d, crossbar: Crossbar, writes: Writes) -> None:
        super().__init__(master, crossbar, writes)
        self.shape = Convolution.of(master)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, config: CrossbarConfig, generator: Generator, writes: Writes = "every_forward"
    ) -> "TrainableAnalogConv2d":
        """Program a convolution's weight into fresh cells and keep the layer as master.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
            ModelError: as `quantization.computed`.
        """
        with in_eval_mode(conv):
            matrix = Convolution.of(conv).matrix(computed_weight(conv).detach())
        return cls(conv, Crossbar.program(matrix, config, generator), writes)

    def matrix(self) -> Tensor:
        """[groups, patch, out / groups]."""
        return self.shape.matrix(computed_weight(self.master))

    def deployed(self) -> AnalogConv2d:
        """An inference layer on these cells."""
        return AnalogConv2d(self.crossbar, self.master_bias, self.shape).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: as `AnalogConv2d.forward`.

        Raises:
            ConfigError: as `AnalogConv2d.forward`.
        """
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)  # type: ignore[no-any-return]
        padded, (master, array) = self.shape.padded(x), self._written(x)
        what = self.shape, self.read, array, padded, self.master_bias, self.shape.layout_for(x)
        if not torch.is_grad_enabled():
            return read_convolution(*what)
        return read_convolution_straight_through(*what, master)

    def _digital_shape(self) -> tuple[int, ...]:
        return self.deployed()._digital_shape()


def reprogram(model: nn.Module) -> None:
    """Write the master weights of all layers in training into their cells, once each.

    Raises:
        ConfigError: a weight holds NaN or infinity.
    """
    for module in model.modules():
        if isinstance(module, TrainableLayer):
            module.reprogram()
