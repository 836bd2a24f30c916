"""Names of compute devices."""

import pytest
import torch

from nvcim.compute import resolve_device
from nvcim.errors import ConfigError


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps", "meta"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"GPUs found: {torch.cuda.device_count()}"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
