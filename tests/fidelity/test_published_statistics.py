"""Programming, drift and read noise of the measured presets follow their published formulas.

6.5 standard errors for each of 44 figures: a false alarm in 44 * 8e-11 = 4e-9.
"""

import math

import pytest

from tests.fidelity import published
from tests.fidelity.report import committed
from tests.fidelity.tables import same_up_to_rounding


def test_statistics_of_presets_follow_the_published_formulas() -> None:
    assert len(published.points()) == 44
    for point in published.points():
        assert abs(point.found - point.formula) < 6.5 * point.error, point


def test_formulas_at_points_worked_by_hand() -> None:
    assert published.polynomial(1.0, *published.PCM_US) == pytest.approx(1.05538)
    assert published.polynomial(1.0, *published.RRAM_US[1.0]) == pytest.approx(1.103)
    assert published.pcm_drift(1.0) == (0.049, 0.008)
    assert published.pcm_drift(0.0) == (0.1, 0.045)
    assert published.pcm_read(1.0, 20.0) == pytest.approx(0.0088 * math.sqrt(math.log(4e7)), rel=1e-3)
    assert published.folded(0.0, 1.0) == pytest.approx((math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)))


def test_the_page_holds_this_section() -> None:
    assert same_up_to_rounding(committed(published), published.section())
