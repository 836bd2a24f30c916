"""A whole sweep in a run folder: the models it scores are trained first, or taken from another run."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

from nvcim.errors import RunError
from nvcim.fleet.cluster_resources import check_request
from nvcim.fleet.fleet import FleetSettings, streams_of
from nvcim.fleet.ray_session import ray_session
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.personaliser import Personaliser
from nvcim.prompts.personaliser_files import MODEL_FILE, load_personaliser
from nvcim.randomness import named_seed
from nvcim.segmentation import ResidualFCN, save_fcn, train
from nvcim.segmentation.study import SplitImages, StudySettings, split_images
from nvcim.storage import RunFolder
from nvcim.sweeps.prompt_bank import BANK_FILE, tune_bank
from nvcim.sweeps.runner import Evaluate, Row, missing_points, run_sweep
from nvcim.sweeps.space import SweepSettings
from nvcim.sweeps.trial import combined, matmul_error, prompt_score, segmentation_score

Report = Callable[[str, int, int, str], None]
"""Called with (what is under way, steps done, steps in all, a short note)."""


def sweep(settings: SweepSettings, run: RunFolder, report: Report | None = None) -> list[Row]:
    """Train what is missing, score every point of the grid, and write `sweep.parquet`.

    Call again with the folder of a sweep that was cut short to go on with it.

    Raises:
        ConfigError, DeviceError, DataError, ModelError: settings or data that cannot be used.
        RunError: `from_run` lacks a model, no trial succeeded, or Ray cannot be used.
    """
    settings.check()

    def on_trial(done: int, total: int, trial: str) -> None:
        if report is not None:
            report("sweep", done, total, trial)

    with contextlib.ExitStack() as ray:
        if missing_points(settings, run):
            # Before models are trained, which takes minutes.
            check_request(
                ray.enter_context(ray_session()), "a trial (cpus_per_trial)", settings.cpus_per_trial
            )
        parts = evaluations(settings, run, report)
        return run_sweep(settings, functools.partial(combined, parts=parts), run, on_trial)


def evaluations(settings: SweepSettings, run: RunFolder, report: Report | None = None) -> list[Evaluate]:
    """One evaluation per subject, ready to travel to workers (errors as `sweep`)."""
    made: list[Evaluate] = []
    seed = run.record.seed
    if "matmul" in settings.subjects:
        made.append(functools.partial(matmul_error, base=settings.crossbar, seed=seed))
    if "segmentation" in settings.subjects:
        images = _images(settings, seed)
        folder = _fcn_folder(settings, run, images, report)
        made.append(
            functools.partial(
                segmentation_score,
                fcn=folder.resolve(),
                images=images.test,
                base=settings.crossbar,
                seed=seed,
            )
        )
    if "prompts" in settings.subjects:
        bank = _bank_folder(settings, run, report)
        made.append(functools.partial(prompt_score, bank=bank.resolve(), base=settings.crossbar, seed=seed))
    return made


def _bank_folder(settings: SweepSettings, run: RunFolder, report: Report | None) -> Path:
    """The folder of tuned prompts; they are tuned here, once, with what `from_run` holds of a personaliser."""
    folder = run.path / "prompt_bank"
    if (folder / BANK_FILE).is_file():
        return folder
    seed = run.record.seed
    streams = streams_of(FleetSettings(nodes=settings.users, data=settings.user_data), seed)
    shared = settings.from_run
    if shared is not None and (shared / MODEL_FILE).is_file():
        personaliser = load_personaliser(shared, "auto")
    else:
        samples = [sample for stream in streams for sample in stream.history]
        personaliser = Personaliser.fit(LanguageModel.load(settings.model), samples, settings.prompts, seed)

    def on_step(done: int, total: int) -> None:
        if report is not None:
            report("tuning prompts", done, total, "")

    tune_bank(streams, personaliser, settings.crossbar, seed, on_step).save(folder)
    return folder


def _images(settings: SweepSettings, seed: int) -> SplitImages:
    """Training and test images; the split is the one that `segmentation.study` makes of the same seed."""
    wanted = StudySettings(training_images=settings.training_images, test_images=settings.images)
    return split_images(settings.data, wanted, seed)


def _fcn_folder(settings: SweepSettings, run: RunFolder, images: SplitImages, report: Report | None) -> Path:
    """The folder of the float FCN: another run's, or one trained here (once)."""
    if settings.from_run is not None:
        folder = settings.from_run / "fcn" / "float"
        if not folder.is_dir():
            raise RunError(f"{settings.from_run}: holds no trained FCN (fcn/float)")
        return folder
    folder = run.path / "fcn" / "float"
    if folder.is_dir():
        return folder
    model = ResidualFCN(seed=named_seed(run.record.seed, "segmentation", "weights"))
    training = StudySettings().training.model_copy(update={"steps": settings.training_steps})

    def on_step(done: int, total: int, loss: float) -> None:
        if report is not None:
            report("training the FCN", done, total, f"loss {loss:.3f}")

    train(
        model, images.training, training, named_seed(run.record.seed, "segmentation", "float"), None, on_step
    )
    save_fcn(model.cpu(), folder)
    return folder
