"""Torch layers on crossbars, and the conversion of whole models."""

from nvcim.analog.convert import analogize
from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear

__all__ = ["AnalogConv2d", "AnalogLayer", "AnalogLinear", "analogize"]
