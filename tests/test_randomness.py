"""Named randomness: a draw depends on what it is for, not on when or where it is made."""

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from nvcim.randomness import named_generator, named_seed

NAMES = st.lists(st.one_of(st.integers(0, 9), st.text(alphabet="ab-", max_size=3)), max_size=3)


@given(st.integers(0, 5), NAMES, st.integers(0, 5), NAMES)
def test_seeds_coincide_only_for_the_same_names(
    one_seed: int, one: list[str | int], other_seed: int, other: list[str | int]
) -> None:
    same = (one_seed, [str(name) for name in one]) == (other_seed, [str(name) for name in other])
    assert (named_seed(one_seed, *one) == named_seed(other_seed, *other)) == same


def test_a_seed_fits_what_torch_takes() -> None:
    seeds = [named_seed(i, "node") for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 200


def test_a_seed_is_the_same_in_another_process() -> None:
    code = "from nvcim.randomness import named_seed; print(named_seed(7, 'node-3', 'write', 12))"
    path = ":".join(entry for entry in sys.path if entry)
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) == named_seed(7, "node-3", "write", 12)


def test_generators_leave_torch_alone() -> None:
    before = torch.get_rng_state()
    first = torch.rand(4, generator=named_generator(1, "a"))
    assert torch.equal(first, torch.rand(4, generator=named_generator(1, "a")))
    assert not torch.equal(first, torch.rand(4, generator=named_generator(1, "b")))
    assert torch.equal(before, torch.get_rng_state())
