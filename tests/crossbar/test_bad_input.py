"""What a crossbar makes of odd input: the right answer, or a refusal that names the field and what is allowed."""

import math

import pytest
import torch

from nvcim.config import parse_settings
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.converters import drive
from nvcim.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


SELECTIVE = CrossbarConfig.model_validate({"programming": {"method": "selective"}})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"input_coding": "bit_serial", "dac_bits": None}, "bit_serial needs dac_bits"),
        ({"adc_errors": {"gain": 0.01}, "adc_bits": None}, "adc_errors needs adc_bits"),
        ({"adc_errors": {"dnl_lsb": 0.5}}, r"adc_errors\.dnl_lsb.*less than 0.5"),
        (
            {"adc_errors": {"inl": 0.5}},
            r"unknown field 'adc_errors\.inl'.*allowed: dnl_lsb, gain, offset_lsb",
        ),
        ({"slice_bits": []}, "slice_bits.*at least 1"),
        ({"slice_bits": [0, 7]}, "slice_bits must be at least 1 each"),
        ({"slice_bits": [1] * 7, "cols": 4}, "slice_bits has 7 slices, more than the 4 columns"),
        ({"read": {"relative": 0.1}}, "read.relative and read.full_range are set by read_noise"),
        ({"read": {"voltage_v": 0.2}}, "both voltage_v and bandwidth_hz"),
        ({"read_mode": "cell", "input_coding": "bit_serial"}, "read_mode cell.*bit_serial: output"),
        (
            {"programming": {"method": "verify"}},
            r"programming\.method.*'open_loop', 'write_verify' or 'selective'",
        ),
        ({"programming": {"max_pulses": 0}}, r"programming\.max_pulses.*greater than or equal to 1"),
        ({"programming": {"share": 0}}, r"programming\.share.*greater than 0"),
        (
            {"programming": {"tolerances": 1}},
            r"unknown field 'programming\.tolerances'.*did you mean 'tolerance'",
        ),
        ({"wires": {"r_word_ohm": -1, "r_bit_ohm": 1}}, r"wires\.r_word_ohm.*greater than or equal to 0"),
        ({"wires": {"ohm": 1}}, "wires"),
        ({"adc_scaling": "max"}, "adc_scaling.*'norm', 'full' or 'calibrated'"),
        ({"scheme": "signed"}, "scheme.*'differential', 'offset' or 'one_sided'"),
        ({"sigma": math.nan}, "sigma.*greater than or equal to 0|sigma.*finite"),
        ({"dac_full_scale": 0.0}, "dac_full_scale.*greater than 0"),
        ({"weight_bits": 17}, "weight_bits.*less than or equal to 16"),
        ({"temperature_k": -1}, "temperature_k.*greater than 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_settings(fields, CrossbarConfig, "demo.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"slice_bits": [3, 4]}, "slice_bits asks for 4 bits in one cell; device FeFET2 has 4 levels"),
        ({"slice_bits": [2, 2, 2]}, r"slice_bits \[2, 2, 2\] hold 6 bits.*allowed: 7 to 8"),
        ({"slice_bits": [2, 2, 2, 1], "scheme": "offset"}, "hold 7 bits.*offset scheme have 8"),
        ({"g_min_us": 5, "g_max_us": 4}, "g_min_us must be below g_max_us.*5 and 4"),
        ({"g_min_us": 5, "g_max_us": 5}, "g_min_us must be below g_max_us"),
        ({"g_min_us": 30, "device": "PCM_Joshi2020"}, "g_min_us must be below g_max_us.*30 and 25"),
        ({"g_min_us": 5}, "g_max_us is not known"),
        ({"g_max_us": 5}, "g_min_us is not known"),
        ({"stuck_on": 0.6, "stuck_off": 0.6}, "stuck_on and stuck_off must not add up to more than 1"),
        ({"temperature_k": 350}, "temperature is unknown; give its coefficient_per_k"),
        ({"wires": {"r_word_ohm": 1, "r_bit_ohm": 1}}, "g_min and g_max are unknown"),
        ({"read": {"voltage_v": 0.2, "bandwidth_hz": 1e6}}, "g_min and g_max are unknown"),
    ],
    ids=str,
)
def test_settings_that_the_device_cannot_serve_are_refused_at_programming(
    fields: dict[str, object], complaint: str
) -> None:
    config = CrossbarConfig.model_validate(fields)
    with pytest.raises(ConfigError, match=complaint) as caught:
        Crossbar.program(normal(8, 3), config, generator())
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_spoilt_weight_among_many_devices_is_found(value: float) -> None:
    weight = normal(3, 2, 5, 4)
    weight[2, 1, 4, 3] = value
    with pytest.raises(ConfigError, match="NaN or infinity"):
        Crossbar.program(weight, CrossbarConfig(), generator())
    crossbar = Crossbar.program(normal(3, 2, 5, 4), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match="NaN or infinity"):
        crossbar.rewrite(weight)


def test_a_float64_weight_beyond_float32_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"infinity .as float32."):
        Crossbar.program(normal(5, 4).double() * 1e39, CrossbarConfig(), generator())


def test_a_rewrite_takes_the_crossbars_own_shape_only() -> None:
    crossbar = Crossbar.program(normal(2, 5, 4), CrossbarConfig(), generator())
    for shape in ((5, 4), (2, 4, 5), (1, 2, 5, 4)):
        with pytest.raises(ConfigError, match="these cells take"):
            crossbar.rewrite(normal(*shape))


@pytest.mark.parametrize(
    ("importance", "complaint"),
    [
        (normal(5, 4), "importance has shape"),
        (normal(2, 4, 5), "importance has shape"),
        (torch.full((2, 5, 4), math.nan), "importance holds NaN"),
    ],
)
def test_an_importance_that_does_not_fit_is_refused(importance: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Crossbar.program(normal(2, 5, 4), SELECTIVE, generator(), importance)


def test_importance_without_selective_writes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"importance is for programming.method: selective"):
        Crossbar.program(normal(5, 4), CrossbarConfig(), generator(), normal(5, 4))


def test_weights_and_inputs_need_not_be_contiguous() -> None:
    weight, x = normal(37, 21), normal(5, 37, seed=1)
    config = CrossbarConfig(read_noise=0.05, rows=16)
    expected = Crossbar.program(weight, config, generator())
    y = expected.matmul(x)
    for strange in (weight.T.contiguous().T, torch.stack([weight, weight], dim=-1)[..., 0]):
        assert not strange.is_contiguous()
        crossbar = Crossbar.program(strange, config, generator())
        assert torch.equal(crossbar.read_weight(), expected.read_weight())
        assert torch.equal(crossbar.matmul(x.T.contiguous().T), y)
    many = normal(2, 5, 37, seed=4).transpose(
        0, 1
    )  # [batch 5, devices 2, in] -> devices first, not contiguous
    pair = Crossbar.program(weight.expand(5, 37, 21), config, generator())
    again = Crossbar.program(weight.repeat(5, 1, 1), config, generator())
    assert torch.equal(pair.read_weight(), again.read_weight())
    assert torch.equal(pair.matmul(many), again.matmul(many.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    weight, x = normal(37, 21).to(dtype), normal(5, 37, seed=1).to(dtype)
    found = Crossbar.program(weight, CrossbarConfig(), generator())
    expected = Crossbar.program(weight.float(), CrossbarConfig(), generator())
    assert torch.equal(found.read_weight(), expected.read_weight())
    y = found.matmul(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected.matmul(x.float()).to(dtype))


def test_weights_that_require_gradients_can_be_written() -> None:
    weight = normal(5, 4).requires_grad_()
    crossbar = Crossbar.program(weight, CrossbarConfig(), generator())
    assert not crossbar.read_weight().requires_grad
    assert not crossbar.matmul(normal(2, 5).requires_grad_()).requires_grad


@pytest.mark.parametrize("scheme", ["differential", "offset", "one_sided"])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
@pytest.mark.parametrize("adc_scaling", ["norm", "full", "calibrated"])
def test_a_weight_range_of_zero_reads_zero(scheme: str, accumulate: str, adc_scaling: str) -> None:
    config = CrossbarConfig.model_validate(
        {
            "scheme": scheme,
            "accumulate": accumulate,
            "adc_scaling": adc_scaling,
            "read_noise": 0.05,
            "sigma": 0.1,
        }
    )
    crossbar = Crossbar.program(torch.zeros(9, 4), config, generator())
    if adc_scaling == "calibrated":
        crossbar.calibrate(normal(6, 9))
    assert not crossbar.read_weight().any()
    assert not crossbar.matmul(normal(3, 9, seed=1)).any()


def test_a_column_of_zeros_stays_zero_with_a_scale_of_its_own() -> None:
    weight = normal(9, 4)
    weight[:, 2] = 0
    config = CrossbarConfig(scale_per="column", adc_range_per="column")
    y = Crossbar.program(weight, config, generator()).matmul(normal(3, 9, seed=1))
    assert not y[:, 2].any()
    assert bool(torch.isfinite(y).all())
    assert bool(y[:, [0, 1, 3]].any())


@pytest.mark.parametrize("coding", ["analog", "bit_serial"])
@pytest.mark.parametrize("full_scale", [None, 2.0])
@pytest.mark.parametrize("scheme", ["differential", "offset"])
def test_nan_in_an_input_spoils_its_own_vector_in_every_coding(
    scheme: str, full_scale: float | None, coding: str
) -> None:
    config = CrossbarConfig.model_validate(
        {"input_coding": coding, "dac_full_scale": full_scale, "scheme": scheme, "rows": 8}
    )
    x = normal(4, 20, seed=1)
    expected = Crossbar.program(normal(20, 6), config, generator()).matmul(x)
    x[2, 5] = math.nan
    crossbar = Crossbar.program(normal(20, 6), config, generator())
    y = crossbar.matmul(x)
    assert bool(y[2].isnan().all())
    assert torch.equal(y[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("coding", ["analog", "bit_serial"])
def test_an_infinite_input_saturates_a_fixed_dac_and_is_counted(coding: str) -> None:
    config = CrossbarConfig.model_validate({"input_coding": coding, "dac_full_scale": 2.0, "adc_bits": None})
    crossbar = Crossbar.program(normal(20, 6), config, generator())
    x = normal(1, 20, seed=1).clamp(-1, 1)
    x[0, 3], x[0, 4] = math.inf, -math.inf
    held = x.clamp(-2, 2)
    assert torch.equal(crossbar.matmul(x), crossbar.matmul(held))
    assert crossbar.counts.dac_clipped == 2


def test_reads_of_no_vectors_are_empty() -> None:
    for coding in ("analog", "bit_serial"):
        config = CrossbarConfig.model_validate({"input_coding": coding, "read_noise": 0.1})
        crossbar = Crossbar.program(normal(2, 20, 6), config, generator())
        assert crossbar.matmul(torch.zeros(0, 20)).shape == (2, 0, 6)
        assert crossbar.matmul(torch.zeros(2, 0, 20)).shape == (2, 0, 6)
        assert crossbar.counts.adc_reads == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"read_noise": 0.1}, {"read_noise_floor": 0.1}),
        ({"scheme": "one_sided"}, {"scheme": "differential"}),
        (
            {"accumulate": "digital", "device": "Ideal2", "weight_bits": 8},
            {"accumulate": "digital", "device": "Ideal2", "weight_bits": 9},
        ),
        ({"accumulate": "digital", "device": "Ideal2"}, {"accumulate": "digital", "device": "Ideal4"}),
    ],
    ids=str,
)
def test_a_stack_of_crossbars_that_are_read_otherwise_is_refused(
    first: dict[str, object], second: dict[str, object]
) -> None:
    members = [
        Crossbar.program(normal(8, 3).abs(), CrossbarConfig.model_validate(fields), generator())
        for fields in (first, second)
    ]
    with pytest.raises(ConfigError, match="crossbars of a stack must be read alike"):
        Crossbar.stack(members)


@pytest.mark.parametrize("gated_first", [False, True])
def test_a_stack_of_arrays_that_are_solved_and_multiplied_is_refused(gated_first: bool) -> None:
    members = [
        Crossbar.program(normal(8, 3), CrossbarConfig(gated_rows=gated), generator())
        for gated in (gated_first, not gated_first)
    ]
    with pytest.raises(ConfigError, match="must share shape and periphery"):
        Crossbar.stack(members)


def test_a_stack_of_which_one_member_waits_for_its_calibration_is_refused() -> None:
    config = CrossbarConfig(adc_scaling="calibrated")
    members = [Crossbar.program(normal(8, 3), config, generator(seed)) for seed in range(2)]
    members[1].calibrate(normal(9, 8))
    with pytest.raises(ConfigError, match="read alike"):
        Crossbar.stack(members)


def test_a_stack_does_not_know_cells_wear_state_or_chips() -> None:
    errors = {"gain": 0.01}
    config = CrossbarConfig.model_validate({"adc_scaling": "calibrated", "adc_errors": errors})
    member = Crossbar.program(normal(8, 3), config, generator())
    member.calibrate(normal(9, 8))
    stack = Crossbar.stack([member, member])
    for ask in (
        stack.cells,
        stack.wear,
        stack.state_dict,
        lambda: stack.age(1.0),
        lambda: stack.rewrite(normal(2, 8, 3)),
    ):
        with pytest.raises(ConfigError, match="members"):
            ask()
    with pytest.raises(ConfigError, match="calibrate the members"):
        stack.calibrate(normal(9, 8))


@pytest.mark.parametrize(
    "other",
    [
        {"adc_bits": None},
        {"rows": 2},
        {"accumulate": "digital"},
        {"scheme": "offset"},
        {"read_noise_floor": 0.1},
        {"programming": {"method": "write_verify"}},
    ],
    ids=str,
)
def test_state_is_refused_by_a_config_that_reads_otherwise(other: dict[str, object]) -> None:
    state = Crossbar.program(normal(8, 3), CrossbarConfig(), generator()).state_dict()
    with pytest.raises(ConfigError, match="crossbar state"):
        Crossbar.from_state(state, CrossbarConfig.model_validate(other))


def test_state_without_its_ranges_is_refused_unless_they_are_to_be_calibrated() -> None:
    state = Crossbar.program(normal(8, 3), CrossbarConfig(), generator()).state_dict()
    del state["reach"]
    with pytest.raises(ConfigError, match=r"expected .*reach"):
        Crossbar.from_state(state, CrossbarConfig())
    assert Crossbar.from_state(state, CrossbarConfig(adc_scaling="calibrated")).shape == (8, 3)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_torchs_default_type_changes_nothing(kind: torch.dtype) -> None:
    config = CrossbarConfig(read_noise=0.05, rows=8, accumulate="digital", input_coding="bit_serial")
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(20, 9, generator=generator), torch.randn(4, 20, generator=generator)
    expected = Crossbar.program(weight, config, torch.Generator().manual_seed(1)).matmul(x)
    torch.set_default_dtype(kind)
    try:
        found = Crossbar.program(weight, config, torch.Generator().manual_seed(1)).matmul(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_tile_far_larger_than_the_matrix_is_one_tile() -> None:
    weight, x = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)), torch.ones(3, 20)
    small, huge = (
        Crossbar.program(weight, CrossbarConfig(rows=rows, cols=rows), torch.Generator().manual_seed(1))
        for rows in (20, 10**12)
    )
    assert torch.equal(small.matmul(x), huge.matmul(x))


def test_driven_vectors_that_do_not_fit_are_refused() -> None:
    crossbar = Crossbar.program(torch.ones(20, 9), CrossbarConfig(rows=64), torch.Generator().manual_seed(1))
    for x in (torch.ones(1, 3, 19), torch.ones(2, 3, 20), torch.ones(1, 3, 20, dtype=torch.float64)):
        with pytest.raises(
            ConfigError, match=r"this crossbar takes \(1 or 1, vectors, 20\), float32, in 1 row tiles"
        ):
            crossbar.read_driven(drive(x, crossbar.config))
