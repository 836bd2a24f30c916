"""The kernels give the same numbers on every instruction set that they are written for, Arm's under an emulator.

Draws, writes and quantised values are compared with plain torch to the bit, products with torch's to rounding and with
those of the other instruction sets to the bit.
"""

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from nvcim.crossbar import counter_rng, kernel
from nvcim.crossbar.mapping import quantize_symmetric

HERE = Path(__file__).parent
FLAGS = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=gnu++17", "-w", "-static")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
# Compiler, its flags, what runs the program, and what /proc/cpuinfo must name where that is the processor itself.
SETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {
    "neon": ("aarch64-linux-gnu-g++", (), ("qemu-aarch64",), ""),
    "avx2": ("g++", ("-mavx2", "-mfma"), (), "avx2"),
    "avx512": ("g++", AVX512, (), "avx512vl"),
}
Arrays = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def _lack(isa: str) -> str | None:
    """Why programs for an instruction set cannot be built or run here."""
    compiler, _, runner, flag = SETS[isa]
    for tool in (compiler, *runner):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    cpuinfo = Path("/proc/cpuinfo")
    if flag and not (cpuinfo.exists() and flag in cpuinfo.read_text(encoding="utf-8")):
        return f"this processor has no {flag}"
    return None


@lru_cache
def _answers(folder: Path, name: str, isa: str) -> Arrays:
    compiler, flags, runner, _ = SETS[isa]
    contract = "off" if name.startswith("crossbar") else "fast"
    program = folder / f"{name}-{isa}"
    command = [
        compiler,
        *FLAGS,
        *flags,
        f"-ffp-contract={contract}",
        str(HERE / f"{name}.cpp"),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    said = subprocess.run([*runner, str(program)], check=True, capture_output=True, env=environment).stdout
    arrays: Arrays = {}
    while said:
        line, said = said.split(b"\n", 1)
        title, count = line.split()
        values = np.frombuffer(said[: 4 * int(count)], dtype="<f4").copy()
        arrays[title.decode()], said = torch.from_numpy(values), said[4 * int(count) :]
    return arrays


def answers(folder: Path, name: str, isa: str) -> Arrays:
    """What a program printed, by name; the test is skipped where it cannot be built or run."""
    lack = _lack(isa)
    if lack is not None:
        pytest.skip(lack)
    return _answers(folder, name, isa)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """As crossbar_answers.cpp draws them."""
    values = []
    for _ in range(int(np.prod(shape))):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((seed >> 40) * 2.0**-23 - 1.0)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch, on any processor."""
    monkeypatch.setattr(kernel, "_load", lambda: kernel.Kernel(None, "plain torch (test)"))


@pytest.mark.parametrize("isa", SETS)
def test_the_first_word_is_the_published_one(folder: Path, isa: str) -> None:
    # Random123, kat_vectors, philox4x32 10, counter and key 0: the first word's upper 24 bits as a fraction.
    assert float(answers(folder, "crossbar_answers", isa)["uniforms"][0]) == (0x6627E8D5 >> 8) * 2.0**-24


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("isa", SETS)
def test_draws_and_quantised_values_equal_plain_torch_to_the_bit(folder: Path, isa: str) -> None:
    found = answers(folder, "crossbar_answers", isa)
    keys, first = torch.tensor([0, 2**62 + 12345]), torch.tensor([0, 2**33 - 1])
    assert torch.equal(found["normals"].reshape(2, 3, 150), counter_rng.normals(keys, 0, first, 150, 3))
    assert torch.equal(found["uniforms"].reshape(2, 150), counter_rng.uniforms(keys, 0, first, 150))
    integers, scale = quantize_symmetric(numbers(2, 37, 21, seed=2), 9, True)
    assert torch.equal(found["integers"], integers.float().flatten())
    assert torch.equal(found["scale"], scale.flatten())
    x = numbers(5, 37, seed=1)
    step = x.abs().amax(dim=1, keepdim=True) / 127
    assert torch.equal(found["driven"].reshape(5, 37), (x / step).round() * step)
    step = torch.tensor(0.5) / 127
    assert torch.equal(found["driven_full_scale"].reshape(5, 37), (x / step).round().clamp(-127, 127) * step)
    assert int(found["clipped"]) == int((x.abs() > 0.5).sum())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("levels", [4, 16, 256])
def test_writes_equal_those_of_plain_torch_to_the_bit(folder: Path, isa: str, levels: int) -> None:
    found = answers(folder, "crossbar_answers", isa)
    codes, scale = found["integers"].reshape(2, 37 * 21).int(), found["scale"].reshape(2, 21)
    bits = {4: 2, 16: 4, 256: 8}[levels]
    level = torch.arange(levels)
    conductance, sigma = level / (levels - 1), torch.tensor(0.05) + torch.tensor(0.001) * level
    keys, write = torch.tensor([0, 2**62 + 12345]), torch.tensor([0, 3])
    total = torch.zeros(2, 37 * 21)
    slices = 8 // bits
    for s in range(slices):
        for side in range(2):
            magnitude = (codes if side == 0 else -codes).clamp(min=0)
            index = (magnitude >> (s * bits)) & (levels - 1)
            draws = counter_rng.normals(keys, 5 + side * slices + s, write, 37 * 21)[:, 0]
            reached = conductance[index] + sigma[index] * draws
            total = total + reached * (1 - 2 * side) * float(1 << (s * bits))
    expected = (total.reshape(2, 37, 21) * scale[:, None]).flatten()
    assert torch.equal(found[f"written_{levels}"], expected)


@pytest.mark.parametrize("isa", SETS)
def test_products_are_those_of_torch(folder: Path, isa: str) -> None:
    found = answers(folder, "crossbar_answers", isa)
    x, weight = numbers(2, 23, 70, seed=3).double(), numbers(2, 2, 70, 150, seed=4).double()
    expected = x @ (weight[:, 0] + weight[:, 1] * 0.25)
    assert torch.allclose(found["products"].reshape(2, 23, 150).double(), expected, rtol=0, atol=70 * 2**-23)
    assert not torch.equal(found["noisy"], found["converted"])
    assert float((found["bfloat16"] - found["converted"]).abs().max()) < 1.0


@pytest.mark.parametrize("isa", ["neon", "avx512"])
def test_every_instruction_set_gives_the_same_bits(folder: Path, isa: str) -> None:
    found, reference = (answers(folder, "crossbar_answers", name) for name in (isa, "avx2"))
    assert list(found) == list(reference)
    assert len(found) == 23
    for name, values in found.items():
        assert torch.equal(values, reference[name]), name


@pytest.mark.parametrize("isa", ["neon", "avx512"])
def test_the_frozen_decoder_gives_the_same_loss_and_gradient(folder: Path, isa: str) -> None:
    found, reference = (answers(folder, "frozen_answers", name) for name in (isa, "avx2"))
    assert torch.allclose(found["loss"], reference["loss"], rtol=1e-5)
    difference = (found["gradient"] - reference["gradient"]).norm()
    assert float(difference) <= 1e-5 * float(reference["gradient"].norm())
    assert float(reference["gradient"].norm()) > 0
