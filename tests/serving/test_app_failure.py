"""A run that cannot be loaded is reported, and leaves nothing running."""

from pathlib import Path

import pytest
from ray import serve

from nvcim.errors import RunError
from nvcim.fleet.ray_session import RaySession
from nvcim.segmentation import FCNSettings, ResidualFCN, save_fcn
from serving.app import run_app


def test_broken_fcn_is_a_run_error_that_says_why(ray_local: RaySession, tmp_path: Path) -> None:
    folder = tmp_path / "fcn" / "float"
    save_fcn(ResidualFCN(FCNSettings(), 0), folder)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=weights.name) as caught:
        run_app(tmp_path, port=0, device="cpu")
    assert "\n" not in str(caught.value)
    assert not serve.status().proxies
