"""How much memory prediction takes from an image that is read in parts, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

SIDE = 6000
BOUND = (
    1900  # MiB; measured: 1334 by tiles of 1280 pixels, 2765 with the whole image in one tile (302 before)
)
PREDICT = """
import resource, sys
from pathlib import Path
import torch
from nvcim.segmentation import FCNSettings, PredictionSettings, ResidualFCN, find_objects
from nvcim.data.large_images import open_image

torch.set_num_threads(1)
network = ResidualFCN(FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8), seed=0)
image = open_image(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = find_objects(network, image, PredictionSettings(tile=int(sys.argv[2]), certainty=0.0))
assert found.instances.shape == (image.height, image.width)
print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(path: Path, tile: int) -> int:
    """Largest resident memory of a child that predicts the file, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(path), str(tile)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[1])


@pytest.mark.slow
def test_a_large_tiff_is_predicted_without_the_memory_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    cells = np.indices((SIDE, SIDE)) % 40 - 20
    pixels = np.where((cells**2).sum(axis=0) < 150, 60, 220).astype(np.uint8)
    tifffile.imwrite(path, np.repeat(pixels[..., None], 3, axis=2), photometric="rgb", tile=(256, 256))
    assert peak_mib(path, 1280) < BOUND
    assert peak_mib(path, SIDE + 16) > BOUND  # what the bound is to catch
