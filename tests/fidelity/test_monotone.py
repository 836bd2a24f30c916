"""More bits, less noise, thicker wires: alone each helps, among other flaws none hurts beyond chance.

The figures are paired differences over 24 chips in standard errors, Student's t with 23 degrees of freedom, which
lies beyond 9 with a probability of 3e-9; 27 steps make that 1e-7.
"""

import pytest

from tests.fidelity import monotone
from tests.fidelity.monotone import KNOBS
from tests.fidelity.report import committed
from tests.fidelity.tables import same_up_to_rounding


@pytest.mark.parametrize("knob", KNOBS)
def test_a_better_setting_alone_lowers_the_error(knob: str) -> None:
    steps = monotone.sweeps()[knob]
    errors = [step.alone for step in steps]
    assert errors == sorted(errors, reverse=True)
    assert all(step.gain_alone > 9 for step in steps if step.gain_alone is not None)


@pytest.mark.parametrize("knob", KNOBS)
def test_a_better_setting_among_other_flaws_never_hurts_beyond_chance(knob: str) -> None:
    steps = monotone.sweeps()[knob]
    assert all(step.gain_among > -9 for step in steps if step.gain_among is not None)
    assert steps[-1].among < steps[0].among


def test_a_read_is_as_far_off_as_its_noise_says_in_proportion() -> None:
    # Without other flaws the draws only scale: an error of 0.2 is ten times one of 0.02, weight rounding aside.
    for knob in ("sigma", "read_noise"):
        error = {step.value: step.alone for step in monotone.sweeps()[knob]}
        assert error[0.2] / error[0.02] == pytest.approx(10, rel=0.01)


def test_the_page_holds_this_section() -> None:
    assert same_up_to_rounding(committed(monotone), monotone.section())
