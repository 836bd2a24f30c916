"""Crossbars with wires against ngspice, an independent circuit simulator, on netlists written here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.nonlinear import SinhCell, rows_on, solve_currents
from nvcim.crossbar.wires import Wires

pytestmark = pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed")


def netlist(conductance: torch.Tensor, volts: torch.Tensor, wires: Wires, cell: str) -> str:
    """The array as a SPICE deck. `cell` is one line's template with {name}, {a}, {b} and {g} (siemens).

    A resistor of zero ohm becomes a voltage source of zero volt, as SPICE knows no zero resistance.
    """
    rows, cols = conductance.shape
    lines = ["* crossbar"]

    def wire(a: str, b: str, ohm: float) -> None:
        lines.append(f"R{len(lines)} {a} {b} {ohm!r}" if ohm else f"V{len(lines)} {a} {b} 0")

    for i in range(rows):
        lines.append(f"Vin{i} in{i} 0 {float(volts[i])!r}")
        if wires.drive in ("left", "both"):
            wire(f"in{i}", f"w{i}_0", wires.r_driver_ohm + wires.r_word_ohm)
        if wires.drive in ("right", "both"):
            wire(f"in{i}", f"w{i}_{cols - 1}", wires.r_driver_ohm + wires.r_word_ohm)
        for j in range(cols - 1):
            wire(f"w{i}_{j}", f"w{i}_{j + 1}", wires.r_word_ohm)
    for j in range(cols):
        lines.append(f"Vout{j} out{j} 0 0")
        if wires.sense in ("bottom", "both"):
            wire(f"b{rows - 1}_{j}", f"out{j}", wires.r_sense_ohm + wires.r_bit_ohm)
        if wires.sense in ("top", "both"):
            wire(f"b0_{j}", f"out{j}", wires.r_sense_ohm + wires.r_bit_ohm)
        for i in range(rows - 1):
            wire(f"b{i}_{j}", f"b{i + 1}_{j}", wires.r_bit_ohm)
    for i in range(rows):
        for j in range(cols):
            g = float(conductance[i, j])
            if g:
                lines.append(
                    cell.format(name=f"{i}_{j}", a=f"w{i}_{j}", b=f"b{i}_{j}", g=repr(g), ohm=repr(1 / g))
                )
    printed = "\n".join(f"print i(Vout{j})" for j in range(cols))
    options = ".options reltol=1e-9 gmin=1e-18 numdgt=14 abstol=1e-18 vntol=1e-14"
    return "\n".join(
        [*lines, options, ".control", "op", "set numdgt=14", printed, "quit", ".endc", ".end", ""]
    )


def ngspice(folder: Path, deck: str) -> torch.Tensor:
    """Currents out of the bit lines, amperes."""
    path = folder / "array.cir"
    path.write_text(deck)
    run = subprocess.run(
        ["ngspice", "-b", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    found = re.findall(r"i\(vout(\d+)\) = (\S+)", run.stdout)
    assert found, run.stdout[-2000:] + run.stderr[-2000:]
    currents = torch.zeros(len(found), dtype=torch.float64)
    for column, value in found:
        currents[int(column)] = float(value)
    return currents


def array(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Conductances of 1 to 100 microsiemens and input voltages of both signs."""
    generator = torch.Generator().manual_seed(size)
    draw = torch.rand(size + 1, size, dtype=torch.float64, generator=generator)
    return (1 + 99 * draw[1:]) * 1e-6, 0.4 * draw[0] - 0.1


LINEAR = "Rc{name} {a} {b} {ohm}"


@pytest.mark.parametrize(
    "wires",
    [
        Wires(r_word_ohm=1, r_bit_ohm=1),
        Wires(r_word_ohm=5, r_bit_ohm=3, r_driver_ohm=200, r_sense_ohm=50, drive="both", sense="both"),
        Wires(r_word_ohm=2, r_bit_ohm=0, r_sense_ohm=10, drive="right", sense="top"),
    ],
    ids=["plain", "both", "ideal-bit-lines"],
)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_effective_conductance_agrees_with_ngspice(size, wires, tmp_path):
    conductance, volts = array(size)
    reference = ngspice(tmp_path, netlist(conductance, volts, wires, LINEAR))
    exact = volts @ effective_conductance(conductance, wires)
    single = volts.float() @ effective_conductance(conductance.float(), wires)
    assert (exact - reference).abs().max() <= 1e-9 * reference.abs().max()
    assert (single - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize("size", [8, 16])
def test_nonlinear_cells_agree_with_ngspice(size, tmp_path):
    conductance, volts = array(size)
    wires = Wires(r_word_ohm=20, r_bit_ohm=10, r_driver_ohm=100)
    cell = "Bc{name} {a} {b} I={g}*0.08*sinh((V({a})-V({b}))/0.08)"
    reference = ngspice(tmp_path, netlist(conductance, volts, wires, cell))
    found = solve_currents(conductance, volts[None], wires, iv=SinhCell(v0=0.08)).currents[0]
    linear = volts @ effective_conductance(conductance, wires)
    assert (linear - reference).abs().max() > 0.05 * reference.abs().max()
    assert (found - reference).abs().max() <= 1e-6 * reference.abs().max()


def test_gated_rows_agree_with_ngspice(tmp_path):
    conductance, volts = array(16)
    volts[::3] = 0
    wires = Wires(r_word_ohm=20, r_bit_ohm=10, sense="both")
    gated = torch.where(volts[:, None] != 0, conductance, 0.0)  # the deck leaves such cells out
    reference = ngspice(tmp_path, netlist(gated, volts, wires, LINEAR))
    found = solve_currents(conductance, volts[None], wires, gated=rows_on(volts[None])).currents[0]
    assert (found - reference).abs().max() <= 1e-9 * reference.abs().max()
