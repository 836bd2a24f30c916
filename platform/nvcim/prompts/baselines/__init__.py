"""Prompt-tuning baselines, digital: zero-shot, vanilla, prefix tuning, P-tuning v2, DEPT, and LoRA as a reference."""

from nvcim.prompts.baselines.base import Baseline, Fitted, TrainingCost
from nvcim.prompts.baselines.registry import BASELINES, get_baseline
from nvcim.prompts.baselines.settings import BaselineSettings

__all__ = ["BASELINES", "Baseline", "BaselineSettings", "Fitted", "TrainingCost", "get_baseline"]
