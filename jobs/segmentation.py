"""Compare quantizers and suggestive annotation: `python -m jobs.segmentation --config jobs/segmentation.yaml`.

    python -m jobs.segmentation --config jobs/segmentation.yaml --data PATH   on a labelled image set
    python -m jobs.segmentation --config jobs/segmentation.yaml --smoke       small: to see that everything runs
    python -m jobs.segmentation --resume runs/<run id>                        go on with a run that was cut short

Every network is trained by a Ray task. The run folder gets the scores, what was suggested in every round and the
crossbars' scores as Parquet tables, every network, overlays, and a report; the tables are printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nvcim.cli.console import out, print_table
from nvcim.config import load_settings, parse_settings
from nvcim.data.tissue import TissueSettings
from nvcim.errors import NvcimError, RunError
from nvcim.progress import progress
from nvcim.report import write_report
from nvcim.report.segmentation_tables import printed_tables
from nvcim.segmentation.fcn import FCNSettings
from nvcim.segmentation.training import TrainingSettings
from nvcim.storage import RunFolder
from nvcim.sweeps.segmentation import planned, run_segmentation
from nvcim.sweeps.segmentation_memory import measure_memory
from nvcim.sweeps.segmentation_overlays import draw_extremes
from nvcim.sweeps.segmentation_settings import Recipe, SegmentationSettings

SMOKE_STEPS = 3
"""Steps of every training in a smoke run."""
SMOKE_NETWORK = FCNSettings(width=4, depth=2, descriptor_dim=8, fused_width=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status: 0 done, 2 a mistake of the user's, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.segmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file of settings; without it the defaults")
    parser.add_argument("--data", type=Path, help="labelled image set; without it tissue is generated")
    parser.add_argument("--seeds", type=int, help="repetitions, instead of the settings' own")
    parser.add_argument("--smoke", action="store_true", help="one seed, few images, tiny networks, few steps")
    parser.add_argument("--resume", type=Path, help="run folder of a comparison that was cut short")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that run folders are made in")
    try:
        run(parser.parse_args(arguments))
    except NvcimError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; go on with --resume and the run folder", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> RunFolder:
    """Compare, write the tables, the overlays and the report, print the tables; returns the run folder.

    Raises:
        NvcimError: settings or data that cannot be used.
    """
    settings, folder = _prepared(options)
    out.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    with progress("comparison") as update:
        run_segmentation(settings, folder, update)
    measure_memory(settings, folder)
    draw_extremes(settings, folder)
    for table in printed_tables(folder):
        print_table(table)
    out.print(f"report: {write_report(folder)}", highlight=False, soft_wrap=True)
    return folder


def smoke(settings: SegmentationSettings) -> SegmentationSettings:
    """The settings at their smallest: every part, strategy and quantizer still runs."""
    small: dict[str, object] = {
        "images": None if settings.data is None else 16,
        "generated": 16,
        "tissue": TissueSettings(height=48, width=64),
        "seeds": 1,
        "network": SMOKE_NETWORK,
        "overlays": min(settings.overlays, 1),
    }
    if settings.full is not None:
        small["full"] = settings.full.model_copy(update={"recipe": _short(settings.full.recipe)})
    if settings.budget is not None:
        rounds = settings.budget.rounds.model_copy(
            update={
                "networks": 2,
                "start": 3,
                "budget": 5,
                "k": 1,
                "candidates": 2,
                "network": SMOKE_NETWORK,
                "training": _short(Recipe(training=settings.budget.rounds.training)).training,
            }
        )
        curve = settings.budget.curve and _short(settings.budget.curve)
        few: dict[str, object] = {"rounds": rounds, "curve": curve, "scored_images": 2, "pool": None}
        small["budget"] = settings.budget.model_copy(update=few)
    if settings.grid is not None:
        fewer: dict[str, object] = {
            "networks": (1, 2),
            "recipe": _short(settings.grid.recipe),
            "scored_images": 2,
        }
        small["grid"] = settings.grid.model_copy(update=fewer)
    if settings.crossbar is not None:
        study = settings.crossbar.study
        least: dict[str, object] = {
            "devices": study.devices[:1],
            "sigmas": study.sigmas[:1],
            "weight_bits": (),
            "steps": study.steps[:1],
            "chips": 1,
            "images": 1,
        }
        small["crossbar"] = settings.crossbar.model_copy(
            update={"study": study.model_copy(update=least), "repeats": 1}
        )
    return settings.model_copy(update=small)


def _short(recipe: Recipe) -> Recipe:
    """A recipe of a few steps on small crops."""
    few: dict[str, object] = {"steps": SMOKE_STEPS, "batch": 2, "crop": 32}
    training: TrainingSettings = recipe.training.model_copy(update=few)
    return recipe.model_copy(update={"training": training, "continued_steps": None})


def _prepared(options: argparse.Namespace) -> tuple[SegmentationSettings, RunFolder]:
    """Settings and run folder of what the options ask for; nothing is made for settings that cannot run."""
    given = {"data": options.data, "seeds": options.seeds}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.resume is not None:
        if options.config is not None or options.smoke or changes:
            raise RunError("--resume takes the settings of the run; leave the other options out")
        folder = RunFolder.open(options.resume)
        source = f"{options.resume}/run.json"
        return parse_settings(folder.record.settings, SegmentationSettings, source), folder
    settings = (
        load_settings(options.config, SegmentationSettings) if options.config else SegmentationSettings()
    )
    settings = parse_settings(
        {**settings.model_dump(exclude_unset=True), **changes}, SegmentationSettings, "the command line"
    )
    if options.smoke:
        settings = smoke(settings)
    planned(settings, settings.seed)  # refused before there is a run folder
    return settings, RunFolder.create(options.runs, "segmentation", settings, settings.seed)


if __name__ == "__main__":
    sys.exit(main())
