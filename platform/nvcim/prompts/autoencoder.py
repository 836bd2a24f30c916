"""The token autoencoder: between the LM's width and the short codes that a crossbar column holds.

One linear map each way, token by token, started at the principal components and trained with noise on the code. The
paper's layer sizes, code width and loss are not known; RoCR, by the same group, stores 64-dimensional int8 codes.
"""

from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nvcim.config import Settings
from nvcim.errors import ModelError


class AutoencoderSettings(Settings):
    """Shape and training of the autoencoder."""

    code: int = Field(64, ge=1, description="width of a token's code")
    noise: float = Field(
        0.1, ge=0, description="training noise on the code, relative to the token set's largest"
    )
    steps: int = Field(200, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    batch: int = Field(256, ge=1)


class TokenAutoencoder(nn.Module):
    """`encode`: [..., hidden] -> [..., code]; `decode`: [..., code] -> [..., hidden]."""

    def __init__(self, hidden: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(hidden, code)
        self.decoder = nn.Linear(code, hidden)

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
            model = cls(hidden, code)
            model.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{path}: not a token autoencoder ({reason})") from error
        return model.requires_grad_(False)


def train_autoencoder(vectors: Tensor, settings: AutoencoderSettings, seed: int) -> TokenAutoencoder:
    """Fit an autoencoder to vectors [N, hidden] (the LM's token embeddings and represented texts).

    The loss is the mean squared error of the tokens rebuilt from noisy codes.
    """
    vectors = vectors.detach().to("cpu", torch.float32)
    generator = torch.Generator().manual_seed(seed)
    model = TokenAutoencoder(vectors.shape[1], min(settings.code, vectors.shape[1]))
    mean = vectors.mean(0)
    _, _, axes = torch.linalg.svd(vectors - mean, full_matrices=False)
    axes = axes[: model.encoder.out_features]
    with torch.no_grad():
        model.encoder.weight.zero_()[: len(axes)] = axes
        model.encoder.bias.copy_(-model.encoder.weight @ mean)
        model.decoder.weight.zero_()[:, : len(axes)] = axes.T
        model.decoder.bias.copy_(mean)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    for _ in range(settings.steps):
        picked = vectors[torch.randint(len(vectors), (settings.batch,), generator=generator)]
        code = model.encode(picked)
        peak = code.detach().abs().amax()
        noisy = code + settings.noise * peak * torch.randn(code.shape, generator=generator)
        loss = (model.decode(noisy) - picked).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.requires_grad_(False)
