"""Saving and loading networks: `model.safetensors` and `fcn.json` in one folder."""

import json
from pathlib import Path

from safetensors.torch import load_file, save

from nvcim.errors import ModelError
from nvcim.quantization import make_quantizer, quantizer_settings_from
from nvcim.segmentation.architectures import make_network, network_settings_from
from nvcim.segmentation.network import CLASSES, SegmentationNetwork
from nvcim.storage import atomic_write_bytes, atomic_write_text

_FORMAT = 2


def save_fcn(model: SegmentationNetwork, folder: Path) -> None:
    """Write `model.safetensors` and `fcn.json` (settings, quantizer, smallest object) to a folder.

    A model is restored bit-exactly by `load_fcn`, also in the middle of INQ's schedule.

    Raises:
        RunError: the folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = {
        "format": _FORMAT,
        "classes": list(CLASSES[: model.settings.classes]),
        "settings": model.settings.model_dump(),
        "smallest_object": model.smallest_object,
        "quantizer": model.quantizer.settings.model_dump() if model.quantizer else None,
    }
    atomic_write_bytes(folder / "model.safetensors", save(state))
    atomic_write_text(folder / "fcn.json", json.dumps(description, indent=2) + "\n")


def load_fcn(folder: Path) -> SegmentationNetwork:
    """Return the model that `save_fcn` wrote, on the CPU and in evaluation mode.

    Raises:
        ModelError: a file is missing, damaged, or does not fit the other.
        ConfigError: `fcn.json` holds a setting that does not exist or is out of range.
    """
    source = folder / "fcn.json"
    try:
        description = json.loads(source.read_text(encoding="utf-8"))
        settings, quantizer = description["settings"], description["quantizer"]
        smallest, version = int(description["smallest_object"]), description["format"]
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror}); is this a saved FCN?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: not the description of a saved FCN ({error!r})") from error
    if version != _FORMAT:
        raise ModelError(f"{source}: format {version} is not supported; this version reads {_FORMAT}")
    model = make_network(network_settings_from(settings, str(source)), seed=0)
    model.smallest_object = smallest
    if quantizer is not None:
        model.quantize(make_quantizer(quantizer_settings_from(quantizer, str(source))))
    weights = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # safetensors raises its own error type for damaged files
        reason = str(error).splitlines()[0]
        raise ModelError(f"{weights}: cannot be loaded into the model of {source.name} ({reason})") from error
    return model.eval()
