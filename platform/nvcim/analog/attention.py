"""Attention: its projections as layers of their own, and its two products on crossbars as an option.

q k^T and p v have no stored weights: both operands change with every sequence. A crossbar can compute them only after
the keys and the values have been written into its cells, so **every call writes arrays**: all of K^T and V, with write
noise, once per batch element and head. That costs write energy and time, and it wears the cells: a cell that lasts a
million writes lasts a million calls, which a language model makes in hours. `AnalogProducts` counts the writes. It
writes the whole of K and V at each call, where an accelerator that keeps a cache in its cells would append to it.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from nvcim.analog.recomputation import Forwards, may_be_recomputed, recomputing
from nvcim.analog.straight_through import read_trained
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError
from nvcim.randomness import named_generator


class DigitalProducts(nn.Module):
    """softmax(q k^T * scale + mask) v in plain torch."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            query: [batch, heads, queries, d].
            key, value: [batch, heads, keys, d].
            mask: added to the scores, broadcasts to [batch, heads, queries, keys]; None for none.
            scale: of the scores.
            dropout: share of the weights that is dropped while training.

        Returns:
            Outputs [batch, heads, queries, d] and weights [batch, heads, queries, keys].
        """
        weights = _softmax(query @ key.mT, mask, scale, dropout if self.training else 0.0)
        return weights @ value, weights


@dataclass(frozen=True)
class WriteCounts:
    """What attention has written so far.

    Attributes:
        calls: each of which writes K^T and V.
        cells: cells written, summed over calls.
        pulses: pulses they took; more than cells with write-verify.
    """

    calls: int
    cells: int
    pulses: int


class AnalogProducts(nn.Module):
    """`DigitalProducts` on arrays that each call writes anew; gradients pass straight through.

    Every batch element and key/value head has two arrays, [d, keys] for K^T and [keys, d] for V. With fewer key/value
    heads than query heads, a group of query heads reads the same arrays.

    Args:
        config: of the arrays. Each call draws other keys from `generator`'s number, so calls differ as writes do.
        generator: gives one number.

    Raises:
        ConfigError: calibrated ADCs: there is no calibrating arrays that live for one call.
        DeviceError: the catalogue does not hold the device.
    """

    seed: Tensor
    counted: Tensor

    def __init__(self, config: CrossbarConfig, generator: Generator) -> None:
        super().__init__()
        if config.adc_bits is not None and config.adc_scaling == "calibrated":
            raise ConfigError(
                "attention's arrays are written per call and cannot be calibrated; adc_scaling: norm or full"
            )
        config.mapping()
        self.config = config
        self.register_buffer("seed", torch.randint(2**63 - 1, (), generator=generator))
        self._forwards: Forwards[int] = Forwards()  # by number
        self.register_buffer("counted", torch.zeros(3, dtype=torch.int64))  # calls, cells, pulses

    @property
    def writes(self) -> WriteCounts:
        """Writes so far."""
        calls, cells, pulses = self.counted.tolist()
        return WriteCounts(calls, cells, pulses)

    def calls_until_worn(self) -> float | None:
        """Calls after which a cell that every call writes has failed, modelled; None if the endurance is unknown.

        Before the first call one pulse per write is assumed, after it the mean so far.

        Raises:
            DeviceError: the catalogue does not hold the device.
        """
        endurance, writes = self.config.cell().endurance, self.writes
        return (
            None if endurance is None else endurance / (writes.pulses / writes.cells if writes.cells else 1)
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """As `DigitalProducts.forward`; `key` and `value` may have fewer heads, a divisor of the queries'.

        Raises:
            ConfigError: heads that do not divide, or keys or values that hold NaN or infinity.
        """
        batch, heads, queries, _ = query.shape
        if heads % key.shape[1]:
            raise ConfigError(f"{heads} query heads cannot share {key.shape[1]} key heads evenly")
        call = self._call(query, key, value)
        streams = [named_generator(int(self.seed), "call", call, name) for name in "kv"]
        grouped = query.reshape(batch, key.shape[1], -1, query.shape[-1])
        scores = self._product(grouped, key.mT, streams[0]).reshape(batch, heads, queries, -1)
        weights = _softmax(scores, mask, scale, dropout if self.training else 0.0)
        shared = weights.reshape(batch, key.shape[1], -1, weights.shape[-1])
        output = self._product(shared, value, streams[1]).reshape(batch, heads, queries, -1)
        self.counted[0] += not recomputing()
        return output, weights

    def _call(self, *inputs: Tensor) -> int:
        """The number of this call: a new one, or in a forward that is recomputed what it was."""
        if recomputing():
            return self._forwards.started_from(*inputs)
        call = int(self.counted[0])
        if may_be_recomputed():
            self._forwards.remember(call, *inputs)
        return call

    def _product(self, inputs: Tensor, weight: Tensor, generator: Generator) -> Tensor:
        crossbar = Crossbar.program(weight, self.config, generator)
        if not recomputing():
            wear = crossbar.wear()
            self.counted[1] += wear.numel()
            self.counted[2] += wear.sum(dtype=torch.int64)
        return read_trained(crossbar, inputs, weight)

    def extra_repr(self) -> str:
        """Device, for print(model)."""
        return f"device={self.config.device}, sigma={self.config.sigma}"


class SplitAttention(nn.Module):
    """nn.MultiheadAttention with its projections as nn.Linear, so that each can become a crossbar.

    `forward` takes and returns what nn.MultiheadAttention's does.

    Attributes:
        products: `DigitalProducts`, or `AnalogProducts` (see `with_analog_attention`).
    """

    # nn.TransformerEncoderLayer takes its fused path, past all layers, unless it finds an attention without bias.
    in_proj_bias = None
    in_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        if attention.in_proj_weight is not None:
            weights = list(attention.in_proj_weight.chunk(3))
        else:
            weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        bias = attention.in_proj_bias
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.products: nn.Module = DigitalProducts()
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.

        Raises:
            ConfigError: `is_causal` without the mask that it is a hint about.
        """
        if is_causal and attn_mask is None:
            raise ConfigError("is_causal is a hint about attn_mask, which must be given")
        batched = query.dim() == 3
        inputs = [x if batched else x.unsqueeze(0) for x in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            torch.unflatten(layer(x), -1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in zip(layers, inputs, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        mixed, weights = self.products(q, k, v, mask, 1 / sqrt(q.shape[-1]), self.dropout)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights = weights.mean(dim=1) if average_attn_weights else weights
        if not batched:
            y, weights = y.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y, weights if need_weights else None

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add, [batch or 1, heads or 1, queries or 1, keys]."""
        total = None
        if attn_mask is not None:
            total = _additive(attn_mask, q.dtype)
            total = (
                total[None, None] if total.dim() == 2 else torch.unflatten(total, 0, (len(q), self.num_heads))
            )
        if padding is not None:
            hidden = _additive(padding, q.dtype).reshape(len(q), 1, 1, -1)
            total = hidden if total is None else total + hidden
        return total


def split_attention(module: nn.Module) -> nn.Module | None:
    """A `SplitAttention` for nn.MultiheadAttention; None for other modules, and for added key biases and zeros.

    nn.TransformerEncoder, whose fused path reads its layers' weights, is told in place not to take it.
    """
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
    if not isinstance(module, nn.MultiheadAttention) or module.bias_k is not None or module.add_zero_attn:
        return None
    return SplitAttention(module)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))


def _softmax(scores: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    scores = scores * scale if mask is None else scores * scale + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return functional.dropout(weights, dropout) if dropout else weights
