"""What the nodes of a run share, in its folder: `model.json` names the LM and the prompt settings.

The token autoencoder lies beside it in `autoencoder.safetensors`; the LM itself is only named.
"""

import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from nvcim.config import parse_settings
from nvcim.errors import ModelError, RunError
from nvcim.prompts.autoencoder import TokenAutoencoder
from nvcim.prompts.language_model import EMBEDDED, LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.storage import atomic_write_text

MODEL_FILE = "model.json"
AUTOENCODER_FILE = "autoencoder.safetensors"


def model_name(name: str) -> str:
    """Return a local model's name as the place of its folder; 'embedded' and hub names as they are."""
    # isdir, unlike Path's, takes names that no file system takes.
    local = name != EMBEDDED and os.path.isdir(name)  # noqa: PTH112
    return str(Path(name).resolve()) if local else name


ModelName = Annotated[str, AfterValidator(model_name)]
"""A language model in settings: 'embedded', a hub name, or a folder, which is absolute from then on."""


def save_personaliser(personaliser: Personaliser, folder: Path) -> None:
    """Write `model.json` and `autoencoder.safetensors` to a run folder; the LM's local path becomes absolute."""
    folder.mkdir(parents=True, exist_ok=True)
    personaliser.autoencoder.save(folder / AUTOENCODER_FILE)
    content = {
        "language_model": model_name(personaliser.lm.name),
        "prompts": personaliser.settings.model_dump(mode="json"),
    }
    atomic_write_text(folder / MODEL_FILE, json.dumps(content, indent=2) + "\n")


def load_personaliser(folder: Path, device: str = "auto") -> Personaliser:
    """Read what `save_personaliser` wrote, with the LM loaded to `device`.

    Raises:
        RunError: `model.json` is missing or not what `save_personaliser` writes.
        ModelError: the LM or the autoencoder cannot be loaded, or they do not fit each other.
        ConfigError: an unknown field in the prompt settings, or an unknown device.
    """
    file = folder / MODEL_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        name, prompts = str(content["language_model"]), dict(content["prompts"])
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: expected an object with 'language_model' and 'prompts'") from error
    settings = parse_settings(prompts, PromptSettings, str(file))
    lm = LanguageModel.load(name, device)
    autoencoder = TokenAutoencoder.load(folder / AUTOENCODER_FILE)
    if autoencoder.decoder.out_features != lm.hidden:
        width = autoencoder.decoder.out_features
        raise ModelError(
            f"{file}: model '{name}' is {lm.hidden} wide, but the run's prompts are {width} wide"
        )
    return Personaliser(lm, autoencoder.to(lm.device), settings)
