"""Saving and loading networks: a folder with `fcn.json`, what the network is, and `model.safetensors`.

The weights of a quantized network are packed to their real bit width (`nvcim.quantization.packed_files`); what
is not fixed on a level yet, in the middle of INQ's schedule, is stored in full.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from nvcim.errors import ModelError, RunError
from nvcim.quantization import load_packed, make_quantizer, quantizer_settings_from, save_packed
from nvcim.segmentation.architectures import make_network, network_settings_from
from nvcim.segmentation.network import CLASSES, SegmentationNetwork
from nvcim.storage import atomic_write_bytes, atomic_write_text

_FORMAT = 2


def save_fcn(model: SegmentationNetwork, folder: Path, *, entropy_coded: bool = False) -> None:
    """Write a network of any kind to a folder; `load_fcn` restores it bit-exactly, also in INQ's schedule.

    `fcn.json` holds settings, quantizer and smallest object, and is written last: a folder that has it is
    complete. That of an earlier model goes first, so that a save that is cut short leaves no mixture of the two.
    `entropy_coded` packs quantized weights as `save_packed` does with it.

    Raises:
        RunError: the folder cannot be written.
    """
    description = {
        "format": _FORMAT,
        "classes": list(CLASSES[: model.settings.classes]),
        "settings": model.settings.model_dump(),
        "smallest_object": model.smallest_object,
        "quantizer": model.quantizer.settings.model_dump() if model.quantizer else None,
    }
    weights = folder / "model.safetensors"
    _remove(folder / "fcn.json")
    if model.quantizer is not None:
        save_packed(model, model.quantizer, weights, entropy_coded=entropy_coded)
    else:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        atomic_write_bytes(weights, save(state))
    atomic_write_text(folder / "fcn.json", json.dumps(description, indent=2) + "\n")


def load_fcn(folder: Path) -> SegmentationNetwork:
    """Return the network that `save_fcn` wrote, on the CPU and in evaluation mode.

    Raises:
        ModelError: a file is missing, damaged, of another version, or does not fit the other.
        ConfigError: `fcn.json` holds a setting that does not exist or is out of range.
    """
    source = folder / "fcn.json"
    description = _read_description(source)
    model = make_network(network_settings_from(description["settings"], str(source)), seed=0)
    model.smallest_object = description["smallest_object"]
    weights = folder / "model.safetensors"
    if description["quantizer"] is not None:
        quantizer = make_quantizer(quantizer_settings_from(description["quantizer"], str(source)))
        model.quantize(quantizer)
        load_packed(model, quantizer, weights)
        return model.eval()
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # safetensors raises its own error type for damaged files
        reason = str(error).splitlines()[0]
        raise ModelError(f"{weights}: cannot be loaded into the model of {source.name} ({reason})") from error
    return model.eval()


def _remove(path: Path) -> None:
    """Remove a file where there is one.

    Raises:
        RunError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be replaced ({error.strerror})") from error


def _read_description(source: Path) -> dict[str, Any]:
    """The content of `fcn.json`, its parts of the right types and its format this one.

    Raises:
        ModelError: it cannot be read, is not what `save_fcn` writes, or is of another format.
    """
    try:
        description = json.loads(source.read_text(encoding="utf-8"))
        version, smallest = description["format"], description["smallest_object"]
        mappings = [description["settings"], description["quantizer"] or {}]
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror}); is this a saved FCN?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: not the description of a saved FCN ({error!r})") from error
    if version != _FORMAT:
        hint = "; train the network again" if version == 1 else ""
        raise ModelError(f"{source}: format {version} is not supported; this version reads {_FORMAT}{hint}")
    if type(smallest) is not int or smallest < 1 or not all(isinstance(part, dict) for part in mappings):
        raise ModelError(
            f"{source}: not the description of a saved FCN (settings, quantizer or smallest_object)"
        )
    return dict(description)
