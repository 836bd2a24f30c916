"""Draws a finished comparison's best and worst images: the truth's outlines, and what each kind of weights found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images import Pixels, displayed, write_image
from nvcim.segmentation.ensemble import load_members
from nvcim.segmentation.instances import predict
from nvcim.segmentation.network import baked
from nvcim.segmentation.targets import inner_edge
from nvcim.storage import RunFolder
from nvcim.sweeps.segmentation_settings import Point, SegmentationSettings
from nvcim.sweeps.segmentation_statistics import Extreme, extremes

TRUTH, FOUND = (86, 180, 233), (213, 94, 0)
"""Sky blue and vermilion of Okabe and Ito (2008), which colour-blind readers can tell apart."""
_SMALLEST_SIDE = 320
"""Pixels: smaller images are enlarged for drawing, so that outlines stay thin beside objects."""
_GAP = 8


def figure_name(extreme: Extreme) -> str:
    """The name of an image's figure in the run."""
    return f"compared-{extreme.kind}-{extreme.place}"


def panel_weights(extreme: Extreme) -> list[str]:
    """Weights that have a panel, from the left: float first, then up to two quantized ones."""
    return [name for name in ("float", *(n for n in extreme.dice if n != "float")) if name in extreme.dice][
        :3
    ]


def draw_extremes(settings: SegmentationSettings, run: RunFolder) -> list[Path]:
    """Draw `figures/compared-best-0.png` and so on, as many as the settings ask for; returns the files.

    Raises:
        RunError: the run lacks its table of images.
        ModelError: a network of the run cannot be loaded.
        DataError: the images cannot be read any more.
    """
    chosen = extremes(run.read_table("segmentation_images").to_pylist(), settings.overlays)
    if not chosen:
        return []
    images = {image.name: image for image in settings.load_images()}
    made = []
    for extreme in chosen:
        image = images[extreme.image]
        panels = [outlined(image.pixels, image.instances, None)]
        for weights in panel_weights(extreme):
            models = [baked(model) for model in load_members(_folders(extreme, weights, run))]
            found = predict(models, image.pixels, settings.prediction)
            panels.append(outlined(image.pixels, image.instances, found))
        path = run.figure_path(figure_name(extreme))
        write_image(side_by_side(panels), path)
        made.append(path)
    return made


def outlined(pixels: Pixels, truth: NDArray[np.int32], found: NDArray[np.int32] | None) -> NDArray[np.uint8]:
    """Draw the truth's outlines, and over them those of what was found; small images are enlarged, uint8 [h, w, 3]."""
    times = max(1, -(-_SMALLEST_SIDE // min(truth.shape)))
    drawn = displayed(pixels).repeat(times, axis=0).repeat(times, axis=1)
    width = max(min(drawn.shape[:2]) // 160, 1)
    for labels, colour in ((truth, TRUTH), (found, FOUND)):
        if labels is not None:
            drawn[inner_edge(labels.repeat(times, axis=0).repeat(times, axis=1), width)] = colour
    return drawn


def side_by_side(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels of one size in a row on white, uint8 [h, w, 3]."""
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _folders(extreme: Extreme, weights: str, run: RunFolder) -> list[Path]:
    """Folders of the networks that scored an image."""
    name = Point.folder_of(extreme.part, extreme.repeat, extreme.strategy, extreme.round, weights)
    return [run.path / "networks" / name / str(member) for member in range(extreme.networks)]
