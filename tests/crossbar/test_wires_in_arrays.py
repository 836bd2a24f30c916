"""Wires in programmed arrays: every tile of every plane is its cells' effective conductance, and reads follow it."""

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.wires import Wires
from nvcim.errors import ConfigError
from tests.closeness import close


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def wired(ohm: float | None = 5.0, **fields: object) -> CrossbarConfig:
    wires = (
        None if ohm is None else {"r_word_ohm": ohm, "r_bit_ohm": ohm, "r_driver_ohm": 50, "r_sense_ohm": 20}
    )
    base = {
        "device": "RRAM4",
        "sigma": 0.05,
        "g_min_us": 5,
        "g_max_us": 100,
        "rows": 8,
        "cols": 6,
        "wires": wires,
    }
    return CrossbarConfig.model_validate({**base, "dac_bits": None, "adc_bits": None, **fields})


def by_hand(crossbar: Crossbar) -> torch.Tensor:
    """The weight that the wires leave: [devices, in, out] in float64, cell by cell and tile by tile."""
    config = crossbar.config
    assert config.wires is not None
    mapping, cells = config.mapping(), crossbar.cells().conductance.double()
    siemens = ((5 + 95 * cells) * 1e-6).clamp(min=0)
    devices, _, inputs, outputs = siemens.shape
    total = torch.zeros(devices, inputs, outputs, dtype=torch.float64)
    for plane in range(siemens.shape[1]):
        sign = mapping.signs[plane // len(mapping.slices)]
        factor = mapping.slices[plane % len(mapping.slices)].factor
        for top in range(0, inputs, config.rows):
            for left in range(0, outputs, config.cols):
                rows, columns = slice(top, top + config.rows), slice(left, left + config.cols)
                tile = effective_conductance(siemens[:, plane, rows, columns], config.wires)
                total[:, rows, columns] += sign * factor * tile / 95e-6
    leak = 5 / 95 * sum(piece.factor for piece in mapping.slices) if len(mapping.signs) == 1 else 0.0
    scale = crossbar.state_dict()["scale"].double()
    return (total - leak - mapping.offset) * scale


@pytest.mark.parametrize("scheme", ["differential", "offset", "one_sided"])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
@pytest.mark.parametrize("shape", [(8, 6), (19, 14), (5, 3), (17, 6), (8, 7)])
def test_an_array_with_wires_is_what_its_cells_and_wires_make(
    shape: tuple[int, int], accumulate: str, scheme: str
) -> None:
    weight, x = normal(2, *shape).abs(), normal(2, 4, shape[0], seed=1)
    crossbar = Crossbar.program(weight, wired(scheme=scheme, accumulate=accumulate), generator())
    expected = by_hand(crossbar)
    bound = 2e-5 * float(expected.abs().max()) * (4 if scheme == "offset" else 1)
    assert torch.allclose(crossbar.read_weight().double(), expected, rtol=0, atol=bound)
    assert torch.allclose(crossbar.matmul(x).double(), x.double() @ expected, rtol=0, atol=20 * bound)


@pytest.mark.parametrize(
    "ends",
    [{"drive": "right"}, {"drive": "both"}, {"sense": "top"}, {"sense": "both", "drive": "both"}],
    ids=str,
)
def test_which_ends_are_connected_reaches_the_array(ends: dict[str, str]) -> None:
    weight = normal(19, 14)
    wires = Wires.model_validate({"r_word_ohm": 20, "r_bit_ohm": 20, **ends})
    crossbar = Crossbar.program(weight, wired(wires=wires), generator())
    assert torch.allclose(crossbar.read_weight().double(), by_hand(crossbar), atol=1e-4)
    plain = Crossbar.program(weight, wired(wires=Wires(r_word_ohm=20, r_bit_ohm=20)), generator())
    assert not torch.allclose(crossbar.read_weight(), plain.read_weight(), atol=1e-3)


def test_wires_without_resistance_change_nothing() -> None:
    weight = normal(19, 14)
    ideal = wired(wires=Wires(r_word_ohm=0, r_bit_ohm=0))
    one, two = (Crossbar.program(weight, config, generator()) for config in (ideal, wired(None)))
    assert close(one.read_weight(), two.read_weight(), 5e-6)


def test_thinner_wires_lose_more() -> None:
    # currents of one side: the more resistance, the less of each cell is seen
    weight = normal(19, 14).abs()
    seen = [
        float(
            Crossbar.program(weight, wired(ohm, scheme="one_sided", sigma=0.0), generator())
            .read_weight()
            .sum()
        )
        for ohm in (0.0, 1.0, 5.0, 25.0, 125.0)
    ]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.9 * seen[0]


def test_smaller_tiles_lose_less() -> None:
    weight, errors = normal(64, 32), []
    for size in (4, 8, 16, 32):
        config = wired(5.0, rows=size, cols=size, sigma=0.0)
        crossbar = Crossbar.program(weight, config, generator())
        errors.append(float((crossbar.read_weight() - weight).norm()))
    assert errors == sorted(errors)


def test_devices_and_tiles_do_not_touch_each_other() -> None:
    weight = normal(3, 19, 14)
    together = Crossbar.program(weight, wired(), [generator(seed) for seed in range(3)])
    for device in range(3):
        alone = Crossbar.program(weight[device], wired(), generator(device))
        assert close(alone.read_weight(), together.read_weight()[device])


def test_wires_act_on_aged_and_verified_cells_and_come_back_from_a_saved_state() -> None:
    config = wired(
        device="PCM_Joshi2020", g_min_us=None, g_max_us=None, programming={"method": "write_verify"}
    )
    crossbar = Crossbar.program(normal(19, 14), config, generator())
    fresh = crossbar.read_weight()
    crossbar.age(1e5)
    assert float((crossbar.read_weight() - fresh).abs().max()) > 0.01
    again = Crossbar.from_state(crossbar.state_dict(), config)
    assert torch.equal(again.read_weight(), crossbar.read_weight())
    again.rewrite(normal(19, 14, seed=2))
    crossbar.rewrite(normal(19, 14, seed=2))
    assert torch.equal(again.read_weight(), crossbar.read_weight())


def test_statistics_of_read_noise_behind_wires_come_near_reads_of_every_cell() -> None:
    # The variance scaled by what the wires leave is an approximation; at these wires it holds within its sampling error
    # of 6 / sqrt(800) plus 5 %.
    weight, x = normal(8, 3), normal(1, 8, seed=1).expand(800, 8)
    spread = [
        Crossbar.program(weight, wired(5.0, read_noise=0.05, read_mode=mode), generator())
        .matmul(x)
        .std(dim=0)
        for mode in ("output", "cell")
    ]
    assert bool(((spread[0] / spread[1] - 1).abs() < 6 / 800**0.5 + 0.05).all())


@pytest.mark.parametrize("device", ["FeFET2", "RRAM1"])
def test_wires_need_siemens(device: str) -> None:
    config = wired(device=device, g_min_us=None, g_max_us=None)
    with pytest.raises(ConfigError, match=f"device {device}: g_min and g_max are unknown"):
        Crossbar.program(normal(8, 6), config, generator())
    Crossbar.program(normal(8, 6), wired(device=device), generator())
