"""No mitigation: codes are written once and read as they landed."""

from typing import ClassVar

from nvcim.mitigation.base import Mitigation


class NoMitigation(Mitigation):
    """Leaves everything as it is."""

    name: ClassVar[str] = "none"
