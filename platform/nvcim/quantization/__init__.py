"""Quantizers of weights: INQ, TWN, TTQ, DoReFa and uniform levels; files with weights packed to their bits."""

from nvcim.quantization.base import Quantizer, QuantizerSettings, Stage, WeightMemory
from nvcim.quantization.dorefa import DoReFa, DoReFaSettings
from nvcim.quantization.inference import inference_copy
from nvcim.quantization.inq import INQ, INQSettings
from nvcim.quantization.packed_files import (
    LayerSize,
    PackedModel,
    disk_ratio,
    load_packed,
    pack_model,
    packed_sizes,
    read_packed,
    save_packed,
)
from nvcim.quantization.registry import (
    AnyQuantizerSettings,
    make_quantizer,
    quantizer_named,
    quantizer_settings_from,
)
from nvcim.quantization.ttq import TTQ, TTQSettings
from nvcim.quantization.twn import TWN, TWNSettings
from nvcim.quantization.uniform import Uniform, UniformSettings

__all__ = [
    "INQ",
    "TTQ",
    "TWN",
    "AnyQuantizerSettings",
    "DoReFa",
    "DoReFaSettings",
    "INQSettings",
    "LayerSize",
    "PackedModel",
    "Quantizer",
    "QuantizerSettings",
    "Stage",
    "TTQSettings",
    "TWNSettings",
    "Uniform",
    "UniformSettings",
    "WeightMemory",
    "disk_ratio",
    "inference_copy",
    "load_packed",
    "make_quantizer",
    "pack_model",
    "packed_sizes",
    "quantizer_named",
    "quantizer_settings_from",
    "read_packed",
    "save_packed",
]
