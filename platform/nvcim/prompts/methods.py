"""The ways to keep tuned tokens on a noisy crossbar and to find them there: NVCiM-PT, mitigations, ablations.

A method says what the tokens are tuned with, how their code is made, how cells are written and reads corrected, and how
the memory is searched. All share users, samples, token sets' shape, steps and search queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from nvcim.errors import ConfigError
from nvcim.mitigation import Mitigation, get_mitigation
from nvcim.mitigation.none import NoMitigation
from nvcim.prompts.search import MIPS, SCALED_SEARCH

TuningNoise = Literal["off", "levels", "crossbar"]
"""What tokens meet while they are tuned: nothing, the level-wise noise, or arrays that are written in every step."""


@dataclass(frozen=True)
class Method:
    """A way to tune for a crossbar, to write to it and to search it.

    Attributes:
        name: as tables show it.
        noise: while tokens are tuned.
        scales: window length -> weight of the search.
        mitigation: of the noise, beside tuning.
        code: the autoencoder was trained with the device's noise, or without any.
        choice: which samples of a full buffer get a token set: k-means representatives, or as many at random.
        one_for_all: one set for everything a user wrote; nothing to choose, nothing to search.
    """

    name: str
    noise: TuningNoise
    scales: Mapping[int, float]
    mitigation: Mitigation = field(default_factory=NoMitigation)
    code: Literal["noise-aware", "plain"] = "noise-aware"
    choice: Literal["representatives", "random"] = "representatives"
    one_for_all: bool = False

    @property
    def regularises(self) -> bool:
        """Whether the mitigation adds to the training loss."""
        return self.mitigation.penalty(torch.ones(1, 2, 2)) is not None


NVCIM_PT = Method("nvcim-pt", "levels", SCALED_SEARCH)
ONE_FOR_ALL = Method("one-for-all", "levels", MIPS, one_for_all=True)
PLAIN_MIPS = Method("mips", "off", MIPS)
"""Ordinary tokens and inner products, on NVCiM-PT's own codes: what a fleet's nodes compare with."""
NO_MITIGATION = Method("no-mitigation", "off", MIPS, code="plain")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        NVCIM_PT,
        # Other ways to live with noisy cells: ordinary tokens and codes, searched by inner product.
        NO_MITIGATION,
        *(
            Method(name, "off", MIPS, get_mitigation(name), "plain")
            for name in ("swv", "cxdnn", "correctnet")
        ),
        # NVCiM-PT with one part taken out or exchanged.
        Method("no-noise-training", "off", SCALED_SEARCH),
        Method("plain-autoencoder", "levels", SCALED_SEARCH, code="plain"),
        Method("mips-search", "levels", MIPS),
        PLAIN_MIPS,
        Method("no-selection", "levels", SCALED_SEARCH, choice="random"),
        Method("crossbar-in-the-loop", "crossbar", SCALED_SEARCH),
        ONE_FOR_ALL,
    )
}
"""Every method that keeps its tokens on a crossbar, in the order tables show them."""


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: an unknown name (the message lists the known ones).
    """
    if name not in METHODS:
        raise ConfigError(f"method '{name}' is not known; allowed: {', '.join(METHODS)}")
    return METHODS[name]
