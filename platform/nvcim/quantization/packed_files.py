"""Files of quantized models: safetensors with every quantized weight packed to its real width.

The safetensors header's metadata has one key, `nvcim-packed`, with JSON: format (an integer), quantizer (its
settings), side (what the levels are made from, by name), layers (name -> form, bytes, shape, and the length of
each of `side`), rest (`digest_of` what is not packed), crc32 (of all tensors' bytes, in the order of their
names). A header names every tensor at a hundred bytes or so, hence few tensors, each of many parts end to end:

- `packed`: uint8, the codes of the layers' weights, as `packing` writes them in their forms;
- `side.<name>`: scales, exponents and so on of all layers;
- `rest.<type>`: everything else of the state dict that is of this type, in the state dict's order, flattened:
  biases, normalisation, float layers, and the weights that INQ has not frozen entirely (float32 values, mask
  and frozen values, nothing packed). Names and shapes are the model's; the digest tells another model's.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
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
_FORMAT = 2


@dataclass(frozen=True)
class PackedModel:
    """A quantized model in packed memory, as files hold it.

    Attributes:
        quantizer: whose levels they are.
        weights: the packed weights, by layer.
        rest: the other entries of the model's state dict on the CPU, flattened and joined, by type.
        digest: `digest_of` those entries.
    """

    quantizer: Quantizer
    weights: dict[str, PackedTensor]
    rest: dict[str, Tensor]
    digest: str

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
    rest = _rest_of(model, weights)
    joined = {
        kind: torch.cat([tensor.flatten() for tensor in rest.values() if _type_of(tensor) == kind])
        for kind in dict.fromkeys(_type_of(tensor) for tensor in rest.values())
    }
    return PackedModel(quantizer, weights, joined, digest_of(rest))


def digest_of(entries: Mapping[str, Tensor]) -> str:
    """Return a digest (128 bits of SHA-256, hexadecimal) of the entries' names, types and shapes in their order."""
    listed = [[name, _type_of(tensor), list(tensor.shape)] for name, tensor in entries.items()]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()[:32]


def save_packed(model: nn.Module, quantizer: Quantizer, path: Path, *, entropy_coded: bool = False) -> None:
    """Write a quantized model to `path`, its weights packed; `load_packed` gives the same bits back.

    Raises:
        ModelError: as `pack_model`.
        RunError: the file cannot be written.
    """
    packed = pack_model(model, quantizer, entropy_coded=entropy_coded)
    held = list(packed.weights.values())
    parts = sorted({part for weight in held for part in weight.side})
    tensors = {f"rest.{kind}": tensor for kind, tensor in packed.rest.items()}
    if held:
        tensors["packed"] = torch.from_numpy(np.concatenate([weight.payload for weight in held]))
    for part in parts:
        tensors[f"side.{part}"] = torch.from_numpy(np.concatenate([weight.side[part] for weight in held]))
    description = {
        "format": _FORMAT,
        "quantizer": quantizer.settings.model_dump(mode="json"),
        "side": parts,
        "layers": {
            name: [w.form, w.payload.size, list(w.shape), [w.side[part].size for part in parts]]
            for name, w in packed.weights.items()
        },
        "rest": packed.digest,
        "crc32": _checksum(tensors),
    }
    content = save(tensors, {_KEY: json.dumps(description, separators=(",", ":"))})
    atomic_write_bytes(path, content)


def read_packed(path: Path) -> PackedModel:
    """Return what `save_packed` wrote, still packed.

    Raises:
        ModelError: the file is missing, damaged, of another kind, or of another format.
    """
    tensors, description = _read(path)
    try:
        quantizer = make_quantizer(quantizer_settings_from(description["quantizer"], str(path)))
    except ConfigError as error:
        raise ModelError(str(error)) from error
    layers, parts = description["layers"], description["side"]
    payloads = [
        np.asarray(payload, dtype=np.uint8)
        for payload in _split(path, tensors, "packed", [entry[1] for entry in layers.values()])
    ]
    sides = {
        part: _split(path, tensors, f"side.{part}", [entry[3][index] for entry in layers.values()])
        for index, part in enumerate(parts)
    }
    weights = {
        name: PackedTensor(tuple(shape), form, payloads[at], {part: sides[part][at] for part in parts})
        for at, (name, (form, _, shape, _)) in enumerate(layers.items())
    }
    if unknown := [name for name in tensors if not name.startswith("rest.")]:
        raise ModelError(f"{path}: '{unknown[0]}' is not part of packed weights")
    rest = {name.removeprefix("rest."): tensor for name, tensor in tensors.items()}
    return PackedModel(quantizer, weights, rest, description["rest"])


def load_packed(model: nn.Module, quantizer: Quantizer, path: Path) -> None:
    """Fill a model of the same shape from a file; `quantizer` is attached to it. All or nothing.

    Packed weights are then fixed: they read the stored values bit for bit and take no gradient.

    Raises:
        ModelError: as `read_packed`, or the file does not fit the model or its quantizer's settings.
    """
    packed = read_packed(path)
    if packed.quantizer.settings != quantizer.settings:
        own, other = packed.quantizer.name, quantizer.name
        differ = own if own != other else f"{own} with other settings"
        raise ModelError(f"{path}: its weights are of {differ}; the model's quantizer is {other}")
    layers = {name: layer for name, layer in model.named_modules() if name in packed.weights}
    values: dict[str, Tensor] = {}
    for name, weight in packed.weights.items():
        if name not in layers:
            raise ModelError(f"{path}: layer '{name}' is not in the model")
        try:
            quantizer.weight_of(layers[name])
            values[name] = unpacked(weight, quantizer)
        except ModelError as error:
            raise ModelError(f"{path}: layer '{name}': {error}") from error
        expected = tuple(original_of(layers[name]).shape)
        if weight.shape != expected:
            raise ModelError(f"{path}: layer '{name}' has shape {weight.shape}; the model's is {expected}")
    model.load_state_dict(_rest_in(path, packed, _rest_of(model, packed.weights)), strict=False)
    for name, weight in packed.weights.items():
        side = {part: torch.from_numpy(array.copy()) for part, array in weight.side.items()}
        fix_weight(layers[name], values[name], side)


def unpacked(weight: PackedTensor, quantizer: Quantizer) -> Tensor:
    """Return a packed weight's values, [out, in, ...], float32 or float64 as its levels are.

    Of a model in half precision they are its values once that type has rounded them, as `load_packed` does.

    Raises:
        ModelError: the payload does not fit the shape, or the side information not the quantizer.
    """
    return torch.from_numpy(weight.values(_levels(weight, quantizer)))


def _levels(weight: PackedTensor, quantizer: Quantizer) -> NDArray[np.floating]:
    """The levels that a packed weight's side information stands for, [out or 1, levels]."""
    try:
        levels = quantizer.levels_from({part: torch.from_numpy(a) for part, a in weight.side.items()})
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"scales or exponents do not fit {quantizer.name} ({error!r})") from error
    found: NDArray[np.floating] = levels.view(-1, levels.shape[-1]).numpy()
    return found


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


def _type_of(tensor: Tensor) -> str:
    """The name of a tensor's type, for example float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _rest_of(model: nn.Module, packed: Container[str | None]) -> dict[str, Tensor]:
    """The entries of the state dict that are not of packed layers, on the CPU."""
    return {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if _layer_of(name) not in packed
    }


def _rest_in(path: Path, packed: PackedModel, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The joined tensors of a file as the entries of a model's state dict."""
    if packed.digest != digest_of(expected):
        raise ModelError(
            f"{path}: what is beside its packed weights is of another network (names, types or shapes differ)"
        )
    found: dict[str, Tensor] = {}
    for kind in {*packed.rest, *(_type_of(tensor) for tensor in expected.values())}:
        names = [name for name, tensor in expected.items() if _type_of(tensor) == kind]
        joined = packed.rest.get(kind)
        sizes = [expected[name].numel() for name in names]
        if joined is None or not names or _type_of(joined) != kind or joined.shape != (sum(sizes),):
            raise ModelError(f"{path}: 'rest.{kind}' does not hold the values that the model has")
        for name, values in zip(names, joined.split(sizes), strict=True):  # type: ignore[no-untyped-call]
            found[name] = values.view(expected[name].shape)
    return found


def _split(
    path: Path, tensors: dict[str, Tensor], name: str, sizes: Sequence[int]
) -> list[NDArray[np.generic]]:
    """Take a joined tensor out of `tensors`, in parts of these sizes; none is held where no part is due."""
    if not sizes:
        return []
    joined = tensors.pop(name, None)
    if joined is None or joined.shape != (sum(sizes),):
        raise ModelError(f"{path}: '{name}' does not hold the {sum(sizes)} values of its layers")
    return [part.numpy() for part in joined.split(list(sizes))]  # type: ignore[no-untyped-call]


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors' bytes, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].view(torch.uint8).numpy().data, value)
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
    flat = all(tensor.dim() == 1 for tensor in tensors.values())
    if not flat or description["crc32"] != _checksum(tensors):
        raise ModelError(f"{path}: damaged, its tensors do not match their checksum")
    return tensors, description


def _check_description(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse a description whose parts are not what `save_packed` writes."""
    layers, parts = description.get("layers"), description.get("side")
    whole = isinstance(description.get("quantizer"), dict) and isinstance(description.get("rest"), str)
    whole = whole and isinstance(layers, dict) and isinstance(parts, list) and "crc32" in description
    named = whole and all(isinstance(part, str) for part in parts)  # type: ignore[union-attr]
    if not named or not all(_is_layer(entry, len(parts)) for entry in layers.values()):  # type: ignore[union-attr,arg-type]
        raise ModelError(f"{path}: the description of its packed weights is damaged")


def _is_layer(entry: object, parts: int) -> bool:
    """Whether a layer's description has a known form, a shape that memory can hold, and `parts` side lengths."""
    if not isinstance(entry, list) or len(entry) != 4 or entry[0] not in FORMS:
        return False
    _, size, shape, lengths = entry
    if not isinstance(lengths, list) or len(lengths) != parts or not isinstance(shape, list) or not shape:
        return False
    counts = all(type(n) is int and 0 < n < 2**40 for n in (size, *shape, *lengths))
    return counts and math.prod(shape) < 2**40
