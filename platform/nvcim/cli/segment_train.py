"""`nvcim segment train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nvcim.cli.console import Config, Seed, out
from nvcim.config import load_settings


def train(
    images: Annotated[
        Path,
        typer.Argument(
            help="Labelled image set: images/ and labels/, or GlaS's, Cellpose's or DSB 2018's names."
        ),
    ],
    model: Annotated[Path, typer.Option("--out", help="Folder that the trained model is saved to.")],
    weights: Annotated[
        str, typer.Option(help="float, twn, ttq, or <quantizer>-<bits>, for example inq-5.")
    ] = "float",
    network: Annotated[str, typer.Option(help="fcn (compact), unet, or paper (the paper's size).")] = "fcn",
    networks: Annotated[
        int, typer.Option(min=1, help="Train that many, each on its own resample, to member-0, member-1, ...")
    ] = 1,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of images that decides when a training is best.")
    ] = 0.0,
    config: Config = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on that many images of the set.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from what --out holds.")] = False,
    entropy_coded: Annotated[
        bool,
        typer.Option("--entropy-coded", help="Huffman-code quantized weights in the file where that pays."),
    ] = False,
    seed: Seed = 0,
) -> None:
    """Train a network, or several, on labelled images; --config takes the training settings."""
    from nvcim.progress import progress
    from nvcim.segmentation import TrainingSettings, train_on_folder
    from nvcim.segmentation.training_files import network_called

    settings = load_settings(config, TrainingSettings) if config else TrainingSettings()
    chosen = network_called(network)
    with progress("training") as update:
        logs = train_on_folder(
            images,
            model,
            chosen,
            settings,
            weights,
            limit,
            seed,
            lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
            networks=networks,
            validation=validation,
            resume=resume,
            entropy_coded=entropy_coded,
        )
    for log in logs:
        tail = log.losses[-10:]
        best = f", lowest validation loss {min(x for _, x in log.validations):.3f}" if log.validations else ""
        out.print(
            f"{log.weights} weights: mean loss of the last steps {sum(tail) / len(tail):.3f}{best}, "
            f"{len(log.losses)} steps in {log.seconds:.0f} s"
        )
    out.print(f"saved to {model}" if networks == 1 else f"{networks} networks saved to {model}/member-*")
    if weights != "float":
        first = model if networks == 1 else model / "member-0"
        out.print(size_table(first / "model.safetensors"))


def size_table(path: Path) -> Table:
    """What each layer of a packed file takes, measured on it; the last line is the whole file."""
    from nvcim.quantization import packed_sizes

    sizes = packed_sizes(path)
    table = Table(title=f"{path}: bytes by layer (measured)")
    for column in ("layer", "form", "values", "on disk", "bits per value", "in memory", "as float32"):
        table.add_column(column, overflow="fold", justify="left" if column in ("layer", "form") else "right")
    for size in sizes:
        table.add_row(
            size.layer,
            size.form,
            str(size.weights),
            str(size.disk_bytes),
            f"{size.bits_per_weight:.2f}",
            str(size.memory_bytes),
            str(size.float32_bytes),
        )
    values, disk = sum(size.weights for size in sizes), sum(size.disk_bytes for size in sizes)
    table.add_row(
        "whole file",
        "",
        str(values),
        str(disk),
        f"{8 * disk / values:.2f}",
        str(sum(size.memory_bytes for size in sizes)),
        str(sum(size.float32_bytes for size in sizes)),
    )
    return table
