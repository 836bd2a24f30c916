"""The formulas that were published: the group's noise on weights, and the PCM and RRAM presets, written and aged here.

The presets' formulas stand here once more, as IBM's aihwkit has them (`inference/noise/pcm.py`, PCMLikeNoiseModel,
after Joshi et al., Nat. Commun. 11, 2473, 2020; `inference/noise/reram.py`, ReRamWan2022NoiseModel, after Wan et al.,
Nature 608, 504, 2022), and the group's as its code has them (github.com/MariusAnje/EvaXB, `noise.py`;
YifanQin-ND/NF_Training, `generate_noise.py`, of NeFT), so that nothing is read from the catalogue that is under test.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.randomness import named_generator
from tests.fidelity.tables import decimals, table

MIDDLE = (0.25, 0.75)
RATIO = {"RRAM1": 1, "FeFET2": 2, "FeFET3": 3, "RRAM4": 4, "FeFET6": 6}
"""Sigma of middle levels over that of edge levels, s; FeFET3 is not in the code."""


def group_sigma(weight: Tensor, device: str, unit: str, sigma: float) -> Tensor:
    """Standard deviation of the group's one draw per weight, for 8-bit weights: float64, like `weight`.

    max|w| sigma c B, c = s / q where a quarter < |w| / max|w| < three quarters, else 1 / q, q = sqrt(0.4 s^2 + 0.6);
    B over slices of m bits: sqrt(sum 2^(-2 i m)), i from 1 (EvaXB: sigma in level steps), or
    sqrt(sum 4^(i m)) / sum 2^(i m), i from 0 (NeFT: of the full range). There is no second cell of a pair in it.
    """
    s, bits = RATIO[device], 1 if device == "RRAM1" else 2
    slices = range(8 // bits)
    if unit == "level_step":
        collapsed = math.sqrt(sum(4.0 ** (-(i + 1) * bits) for i in slices))
    else:
        collapsed = math.sqrt(sum(4.0 ** (i * bits) for i in slices)) / sum(2.0 ** (i * bits) for i in slices)
    largest = weight.abs().max().double()
    share = weight.abs().double() / largest
    middle = (share > MIDDLE[0]) & (share < MIDDLE[1])
    return (
        torch.where(middle, float(s), 1.0).double()
        / math.sqrt(0.4 * s**2 + 0.6)
        * largest
        * sigma
        * collapsed
    )


LEVELS = (0, 16, 64, 128, 192, 255)
CELLS = 20_000
DAY = 86_400.0


def polynomial(relative: float, *coefficients: float) -> float:
    """c0 + c1 x + c2 x^2 + ..., not below zero."""
    return max(sum(c * relative**power for power, c in enumerate(coefficients)), 0.0)


PCM_US = (0.26348, 1.9650, -1.1731)


def pcm_drift(relative: float) -> tuple[float, float]:
    """Mean and sd of the drift exponent before the absolute value is taken; zero counts as 1e-7."""
    log = math.log(max(relative, 1e-7))
    return min(max(-0.0155 * log + 0.0244, 0.049), 0.1), min(max(-0.0125 * log - 0.0059, 0.008), 0.045)


def folded(mean: float, sd: float) -> tuple[float, float]:
    """Mean and sd of |N(mean, sd)| (Leone, Nelson, Nottingham, Technometrics 3, 543, 1961)."""
    reach = mean / sd
    found = sd * math.sqrt(2 / math.pi) * math.exp(-(reach**2) / 2) + mean * math.erf(reach / math.sqrt(2))
    return found, math.sqrt(mean**2 + sd**2 - found**2)


def pcm_read(relative: float, seconds: float) -> float:
    """sd of a read over the conductance, `seconds` after the write."""
    coefficient = min(0.0088 / max(math.pow(relative, 0.65), 1e-3), 0.2)
    return coefficient * math.sqrt(math.log((seconds + 250e-9) / (2 * 250e-9)))


RRAM_US = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    DAY: (0.701, 22.086, -50.773, 47.095, -16.458),
    2 * DAY: (0.782, 20.274, -43.507, 37.062, -11.934),
}


@dataclass(frozen=True)
class Point:
    """A quantity at a conductance: found on `CELLS` cells, and by its formula. error: standard error of the find."""

    quantity: str
    siemens: float
    found: float
    formula: float
    error: float


def written(device: str, sigma: float, levels: tuple[int, ...], **fields: object) -> Crossbar:
    """A crossbar of one cell a weight, [len(levels), CELLS] cells; the largest level stands for weight 1."""
    config = CrossbarConfig.model_validate(
        {"device": device, "sigma": sigma, "sigma_unit": "full_range", "scheme": "one_sided", "weight_bits": 9,
         "dac_bits": None, "adc_bits": None} | fields
    )  # fmt: skip
    shares = torch.tensor(levels, dtype=torch.float32)[:, None] / 255
    return Crossbar.program(shares.expand(-1, CELLS), config, named_generator(51, device, str(sigma)))


def _sd_error(sd: float) -> float:
    return sd / math.sqrt(2 * CELLS)


def _spreads(quantity: str, cells: Tensor, g_max_us: float, *polynomials: tuple[float, ...]) -> list[Point]:
    """Spreads at all levels; by formula the largest of the polynomials."""
    found = (cells.double().std(dim=1) * g_max_us).tolist()
    return [
        Point(
            quantity,
            level / 255 * g_max_us,
            sd,
            max(polynomial(level / 255, *coefficients) for coefficients in polynomials),
            _sd_error(sd),
        )
        for level, sd in zip(LEVELS, found, strict=True)
    ]


def pcm() -> list[Point]:
    """Programming spread, drift exponents, and 1/f noise right after the first read and a day later."""
    noisy = written("PCM_Joshi2020", 0.01, LEVELS)
    points = _spreads("PCM, sd of a write (uS)", noisy.read_weight(), 25.0, PCM_US)
    above = LEVELS[1:]  # a cell at zero has no exponent to see
    quiet = written("PCM_Joshi2020", 0.0, above)
    before = quiet.read_weight().double()
    quiet.age(DAY)
    exponents = -(quiet.read_weight().double() / before).log() / math.log((DAY + 20) / 20)
    for level, cells in zip(above, exponents, strict=True):
        mean, sd = folded(*pcm_drift(level / 255))
        g = level / 255 * 25
        points.append(Point("PCM, mean drift exponent", g, float(cells.mean()), mean, sd / math.sqrt(CELLS)))
        # The sd of a folded Gaussian's sd is at most that of a Gaussian's with the same sd: its tails are lighter.
        points.append(Point("PCM, sd of drift exponent", g, float(cells.std()), sd, _sd_error(sd)))
    for age, name in ((0.0, "20 s"), (DAY, "20 s + 1 day")):
        one = written("PCM_Joshi2020", 0.0, above, read={})
        one.age(age)
        held = one.read_weight().double()
        read = one.matmul(torch.eye(len(above))).double()
        for level, cells in zip(above, (read - held) / held, strict=True):
            sd, formula = float(cells.std()), pcm_read(level / 255, 20 + age)
            points.append(
                Point(f"PCM, sd of a read / G, {name}", level / 255 * 25, sd, formula, _sd_error(sd))
            )
    return points


def rram() -> list[Point]:
    """Spread around the target at the three times of the source."""
    crossbar, points, clock = written("RRAM_Wan2022", 0.01, LEVELS), [], 0.0
    for count, seconds in enumerate(RRAM_US, start=1):
        crossbar.age(seconds - 1.0 - clock)
        clock = seconds - 1.0
        name = "1 s" if seconds == 1.0 else f"{seconds / DAY:g} d"
        points += _spreads(
            f"RRAM, sd after {name} (uS)", crossbar.read_weight(), 40.0, *list(RRAM_US.values())[:count]
        )
    return points


@cache
def points() -> tuple[Point, ...]:
    """Both presets."""
    return (*pcm(), *rram())


def section() -> str:
    """The page's part."""
    rows = []
    for point in points():
        places = 3 if "uS" in point.quantity else 4
        cells = (decimals(value, places) for value in (point.found, point.formula))
        rows.append(
            [
                point.quantity,
                decimals(point.siemens, 1),
                *cells,
                decimals((point.found - point.formula) / point.error, 1),
            ]
        )
    return _TEXT.format(
        first=table(["quantity", "G (uS)", "found", "formula", "standard errors apart"], rows)
    )


_TEXT = """\
## 5. Published presets

`PCM_Joshi2020` and `RRAM_Wan2022`, one cell per weight, 20,000 cells per figure (seed 51), programmed, aged and read
as any crossbar is, against the formulas as IBM's aihwkit has them, written out anew in `tests/fidelity/published.py`:

- PCM, x = G / 25 uS: write 0.26348 + 1.9650 x - 1.1731 x^2 uS; drift exponent |N(m, s)|, m = -0.0155 ln x + 0.0244
  within 0.049 to 0.1, s = -0.0125 ln x - 0.0059 within 0.008 to 0.045; read min(0.0088 x^-0.65, 0.2) sqrt(ln((t +
  t_r) / 2 t_r)), t_r 250 ns, t from the write, first read at 20 s.
- RRAM, x = G / 40 uS: quartics for 1 s, 1 day and 2 days after the write. Where a later fit lies below an earlier one
  (around 10 uS after 2 days) the spread stays, and the formula given is the earlier one.

{first}

aihwkit cuts every conductance at zero and takes the 1/f coefficient at the conductance that was reached; here writes
are plain Gaussians and the coefficient is that of the target. The RRAM's spread between the three times is
interpolated and is not published.
"""
