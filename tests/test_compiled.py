"""A C++ source becomes a library once; where it cannot, one line says why."""

import ctypes
import shutil
from pathlib import Path

import pytest

from nvcim import compiled
from nvcim.compiled import Kernel, load_kernel

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler on the PATH"
)
SOURCE = '#include <stdint.h>\nextern "C" int32_t add(int32_t a, int32_t b) { return a + b + EXTRA; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NVCIM_KERNEL", raising=False)
    return tmp_path / "cache" / "nvcim"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "adding.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def load(source: Path, *flags: str) -> Kernel:
    return load_kernel(source, "sums are taken", "by hand", flags)


def added(kernel: Kernel) -> int:
    assert isinstance(kernel.library, ctypes.CDLL), kernel.status
    return int(kernel.library.add(2, 3))


@needs_compiler
def test_a_source_is_compiled_with_the_flags_given(cache: Path, source: Path) -> None:
    kernel = load(source, "-DEXTRA=100")
    assert kernel.status == "compiled for this CPU"
    assert added(kernel) == 105


@needs_compiler
def test_a_library_is_compiled_once_and_alone_in_the_cache(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(source, "-DEXTRA=0")
    (kept,) = cache.iterdir()
    assert kept.match("adding-*.so")

    def refuse(*given: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiled, "_compile", refuse)
    assert added(load(source, "-DEXTRA=0")) == 5
    with pytest.raises(AssertionError, match="compiled again"):
        load(source, "-DEXTRA=1")


@needs_compiler
@pytest.mark.parametrize("change", ["source", "flags", "cpu", "torch"])
def test_a_library_is_compiled_anew_for_what_it_depends_on(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = added(load(source, "-DEXTRA=0"))
    flags = ("-DEXTRA=7",) if change == "flags" else ("-DEXTRA=0",)
    if change == "source":
        source.write_text(SOURCE.replace("EXTRA", "EXTRA + 9"), encoding="utf-8")
    elif change == "cpu":
        monkeypatch.setattr(compiled, "_cpu", lambda: "another CPU")
    elif change == "torch":
        monkeypatch.setattr(compiled.torch, "__version__", "0.0")
    assert added(load(source, *flags)) - before == {"source": 9, "flags": 7}.get(change, 0)
    assert len(list(cache.iterdir())) == 2


def test_plain_is_granted_without_a_warning_or_a_file(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NVCIM_KERNEL", "plain")
    assert load(source, "-DEXTRA=0") == Kernel(None, "by hand (NVCIM_KERNEL=plain)")
    assert not cache.exists()
    assert not caplog.records


def assert_lacking(kernel: Kernel, why: str, caplog: pytest.LogCaptureFixture) -> None:
    assert kernel.library is None
    assert kernel.status.startswith("by hand, slower (no compiled kernel: ")
    assert why in kernel.status
    assert "\n" not in kernel.status
    assert [record.getMessage() for record in caplog.records] == [f"sums are taken {kernel.status}"]


@pytest.mark.usefixtures("cache")
def test_a_missing_compiler_is_logged_and_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert_lacking(load(source), "no C++ compiler on the PATH", caplog)


@needs_compiler
def test_the_compilers_own_message_is_logged_and_nothing_is_kept(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = load(source)  # without -DEXTRA
    assert_lacking(kernel, "EXTRA", caplog)
    assert "adding.cpp:2:" in kernel.status  # the message, not the line at fault or the caret that follow
    assert not list(cache.iterdir())


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file, no folder", encoding="utf-8")
    assert_lacking(load(source, "-DEXTRA=0"), str(cache), caplog)


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_a_user_without_a_home_has_no_kernel(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as pathlib says it

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiled.Path, "home", homeless)
    assert_lacking(load(source, "-DEXTRA=0"), "home directory", caplog)


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_a_library_that_does_not_load_is_named(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A variable, unlike a function, is looked up when the library is loaded.
    source.write_text('extern int nowhere;\nextern "C" int add() { return nowhere; }\n', encoding="utf-8")
    assert_lacking(load(source), "nowhere", caplog)
