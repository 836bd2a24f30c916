"""Both read modes agree where they should; the limits of drawing per output are as large as the page says.

Bounds. A sample deviation of n Gaussians scatters by 1 / sqrt(2 n), the ratio of two by 1 / sqrt(n). 6 of these (6.5
where there are hundreds of figures) are a false alarm in less than 1e-7 for all figures of a test.
"""

import math

import pytest

from tests.fidelity import read_noise
from tests.fidelity.read_noise import CHIPS, OUTPUTS
from tests.fidelity.report import committed
from tests.fidelity.tables import same_up_to_rounding

RATIO = 1 / math.sqrt(CHIPS * OUTPUTS)


def test_statistics_per_output_are_those_of_reading_every_cell() -> None:
    for pair in read_noise.agreements():
        assert abs(pair.spread - 1) < 6 * RATIO
        assert pair.shift < 6.5


def test_statistics_of_cells_cut_at_zero_siemens() -> None:
    samples = CHIPS * 40
    for found in read_noise.clippings():
        sigma = found.spread_expected * found.floor
        assert abs(found.mean - found.mean_expected) < 6 * sigma / math.sqrt(samples)
        # The cut Gaussian has a kurtosis below 6, so its sample deviation scatters by at most sqrt(5 / 4 n).
        assert abs(found.spread / found.spread_expected - 1) < 6 * math.sqrt(1.25 / samples)


def test_statistics_of_relative_noise_leave_the_gaussian_only_beyond_a_third() -> None:
    for onset in read_noise.onsets():
        assert abs(onset.spread / onset.expected - 1) < 6 * RATIO
        assert onset.sigma > 0.3 or onset.expected > 0.999


def test_statistics_with_wires_follow_the_exact_derivative() -> None:
    # 250 chips and 16 outputs, which share the wires: counted as 4 independent ones.
    for found in read_noise.wire_noises():
        if found.sampled is not None:
            assert abs(found.sampled - 1) < 6 / math.sqrt(2 * 250 * 4)


def test_the_rule_for_wires_errs_towards_more_noise_and_within_what_the_page_says() -> None:
    for found in read_noise.wire_noises():
        assert 1 <= found.typical < found.ignored
        assert found.worst < (1.08 if found.ohm <= 1 else 1.3)
        if found.inputs == "both signs":
            assert found.typical - 1 < (found.ignored - 1) / 4


def test_averaging_reads_helps_as_for_white_noise() -> None:
    for found in read_noise.averagings():
        samples = 256 * 64 // found.reads * 64
        assert found.spread * math.sqrt(found.reads) == pytest.approx(1, abs=6 / math.sqrt(2 * samples))


def test_the_page_holds_this_section() -> None:
    assert same_up_to_rounding(committed(read_noise), read_noise.section())
