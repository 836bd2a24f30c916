"""The segmentation backend: the FCNs of a run folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvcim.compute import resolve_device
from nvcim.data.images import Pixels
from nvcim.segmentation import PredictionSettings, load_fcn, predict
from nvcim.segmentation.network import baked
from serving.backends import Offer
from serving.run_contents import inspect_run


class RunSegmentation:
    """The FCNs of a run, each loaded once."""

    def __init__(self, run: Path, device: str) -> None:
        contents = inspect_run(run)
        where = resolve_device(device)
        self._created = contents.created
        # Quantized weights are worked out once, not at every request.
        self._models = {name: baked(load_fcn(folder)).to(where) for name, folder in contents.fcns.items()}

    def offer(self) -> Offer:
        """Names of the FCNs, the float one first."""
        return Offer(tuple(self._models), created=self._created)

    def segment(self, image: Pixels, model: str, scale: float) -> NDArray[np.int32]:
        """Return the instance map [height, width] of an RGB image [height, width, 3]."""
        return predict(self._models[model], image, PredictionSettings(scale=scale))
