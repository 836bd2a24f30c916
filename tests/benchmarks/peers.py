"""Other crossbar simulators, measured in the same way where they can be imported: one small adaptor each.

Each runs in a process of its own, because some bring a second OpenMP runtime that slows torch down. An adaptor
takes a torch layer and returns what to call instead of it. Converters have 8 bits and tiles are 128 x 128 as far as
the simulator lets one say so; the models differ, so the ratios compare cost, not fidelity.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.cases import GEMM, Case, Setup, compared, generator, operands, product
from tests.benchmarks.timing import Result

STEPS = 2**8 - 2  # of an 8-bit converter, as aihwkit and Lightning count them
NOISE = 0.02  # of an output, in the same units

Layer = Callable[[Tensor], object]
Adaptor = Callable[[nn.Module, int, float], Layer]  # layer, tile size, output noise


def aihwkit_torch(layer: nn.Module, tile: int, noise: float) -> Layer:
    """aihwkit's torch tile, with noise at its outputs (it refuses noise of the weights). Run with the 1.1.0 wheel."""
    return _aihwkit(layer, "TorchInferenceRPUConfig", tile, out_noise=noise)


def aihwkit_cpp(layer: nn.Module, tile: int, noise: float) -> Layer:
    """aihwkit's C++ tile, with read noise of the weights. Never run to the end: the 1.1.0 wheel's tile refuses the
    tensors of torch 2.13 ("weights must be a CPU tensor"), so it needs a build from source.
    """
    return _aihwkit(layer, "InferenceRPUConfig", tile, w_noise=noise)


def aihwkit_cpp_ir_drop(layer: nn.Module, tile: int, noise: float) -> Layer:
    """aihwkit's C++ tile with its approximate IR drop of the bit lines. Never run to the end, as `aihwkit_cpp`."""
    return _aihwkit(layer, "InferenceRPUConfig", tile, w_noise=noise, ir_drop=1.0)


def _aihwkit(layer: nn.Module, config_name: str, tile: int, **forward: float) -> Layer:
    config = getattr(import_module("aihwkit.simulator.configs"), config_name)()
    config.mapping.max_input_size = config.mapping.max_output_size = tile
    config.forward.inp_res = config.forward.out_res = 1 / STEPS
    for name, value in forward.items():
        setattr(config.forward, name, value)
    if forward.get("w_noise"):
        kinds = import_module("aihwkit.simulator.parameters.enums").WeightNoiseType
        config.forward.w_noise_type = kinds.ADDITIVE_CONSTANT
    analog = import_module("aihwkit.nn")
    kind = analog.AnalogLinear if isinstance(layer, nn.Linear) else analog.AnalogConv2d
    made: Layer = kind.from_digital(layer, config).eval()
    return made


def lightning(layer: nn.Module, tile: int, noise: float) -> Layer:
    """aihwkit-lightning, in training mode where there is noise (its evaluation draws none). Run with 2.1.0 on a CPU."""
    config = import_module("aihwkit_lightning.simulator.configs").TorchInferenceRPUConfig()
    config.mapping.max_input_size = tile
    config.forward.inp_res = config.forward.out_res = STEPS
    config.forward.out_bound, config.forward.out_noise = 12.0, noise
    config.pre_post.input_range.enable = config.pre_post.input_range.dynamic = True
    convert = import_module("aihwkit_lightning.nn.conversion").convert_to_analog
    made: Layer = convert(nn.Sequential(layer), config).train(noise > 0)
    return made


def crosssim(layer: nn.Module, tile: int, noise: float) -> Layer:
    """CrossSim's AnalogCore without read noise (with it, a product takes seconds). Never run here: written after
    CrossSim 3.1's own example of its parameters, since it could not be installed.
    """
    simulator: Any = import_module("simulator")
    if not isinstance(layer, nn.Linear):
        raise NotImplementedError("the adaptor covers matrix products only")
    if noise:
        raise NotImplementedError("read noise draws every cell for every vector: seconds a product")
    params = simulator.CrossSimParameters()
    params.core.style, params.core.weight_bits = "BALANCED", 8
    params.core.rows_max = params.core.cols_max = tile
    params.xbar.device.cell_bits = 7
    for converter, model in (
        (params.xbar.dac.mvm, "SignMagnitudeDAC"),
        (params.xbar.adc.mvm, "SignMagnitudeADC"),
    ):
        converter.bits, converter.model, converter.signed = 8, model, True
    params.xbar.adc.mvm.adc_range_option = "MAX"
    params.core.mapping.inputs.mvm.min, params.core.mapping.inputs.mvm.max = -5.0, 5.0
    core = simulator.AnalogCore(layer.weight.detach().numpy(), params=params)
    return lambda x: core.matmat(x.T.numpy())


def _case(name: str, module: str, kind: str, adaptor: Adaptor, noise: float) -> Case:
    """The adaptor against torch, or a line that says why not."""

    def pair(setup: Setup) -> tuple[Callable[[], object], Callable[[], object]]:
        if kind == "conv":
            return _convolution(setup, adaptor)
        weight, x = operands(setup.sizes, "cpu")
        inputs, outputs = weight.shape
        digital = nn.Linear(inputs, outputs, bias=False)
        digital.weight.data.copy_(weight.T)
        layer = adaptor(digital, setup.sizes.tile, noise)
        return lambda: layer(x), product(setup)

    unit = "x torch.conv2d" if kind == "conv" else GEMM

    @torch.no_grad()
    def measure(own: Case, setup: Setup) -> list[Result]:
        try:
            return compared(pair, unit, None)(own, setup)
        except Exception as error:  # whatever a peer raises is the reason to report
            lines = str(error).splitlines()
            return [own.skipped(setup, f"{type(error).__name__}: {lines[0] if lines else ''}")]

    titles = {"read": "read", "noise": "read with noise", "conv": "conv 3x3", "ir_drop": "read, IR drop"}
    case = Case(f"peer.{name}.{kind}", f"{name}: {titles[kind]}", measure, {}, gpu=False)
    return case if find_spec(module) else _absent(case, module)


def _absent(case: Case, module: str) -> Case:
    def measure(own: Case, setup: Setup) -> list[Result]:
        return [own.skipped(setup, f"module {module} is not installed")]

    return Case(case.name, case.title, measure, gpu=False)


def _convolution(setup: Setup, adaptor: Adaptor) -> tuple[Callable[[], object], Callable[[], object]]:
    sizes = setup.sizes
    conv = nn.Conv2d(sizes.channels, sizes.channels, 3, padding=1, bias=False)
    x = torch.randn(sizes.images, sizes.channels, sizes.image, sizes.image, generator=generator(3))
    layer, weight = adaptor(conv, sizes.tile, 0.0), conv.weight.detach()
    return lambda: layer(x), lambda: torch.conv2d(x, weight, padding=1)


def _kinds(name: str, module: str, adaptor: Adaptor) -> tuple[Case, ...]:
    kinds = (("read", 0.0), ("noise", NOISE), ("conv", 0.0))
    return tuple(_case(name, module, kind, adaptor, noise) for kind, noise in kinds)


CASES = (
    *_kinds("aihwkit_torch", "aihwkit", aihwkit_torch),
    *_kinds("aihwkit_cpp", "aihwkit", aihwkit_cpp),
    _case("aihwkit_cpp", "aihwkit", "ir_drop", aihwkit_cpp_ir_drop, 0.0),
    *_kinds("lightning", "aihwkit_lightning", lightning),
    *_kinds("crosssim", "simulator", crosssim),
)
