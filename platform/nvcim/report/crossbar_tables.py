"""What a matrix becomes on crossbars, as tables of text: for the terminal and for the page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nvcim.crossbar.cost_table import MODELLED, CostTable, Figure
from nvcim.crossbar.explain import EXPECTED, SIMULATED, Explanation, spread
from nvcim.report.units import engineering, percent


@dataclass(frozen=True)
class TextTable:
    """A title with the basis of its numbers, column names, rows of cells, and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def crossbar_tables(explanation: Explanation) -> list[TextTable]:
    """All tables of an explanation: what it is, its errors, what a product and a write cost."""
    node = f"{MODELLED}, {explanation.constants.node_nm:g} nm"
    return [
        fact_table(explanation),
        error_table(explanation),
        cost_table(f"Cost of one product ({node})", explanation.product),
        cost_table(f"Cost of writing the matrix once ({node})", explanation.write),
    ]


def fact_table(explanation: Explanation) -> TextTable:
    """What the matrix takes, and how its reads are computed."""
    job, plan, geometry = explanation.job, explanation.plan, explanation.geometry
    config, counts = job.crossbar, explanation.clipping
    cell, (inputs, outputs) = config.cell(), explanation.shape
    siemens = (
        "conductances unknown"
        if cell.g_min is None or cell.g_max is None
        else f"{cell.g_min * 1e6:g} to {cell.g_max * 1e6:g} uS"
    )
    widths = ", ".join(str(plane.bits) for plane in reversed(explanation.planes) if plane.side == 0)
    rows = [
        ("matrix", f"{inputs} inputs x {outputs} outputs; {job.weight.describe()}"),
        ("cell", f"{cell.name} ({cell.technology}), {cell.levels} levels, {siemens}"),
        (
            "weight",
            f"{config.weight_bits} bits, {config.scheme}: {geometry.sides} x {geometry.slices} cells "
            f"(sides x slices; bits of a slice: {widths})",
        ),
        (
            "arrays",
            f"{plan.arrays} of {geometry.rows} x {geometry.cols}: {plan.row_tiles} x {plan.col_tiles} tiles, "
            f"{plan.planes} arrays each",
        ),
        (
            "cells",
            f"{plan.weight_cells:,} in use of {plan.physical_cells:,}: utilisation {percent(plan.utilisation)}",
        ),
        ("inputs", _input_coding(explanation)),
        ("outputs", _output_conversion(explanation)),
        ("read by", explanation.read_method),
        ("kernel", explanation.kernel),
        ("ADC saturation", _share(counts.adc_clipped, counts.adc_reads)),
        (
            "DAC saturation",
            _share(counts.dac_clipped, job.inputs.vectors * inputs) if config.dac_full_scale else "cannot be",
        ),
        ("writing", f"{config.programming.method}, pulses per cell: {explanation.pulses:.3g}"),
    ]
    return TextTable("What the matrix becomes", ("what", "is"), rows)


def _input_coding(explanation: Explanation) -> str:
    config = explanation.job.crossbar
    bits = "ideal DACs" if config.dac_bits is None else f"{config.dac_bits} bits"
    coding = "bit by bit" if config.input_coding == "bit_serial" else "at once"
    return f"{bits}, {coding}; pulses per product: {explanation.geometry.input_cycles}"


def _output_conversion(explanation: Explanation) -> str:
    config, plan, geometry = explanation.job.crossbar, explanation.plan, explanation.geometry
    if config.adc_bits is None:
        return "ideal ADCs"
    return (
        f"{plan.adcs} ADCs of {config.adc_bits} bits, range {config.adc_scaling}, up to "
        f"{geometry.columns_per_adc} columns each; {plan.conversions * geometry.input_cycles} conversions per product"
    )


def _share(some: int, of: int) -> str:
    return f"{some:,} of {of:,} ({percent(some / of)})" if of else "no conversions"


def error_table(explanation: Explanation) -> TextTable:
    """Relative root mean square errors by cause, in the order in which causes were switched on."""
    rows = [
        (
            one.cause,
            _mean_and_spread(one.alone),
            "none" if one.expected is None else percent(one.expected),
            _mean_and_spread(one.cumulative),
        )
        for one in explanation.causes
    ]
    notes = [
        "alone: what the cause adds to arrays that hold the rounded weights without a flaw.",
        "so far: against the exact product, with this cause and all above it.",
        f"All causes alone, as root of the sum of squares: {percent(explanation.quadrature)}.",
    ]
    counts, chips = explanation.clipping, explanation.job.devices
    if counts.adc_clipped:
        notes.append(
            f"The ADC's closed form counts no clipping; {percent(counts.adc_clipped / counts.adc_reads)} clipped."
        )
    return TextTable(
        f"Relative rms error of the product; mean ± sd of {chips} chip(s)",
        ("cause", f"alone ({SIMULATED})", f"alone ({EXPECTED})", f"so far ({SIMULATED})"),
        rows,
        notes,
    )


def _mean_and_spread(values: tuple[float, ...]) -> str:
    sd, mean = spread(values), percent(statistics.fmean(values))
    return mean if not sd else f"{mean.removesuffix(' %')} ± {100 * sd:.2g} %"


def cost_table(title: str, table: CostTable) -> TextTable:
    """Energy, latency and area by component; what is unknown refers to its reason below."""
    reasons: dict[str, int] = {}
    rows = []
    for row in (*table, table.total()):
        figures = ((row.energy, "J"), (row.latency, "s"), (row.area, "mm2"))
        rows.append((row.component, *(_figure(figure, unit, reasons) for figure, unit in figures)))
    notes = [f"({number}) unknown: {reason}" for reason, number in reasons.items()]
    return TextTable(title, ("component", "energy", "latency", "area"), rows, notes)


def _figure(figure: Figure, unit: str, reasons: dict[str, int]) -> str:
    if figure.value is None:
        numbers = [reasons.setdefault(reason, len(reasons) + 1) for reason in sorted(figure.missing)]
        return f"unknown ({', '.join(str(number) for number in sorted(numbers))})"
    return f"{figure.value:.3g} mm2" if unit == "mm2" else engineering(figure.value, unit)
