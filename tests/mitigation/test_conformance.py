"""What every registered mitigation must keep to, whatever it does; a new one gets these tests by being registered."""

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.mitigation import (
    MITIGATIONS,  # noqa: F401, for the other process
    Correction,
    Mitigation,
    get_mitigation,
)
from nvcim.mitigation.none import NoMitigation
from nvcim.randomness import named_generator
from tests.closeness import close
from tests.mitigation.conftest import TOKENS, WIDTH, codes, perturbation, sensitivity

ROOT = Path(__file__).parents[2]
NOISY = CrossbarConfig(device="FeFET2", sigma=0.1)
TOLERANCE = 1.02
"""A method may lose 2 % where it gains nothing: its fit to noisy reads is that far off its best at most."""


class Stored:
    """Codes [k, n, width] written with a mitigation, read through its correction and compensator."""

    def __init__(
        self,
        mitigation: Mitigation,
        values: Tensor,
        config: CrossbarConfig,
        seed: int = 0,
        compensator: nn.Module | None = None,
        importance: Tensor | None = None,
    ) -> None:
        flat = values.flatten(1)
        order = None
        if mitigation.needs_importance:
            given = torch.zeros_like(flat) if importance is None else importance.flatten(1)
            order = mitigation.ranking(flat, given)
        generators = [named_generator(seed, "cells", i) for i in range(len(flat))]
        self.array = Crossbar.program(
            flat[..., None],
            mitigation.writing(config),
            generators,
            None if order is None else order[..., None],
        )
        self.correction = mitigation.correction(self.array, flat[..., None])
        self.compensator = compensator
        self.shape = values.shape

    def outputs(self, x: Tensor) -> Tensor:
        """[k, batch] for vectors of norm 1, [batch, n * width]."""
        y = self.array.matmul(x)
        return (y if self.correction is None else self.correction.outputs(y))[..., 0]

    def codes(self) -> Tensor:
        back = self.outputs(torch.eye(self.array.in_features)).reshape(self.shape)
        return back if self.compensator is None else self.compensator(back)


def trained(
    mitigation: Mitigation, config: CrossbarConfig, seed: int = 0, count: int = 200
) -> nn.Module | None:
    perturb = perturbation(config)
    return mitigation.compensator(
        codes(count, seed=9).flatten(0, 1), perturb, named_generator(seed, "compensator")
    )


def everything(name: str) -> str:
    """A digest of all that a mitigation makes of one seed."""
    mitigation = get_mitigation(name)
    compensator = trained(mitigation, NOISY, count=20)
    stored = Stored(mitigation, codes(5), NOISY, compensator=compensator, importance=sensitivity(5))
    penalty = mitigation.penalty(codes(5), 0.1)
    made = [stored.codes().numpy().tobytes(), b"" if penalty is None else penalty.numpy().tobytes()]
    return hashlib.sha256(b"".join(made)).hexdigest()


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """`everything` of every mitigation, from another process."""
    code = (
        "from tests.mitigation.test_conformance import MITIGATIONS, everything; "
        "print({name: everything(name) for name in MITIGATIONS})"
    )
    paths = f"import sys; sys.path[:0] = ['{ROOT}', '{ROOT / 'platform'}']; "
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()}); "
    done = subprocess.run([sys.executable, "-c", paths + threads + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = ast.literal_eval(done.stdout)
    return found


def test_the_same_seed_gives_the_same_in_another_process(
    mitigation: Mitigation, elsewhere: dict[str, str]
) -> None:
    assert elsewhere[mitigation.name] == everything(mitigation.name)


def test_without_noise_it_is_no_worse_than_nothing(mitigation: Mitigation) -> None:
    still = CrossbarConfig.ideal(weight_bits=8)
    values = codes(20)
    plain = Stored(NoMitigation(), values, still).codes()
    own = Stored(mitigation, values, still, compensator=trained(mitigation, still, count=500)).codes()
    error, least = ((one - values).square().mean().sqrt() for one in (own, plain))
    assert error <= least * TOLERANCE


def test_a_correction_only_drives_and_reads_the_array(
    mitigation: Mitigation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored(mitigation, codes(3), NOISY)

    def refuse(*arguments: object) -> Tensor:
        raise AssertionError("a chip's periphery cannot look into its cells")

    for name in ("read_weight", "cells", "state_dict", "wear", "worn_out", "to"):
        monkeypatch.setattr(Crossbar, name, refuse)
    found = mitigation.correction(stored.array, codes(3).flatten(1)[..., None])
    assert (found is None) == (stored.correction is None)


def test_a_correction_belongs_to_the_draw_it_was_fitted_on(mitigation: Mitigation) -> None:
    """Fitted before other cells were written, it says nothing about them: it does not change when they do."""
    first, second = Stored(mitigation, codes(2), NOISY, seed=1), Stored(mitigation, codes(2), NOISY, seed=2)
    if first.correction is None or second.correction is None:
        assert first.correction is None
        assert second.correction is None
        return
    assert not torch.equal(first.correction.gain, second.correction.gain)


def test_what_it_fitted_survives_saving(mitigation: Mitigation) -> None:
    compensator = trained(mitigation, NOISY, count=20)
    stored = Stored(mitigation, codes(3), NOISY, compensator=compensator)
    before = stored.codes()
    if stored.correction is not None:
        stored.correction = Correction(**load(save(stored.correction.state_dict())))
    if compensator is not None:
        stored.compensator = mitigation.restored_compensator(load(save(compensator.state_dict())))
        assert stored.compensator is not None
    assert torch.equal(stored.codes(), before)
    assert type(mitigation).model_validate_json(mitigation.model_dump_json()) == mitigation


def test_columns_written_together_are_those_written_alone(mitigation: Mitigation) -> None:
    values, how = codes(5), sensitivity(5)
    together = Stored(mitigation, values, NOISY, importance=how)
    x = torch.randn(7, TOKENS * WIDTH, generator=named_generator(4))
    for i in range(5):
        config, flat = mitigation.writing(NOISY), values[i : i + 1].flatten(1)
        order = mitigation.ranking(flat, how[i : i + 1].flatten(1))
        array = Crossbar.program(
            flat[..., None],
            config,
            [named_generator(0, "cells", i)],
            None if order is None else order[..., None],
        )
        correction = mitigation.correction(array, flat[..., None])
        y = array.matmul(x)
        y = y if correction is None else correction.outputs(y)
        assert close(y[0, :, 0], together.outputs(x)[i])
    joint = mitigation.penalty(values)
    if joint is not None:
        for i in range(5):
            torch.testing.assert_close(mitigation.penalty(values[i : i + 1]), joint[i : i + 1])


def error_of(mitigation: Mitigation, config: CrossbarConfig) -> float:
    """What the loss makes of the error: squares weighed by sensitivity, over 100 sets with a draw each."""
    values, weights = codes(100, seed=3), sensitivity(100, seed=3)
    compensator = trained(mitigation, config)
    stored = Stored(mitigation, values, config, seed=3, compensator=compensator, importance=weights)
    return float((weights * (stored.codes() - values).square()).sum() / weights.sum())


@pytest.mark.parametrize("device", ["RRAM1", "FeFET6"])
def test_it_does_not_raise_the_error_of_noisy_cells(mitigation: Mitigation, device: str) -> None:
    config = CrossbarConfig(device=device, sigma=0.1)
    assert error_of(mitigation, config) <= error_of(NoMitigation(), config) * TOLERANCE


def test_penalties_can_be_trained_with(mitigation: Mitigation) -> None:
    values = codes(3).requires_grad_()
    penalty = mitigation.penalty(values, torch.tensor([0.05, 0.1, 0.2]))
    if penalty is None:
        return
    assert penalty.shape == (3,)
    assert bool((penalty >= 0).all())
    (gradient,) = torch.autograd.grad(penalty.sum(), [values])
    assert bool(gradient.isfinite().all())
    stepped = mitigation.penalty((values - 1e-2 * gradient).detach(), torch.tensor([0.05, 0.1, 0.2]))
    assert stepped is not None
    assert bool((stepped < penalty).all())


def test_nothing_is_drawn_from_the_global_stream(mitigation: Mitigation) -> None:
    before = torch.get_rng_state()
    Stored(mitigation, codes(2), NOISY, compensator=trained(mitigation, NOISY, count=5)).codes()
    assert torch.equal(torch.get_rng_state(), before)
