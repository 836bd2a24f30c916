"""From a name or a mapping to a quantizer."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from nvcim.config import parse_settings
from nvcim.errors import ConfigError
from nvcim.quantization.base import Quantizer, QuantizerSettings
from nvcim.quantization.dorefa import DoReFa, DoReFaSettings
from nvcim.quantization.inq import INQ, INQSettings
from nvcim.quantization.ttq import TTQ, TTQSettings
from nvcim.quantization.twn import TWN, TWNSettings
from nvcim.quantization.uniform import Uniform, UniformSettings

AnyQuantizerSettings = Annotated[
    INQSettings | UniformSettings | TWNSettings | TTQSettings | DoReFaSettings, Field(discriminator="kind")
]
"""For settings that hold a quantizer's: `kind` says whose."""

_KINDS: dict[str, type[QuantizerSettings]] = {
    "inq": INQSettings,
    "uniform": UniformSettings,
    "twn": TWNSettings,
    "ttq": TTQSettings,
    "dorefa": DoReFaSettings,
}
# What a name's first word stands for, and whether its bits follow.
_NAMES: dict[str, dict[str, Any]] = {
    "inq": {"kind": "inq"},
    "uniform": {"kind": "uniform"},
    "affine": {"kind": "uniform", "scheme": "affine"},
    "dorefa": {"kind": "dorefa"},
}
# The numbers after a first word, where they are more than the bits.
_NUMBERS: dict[str, tuple[str, ...]] = {"inq": ("bits", "exponents")}
_NAMES_WITHOUT_BITS: dict[str, dict[str, Any]] = {"twn": {"kind": "twn"}, "ttq": {"kind": "ttq"}}


def make_quantizer(settings: QuantizerSettings) -> Quantizer:
    """Return the quantizer that these settings describe.

    Raises:
        ConfigError: settings of no known quantizer.
    """
    match settings:
        case INQSettings():
            return INQ(settings)
        case UniformSettings():
            return Uniform(settings)
        case TWNSettings():
            return TWN(settings)
        case TTQSettings():
            return TTQ(settings)
        case DoReFaSettings():
            return DoReFa(settings)
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
    """Return the quantizer of a name: `inq-5`, `inq-3-3`, `uniform-4`, `affine-4`, `dorefa-1`, `twn`, `ttq`.

    A second number is how many powers of two INQ has. `float` gives None. Every quantizer that names describe has
    one name, so that results under a name are of one quantizer.

    Raises:
        ConfigError: unknown name, numbers out of range, or another spelling of a name (`inq-05`, `inq-5-8`, `inq-4-3`).
    """
    if name == "float":
        return None
    source = f"quantizer '{name}'"
    if name in _NAMES_WITHOUT_BITS:
        return make_quantizer(quantizer_settings_from(_NAMES_WITHOUT_BITS[name], source))
    word, *numbers = name.split("-")
    fields = _NUMBERS.get(word, ("bits",))
    whole = all(number.isascii() and number.isdecimal() and len(number) < 4 for number in numbers)
    if word not in _NAMES or not whole or not 1 <= len(numbers) <= len(fields):
        known = ", ".join(
            ["float", *_NAMES_WITHOUT_BITS, *(f"{w}-<bits>" for w in _NAMES), "inq-<bits>-<exponents>"]
        )
        raise ConfigError(f"{source} is not known; allowed: {known}")
    given = dict(zip(fields, (int(number) for number in numbers), strict=False))
    quantizer = make_quantizer(quantizer_settings_from({**_NAMES[word], **given}, source))
    if quantizer.name != name:
        raise ConfigError(f"{source} is called '{quantizer.name}'")
    return quantizer
