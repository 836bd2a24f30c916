"""Quantizers of weights: INQ (powers of two, frozen step by step) and symmetric uniform levels."""

from nvcim.quantization.base import Quantizer, QuantizerSettings, Stage, WeightMemory
from nvcim.quantization.inq import INQ, INQSettings
from nvcim.quantization.registry import make_quantizer, quantizer_named, quantizer_settings_from
from nvcim.quantization.uniform import Uniform, UniformSettings

__all__ = [
    "INQ",
    "INQSettings",
    "Quantizer",
    "QuantizerSettings",
    "Stage",
    "Uniform",
    "UniformSettings",
    "WeightMemory",
    "make_quantizer",
    "quantizer_named",
    "quantizer_settings_from",
]
