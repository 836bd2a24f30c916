"""Patches that are driven as they are gathered, against gathering first and driving then."""

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.converters import drive
from nvcim.crossbar.patches import drive_patches
from nvcim.errors import ConfigError

CONFIGS = [
    CrossbarConfig(rows=16),
    CrossbarConfig(rows=16, dac_bits=None),
    CrossbarConfig(rows=7, dac_full_scale=0.5),
    CrossbarConfig(rows=16, input_coding="bit_serial"),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(channels: int, groups: int, stride: int, dilation: int) -> torch.Tensor:
    """Patches of 3 x 2 kernels in two images of 9 x 8 pixels."""
    images = normal(2, 9, 8, channels)
    image, row, column, channel = images.stride()
    rows, columns, share = (8 - 2 * dilation) // stride + 1, (7 - dilation) // stride + 1, channels // groups
    return images.as_strided(
        (2, rows, columns, groups, 3, 2, share),
        (image, row * stride, column * stride, share, row * dilation, column * dilation, channel),
    )


def gathered(patches: torch.Tensor) -> torch.Tensor:
    count = patches.shape[:3].numel()
    return patches.permute(3, 0, 1, 2, 4, 5, 6).reshape(patches.shape[3], count, -1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.dac_bits}-{config.dac_full_scale}")
@pytest.mark.parametrize(
    ("channels", "groups", "stride", "dilation"),
    [(64, 1, 1, 1), (5, 1, 2, 1), (6, 2, 1, 2), (4, 4, 1, 1), (1, 1, 2, 2)],
)
def test_patches_are_driven_to_the_bit_as_vectors_are(
    config: CrossbarConfig, channels: int, groups: int, stride: int, dilation: int
) -> None:
    patches = view(channels, groups, stride, dilation)
    own, expected = drive_patches(patches, config), drive(gathered(patches), config)
    assert torch.equal(own.x, expected.x)
    assert torch.equal(own.norms, expected.norms)
    assert torch.equal(own.full_scale, expected.full_scale)
    assert own.clipped == expected.clipped


def test_a_patch_with_nan_spoils_itself_alone() -> None:
    patches = view(4, 1, 1, 1).clone()
    patches[0, 0, 0, 0, 1, 1, 2] = float("nan")
    driven = drive_patches(patches, CrossbarConfig())
    assert bool(driven.x[0, 0].isnan().any())
    assert not bool(driven.x[0, 1:].isnan().any())


def test_reading_driven_patches_is_reading_the_patches() -> None:
    config = CrossbarConfig(rows=16, read_noise=0.02)
    patches, weight = view(6, 2, 1, 1), normal(2, 18, 5, seed=1)
    crossbars = [Crossbar.program(weight, config, torch.Generator().manual_seed(0)) for _ in range(2)]
    for _ in range(2):  # the second time with reads behind them
        own = crossbars[0].read_driven(drive_patches(patches, config))
        assert torch.equal(own, crossbars[1].matmul(gathered(patches)))
    assert crossbars[0].counts == crossbars[1].counts


def test_reads_per_cell_drive_vectors_themselves() -> None:
    config = CrossbarConfig(read_noise=0.02, read_mode="cell")
    crossbar = Crossbar.program(normal(18, 5), config, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="use matmul"):
        crossbar.read_driven(drive_patches(view(3, 1, 1, 1), config))
