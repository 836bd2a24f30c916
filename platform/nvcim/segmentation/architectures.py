"""From settings to a network: every architecture of this room by its `kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nvcim.config import parse_settings
from nvcim.errors import ConfigError
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.network import OutputSettings, SegmentationNetwork
from nvcim.segmentation.unet import UNet, UNetSettings

_KINDS: dict[str, type[FCNSettings] | type[UNetSettings]] = {"fcn": FCNSettings, "unet": UNetSettings}


def _with_kind(content: Any) -> Any:
    """Settings in a file that name no kind are the FCN's."""
    return {"kind": "fcn", **content} if isinstance(content, Mapping) else content


NetworkSettings = Annotated[
    FCNSettings | UNetSettings, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
"""Settings of any network, for use as a field of other settings; told apart by `kind` (default: fcn)."""


def make_network(settings: OutputSettings, seed: int) -> SegmentationNetwork:
    """Return a new network with these settings; `seed` decides its initial weights.

    Raises:
        ConfigError: settings of no known network.
    """
    if isinstance(settings, FCNSettings):
        return ResidualFCN(settings, seed)
    if isinstance(settings, UNetSettings):
        return UNet(settings, seed)
    raise ConfigError(f"no network has settings of type {type(settings).__name__}")


def network_settings_from(content: Mapping[str, Any], source: str) -> FCNSettings | UNetSettings:
    """Validate a mapping whose `kind` names the network (default: fcn); `source` names it in errors.

    Raises:
        ConfigError: unknown kind or field, or a value out of range.
    """
    kind = content.get("kind", "fcn")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{source}: network '{kind}' is not known; allowed: {', '.join(_KINDS)}")
    return parse_settings(content, _KINDS[kind], source)
