"""The import direction of the design: a room imports rooms below it, and nothing below the fleet knows Ray."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "nvcim"

# From the top down; modules of one line may not import each other.
LAYERS = (
    ("cli",),
    ("report",),
    ("sweeps",),
    ("fleet",),
    ("prompts", "segmentation"),
    ("analog",),
    ("mitigation",),
    ("quantization",),
    ("crossbar",),
    ("devices",),
    ("data",),
    ("storage",),
    ("progress", "compute", "compiled", "randomness"),
    ("config",),
    ("errors",),
)
HEIGHT = {name: -index for index, layer in enumerate(LAYERS) for name in layer}
KNOWS_RAY = {"fleet", "sweeps", "report", "cli"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere in it, relative imports resolved."""
    package = ["nvcim", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not list(imported(path))
        return
    assert room in HEIGHT, f"{room} has no place in the design's order of rooms"
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in {"jobs", "serving", "tests"}, f"{path}: imports {name} from above"
        if parts[0] != "nvcim" or len(parts) < 2 or parts[1] == room or parts[1] not in HEIGHT:
            continue
        assert HEIGHT[parts[1]] < HEIGHT[room], f"{path}: {room} may not import {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_below_the_fleet_imports_ray(path: Path) -> None:
    if room_of(path) in KNOWS_RAY:
        return
    assert not [name for name in imported(path) if name.split(".")[0] == "ray"]


def test_the_walk_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "devices").mkdir()
    file = tmp_path / "devices" / "a.py"
    code = "import ray.tune as t\ndef f():\n    from ..fleet import host\n    from . import cell\n"
    file.write_text(code)
    assert list(imported(file)) == ["ray.tune", "nvcim.fleet.host", "nvcim.devices.cell"]


def test_rooms_below_the_fleet_do_not_load_ray() -> None:
    below = [name for name, height in HEIGHT.items() if height < HEIGHT["fleet"]]
    present = [name for name in below if (PACKAGE / name).is_dir() and list((PACKAGE / name).glob("*.py"))]
    code = f"""
import importlib, sys
for name in {present}:
    importlib.import_module("nvcim." + name)
sys.exit("ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_platform_is_a_source_folder_and_not_a_package() -> None:
    assert [path.name for path in (ROOT / "platform").iterdir() if path.suffix == ".py"] == []


def test_pythons_own_platform_module_wins_in_the_project_root() -> None:
    code = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_room_and_its_public_names_are_documented() -> None:
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} says not what it is"
