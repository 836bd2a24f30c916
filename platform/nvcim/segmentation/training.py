"""Training of a network in floating point or under a quantizer's schedule, on any labelled image set.

A training is walked through stage by stage (one for float weights, the quantizer's schedule else), and may
stop at any step and go on from its checkpoint to the same result, bit by bit.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nvcim.compute import resolve_device
from nvcim.config import Settings
from nvcim.data.images import LabelledImage
from nvcim.errors import DataError, ModelError
from nvcim.quantization import Quantizer
from nvcim.randomness import named_generator
from nvcim.segmentation.augmentation import (
    AugmentationSettings,
    PreparedImage,
    draw_crop,
    prepare_image,
    whole_crop,
)
from nvcim.segmentation.losses import ClassWeights, class_weights, segmentation_loss
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.storage import atomic_write_bytes

OnStep = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""
_CHECKPOINT_FORMAT = 1
_VALIDATION_SIDE = 256  # of an image to validate on, its middle is taken, at most this wide and high


class TrainingSettings(Settings):
    """How a network is trained; `steps` counts optimiser steps over all stages of a quantizer's schedule."""

    steps: int = Field(default=320, ge=1)
    batch: int = Field(default=8, ge=2, description="crops per step; batch norm needs two")
    crop: int = Field(default=96, ge=16, description="side of the square crops, pixels")
    learning_rate: float = Field(default=8e-3, gt=0.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    class_weights: ClassWeights = (1.0, 1.0, 3.0)
    dice: float = Field(default=0.0, ge=0.0, description="share of soft Dice beside the cross-entropy")
    size_bias: float = Field(
        default=0.0, ge=0.0, le=1.0, description="images are drawn by area^size_bias; 0: all alike"
    )
    kind_balance: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="coloured and grey images are drawn by count^(1 - kind_balance); 1: as often",
    )
    object_centred: float = Field(default=0.0, ge=0.0, le=1.0, description="crops drawn around an object")
    augmentation: AugmentationSettings = AugmentationSettings()
    mixed_precision: bool = Field(
        default=True, description="float16 autocast on a GPU; a CPU computes float32"
    )
    validate_every: int = Field(default=50, ge=1, description="steps; only with validation images")
    patience: int | None = Field(
        default=None, ge=1, description="validations without a better loss that end a stage; None: never"
    )
    checkpoint_every: int = Field(default=100, ge=1, description="steps; only with a checkpoint file")
    device: str = "auto"

    def continued(self) -> "TrainingSettings":
        """Return the settings to quantize a trained float network with: half as many steps."""
        return self.model_copy(update={"steps": max(self.steps // 2, 1)})


@dataclass(frozen=True)
class TrainingLog:
    """What a training was.

    Loss of every step that was run, seconds of training (measured, of all its parts if it was resumed), the
    weights' form (float, inq-5, ...), and (steps done, loss) of every validation.
    """

    losses: tuple[float, ...]
    seconds: float
    weights: str
    validations: tuple[tuple[int, float], ...] = ()


@dataclass
class _Progress:
    """Where a training stands; all of it is in a checkpoint."""

    stage: int = -1
    step: int = 0  # done in this stage
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_state: dict[str, Tensor] | None = None
    waited: int = 0  # validations since the best
    seconds: float = 0.0


def train(
    model: SegmentationNetwork,
    images: Sequence[LabelledImage],
    settings: TrainingSettings | None = None,
    seed: int = 0,
    quantizer: Quantizer | None = None,
    on_step: OnStep | None = None,
    *,
    validation: Sequence[LabelledImage] = (),
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train a model in place; with a quantizer, its weights are exactly on its levels afterwards.

    A float model that was trained before may be handed in with a quantizer, which is INQ's usual start. The
    steps are split evenly over the stages that train; the learning rate starts anew in each.
    `on_step(done, total, loss)` is called after every step. The model ends on `settings.device`.

    With `validation` images, their loss is taken every `validate_every` steps (unaugmented), each stage ends
    on the weights of its lowest one, and ends early after `patience` validations without a lower one.

    With `checkpoint`, the state is written there every `checkpoint_every` steps, and a call with the same
    arguments (the model as it was handed in the first time) goes on from it. The file is left to the caller.

    Raises:
        DataError: no image, or no labelled object in the whole set.
        ModelError: the model is quantized already or takes no gradient, training diverged, or the checkpoint
            is damaged or of another training.
        ConfigError: an unknown device, or class weights that do not fit the network.
    """
    settings = settings or TrainingSettings()
    if not images:
        raise DataError("training needs at least one labelled image")
    if model.quantizer is not None:
        raise ModelError(f"the model is quantized already ({model.quantizer.name}); train a float model")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the model is a copy to predict with, which takes no gradient; train the original")
    model.smallest_object = smallest_object(images)
    model.to(resolve_device(settings.device))
    run = _Run(model, images, validation, settings, seed, quantizer, checkpoint)
    if quantizer is not None:
        model.quantize(quantizer)
    run.walk(on_step)
    model.eval()
    progress = run.progress
    return TrainingLog(
        tuple(progress.losses),
        progress.seconds,
        quantizer.name if quantizer else "float",
        tuple(progress.validations),
    )


def drawing_chances(images: Sequence[PreparedImage], settings: TrainingSettings) -> Tensor:
    """How often each image is drawn, up to a common factor, [images]."""
    areas = torch.tensor([float(image.classes.numel()) for image in images])
    chances = areas.pow(settings.size_bias)
    coloured = torch.tensor([image.coloured for image in images])
    for kind in (coloured, ~coloured):
        chances[kind] /= max(int(kind.sum()), 1) ** settings.kind_balance
    return chances


def smallest_object(images: Sequence[LabelledImage]) -> int:
    """Half the area that one object in twenty stays below: smaller predictions are taken for specks.

    Raises:
        DataError: no image holds any object.
    """
    areas = np.concatenate([np.unique(i.instances[i.instances > 0], return_counts=True)[1] for i in images])
    if len(areas) == 0:
        raise DataError("no image of the training set holds a labelled object")
    return max(int(np.percentile(areas, 5) / 2), 1)


def fingerprint(images: Sequence[LabelledImage]) -> bytes:
    """A digest of a list of images: their names, pixels and masks, in their order; 32 bytes."""
    parts: dict[int, bytes] = {}  # a resample holds an image several times
    for image in images:
        if id(image) not in parts:
            one = hashlib.sha256(image.name.encode() + b"\x1f")
            for content in (image.pixels, image.instances):
                one.update(repr(content.shape).encode())
                one.update(np.ascontiguousarray(content).data)
            parts[id(image)] = one.digest()
    return hashlib.sha256(b"".join(parts[id(image)] for image in images)).digest()


class _Run:
    """One training: the prepared images, and the state that a checkpoint holds."""

    def __init__(
        self,
        model: SegmentationNetwork,
        images: Sequence[LabelledImage],
        validation: Sequence[LabelledImage],
        settings: TrainingSettings,
        seed: int,
        quantizer: Quantizer | None,
        checkpoint: Path | None,
    ) -> None:
        self.model, self.settings, self.quantizer, self.checkpoint = model, settings, quantizer, checkpoint
        self.device = next(model.parameters()).device
        self.images = _prepare(model, images)
        self.validation = _prepare(model, validation)
        maps = [image.classes for image in self.images]
        self.weights = class_weights(settings.class_weights, maps, model.settings.classes).to(self.device)
        self.chances = drawing_chances(self.images, settings)
        self.generator = named_generator(seed, "segmentation", "crops")
        self.half = settings.mixed_precision and self.device.type == "cuda"
        self.progress = _Progress()
        name = quantizer.settings.model_dump_json() if quantizer else "float"
        parts = (settings.model_dump_json(), model.settings.model_dump_json(), str(seed), name)
        digest = hashlib.sha256("\x1f".join(parts).encode())
        digest.update(fingerprint(images) + fingerprint(validation))
        for entry, tensor in model.state_dict().items():
            digest.update(entry.encode() + b"\x1f" + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.identity = digest.hexdigest()

    def walk(self, on_step: OnStep | None) -> None:
        """Train stage by stage, from the checkpoint on where there is one."""
        stages = self.quantizer.stages if self.quantizer else ()
        shares = _steps_per_stage(self.settings.steps, [s.trains for s in stages]) if stages else []
        shares = shares or [self.settings.steps]
        saved = self._restored()
        for index in range(max(self.progress.stage, 0), len(shares)):
            if index > self.progress.stage:
                if self.quantizer is not None:
                    self.quantizer.advance(self.model, stages[index].fraction)
                progress = self.progress
                progress.stage, progress.step, progress.waited = index, 0, 0
                progress.best_loss, progress.best_state = math.inf, None
            if shares[index]:
                self._train_stage(shares[index], saved, on_step)
            saved = None

    def _train_stage(self, steps: int, saved: dict[str, Any] | None, on_step: OnStep | None) -> None:
        """Run one stage with AdamW, from its first step or from where `saved` stands."""
        settings, progress = self.settings, self.progress
        optimiser = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        if saved is not None:
            optimiser.load_state_dict(saved["optimiser"])
            scaler.load_state_dict(saved["scaler"])
        self.model.train()
        patience = math.inf if settings.patience is None else settings.patience
        # Asked before a step, not after one: a stage that goes on from its last checkpoint may be over.
        while progress.step < steps and progress.waited < patience:
            started = time.perf_counter()
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _rate(progress.step, steps)
            progress.losses.append(self._step(optimiser, scaler))
            progress.step += 1
            if not math.isfinite(progress.losses[-1]):
                raise ModelError(f"training diverged at step {len(progress.losses)}; lower the learning rate")
            if self.validation and (progress.step % settings.validate_every == 0 or progress.step == steps):
                self._validate()
            progress.seconds += time.perf_counter() - started
            if self.checkpoint is not None and len(progress.losses) % settings.checkpoint_every == 0:
                self._save(optimiser, scaler)
            if on_step is not None:
                on_step(len(progress.losses), settings.steps, progress.losses[-1])
        if progress.best_state is not None:
            self.model.load_state_dict(progress.best_state)

    def _step(self, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> float:
        """One optimiser step on a new batch; returns its loss."""
        pixels, classes = self._batch()
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
            logits, _ = self.model(pixels.to(self.device))
        loss = segmentation_loss(logits.float(), classes.to(self.device), self.weights, self.settings.dice)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        scaler.step(optimiser)
        scaler.update()
        return float(loss.detach())

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Draw augmented crops: [B, 3, C, C] and classes [B, C, C]."""
        settings, generator = self.settings, self.generator
        chosen = torch.multinomial(self.chances, settings.batch, replacement=True, generator=generator)
        crops = [
            draw_crop(
                self.images[int(index)],
                settings.crop,
                settings.augmentation,
                generator,
                settings.object_centred,
            )
            for index in chosen
        ]
        return torch.stack([pixels for pixels, _ in crops]), torch.stack([classes for _, classes in crops])

    def _validate(self) -> None:
        """Take the validation loss, mean over images, and keep the weights if it is this stage's lowest."""
        progress = self.progress
        self.model.eval()
        total = 0.0
        with torch.inference_mode():
            for image in self.validation:
                pixels, classes = whole_crop(image, _VALIDATION_SIDE)
                logits, _ = self.model(pixels[None].to(self.device))
                truth = classes[None].to(self.device)
                total += float(segmentation_loss(logits, truth, self.weights, self.settings.dice))
        self.model.train()
        loss = total / len(self.validation)
        progress.validations.append((len(progress.losses), loss))
        if loss < progress.best_loss:
            state = self.model.state_dict()
            progress.best_state = {name: tensor.detach().clone() for name, tensor in state.items()}
            progress.best_loss, progress.waited = loss, 0
        else:
            progress.waited += 1

    def _save(self, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Write the checkpoint; the file is whole or the one before."""
        assert self.checkpoint is not None
        content = {
            "format": _CHECKPOINT_FORMAT,
            "training": self.identity,
            "model": self.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
            "generator": self.generator.get_state(),
            "progress": vars(self.progress),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        atomic_write_bytes(self.checkpoint, buffer.getvalue())

    def _restored(self) -> dict[str, Any] | None:
        """Take up the checkpoint's state, where there is one, and return its content.

        Raises:
            ModelError: the file is damaged or of another training.
        """
        path = self.checkpoint
        if path is None or not path.is_file():
            return None
        try:
            content: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            version, training = content["format"], content["training"]
        except Exception as error:  # torch raises many types for a damaged file
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise ModelError(f"{path}: cannot be read as a checkpoint ({reason[:120]})") from error
        if version != _CHECKPOINT_FORMAT or training != self.identity:
            raise ModelError(
                f"{path}: the checkpoint of a training with other settings, seed, images or first weights; "
                "delete it to train anew"
            )
        self.model.load_state_dict(content["model"])
        self.generator.set_state(content["generator"].cpu())
        self.progress = _Progress(**content["progress"])
        return content


def _prepare(model: SegmentationNetwork, images: Sequence[LabelledImage]) -> list[PreparedImage]:
    """Prepare each image once, also where a resample holds it several times."""
    classes, width = model.settings.classes, model.settings.contour_width
    prepared: dict[int, PreparedImage] = {}
    for image in images:
        if id(image) not in prepared:
            prepared[id(image)] = prepare_image(image, classes, width)
    return [prepared[id(image)] for image in images]


def _steps_per_stage(steps: int, trains: Sequence[bool]) -> list[int]:
    """Split steps evenly over the stages that train; the last of them takes the rest."""
    count = sum(trains)
    if count == 0:
        return [0] * len(trains)
    shares = [steps // count if flag else 0 for flag in trains]
    last = max(i for i, flag in enumerate(trains) if flag)
    shares[last] += steps - sum(shares)
    return shares


def _rate(step: int, steps: int) -> float:
    """A step's learning rate as a share of the peak: linear rise over a tenth of the steps, then a cosine."""
    rise = max(steps // 10, 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))
