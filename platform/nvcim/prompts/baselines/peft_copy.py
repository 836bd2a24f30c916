"""PEFT models around copies of a frozen LM: modules of their own over the very same weights."""

import copy
import warnings
from typing import Any

from peft import PeftConfig, get_peft_model


def sharing_copy(model: Any) -> Any:
    """Copy a model's modules and settings, not its weights and buffers; it costs no memory to speak of.

    Nothing may write into the copy's weights (as PEFT's merging would): they are the original's.
    """
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def peft_around_copy(model: Any, config: PeftConfig) -> Any:
    """A PEFT model in eval mode around a sharing copy, for PEFT injects modules and replaces methods.

    What is to be trained is drawn from torch's own random state.
    """
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for this by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(sharing_copy(model), config).eval()
