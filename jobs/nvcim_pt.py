"""Compare NVCiM-PT with its baselines: `python -m jobs.nvcim_pt --config jobs/nvcim_pt.yaml`.

    python -m jobs.nvcim_pt --config jobs/nvcim_pt.yaml --data PATH   on a folder of LaMP folders
    python -m jobs.nvcim_pt --config jobs/nvcim_pt.yaml --smoke       small: to see that everything runs
    python -m jobs.nvcim_pt --resume runs/<run id>                    go on with a run that was cut short

Every model, task and seed is a Ray task. The run folder gets the answers, what was kept and trained, the tasks'
official metrics and the cost of retrieval as Parquet tables, and a report; the tables are printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nvcim.cli.console import out, print_table
from nvcim.config import load_settings, parse_settings
from nvcim.errors import NvcimError, RunError
from nvcim.progress import progress
from nvcim.prompts.comparison import compare
from nvcim.report import write_report
from nvcim.report.comparison_tables import (
    comparison_tables,
    point_tables,
    set_tables,
    summary_tables,
)
from nvcim.report.crossbar_tables import TextTable
from nvcim.report.retrieval_tables import retrieval_tables
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison import (
    ComparisonSettings,
    run_comparison,
    write_retrieval_cost,
)

SMOKE_STEPS = 3
"""Steps of every training in a smoke run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status: 0 done, 2 a mistake of the user's, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.nvcim_pt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file of settings; without it the defaults")
    parser.add_argument("--data", type=Path, help="folder of LaMP folders; without it users are generated")
    parser.add_argument("--seeds", type=int, help="repetitions, instead of the settings' own")
    parser.add_argument("--model", nargs="+", help="causal LMs: paths or hub names, or 'embedded'")
    parser.add_argument(
        "--smoke", action="store_true", help="one seed, two users, tasks and devices, few steps"
    )
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
    """Compare, write the tables and the report, print them; returns the run folder.

    Raises:
        NvcimError: settings, data or a model that cannot be used.
    """
    settings, folder = _prepared(options)
    out.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    with progress("comparison") as update:
        run_comparison(settings, folder, compare, update)
    write_retrieval_cost(settings, folder)
    for table in printed_tables(folder):
        print_table(table)
    out.print(f"report: {write_report(folder)}", highlight=False, soft_wrap=True)
    return folder


def printed_tables(folder: RunFolder) -> list[TextTable]:
    """The tables of a finished run, what it found first and its summary last (RunError where it lacks one)."""
    cost = folder.read_table("retrieval_cost").to_pylist() if "retrieval_cost" in folder.tables() else []
    return [
        *comparison_tables(folder),
        *set_tables(folder),
        *(retrieval_tables(cost) if cost else []),
        *point_tables(folder),
        *summary_tables(folder),
    ]


def smoke(settings: ComparisonSettings) -> ComparisonSettings:
    """The settings at their smallest: every method still runs."""
    prompts = settings.prompts
    few = {
        "tuning": prompts.tuning.model_copy(update={"steps": SMOKE_STEPS}),
        "autoencoder": prompts.autoencoder.model_copy(update={"steps": SMOKE_STEPS}),
    }
    return settings.model_copy(
        update={
            "tasks": settings.compared_tasks()[:2],
            "devices": settings.devices[:2],
            "ablation_device": settings.ablation_device and settings.devices[0],
            "seeds": 1,
            "users": 2,
            "sigma_sweep": None,
            "buffer_sweep": None,
            "retrieval": settings.retrieval
            and settings.retrieval.model_copy(update={"ovts": (10, 100), "repeats": 1}),
            "prompts": prompts.model_copy(update=few),
        }
    )


def _prepared(options: argparse.Namespace) -> tuple[ComparisonSettings, RunFolder]:
    """Settings and run folder of what the options ask for; nothing is made for settings that cannot run."""
    given = {"data": options.data, "seeds": options.seeds, "models": options.model}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.resume is not None:
        if options.config is not None or options.smoke or changes:
            raise RunError("--resume takes the settings of the run; leave the other options out")
        folder = RunFolder.open(options.resume)
        source = f"{options.resume}/run.json"
        return parse_settings(folder.record.settings, ComparisonSettings, source), folder
    settings = load_settings(options.config, ComparisonSettings) if options.config else ComparisonSettings()
    settings = parse_settings({**settings.model_dump(), **changes}, ComparisonSettings, "the command line")
    if options.smoke:
        settings = smoke(settings)
    settings.check()
    return settings, RunFolder.create(options.runs, "nvcim-pt", settings, settings.seed)


if __name__ == "__main__":
    sys.exit(main())
