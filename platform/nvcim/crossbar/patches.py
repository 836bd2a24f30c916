"""A convolution's patches as the word lines see them: gathered from images and rounded in one compiled pass.

In plain torch elsewhere: the patches are gathered first and driven then, with the same arithmetic.
"""

import torch
from torch import Tensor

from nvcim.crossbar.converters import Driven, drive, own_units_of, top_code
from nvcim.crossbar.counter_rng import square_root
from nvcim.crossbar.kernel import PatchArguments, fill, kernel_for
from nvcim.crossbar.settings import CrossbarConfig


def drive_patches(patches: Tensor, config: CrossbarConfig) -> Driven:
    """Round patches to what a DAC can drive.

    Args:
        patches: [images, rows, columns, groups, kernel rows, kernel columns, channels], float32; a view of images is
            gathered without a copy of it in between if channels lie side by side.
        config: of the array.

    Returns:
        As `drive` for vectors [groups, images * rows * columns, kernel rows * kernel columns * channels].
    """
    images, rows, columns, groups, kernel_rows, kernel_columns, channels = patches.shape
    vectors, size = images * rows * columns, kernel_rows * kernel_columns * channels

    def gathered() -> Tensor:
        return patches.permute(3, 0, 1, 2, 4, 5, 6).reshape(groups, vectors, size)

    library = kernel_for(patches)
    if library is None or patches.stride(-1) != 1:
        return drive(gathered(), config)
    driven = torch.empty(groups, vectors, size, dtype=torch.float32)
    full_scale = torch.full((groups, vectors, 1), config.dac_full_scale or 0.0, dtype=torch.float32)
    squares = torch.empty(groups, vectors, -(-size // config.rows), dtype=torch.float32)
    arguments = PatchArguments()
    fill(arguments, {"image": patches, "driven": driven, "full_scale": full_scale, "squares": squares})
    arguments.shape[:], arguments.stride[:] = patches.shape, patches.stride()
    top = 0 if config.dac_bits is None else top_code(config.dac_bits)
    fill(arguments, {"tile_rows": config.rows, "top": float(top), "threads": torch.get_num_threads()})
    arguments.given = config.dac_full_scale is not None
    clipped = int(library.nvcim_patches(arguments))
    found = Driven(driven, square_root(squares), full_scale, clipped)
    return found if own_units_of(found, config) is None else drive(gathered(), config)
