"""What threads, batches and packing may change: nothing, or a code of the ADC here and there."""

from tests.fidelity import reproducibility
from tests.fidelity.report import committed


def test_draws_and_single_rows_are_the_same_to_the_bit() -> None:
    exact = [same for same in reproducibility.samenesses() if same.exact]
    assert len(exact) == 6
    assert [same.steps for same in exact] == [0.0] * 6


def test_whole_vectors_are_the_same_within_a_step_of_the_adc() -> None:
    loose = [same for same in reproducibility.samenesses() if not same.exact]
    assert len(loose) == 3
    for same in loose:
        assert same.steps <= 1.01
        assert same.share < 0.01


def test_the_page_holds_this_section() -> None:
    assert committed(reproducibility) == reproducibility.section()
