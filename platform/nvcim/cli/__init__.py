"""The command line: one function per verb; a user's mistake is one line on stderr and exit status 2."""

import importlib
import io
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table
from typer.exceptions import TyperException

import nvcim
from nvcim.cli.console import Config, Device, Model, Runs, Seed, out, print_table
from nvcim.cli.segment import segment_app
from nvcim.config import load_settings, parse_settings
from nvcim.errors import NvcimError, RunError

app = typer.Typer(
    name="nvcim",
    help=nvcim.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
fleet_app = typer.Typer(no_args_is_help=True, help="Nodes with their users on simulated crossbars.")
sweep_app = typer.Typer(no_args_is_help=True, help="Scores over bits of a weight and programming variation.")
devices_app = typer.Typer(no_args_is_help=True, help="Memory devices.")
crossbar_app = typer.Typer(no_args_is_help=True, help="One matrix on simulated crossbars.")
app.add_typer(fleet_app, name="fleet")
app.add_typer(sweep_app, name="sweep")
app.add_typer(segment_app, name="segment")
app.add_typer(devices_app, name="devices")
app.add_typer(crossbar_app, name="crossbar")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; errors that are not the user's pass through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # its bars would cut through ours
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text; a result is not lost because one cannot be printed.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except NvcimError as error:
        # What a Ray worker raised comes back with the worker's traceback as its text and the error as `cause`.
        print(f"nvcim: {_one_line(str(getattr(error, 'cause', error)))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's words
            raise
        print(
            f"nvcim: the settings ask for more memory than there is: {_one_line(str(error))}", file=sys.stderr
        )
        return 2
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("nvcim: interrupted", file=sys.stderr)
        return 130
    except TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        print(f"nvcim: {_one_line(message) or 'a verb is missing; see --help'}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


@devices_app.command("list")
def devices_list(
    catalogue: Annotated[Path | None, typer.Option(help="YAML file with devices of your own.")] = None,
) -> None:
    """List the memory devices that a crossbar can be made of."""
    from nvcim.devices import load_catalogue

    table = Table(title="Programming variation per level, in normalised conductance at sigma 0.01")
    for column in ("device", "technology", "bits per cell", "sigma of each level", "source"):
        table.add_column(column, overflow="fold")
    for device in load_catalogue(catalogue).values():
        sigmas = device.describe_sigma()
        table.add_row(device.name, device.technology, str(device.bits), sigmas, device.source)
    out.print(table)


@crossbar_app.command("explain")
def crossbar_explain(
    config: Annotated[Path, typer.Argument(help="YAML file of settings, for example jobs/crossbar.yaml.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results, instead of the settings' own.")
    ] = None,
) -> None:
    """Tell what a matrix becomes: arrays, error by cause, energy, latency, area; as tables, a page and a picture."""
    from nvcim.crossbar.explain import explain
    from nvcim.crossbar.explain_job import ExplainJob
    from nvcim.progress import progress
    from nvcim.report.crossbar_page import write_explanation
    from nvcim.report.crossbar_tables import crossbar_tables

    job = load_settings(config, ExplainJob)
    with progress("explain") as update:
        explanation = explain(job, update)
    for part in crossbar_tables(explanation):
        print_table(part)
    written = write_explanation(explanation, folder or job.out)
    out.print(f"sources of the constants, and the picture: {written[0]}", soft_wrap=True)
    out.print(f"the same as files: {', '.join(str(path) for path in written[1:])}", soft_wrap=True)


@fleet_app.command("run")
def fleet_run(config: Config = None, model: Model = None, runs: Runs = Path("runs"), seed: Seed = 0) -> None:
    """Let nodes learn from their users' streams, score every method, and write a report."""
    from nvcim.fleet.fleet import FleetSettings, run_fleet, streams_of
    from nvcim.fleet.ray_session import ray_session
    from nvcim.progress import progress
    from nvcim.report import write_report
    from nvcim.storage import RunFolder

    settings = load_settings(config, FleetSettings) if config else FleetSettings()
    if model is not None:
        settings = parse_settings({**settings.model_dump(), "model": model}, FleetSettings, "--model")
    for device in settings.devices:
        settings.crossbar.model_copy(update={"device": device}).cell()
    streams_of(settings, seed)  # a folder that cannot be read is refused before a run is made for it
    folder = RunFolder.create(runs, "fleet", settings, seed)
    with ray_session(), progress("fleet") as update:
        rows = run_fleet(settings, folder, update)
    out.print(fleet_table(rows))
    out.print(f"report: {write_report(folder)}", soft_wrap=True)


@fleet_app.command("export")
def fleet_export(
    run_folder: Annotated[Path, typer.Argument(help="Run folder of a fleet.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder that gets a folder per token set.")],
    method: Annotated[str, typer.Option("--method", help="Whose sets.")] = "nvcim-pt",
    device: Device = "auto",
) -> None:
    """Write the stored token sets as adapters that PEFT loads."""
    from nvcim.fleet.adapters import export_adapters

    written = export_adapters(run_folder, out_folder, method, device)
    out.print(f"{len(written)} adapters: {out_folder}", highlight=False, soft_wrap=True)


def fleet_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `fleet_scores` as a table: a line per task and method, the spread is over nodes."""
    table = Table(title="Fleet: mean ± standard deviation over nodes (measured)")
    for column in ("task", "metric", "method", "nodes", "score", "right domain found"):
        table.add_column(column, overflow="fold")
    for task, metric, method in dict.fromkeys((r["task"], r["metric"], r["method"]) for r in rows):
        own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        hits = [row["hit_rate"] for row in own if row["hit_rate"] is not None]
        scores = [row["score"] for row in own]
        table.add_row(task, metric, method, str(len(own)), _mean_and_spread(scores), _mean_and_spread(hits))
    return table


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


@sweep_app.command("run")
def sweep_run(
    config: Config = None,
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Run folder of a sweep that was cut short.")] = None,
) -> None:
    """Score a grid of devices, bits and programming variation, and write a report."""
    from nvcim.progress import progress
    from nvcim.report import write_report
    from nvcim.storage import RunFolder
    from nvcim.sweeps import SweepSettings
    from nvcim.sweeps.study import sweep

    if resume is not None and config is not None:
        raise RunError("--resume takes the settings of the run; leave --config out")
    if resume is not None:
        folder = RunFolder.open(resume)
        settings = parse_settings(folder.record.settings, SweepSettings, f"{resume}/run.json")
    else:
        settings = load_settings(config, SweepSettings) if config else SweepSettings()
        settings.check()  # before a folder is made for a sweep that cannot run
        folder = RunFolder.create(runs, "sweep", settings, settings.seed)
    with progress("sweep") as update:
        rows = sweep(settings, folder, lambda what, done, total, note: update(done, total, f"{what}: {note}"))
    out.print(sweep_table(rows))
    out.print(f"report: {write_report(folder)}", soft_wrap=True)


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of a sweep as a table: a line per trial, a column per metric."""
    from nvcim.storage.names import exact

    metrics = list(dict.fromkeys(row["metric"] for row in rows if row["status"] == "done"))
    table = Table(title="Sweep (measured)")
    for column in ("device", "weight bits", "sigma", *metrics, "status"):
        table.add_column(column, overflow="fold")
    for trial in dict.fromkeys(row["trial_id"] for row in rows):
        own = [row for row in rows if row["trial_id"] == trial]
        scores = {row["metric"]: f"{row['score']:.3f}" for row in own if row["score"] is not None}
        first = own[0]
        cells = [first["device"], str(first["weight_bits"]), exact(first["sigma"])]
        table.add_row(
            *cells, *(scores.get(metric, "") for metric in metrics), first["error"] or first["status"]
        )
    return table


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder, for example runs/<run id>.")],
) -> None:
    """Write the report of a run: one HTML file that needs no network."""
    from nvcim.report import write_report

    out.print(f"report: {write_report(folder)}", soft_wrap=True)


@app.command("serve")
def serve(
    folder: Annotated[Path, typer.Argument(help="Run folder whose nodes and FCNs are served.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any free one.")] = None,
    device: Device = "auto",
) -> None:
    """Serve a run over HTTP until interrupted."""
    serving = _from_checkout("serving.app")
    with serving.run_app(folder, host=host, port=port, device=device) as served:
        out.print(f"serving {folder} at {served.url} (stop with Ctrl-C)", soft_wrap=True)
        served.wait()


@app.command("demo")
def demo(
    config: Config = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with lamp_like/ and dsb2018/; without it data are generated.")
    ] = None,
    model: Model = None,
    runs: Runs = Path("runs"),
) -> None:
    """Run the whole platform once, small: fleet, segmentation, sweep, serving, report."""
    _from_checkout("jobs.demo").run_demo(config, data, model, runs)


def _from_checkout(name: str) -> Any:
    """Import a module of `jobs` or `serving`, which live beside `platform` in a checkout, not in the package.

    Raises:
        RunError: neither the working folder nor the checkout that nvcim runs from holds it.
    """
    folder = Path(*name.split(".")).with_suffix(".py")
    for root in (Path.cwd(), Path(nvcim.__file__).resolve().parents[2]):
        if (root / folder).is_file() and (root / "platform" / "nvcim").is_dir():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            return importlib.import_module(name)
    raise RunError(f"{folder} is not here: run this from a checkout of the project")


def _one_line(message: str) -> str:
    return " ".join(message.split())
