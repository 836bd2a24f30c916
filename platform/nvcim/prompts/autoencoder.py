"""The token autoencoder: between the LM's width and the short codes that a crossbar column holds.

Token by token, started at the principal components and trained with noise on the code. The paper's layer sizes, code
width and loss are not known; RoCR, by the same group, stores 64-dimensional int8 codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from nvcim.config import Settings
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import DataError, ModelError
from nvcim.prompts.noise import LevelNoise, add_level_noise
from nvcim.randomness import named_generator


class AutoencoderSettings(Settings):
    """Shape and training of the autoencoder. None of the values is the paper's."""

    code: int = Field(64, ge=1, description="width of a token's code (RoCR's)")
    depth: Literal[1, 2] = Field(
        1, description="1: a linear map each way; 2: beside it one hidden layer each way"
    )
    hidden: int = Field(256, ge=1, description="width of the hidden layers at depth 2")
    bits: Literal[8, 4, 2] = Field(
        8, description="of a code's element, sign included: what the array's weight_bits should be"
    )
    noise: float = Field(
        0.03,
        ge=0,
        description="training noise on the code where no device's is given, relative to the token set's largest; "
        "0 trains without",
    )
    cosine: float = Field(
        0.0, ge=0, description="weight of 1 - cosine of the rebuilt tokens, beside their squared error"
    )
    steps: int = Field(200, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    batch: int = Field(256, ge=1, description="tokens per step; as many again from token sets, where given")


class Coder(nn.Linear):
    """A linear map, and beside it, where `hidden` is a number, a path through one hidden layer of that width.

    Weights start at zero: nothing is drawn from torch's global stream.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int | None) -> None:
        super().__init__(inputs, outputs)
        self.inner = None if hidden is None else Coder(inputs, hidden, None)
        self.outer = None if hidden is None else Coder(hidden, outputs, None)

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y = super().forward(x)
        if self.inner is None or self.outer is None:
            return y
        beside: Tensor = self.outer(functional.gelu(self.inner(x)))
        return y + beside


class TokenAutoencoder(nn.Module):
    """`encode`: [..., hidden] -> [..., code]; `decode`: [..., code] -> [..., hidden].

    Args:
        hidden: width of a token.
        code: width of its code.
        inner: width of a hidden layer each way; None for linear maps.
    """

    def __init__(self, hidden: int, code: int, inner: int | None = None) -> None:
        super().__init__()
        self.encoder = Coder(hidden, code, inner)
        self.decoder = Coder(code, hidden, inner)

    @property
    def hidden(self) -> int:
        """Width of a token."""
        return self.decoder.out_features

    @property
    def code(self) -> int:
        """Width of a token's code."""
        return self.encoder.out_features

    def encode(self, tokens: Tensor) -> Tensor:
        """Codes of tokens."""
        code: Tensor = self.encoder(tokens)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Tokens of codes."""
        tokens: Tensor = self.decoder(code)
        return tokens

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "TokenAutoencoder":
        """Read what `save` wrote.

        Raises:
            ModelError: missing or not an autoencoder's file.
        """
        try:
            state = load_file(path)
            code, hidden = state["encoder.weight"].shape
            inner = state.get("encoder.inner.weight")
            model = cls(hidden, code, None if inner is None else len(inner))
            model.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{path}: not a token autoencoder ({reason})") from error
        return model.requires_grad_(False)


def quantised(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n, code] rounded as an array stores them: a set's largest magnitude is the largest integer.

    Gradients pass straight through. Integers are symmetric, `bits` of them with the sign, as the crossbar's.
    """
    top = 2 ** (bits - 1) - 1
    held = codes.detach()
    step = held.abs().amax((-2, -1), keepdim=True) / top
    rounded = torch.where(step > 0, (held / step).round() * step, 0.0)
    return codes + (rounded - held)


def train_autoencoder(
    vectors: Tensor,
    settings: AutoencoderSettings,
    seed: int,
    noise: LevelNoise | None = None,
    sets: Tensor | None = None,
) -> TokenAutoencoder:
    """Fit an autoencoder to tokens, rebuilt from quantised and noisy codes.

    The loss is the mean squared error, with `settings.cosine` times the tokens' mean square times 1 - cosine.

    Args:
        vectors: [N, hidden]: the LM's token embeddings, represented texts.
        settings: shape, precision and training.
        seed: of batches and noise.
        noise: level-wise, of the devices that codes will be written to, drawn anew in every step; None takes
            `settings.noise` for all levels alike, whatever the device.
        sets: [k, n, hidden], whole token sets such as tuned ones; a set's own largest element then scales its noise,
            as on the array. Without, a batch of vectors counts as one set.

    Raises:
        DataError: no vectors, or sets of another width.
    """
    vectors = vectors.detach().to("cpu", torch.float32)
    if vectors.dim() != 2 or len(vectors) == 0:
        raise DataError(
            f"autoencoder: vectors have shape {tuple(vectors.shape)}; it takes (1 or more, hidden)"
        )
    whole = vectors.new_zeros(0, 1, vectors.shape[1]) if sets is None else sets.detach().to(vectors)
    if whole.dim() != 3 or whole.shape[2] != vectors.shape[1]:
        raise DataError(
            f"autoencoder: sets have shape {tuple(whole.shape)}; beside these vectors it takes "
            f"(sets, tokens, {vectors.shape[1]})"
        )
    generator = torch.Generator().manual_seed(seed)
    model = _at_principal_components(torch.cat([vectors, whole.flatten(0, 1)]), settings, generator)
    levels = noise or LevelNoise(settings.noise, settings.noise)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    for _ in range(settings.steps):
        losses = []
        for tokens in _batch(vectors, whole, settings.batch, generator):
            codes = quantised(model.encode(tokens), settings.bits)
            noisy = add_level_noise(codes, [levels] * len(codes), [generator] * len(codes))
            losses.append(_loss(model.decode(noisy), tokens, settings.cosine))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.requires_grad_(False)


def _at_principal_components(
    tokens: Tensor, settings: AutoencoderSettings, generator: torch.Generator
) -> TokenAutoencoder:
    """An autoencoder that projects on the first principal components of tokens [N, hidden], turned at random.

    Any rotation of the code rebuilds as well. Along the components themselves the first would set the peak that a
    column's range and noise go by; turned, the elements are alike (of tuned sets of the embedded LM, the peak is 3.8
    times the RMS instead of 6.1, as in an autoencoder trained from random weights).
    """
    hidden = tokens.shape[1]
    inner = settings.hidden if settings.depth == 2 else None
    model = TokenAutoencoder(hidden, min(settings.code, hidden), inner)
    mean = tokens.mean(0)
    _, _, axes = torch.linalg.svd(tokens - mean, full_matrices=False)
    axes = axes[: model.code]
    turn, _ = torch.linalg.qr(torch.randn(model.code, model.code, generator=generator))
    axes = turn[:, : len(axes)] @ axes  # fewer axes where there are fewer tokens
    with torch.no_grad():
        model.encoder.weight.copy_(axes)
        model.encoder.bias.copy_(-axes @ mean)
        model.decoder.weight.copy_(axes.T)
        model.decoder.bias.copy_(mean)
        for coder in (model.encoder, model.decoder):
            if coder.inner is not None:  # what follows it stays zero, so nothing is added yet
                shape = coder.inner.weight.shape
                coder.inner.weight.copy_(torch.randn(shape, generator=generator) / shape[1] ** 0.5)
    return model


def _batch(vectors: Tensor, sets: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """About `count` tokens as sets [k, n, hidden] of picked vectors, and as many of whole sets where there are any."""
    picked = vectors[torch.randint(len(vectors), (count,), generator=generator)]
    if not len(sets):
        return [picked[None]]
    n = sets.shape[1]
    groups = max(1, count // n)
    some = sets[torch.randint(len(sets), (groups,), generator=generator)]
    return [picked[: groups * n].reshape(groups, -1, picked.shape[1]), some]


def _loss(rebuilt: Tensor, tokens: Tensor, cosine: float) -> Tensor:
    loss = (rebuilt - tokens).square().mean()
    if cosine == 0:
        return loss
    turned = 1 - functional.cosine_similarity(rebuilt, tokens, dim=-1).mean()
    return loss + cosine * tokens.square().mean() * turned


@dataclass(frozen=True)
class ReconstructionError:
    """How far rebuilt tokens are off: RMS of the difference over RMS of the tokens.

    Attributes:
        code: encoded and decoded.
        quantised: and rounded to the array's integers.
        written: and written to the device and read back; mean over draws.
        spread: standard deviation of that over draws.
        draws: how often the sets were written.
    """

    code: float
    quantised: float
    written: float
    spread: float
    draws: int


@torch.no_grad()
def reconstruction_error(
    autoencoder: TokenAutoencoder,
    sets: Tensor,
    config: CrossbarConfig,
    generator: torch.Generator,
    draws: int = 10,
) -> ReconstructionError:
    """Measure what is lost from token sets on the way into an array and back.

    Args:
        autoencoder: of the sets' width.
        sets: [k, n, hidden].
        config: the array, with `weight_bits` of the code; a set is a column, read row by row through its converters.
        generator: of the draws.
        draws: at least 2, for a spread.

    Raises:
        DataError: no sets, or fewer than 2 draws.
    """
    if sets.dim() != 3 or len(sets) == 0 or draws < 2:
        raise DataError(
            f"reconstruction error: {draws} draws of sets of shape {tuple(sets.shape)}; "
            "it takes at least 2 of (1 or more, tokens, hidden)"
        )
    sets = sets.detach().to(autoencoder.encoder.weight)
    codes = autoencoder.encode(sets)
    columns = codes.cpu().flatten(1)[..., None].expand(draws, -1, -1, -1)
    back = Crossbar.program(columns, config, generator).matmul(torch.eye(columns.shape[2]))
    written = autoencoder.decode(back.reshape(draws, *codes.shape).to(sets))
    each = torch.tensor([_relative(one, sets) for one in written], dtype=torch.float64)
    return ReconstructionError(
        code=_relative(autoencoder.decode(codes), sets),
        quantised=_relative(autoencoder.decode(quantised(codes, config.weight_bits)), sets),
        written=float(each.mean()),
        spread=float(each.std()),
        draws=draws,
    )


def reconstruction_by_device(
    autoencoder: TokenAutoencoder,
    sets: Tensor,
    configs: Mapping[str, CrossbarConfig],
    seed: int,
    draws: int = 10,
) -> dict[str, ReconstructionError]:
    """`reconstruction_error` for every named array, each with draws of its own name."""
    return {
        name: reconstruction_error(
            autoencoder, sets, config, named_generator(seed, "reconstruction", name), draws
        )
        for name, config in configs.items()
    }


def _relative(rebuilt: Tensor, tokens: Tensor) -> float:
    return float((rebuilt - tokens).square().mean().sqrt() / tokens.square().mean().sqrt().clamp_min(1e-30))
