"""The baselines by name."""

from nvcim.errors import ConfigError
from nvcim.prompts.baselines.base import Baseline
from nvcim.prompts.baselines.dept import Dept
from nvcim.prompts.baselines.lora import Lora
from nvcim.prompts.baselines.p_tuning_v2 import PTuningV2
from nvcim.prompts.baselines.prefix_tuning import PrefixTuning
from nvcim.prompts.baselines.vanilla import VanillaPromptTuning
from nvcim.prompts.baselines.zero_shot import ZeroShot

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (ZeroShot(), VanillaPromptTuning(), PrefixTuning(), PTuningV2(), Dept(), Lora())
}


def get_baseline(name: str) -> Baseline:
    """The baseline of that name.

    Raises:
        ConfigError: no such baseline; the names that exist are listed.
    """
    if name not in BASELINES:
        raise ConfigError(f"no prompt-tuning baseline '{name}'; allowed: {', '.join(BASELINES)}")
    return BASELINES[name]
