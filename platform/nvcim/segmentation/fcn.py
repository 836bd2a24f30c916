"""A residual fully convolutional network with two outputs: a label map and an image descriptor.

After suggestive annotation's FCN (Yang et al., 2017, as far as it is described): a strided stem, encoder
stages of max pooling and bottleneck residual blocks, every scale brought up on its own and fused by a
convolution. The descriptor is the average of the last encoder stage. Two choices differ so that every weight
is a `Conv2d`, which crossbars take: scales are brought up by 1x1 convolution and interpolation instead of
transposed convolutions, and the last step from half to full size rearranges channels to pixels.
"""

import itertools
import json
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from nvcim.config import Settings, parse_settings
from nvcim.errors import ModelError
from nvcim.quantization import Quantizer, make_quantizer, quantizer_settings_from
from nvcim.randomness import named_generator
from nvcim.storage import atomic_write_bytes, atomic_write_text

CLASSES = ("background", "object", "contour")
_FORMAT = 1


class FCNSettings(Settings):
    """Shape of the network; the default is small enough for two CPU cores.

    Stage i of the encoder (i = 0 is the stem, at half the image's size) has width * 2^i channels, at most
    `descriptor_dim`; the last stage has `descriptor_dim`. Suggestive annotation's own network is about
    width 64, depth 5, descriptor_dim 1024.
    """

    width: int = Field(default=16, ge=4, le=256)
    depth: int = Field(default=4, ge=1, le=6, description="stages after the stem, each halves the size")
    descriptor_dim: int = Field(default=64, ge=4, le=4096)
    fused_width: int = Field(default=32, ge=4, le=1024, description="channels where all scales meet")
    contour_width: int = Field(
        default=3, ge=1, le=50, description="pixels of an object's edge that are contour"
    )


class _Bottleneck(nn.Module):
    """1x1 down to a half, 3x3, 1x1 up, plus a shortcut (1x1 where the channel count changes)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        inner = max(channels_out // 2, 4)
        self.reduce = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.reduce(x)))
        inner = F.relu(self.norm2(self.spatial(inner)))
        return F.relu(self.norm3(self.expand(inner)) + self.shortcut(x))


class ResidualFCN(nn.Module):
    """The network. `seed` decides the initial weights; nothing else does.

    `smallest_object` (pixels) is learnt from the training masks: what is smaller is not predicted.
    `quantizer` names what its weights are held in, None for float32.
    """

    def __init__(self, settings: FCNSettings | None = None, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings = settings or FCNSettings()
        self.smallest_object = 1
        self.quantizer: Quantizer | None = None
        widths = [min(settings.width * 2**i, settings.descriptor_dim) for i in range(settings.depth)]
        widths.append(settings.descriptor_dim)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(_Bottleneck(a, b), _Bottleneck(b, b)) for a, b in itertools.pairwise(widths)
        )
        fused = settings.fused_width
        self.lateral = nn.ModuleList(nn.Conv2d(width, fused, 1) for width in widths)
        self.fuse = nn.Conv2d(fused, fused, 3, padding=1, bias=False)
        self.fuse_norm = nn.BatchNorm2d(fused)
        self.head = nn.Conv2d(fused, 4 * len(CLASSES), 3, padding=1)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = named_generator(seed, "segmentation", "weights")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @property
    def stride(self) -> int:
        """Total stride of the encoder in pixels; inputs are padded to a multiple of it."""
        return int(2 ** (self.settings.depth + 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, descriptor).

        x: [B, 3, H, W], H and W at least 1, colours normalised as `normalise_colours` does.
        Returns: logits [B, 3, H, W] in the order of `CLASSES`, descriptor [B, descriptor_dim].
        """
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        features = F.relu(self.stem_norm(self.stem(padded)))
        half_size = features.shape[-2:]
        summed = self.lateral[0](features)
        for stage, lateral in zip(self.stages, list(self.lateral)[1:], strict=True):
            features = stage(F.max_pool2d(features, 2))
            raised = F.interpolate(lateral(features), size=half_size, mode="bilinear", align_corners=False)
            summed = summed + raised
        fused = F.relu(self.fuse_norm(self.fuse(F.relu(summed))))
        logits = F.pixel_shuffle(self.head(fused), 2)[..., :height, :width]
        return logits, features.mean(dim=(2, 3))

    def quantize(self, quantizer: Quantizer) -> None:
        """Put a quantizer on the weights; `train` then walks through its stages.

        Raises:
            ModelError: the weights are quantized already.
        """
        quantizer.attach(self)
        self.quantizer = quantizer


def save_fcn(model: ResidualFCN, folder: Path) -> None:
    """Write `model.safetensors` and `fcn.json` (settings, quantizer, smallest object) to a folder.

    A model is restored bit-exactly by `load_fcn`, also in the middle of INQ's schedule.

    Raises:
        RunError: the folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = {
        "format": _FORMAT,
        "classes": list(CLASSES),
        "settings": model.settings.model_dump(),
        "smallest_object": model.smallest_object,
        "quantizer": model.quantizer.settings.model_dump() if model.quantizer else None,
    }
    atomic_write_bytes(folder / "model.safetensors", save(state))
    atomic_write_text(folder / "fcn.json", json.dumps(description, indent=2) + "\n")


def load_fcn(folder: Path) -> ResidualFCN:
    """Return the model that `save_fcn` wrote, on the CPU and in evaluation mode.

    Raises:
        ModelError: a file is missing, damaged, or does not fit the other.
        ConfigError: `fcn.json` holds a setting that does not exist or is out of range.
    """
    source = folder / "fcn.json"
    try:
        description = json.loads(source.read_text(encoding="utf-8"))
        settings, quantizer = description["settings"], description["quantizer"]
        smallest, version = int(description["smallest_object"]), description["format"]
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror}); is this a saved FCN?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: not the description of a saved FCN ({error!r})") from error
    if version != _FORMAT:
        raise ModelError(f"{source}: format {version} is not supported; this version reads {_FORMAT}")
    model = ResidualFCN(parse_settings(settings, FCNSettings, str(source)))
    model.smallest_object = smallest
    if quantizer is not None:
        model.quantize(make_quantizer(quantizer_settings_from(quantizer, str(source))))
    weights = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # safetensors raises its own error type for damaged files
        reason = str(error).splitlines()[0]
        raise ModelError(f"{weights}: cannot be loaded into the model of {source.name} ({reason})") from error
    return model.eval()


def normalise_colours(pixels: Tensor) -> Tensor:
    """Give every channel of every image mean 0 and deviation 1, so that stain strength and lamp drop out.

    pixels: [B, 3, H, W], any scale; returns float32 of the same shape (zeros for an image of one colour).
    """
    values = pixels.float()
    mean = values.mean(dim=(2, 3), keepdim=True)
    deviation = values.std(dim=(2, 3), keepdim=True, unbiased=False)
    return (values - mean) / torch.clamp(deviation, min=1e-3 * 255)
