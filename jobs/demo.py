"""`python -m jobs.demo` runs the whole platform once, small: one table a stage, and the report's path.

Each stage is a plain function of the demo's context; its time is measured here and goes to the report.
"""

import base64
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.table import Table
from skimage.data import immunohistochemistry

from nvcim.cli import fleet_table, main, out, sweep_table
from nvcim.config import Settings, load_settings
from nvcim.data.images import decode_image, displayed, encode_png, write_image
from nvcim.errors import DataError
from nvcim.fleet.fleet import FleetSettings, run_fleet, streams_of
from nvcim.fleet.ray_session import ray_session
from nvcim.progress import Update, progress
from nvcim.prompts.personaliser_files import model_name
from nvcim.report import write_report
from nvcim.segmentation import overlay
from nvcim.segmentation.study import SplitImages, StudySettings, run_study, split_images
from nvcim.storage import RunFolder
from nvcim.sweeps import SweepSettings
from nvcim.sweeps.study import sweep
from serving.app import run_app

CONFIG = Path(__file__).with_name("demo.yaml")

PHOTOGRAPH_SCALE = 0.3
"""Brings the photograph's glands to about the size of those in the training images."""

Row = dict[str, Any]


class DemoSettings(Settings):
    """Settings of every stage."""

    seed: int = 0
    fleet: FleetSettings = FleetSettings()
    segmentation: StudySettings = StudySettings()
    sweep: SweepSettings = SweepSettings()


@dataclass(frozen=True)
class Context:
    """What every stage gets."""

    settings: DemoSettings
    run: RunFolder
    images: SplitImages


Stage = Callable[[Context, Update], Table]


def run_demo(config: Path | None, data: Path | None, model: str | None, runs: Path) -> RunFolder:
    """Run every stage in one run folder and return it.

    `data` holds `lamp_like/` and `dsb2018/`; `model` is a causal LM's path or hub name. None leaves what the
    settings say.

    Raises:
        NvcimError: settings or data that cannot be used.
    """
    settings = load_settings(config or CONFIG, DemoSettings)
    if data is not None:
        settings = _on_real_data(settings, data.resolve())
    if model is not None:
        settings = settings.model_copy(
            update={"fleet": settings.fleet.model_copy(update={"model": model_name(model)})}
        )  # the sweep takes its model from the fleet's run
    settings.sweep.check()
    streams_of(settings.fleet, settings.seed)  # unreadable data are refused before anything runs
    images = split_images(settings.sweep.data, settings.segmentation, settings.seed)
    run = RunFolder.create(runs, "demo", settings, settings.seed)
    context = Context(settings, run, images)
    out.print(f"run {run.record.run_id}, data: {data or 'generated'}", highlight=False, soft_wrap=True)
    times: list[Row] = []
    with ray_session():
        for name, stage in STAGES.items():
            started = time.perf_counter()
            with progress(name) as update:
                table = stage(context, update)
            seconds = time.perf_counter() - started
            out.print(table)
            times.append({"stage": name, "seconds": seconds, "basis": "measured"})
            run.write_table("stages", times)
    out.print(_time_table(times))
    out.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True)
    return run


def fleet_stage(context: Context, update: Update) -> Table:
    """Nodes of five devices on two hosts learn from their users' streams and answer by every method."""
    return fleet_table(run_fleet(context.settings.fleet, context.run, update))


def segmentation_stage(context: Context, update: Update) -> Table:
    """Train the FCN in float and quantized form; score it on ideal arithmetic and on crossbars."""
    rows = run_study(
        context.settings.segmentation,
        context.images,
        context.run,
        lambda name, done, total, loss: update(done, total, f"{name} weights, loss {loss:.3f}"),
    )
    table = Table(title="Segmentation of images not trained on (measured)")
    columns = ("weights", "arithmetic", "chip", "object F1", "object Dice", "object Hausdorff, px", "KiB")
    for column in columns:
        table.add_column(column)
    for row in rows:
        place = (
            row["arithmetic"] if row["arithmetic"] == "ideal" else f"{row['device']}, sigma {row['sigma']:g}"
        )
        scores = (f"{row['object_f1']:.3f}", f"{row['object_dice']:.3f}", f"{row['object_hausdorff']:.1f}")
        size = row.get("weight_bytes")
        cells = (str(row.get("chip", "")), *scores, f"{size / 1024:.0f}" if size else "")
        table.add_row(row["model"], place, *cells)
    return table


def sweep_stage(context: Context, update: Update) -> Table:
    """Sweep bits and programming variation with the models of the stages before."""
    trained = context.settings.segmentation
    settings = context.settings.sweep.model_copy(
        update={
            "from_run": context.run.path,
            # The same counts draw the same split: no trial is scored on an image that was trained on.
            "training_images": trained.training_images,
            "images": trained.test_images,
        }
    )
    rows = sweep(settings, context.run, lambda what, done, total, note: update(done, total, note))
    return sweep_table(rows)


def serving_stage(context: Context, update: Update) -> Table:
    """Serve the run, and ask it over HTTP what a client would, a broken image among it."""
    table = Table(title="Served over HTTP (measured by the client)")
    for column in ("endpoint", "case", "status", "latency, ms", "answer"):
        table.add_column(column, overflow="fold")
    requests = _requests(context)
    rows: list[Row] = []
    with (
        run_app(context.run.path, port=0) as served,
        httpx.Client(base_url=served.url, timeout=120) as client,
    ):
        for request in requests:
            row, body = _ask(client, request)
            answer = _gist(body)
            rows.append(row)
            if "mask_png" in body:
                mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["mask_png"])))).astype(np.int32)
                figure = context.run.figure_path(
                    f"segmentation-served_{len(rows)}"
                )  # names of images may be any
                write_image(overlay(decode_image(request.content or b"", request.case), mask), figure)
            table.add_row(
                row["endpoint"], row["case"], str(row["status"]), f"{row['latency_ms']:.0f}", answer
            )
            update(len(rows), len(requests), request.case)
    context.run.write_table("serving", rows)
    return table


STAGES: dict[str, Stage] = {
    "fleet": fleet_stage,
    "segmentation": segmentation_stage,
    "sweep": sweep_stage,
    "serving": serving_stage,
}


@dataclass(frozen=True)
class _Request:
    """One request of the demo: what it shows, and what is sent (JSON, or an image's bytes)."""

    endpoint: str
    case: str
    json: dict[str, Any] | None = None
    content: bytes | None = None


def _requests(context: Context) -> list[_Request]:
    """Health, models, users' questions, images with the real photograph among them, and two mistakes."""
    photograph = encode_png(immunohistochemistry())
    test = context.images.test[0]
    return [
        _Request("/healthz", "health"),
        _Request("/v1/models", "models"),
        *_questions(context),
        _Request("/v1/completions", "unknown user", {"prompt": "Hello", "user": "nobody"}),
        _Request("/v1/segment", f"test image {test.name[:12]}", content=encode_png(displayed(test.pixels))),
        _Request(f"/v1/segment?scale={PHOTOGRAPH_SCALE}", "colon photograph", content=photograph),
        _Request("/v1/segment", "truncated photograph", content=photograph[: len(photograph) // 2]),
    ]


def _questions(context: Context, users: int = 4) -> list[_Request]:
    """The first query of some users, each to be answered with the user's own prompts."""
    answers = context.run.read_table("fleet_answers").to_pylist()
    first = {row["node_id"]: row["input"] for row in reversed(answers)}
    return [
        _Request("/v1/completions", node, {"prompt": first[node], "user": node, "max_tokens": 16})
        for node in sorted(first)[:users]
    ]


def _ask(client: httpx.Client, request: _Request) -> tuple[Row, dict[str, Any]]:
    """Send a request; returns its row for the table `serving` and the answer's body."""
    started = time.perf_counter()
    if request.json is None and request.content is None:
        response = client.get(request.endpoint)
    else:
        response = client.post(request.endpoint, json=request.json, content=request.content)
    latency = (time.perf_counter() - started) * 1000
    body = response.json()
    usage = body.get("usage") or {}
    row = {
        "endpoint": request.endpoint,
        "case": request.case,
        "status": response.status_code,
        "latency_ms": latency,
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "basis": "measured",
    }
    return row, body


def _gist(body: dict[str, Any]) -> str:
    """The part of an answer that a reader of the table wants."""
    if "error" in body:
        return str(body["error"]["message"])
    if "choices" in body:
        return " / ".join(choice["text"].strip() for choice in body["choices"])
    if "count" in body:
        return f"{body['count']} objects in {body['width']}x{body['height']} px by {body['model']}"
    if "data" in body:
        return ", ".join(model["id"] for model in body["data"][:6])
    return ", ".join(f"{key}: {value}" for key, value in body.items())


def _on_real_data(settings: DemoSettings, data: Path) -> DemoSettings:
    """The settings with every stage on the folder's users and images.

    Raises:
        DataError: the folder does not hold them.
    """
    users, images = data / "lamp_like", data / "dsb2018"
    for folder in (users, images):
        if not folder.is_dir():
            raise DataError(
                f"{data}: expected the folders lamp_like/ and dsb2018/, {folder.name}/ is missing"
            )
    return settings.model_copy(
        update={
            "fleet": settings.fleet.model_copy(update={"data": users}),
            "sweep": settings.sweep.model_copy(update={"data": images, "user_data": users}),
        }
    )


def _time_table(times: list[Row]) -> Table:
    table = Table(title="Time (measured)")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for row in [*times, {"stage": "all", "seconds": sum(row["seconds"] for row in times)}]:
        table.add_row(row["stage"], f"{row['seconds']:.1f}")
    return table


if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
