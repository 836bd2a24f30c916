"""The model's own forward pass, cut and in bfloat16; and that it serves where there is no compiled kernel."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvcim.prompts import frozen_decoder, frozen_kernel
from nvcim.prompts.frozen_decoder import frozen_rows, unknown
from nvcim.prompts.frozen_rows import PlainRows, Row
from nvcim.prompts.language_model import LanguageModel

ROWS = (
    Row(tuple(range(1, 40)), (5, 6, 7), 0.5),
    Row((3,), (4,), 0.5),
    Row(tuple(range(70, 8, -2)), tuple(range(20, 60)), 1.0),
)
OWNERS = (0, 0, 1)


def found(lm: LanguageModel, rows: PlainRows) -> tuple[Tensor, Tensor]:
    draws = torch.randn(2, 3, lm.hidden, generator=torch.Generator().manual_seed(2))
    return rows.gradients(ROWS, OWNERS, 2, 3)(lm.embedding_rms * draws)


def difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Of losses and of gradients, as a share of the other's size, whichever is larger."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


def test_a_pass_may_be_cut_or_in_bfloat16(make_family: Callable[[str], Path]) -> None:
    lm = LanguageModel.load(str(make_family("gpt2")), "cpu")
    whole = found(lm, PlainRows(lm))
    for size in (1, 2):
        assert difference(found(lm, PlainRows(lm, rows_per_pass=size)), whole) <= 1e-5
    assert 1e-5 < difference(found(lm, PlainRows(lm, "bfloat16")), whole) <= 0.05


def test_without_a_kernel_every_model_takes_its_own_pass(
    make_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel.load(
        str(make_family("llama")), "cpu"
    )  # its own: what is packed is kept with the model
    monkeypatch.setattr(frozen_decoder, "frozen_kernel", lambda: None)
    assert unknown(lm) == "there is no compiled kernel"
    assert isinstance(frozen_rows(lm, "float32", 60), PlainRows)


def test_without_a_library_prompts_are_tuned_through_the_models_own_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NVCIM_KERNEL", raising=False)
    monkeypatch.setattr("nvcim.compiled.instruction_set", lambda: "mips")
    library, status = frozen_kernel._load.__wrapped__()
    assert library is None
    assert status.startswith(
        "the model's own forward pass, slower (no compiled kernel: frozen_kernel.mips.so"
    )
    assert f"prompts are tuned through {status}" in caplog.text


def test_the_models_own_pass_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCIM_KERNEL", "plain")
    assert frozen_kernel._load.__wrapped__() == (None, "the model's own forward pass (NVCIM_KERNEL=plain)")
