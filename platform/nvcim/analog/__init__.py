"""Torch layers on crossbars, and the conversion of whole models."""

from nvcim.analog.attention import AnalogProducts, SplitAttention
from nvcim.analog.convert import analogize, analogize_for_training, deploy, to_digital
from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear
from nvcim.analog.straight_through import read_straight_through
from nvcim.analog.training import TrainableAnalogConv2d, TrainableAnalogLinear, TrainableLayer, reprogram

__all__ = [
    "AnalogConv2d",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogProducts",
    "SplitAttention",
    "TrainableAnalogConv2d",
    "TrainableAnalogLinear",
    "TrainableLayer",
    "analogize",
    "analogize_for_training",
    "deploy",
    "read_straight_through",
    "reprogram",
    "to_digital",
]
