"""From a name or a mapping to a quantizer."""

from collections.abc import Mapping
from typing import Any

from nvcim.config import parse_settings
from nvcim.errors import ConfigError
from nvcim.quantization.base import Quantizer, QuantizerSettings
from nvcim.quantization.inq import INQ, INQSettings
from nvcim.quantization.uniform import Uniform, UniformSettings

_KINDS: dict[str, type[QuantizerSettings]] = {"inq": INQSettings, "uniform": UniformSettings}


def make_quantizer(settings: QuantizerSettings) -> Quantizer:
    """Return the quantizer that these settings describe.

    Raises:
        ConfigError: settings of no known quantizer.
    """
    if isinstance(settings, INQSettings):
        return INQ(settings)
    if isinstance(settings, UniformSettings):
        return Uniform(settings)
    raise ConfigError(f"no quantizer has settings of type {type(settings).__name__}")


def quantizer_settings_from(content: Mapping[str, Any], source: str) -> QuantizerSettings:
    """Validate a mapping whose `kind` names the quantizer; `source` names it in errors.

    Raises:
        ConfigError: unknown kind or field, or a value out of range.
    """
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{source}: quantizer '{kind}' is not known; allowed: {', '.join(_KINDS)}")
    return parse_settings(content, _KINDS[kind], source)


def quantizer_named(name: str) -> Quantizer | None:
    """Return the quantizer called `<kind>-<bits>`, for example `inq-5`; `float` gives None.

    Raises:
        ConfigError: unknown kind, or bits that are no number or out of range.
    """
    if name == "float":
        return None
    kind, _, bits = name.partition("-")
    if kind not in _KINDS or not bits.isdecimal():
        known = ", ".join(["float", *(f"{k}-<bits>" for k in _KINDS)])
        raise ConfigError(f"quantizer '{name}' is not known; allowed: {known}")
    return make_quantizer(quantizer_settings_from({"kind": kind, "bits": int(bits)}, f"quantizer '{name}'"))
