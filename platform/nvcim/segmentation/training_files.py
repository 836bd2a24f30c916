"""Train on a folder of labelled images."""

from collections.abc import Callable
from pathlib import Path

from nvcim.data.images import (
    read_image_set,
)
from nvcim.quantization import Quantizer
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.model_files import save_fcn
from nvcim.segmentation.training import TrainingLog, TrainingSettings, train


def train_on_folder(
    folder: Path,
    out: Path,
    fcn: FCNSettings | None = None,
    settings: TrainingSettings | None = None,
    quantizer: Quantizer | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[ResidualFCN, TrainingLog]:
    """Train on a labelled image set and save the model to `out`; `limit` takes that many images by seed.

    With a quantizer, a float model is trained first and quantized from there with half as many steps again.

    Raises:
        DataError, ModelError, ConfigError: as `read_image_set` and `train`.
    """
    settings = settings or TrainingSettings()
    images = read_image_set(folder, limit, seed)
    model = ResidualFCN(fcn, seed)
    log = train(model, images, settings, seed, on_step=on_step)
    if quantizer is not None:
        again = settings.model_copy(update={"steps": max(settings.steps // 2, 1)})
        second = train(model, images, again, seed + 1, quantizer, on_step)
        log = TrainingLog(log.losses + second.losses, log.seconds + second.seconds, second.weights)
    save_fcn(model, out)
    return model, log
