import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim.segmentation import FCNSettings, ResidualFCN
from nvcim.segmentation.tiles import Seen, probability_bands, ramp, tiling


@given(
    length=st.integers(1, 400).map(lambda n: 8 * n),
    tile=st.integers(64, 900),
    overlap=st.integers(0, 32),
)
@settings(deadline=None)
def test_tiles_cover_an_axis_at_multiples_of_the_stride(length: int, tile: int, overlap: int) -> None:
    found = tiling(length, tile, overlap, 8)
    assert found.starts[0] == 0
    assert found.starts[-1] + found.size == length
    assert found.size <= tile or length <= tile
    assert all(start % 8 == 0 for start in (*found.starts, found.size))
    for left, right in zip(found.starts, found.starts[1:], strict=False):
        assert left < right <= left + found.size - overlap


@given(
    stride=st.sampled_from([8, 16, 32, 64]),
    count=st.integers(1, 100),
    tile=st.integers(64, 900),
    share=st.floats(0, 0.5),
)
@settings(deadline=None)
def test_any_tile_and_overlap_that_settings_accept_can_be_laid_at_any_stride(
    stride: int, count: int, tile: int, share: float
) -> None:
    length, overlap = count * stride, int(tile * share)
    found = tiling(length, tile, overlap, stride)
    assert found.starts[0] == 0
    assert found.starts[-1] + found.size == length
    assert all(start % stride == 0 for start in (*found.starts, found.size))
    for left, right in zip(found.starts, found.starts[1:], strict=False):
        assert left < right <= left + found.size - overlap


def test_an_overlap_that_the_stride_rounds_up_to_a_whole_tile_makes_tiles_larger() -> None:
    assert tiling(256, 64, 32, 64).size == 128  # overlap 64 after rounding
    assert tiling(256, 64, 32, 64).starts == (0, 64, 128)
    assert tiling(128, 64, 32, 64).starts == (0,)


def test_tiles_are_as_small_as_their_number_allows() -> None:
    assert tiling(2048, 1280, 64, 32) == tiling(2048, 1056, 64, 32)
    assert tiling(2048, 1280, 64, 32).starts == (0, 992)
    assert tiling(1280, 1280, 64, 32).starts == (0,)


def test_ramp_is_one_inside_and_falls_to_the_edges() -> None:
    found = ramp(10, 2)
    assert found[2:8].tolist() == [1.0] * 6
    assert found.tolist() == found.flip(0).tolist()
    # half a pixel in of two: exp(-4.5 * 0.75^2), then exp(-4.5 * 0.25^2)
    assert found[:2].tolist() == pytest.approx([0.0796, 0.7548], abs=1e-4)


class _Painter(ResidualFCN):
    """A network whose logits are its input's channels at the same place: tiles must not show at all."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.mean(dim=(2, 3))


@pytest.mark.parametrize("shape", [(300, 270), (64, 500), (500, 64), (1, 1), (129, 3)])
@pytest.mark.parametrize("flips", [1, 8])
def test_blended_tiles_give_every_pixel_back(shape: tuple[int, int], flips: int) -> None:
    painter = _Painter(FCNSettings(width=4, depth=2, descriptor_dim=12)).eval()
    pixels = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    bands = list(probability_bands(Seen([painter], flips), lambda a, b: pixels[:, a:b], shape, 64, 16, 2))
    tops = [top for top, _ in bands]
    assert tops == sorted(tops)
    found = torch.cat([band for _, band in bands], dim=1)
    assert torch.allclose(found, pixels.softmax(dim=0), atol=1e-6)
