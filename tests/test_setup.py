"""The package builds its kernels where there is a compiler, and does without where there is none."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_without_a_compiler_the_build_succeeds_and_says_what_it_left_out(tmp_path: Path) -> None:
    environment = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    command = [sys.executable, "setup.py", "build_ext"]
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    done = subprocess.run([*command, *folders], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
    said = done.stdout + done.stderr
    assert 'building extension "nvcim.crossbar.kernel_' in said
    assert 'building extension "nvcim.prompts.frozen_kernel_' in said
