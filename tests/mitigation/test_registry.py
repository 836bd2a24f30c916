"""Names of mitigations."""

import pytest
from pydantic import ValidationError

from nvcim.errors import ConfigError
from nvcim.mitigation import MITIGATIONS, get_mitigation


def test_the_papers_baselines_are_there() -> None:
    assert set(MITIGATIONS) == {"none", "swv", "cxdnn", "correctnet"}
    assert all(get_mitigation(name).name == name for name in MITIGATIONS)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'swim' is not known; allowed: none, swv, cxdnn, correctnet"):
        get_mitigation("swim")


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="shares"):
        MITIGATIONS["swv"].model_validate({"shares": 0.2})
