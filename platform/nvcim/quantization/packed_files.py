"""Files of quantized models: safetensors with every quantized weight packed to its real width.

The safetensors header's metadata has one key, `nvcim-packed`, with JSON: format (an integer), quantizer (its
settings), layers (name -> shape and form), crc32 (of all tensors' bytes, in the order of their names). Tensors:

- `<layer>.packed`: uint8, the codes of the layer's weight as `packing` writes them in its form;
- `<layer>.packed.<name>`: what the levels are made from (scale, exponents, ...);
- everything else of the state dict under its own name, as it is: biases, normalisation, float layers, and the
  weights that INQ has not frozen entirely (float32 values, mask and frozen values, nothing packed).
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nvcim.errors import ConfigError, ModelError
from nvcim.quantization.base import Quantizer, fix_weight, original_of
from nvcim.quantization.packing import FORMS, PackedTensor, entropy, huffman_coded
from nvcim.quantization.registry import make_quantizer, quantizer_settings_from
from nvcim.storage import atomic_write_bytes

_KEY = "nvcim-packed"
_FORMAT = 1


@dataclass(frozen=True)
class PackedModel:
    """A quantized model in packed memory, as files hold it.

    Attributes:
        quantizer: whose levels they are.
        weights: the packed weights, by layer.
        rest: the other entries of the model's state dict, on the CPU.
    """

    quantizer: Quantizer
    weights: dict[str, PackedTensor]
    rest: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held."""
        packed = sum(weight.nbytes for weight in self.weights.values())
        return packed + sum(tensor.nbytes for tensor in self.rest.values())


@dataclass(frozen=True)
class LayerSize:
    """What one layer's weight takes; also one line for all other tensors and one for the file's header.

    Attributes:
        layer: the layer's name, `(other tensors)`, or `(header)`.
        form: `bits`, `trits`, `huffman`, or `float` for what is stored as it is.
        weights: how many values.
        disk_bytes: in the file, scales and exponents included.
        memory_bytes: of the arrays held when the file is read; 0 for the header.
        float32_bytes: of the same values in float32 (other tensors: as they are); 0 for the header.
        entropy_bits: what no code of single symbols goes below, bits per weight; None where nothing is packed.
    """

    layer: str
    form: str
    weights: int
    disk_bytes: int
    memory_bytes: int
    float32_bytes: int
    entropy_bits: float | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per value; 0 for the header."""
        return 8 * self.disk_bytes / self.weights if self.weights else 0.0


def pack_model(model: nn.Module, quantizer: Quantizer, *, entropy_coded: bool = False) -> PackedModel:
    """Return a model in packed memory.

    The values that training would go on from are dropped where a weight is packed: keep those in a checkpoint.
    entropy_coded: Huffman-code the layers that this makes smaller: levels used unevenly, as INQ's are.

    Raises:
        ModelError: the quantizer is not attached to the model.
    """
    weights: dict[str, PackedTensor] = {}
    for name, layer in quantizer.quantized_layers(model):
        if quantizer.weight_of(layer).settled():
            plain = quantizer.pack(layer)
            weights[name] = (
                huffman_coded(plain, quantizer.levels(layer).shape[-1]) if entropy_coded else plain
            )
    rest = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if _layer_of(name) not in weights
    }
    return PackedModel(quantizer, weights, rest)


def save_packed(model: nn.Module, quantizer: Quantizer, path: Path, *, entropy_coded: bool = False) -> None:
    """Write a quantized model to `path`, its weights packed; `load_packed` gives the same bits back.

    Raises:
        ModelError: as `pack_model`.
        RunError: the file cannot be written.
    """
    packed = pack_model(model, quantizer, entropy_coded=entropy_coded)
    tensors = dict(packed.rest)
    for name, weight in packed.weights.items():
        tensors[f"{name}.packed"] = torch.from_numpy(weight.payload.copy())
        for part, array in weight.side.items():
            tensors[f"{name}.packed.{part}"] = torch.from_numpy(array)
    description = {
        "format": _FORMAT,
        "quantizer": quantizer.settings.model_dump(mode="json"),
        "layers": {n: {"shape": list(w.shape), "form": w.form} for n, w in packed.weights.items()},
        "crc32": _checksum(tensors),
    }
    content = save(tensors, {_KEY: json.dumps(description, separators=(",", ":"))})
    atomic_write_bytes(path, content)


def read_packed(path: Path) -> PackedModel:
    """Return what `save_packed` wrote, still packed.

    Raises:
        ModelError: the file is missing, damaged, of another kind, or of a later format.
    """
    tensors, description = _read(path)
    try:
        quantizer = make_quantizer(quantizer_settings_from(description["quantizer"], str(path)))
    except ConfigError as error:
        raise ModelError(str(error)) from error
    weights = {}
    for name, entry in description["layers"].items():
        payload = tensors.pop(f"{name}.packed", None)
        if payload is None or payload.dtype != torch.uint8 or payload.dim() != 1:
            raise ModelError(f"{path}: layer '{name}' has no packed weights")
        prefix = f"{name}.packed."
        side = {key[len(prefix) :]: tensors.pop(key).numpy() for key in [*tensors] if key.startswith(prefix)}
        weights[name] = PackedTensor(tuple(entry["shape"]), entry["form"], payload.numpy(), side)
    return PackedModel(quantizer, weights, tensors)


def load_packed(model: nn.Module, path: Path) -> None:
    """Fill a model of the same shape, with the same quantizer attached, from a file; all or nothing.

    Packed weights are then fixed: they read the stored values bit for bit and take no gradient.

    Raises:
        ModelError: as `read_packed`, or the file does not fit the model or its quantizer.
    """
    packed = read_packed(path)
    layers = {name: layer for name, layer in model.named_modules() if name in packed.weights}
    values: dict[str, Tensor] = {}
    for name, weight in packed.weights.items():
        if name not in layers:
            raise ModelError(f"{path}: layer '{name}' is not in the model")
        try:
            packed.quantizer.weight_of(layers[name])
            values[name] = unpacked(weight, packed.quantizer)
        except ModelError as error:
            raise ModelError(f"{path}: layer '{name}': {error}") from error
        expected = tuple(original_of(layers[name]).shape)
        if weight.shape != expected:
            raise ModelError(f"{path}: layer '{name}' has shape {weight.shape}; the model's is {expected}")
    own = {name: tensor for name, tensor in model.state_dict().items() if _layer_of(name) not in values}
    _check_rest(path, packed.rest, own)
    model.load_state_dict(packed.rest, strict=False)
    for name, weight in packed.weights.items():
        side = {part: torch.from_numpy(array.copy()) for part, array in weight.side.items()}
        fix_weight(layers[name], values[name], side)


def unpacked(weight: PackedTensor, quantizer: Quantizer) -> Tensor:
    """Return a packed weight's values, float32 [out, in, ...].

    Raises:
        ModelError: the payload does not fit the shape, or the side information not the quantizer.
    """
    return torch.from_numpy(weight.values(_levels(weight, quantizer)))


def _levels(weight: PackedTensor, quantizer: Quantizer) -> NDArray[np.float32]:
    """The levels that a packed weight's side information stands for, [out or 1, levels]."""
    try:
        levels = quantizer.levels_from({part: torch.from_numpy(a) for part, a in weight.side.items()})
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"scales or exponents do not fit {quantizer.name} ({error!r})") from error
    return np.asarray(levels.view(-1, levels.shape[-1]).numpy(), dtype=np.float32)


def packed_sizes(path: Path) -> list[LayerSize]:
    """Return what a packed file takes, a line per packed layer, one for the rest and one for the header.

    `disk_bytes` add up to the file's size.

    Raises:
        ModelError: as `read_packed`.
    """
    packed = read_packed(path)
    sizes = [_layer_size(path, name, weight, packed.quantizer) for name, weight in packed.weights.items()]
    rest = sum(tensor.nbytes for tensor in packed.rest.values())
    values = sum(tensor.numel() for tensor in packed.rest.values())
    sizes.append(LayerSize("(other tensors)", "float", values, rest, rest, rest))
    header = path.stat().st_size - sum(size.disk_bytes for size in sizes)
    return [*sizes, LayerSize("(header)", "json", 0, header, 0, 0)]


def disk_ratio(sizes: Iterable[LayerSize]) -> float:
    """Return how many times smaller the file is than its values in float32, everything in it counted."""
    held = list(sizes)
    return sum(size.float32_bytes for size in held) / sum(size.disk_bytes for size in held)


def _layer_size(path: Path, name: str, weight: PackedTensor, quantizer: Quantizer) -> LayerSize:
    """The line of one packed layer."""
    try:
        codes = weight.codes(_levels(weight, quantizer).shape[1])
    except ModelError as error:
        raise ModelError(f"{path}: layer '{name}': {error}") from error
    held = weight.nbytes
    return LayerSize(name, weight.form, weight.count, held, held, 4 * weight.count, entropy(codes))


def _layer_of(entry: str) -> str | None:
    """The layer that an entry of the state dict belongs to as a parametrized weight, or None."""
    layer, found, _ = entry.partition("parametrizations.weight.")
    return layer.removesuffix(".") if found else None


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors' bytes, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name].numpy()).data, value)
    return value


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a packed file, checked against each other."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as packed weights ({error})") from error
    if _KEY not in metadata:
        raise ModelError(f"{path}: not a file of packed weights (its metadata has no '{_KEY}')")
    try:
        description = json.loads(metadata[_KEY])
        version = description["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: the description of its packed weights is damaged") from error
    if version != _FORMAT:
        raise ModelError(f"{path}: format {version} is not supported; this version reads {_FORMAT}")
    _check_description(path, description)
    if description["crc32"] != _checksum(tensors):
        raise ModelError(f"{path}: damaged, its tensors do not match their checksum")
    return tensors, description


def _check_description(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse a description whose parts are not what `save_packed` writes."""
    layers, quantizer = description.get("layers"), description.get("quantizer")
    whole = isinstance(layers, dict) and isinstance(quantizer, dict) and "crc32" in description
    if not whole or not all(_is_layer(entry) for entry in layers.values()):  # type: ignore[union-attr]
        raise ModelError(f"{path}: the description of its packed weights is damaged")


def _is_layer(entry: object) -> bool:
    """Whether a layer's description has a known form and a shape that memory can hold."""
    if not isinstance(entry, dict) or entry.get("form") not in FORMS:
        return False
    shape = entry.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        return False
    return math.prod(shape) < 2**40


def _check_rest(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of the tensors that are stored as they are."""
    if missing := sorted(set(expected) - set(found)):
        raise ModelError(
            f"{path}: '{missing[0]}' is missing; does the model have the same shape and quantizer?"
        )
    if unknown := sorted(set(found) - set(expected)):
        raise ModelError(f"{path}: '{unknown[0]}' is not in the model")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            shapes = f"{tuple(found[name].shape)}; the model's is {tuple(tensor.shape)}"
            raise ModelError(f"{path}: '{name}' has shape {shapes}")
