"""The catalogue of cell devices: a built-in YAML file that a user's own file extends."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from nvcim.config import parse_settings, read_yaml
from nvcim.devices.cell import CellDevice
from nvcim.errors import DeviceError

BUILT_IN = Path(__file__).with_name("catalogue.yaml")


def load_catalogue(path: Path | None = None) -> dict[str, CellDevice]:
    """Return the built-in devices by name, and those of the user's file `path` after them.

    A file may only add: an entry that redefines a built-in device is refused, so that a device's name means
    the same numbers in every run.

    Raises:
        ConfigError: unreadable file, unknown field (with the allowed ones), value out of range.
        DeviceError: a file that is no catalogue, or a name that is taken.
    """
    catalogue = dict(_built_in())
    if path is not None:
        for device in _read_devices(path):
            if device.name in catalogue:
                raise DeviceError(
                    f"{path}: device '{device.name}' is defined already; give it a name other than "
                    f"{', '.join(catalogue)}"
                )
            catalogue[device.name] = device
    return catalogue


def get_device(name: str, catalogue: Mapping[str, CellDevice] | None = None) -> CellDevice:
    """Return a device by name, from `catalogue` or else from the built-in one.

    Raises:
        DeviceError: the catalogue has no such device (the message lists those it has).
    """
    known = load_catalogue() if catalogue is None else catalogue
    if name not in known:
        raise DeviceError(f"device '{name}' is not in the catalogue; allowed: {', '.join(known)}")
    return known[name]


@lru_cache(maxsize=1)
def _built_in() -> Mapping[str, CellDevice]:
    devices = _read_devices(BUILT_IN)
    return {device.name: device for device in devices}


def _read_devices(path: Path) -> list[CellDevice]:
    content = read_yaml(path)
    entries = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(entries, list) or set(content) != {"devices"}:
        raise DeviceError(f"{path}: expected one key, 'devices', with a list of devices")
    devices = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise DeviceError(f"{path}: device {number} is no mapping of fields")
        label = entry.get("name", f"number {number}")
        devices.append(parse_settings(entry, CellDevice, source=f"{path}: device {label}"))
    return devices
