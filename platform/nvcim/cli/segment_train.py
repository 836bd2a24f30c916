"""`nvcim segment train`."""

from pathlib import Path
from typing import Annotated

import typer

from nvcim.cli.console import Config, Seed, out
from nvcim.config import load_settings


def train(
    images: Annotated[Path, typer.Argument(help="Labelled image set: images/ and labels/, or GlaS's names.")],
    model: Annotated[Path, typer.Option("--out", help="Folder that the trained model is saved to.")],
    weights: Annotated[str, typer.Option(help="float, or <quantizer>-<bits>, for example inq-5.")] = "float",
    config: Config = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on that many images of the set.")] = None,
    seed: Seed = 0,
) -> None:
    """Train an FCN on labelled images; --config takes the training settings."""
    from nvcim.progress import progress
    from nvcim.quantization import quantizer_named
    from nvcim.segmentation import TrainingSettings, train_on_folder

    settings = load_settings(config, TrainingSettings) if config else TrainingSettings()
    quantizer = quantizer_named(weights)
    with progress("training") as update:
        _, log = train_on_folder(
            images,
            model,
            settings=settings,
            quantizer=quantizer,
            limit=limit,
            seed=seed,
            on_step=lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
        )
    tail = log.losses[-10:]
    out.print(
        f"{log.weights} weights: mean loss of the last steps {sum(tail) / len(tail):.3f}, saved to {model}"
    )
