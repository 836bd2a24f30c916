"""Torch layers on crossbars, and the conversion of whole models."""

from nvcim.analog.attention import AnalogProducts, SplitAttention
from nvcim.analog.attention_models import with_analog_attention
from nvcim.analog.calibrate import calibrate
from nvcim.analog.convert import analogize, analogize_for_training, deploy, to_digital
from nvcim.analog.describe import LayerRow, as_table, describe
from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear
from nvcim.analog.straight_through import read_straight_through
from nvcim.analog.training import TrainableAnalogConv2d, TrainableAnalogLinear, TrainableLayer, reprogram

__all__ = [
    "AnalogConv2d",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogProducts",
    "LayerRow",
    "SplitAttention",
    "TrainableAnalogConv2d",
    "TrainableAnalogLinear",
    "TrainableLayer",
    "analogize",
    "analogize_for_training",
    "as_table",
    "calibrate",
    "deploy",
    "describe",
    "read_straight_through",
    "reprogram",
    "to_digital",
    "with_analog_attention",
]
