"""From a name to a mitigation."""

from nvcim.errors import ConfigError
from nvcim.mitigation.base import Mitigation
from nvcim.mitigation.correctnet import CorrectNet
from nvcim.mitigation.cxdnn import CxDNN
from nvcim.mitigation.none import NoMitigation
from nvcim.mitigation.swv import SelectiveWriteVerify

MITIGATIONS: dict[str, type[Mitigation]] = {
    kind.name: kind for kind in (NoMitigation, SelectiveWriteVerify, CxDNN, CorrectNet)
}
"""Every mitigation by name; the conformance tests run over them."""


def get_mitigation(name: str) -> Mitigation:
    """The mitigation of that name, with its default parameters.

    Raises:
        ConfigError: an unknown name (the message lists the known ones).
    """
    if name not in MITIGATIONS:
        raise ConfigError(f"mitigation '{name}' is not known; allowed: {', '.join(MITIGATIONS)}")
    return MITIGATIONS[name]()
