"""What `nvcim crossbar explain` is asked: a matrix, inputs and settings; and where matrix and inputs come from."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import Field, model_validator
from torch import Tensor

from nvcim.config import LocalPath, Settings
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.errors import ConfigError, DataError
from nvcim.randomness import named_generator

Size = Annotated[int, Field(ge=1, le=2**20)]


class Weight(Settings):
    """The matrix: drawn at random with `shape`, or read from `file` (.npy or .safetensors)."""

    shape: tuple[Size, Size] | None = Field(default=None, description="in_features, out_features")
    kind: Literal["normal", "uniform"] = Field(default="normal", description="of a matrix with a shape")
    seed: int = Field(default=0, ge=0)
    file: LocalPath | None = None
    key: str | None = Field(default=None, description="which tensor of a .safetensors file")
    stored: Literal["in_out", "out_in"] = Field(
        default="in_out", description="order of the file's dimensions; torch's Linear stores out_in"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Weight":
        if (self.shape is None) == (self.file is None):
            raise ValueError("give either shape, for a matrix drawn at random, or file")
        return self

    def describe(self) -> str:
        """Where the matrix comes from, in a few words."""
        if self.file is None:
            return f"{self.kind}, drawn with seed {self.seed}"
        return f"{self.file}" + (f": {self.key}" if self.key else "")


class Inputs(Settings):
    """Input vectors, drawn at random: `normal`, `half_normal` (as after a ReLU, no negatives) or `uniform` in -1..1."""

    kind: Literal["normal", "half_normal", "uniform"] = "normal"
    vectors: int = Field(default=64, ge=1, le=2**16)


class ExplainJob(Settings):
    """Settings of `nvcim crossbar explain`."""

    weight: Weight
    inputs: Inputs = Inputs()
    crossbar: CrossbarConfig = CrossbarConfig()
    age_s: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="seconds between writing and reading"
    )
    devices: int = Field(
        default=4, ge=1, le=256, description="chips that are programmed, for means and spreads"
    )
    columns_per_adc: int = Field(default=8, ge=1)
    arrays_per_bus: int = Field(default=96, ge=1)
    cost_constants: LocalPath | None = Field(
        default=None, description="YAML file; null: the built-in 22 nm ones"
    )
    seed: int = Field(default=0, ge=0)
    out: Path = Field(default=Path("runs/crossbar"), description="folder of the results")


def load_weight(weight: Weight) -> Tensor:
    """The matrix: [in_features, out_features], float32.

    Raises:
        ConfigError: a file of another kind, or a key that is missing or not in the file.
        DataError: a file that cannot be read, or whose tensor is not a matrix of real numbers.
    """
    if weight.file is None:
        assert weight.shape is not None  # Weight holds one of the two
        generator = named_generator(weight.seed, "explain", "weight")
        if weight.kind == "normal":
            return torch.randn(weight.shape, generator=generator)
        return torch.rand(weight.shape, generator=generator) * 2 - 1
    matrix = _from_file(weight.file, weight.key)
    if matrix.dim() != 2 or matrix.numel() == 0 or matrix.is_complex() or matrix.dtype == torch.bool:
        raise DataError(
            f"{weight.file}: holds {matrix.dtype} of shape {tuple(matrix.shape)}; allowed: a matrix of real numbers"
        )
    return (matrix if weight.stored == "in_out" else matrix.T).to(torch.float32).contiguous()


def _from_file(file: Path, key: str | None) -> Tensor:
    try:
        if file.suffix == ".npy":
            stored = np.load(file, allow_pickle=False)
            # torch knows this machine's byte order only; files of another machine have theirs.
            return torch.from_numpy(stored.astype(stored.dtype.newbyteorder("="), copy=False))
        if file.suffix == ".safetensors":
            return _from_safetensors(file, key)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, EOFError, safetensors.SafetensorError) as error:
        raise DataError(f"{file}: not a whole {file.suffix} file of numbers") from error
    raise ConfigError(f"weight.file is {file}; allowed: .npy and .safetensors")


def _from_safetensors(file: Path, key: str | None) -> Tensor:
    with safetensors.safe_open(file, framework="pt") as tensors:
        known = sorted(tensors.keys())
        if key not in known:
            some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise ConfigError(f"weight.key is {key}; {file} holds: {some or 'no tensors'}")
        found: Tensor = tensors.get_tensor(key)
        return found


def draw_inputs(job: ExplainJob, in_features: int, purpose: str = "inputs") -> Tensor:
    """Input vectors [vectors, in_features], float32; another purpose gives other draws of the same kind."""
    generator = named_generator(job.seed, "explain", purpose)
    shape = (job.inputs.vectors, in_features)
    if job.inputs.kind == "uniform":
        return torch.rand(shape, generator=generator) * 2 - 1
    drawn = torch.randn(shape, generator=generator)
    return drawn if job.inputs.kind == "normal" else drawn.clamp(min=0)
