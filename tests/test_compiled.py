"""What the package's build compiled is loaded for this processor; where it cannot, one line says why."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvcim import compiled
from nvcim.compiled import Kernel, instruction_set, load_kernel
from nvcim.errors import ConfigError

PACKAGE = Path(compiled.__file__).parent
SOURCES = [PACKAGE / "crossbar" / "kernel.cpp", PACKAGE / "prompts" / "frozen_kernel.cpp"]
needs_library = pytest.mark.skipif(
    instruction_set() is None or not list(PACKAGE.glob("crossbar/kernel.*.so")),
    reason="the package was built without a compiler, or for a processor without AVX2 or NEON",
)


@pytest.fixture(autouse=True)
def _not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVCIM_KERNEL", raising=False)


def load(source: Path) -> Kernel:
    return load_kernel(source, "sums are taken", "by hand")


def assert_lacking(kernel: Kernel, why: str, caplog: pytest.LogCaptureFixture) -> None:
    assert kernel.library is None
    assert kernel.status.startswith("by hand, slower (no compiled kernel: ")
    assert why in kernel.status
    assert "\n" not in kernel.status
    assert [record.getMessage() for record in caplog.records] == [f"sums are taken {kernel.status}"]


@needs_library
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_each_kernel_is_built_for_this_processor_from_these_sources(source: Path) -> None:
    kernel = load(source)
    assert isinstance(kernel.library, ctypes.CDLL), kernel.status
    assert kernel.status == f"compiled for {str(instruction_set()).upper()}"


@needs_library
@pytest.mark.skipif(instruction_set() != "avx512", reason="one instruction set here")
def test_what_restricts_torch_restricts_the_kernels() -> None:
    code = (
        "from nvcim.crossbar.kernel import kernel_status; "
        "from nvcim.prompts.frozen_kernel import frozen_kernel_status; "
        "print(kernel_status(), frozen_kernel_status())"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "ATEN_CPU_CAPABILITY": "avx2"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "compiled for AVX2 compiled for AVX2"


def test_a_processor_without_a_kernel_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiled.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert_lacking(load(SOURCES[0]), "there is none for x86_64 with DEFAULT", caplog)


def test_a_library_that_was_not_built_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    isa = instruction_set()
    why = f"adding.{isa}.so was not built" if isa else "there is none for"
    assert_lacking(load(tmp_path / "adding.cpp"), why, caplog)


@needs_library
def test_a_library_of_older_sources_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = f"kernel.{instruction_set()}.so"
    shutil.copy(PACKAGE / "crossbar" / library, tmp_path / library)
    assert load(tmp_path / "kernel.cpp").library is not None  # installed without sources
    (tmp_path / "kernel.cpp").write_text("another source", encoding="utf-8")
    assert_lacking(load(tmp_path / "kernel.cpp"), f"{library} is older than its sources", caplog)


def test_a_library_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "instruction_set", lambda: "avx2")
    (tmp_path / "adding.avx2.so").write_bytes(b"no library")
    assert_lacking(load(tmp_path / "adding.cpp"), "adding.avx2.so", caplog)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler to make a library with")
def test_a_library_of_another_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "instruction_set", lambda: "avx2")
    command = ["gcc", "-shared", "-xc", os.devnull, "-o", str(tmp_path / "adding.avx2.so")]
    subprocess.run(command, check=True)
    assert_lacking(load(tmp_path / "adding.cpp"), "adding.avx2.so is no kernel of this package", caplog)


def test_an_unknown_choice_of_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCIM_KERNEL", "PLAIN")
    with pytest.raises(ConfigError, match="NVCIM_KERNEL is 'PLAIN'"):
        load(SOURCES[0])


def test_plain_is_granted_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NVCIM_KERNEL", "plain")
    assert load(SOURCES[0]) == Kernel(None, "by hand (NVCIM_KERNEL=plain)")
    assert not caplog.records
