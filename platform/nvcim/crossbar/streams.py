"""Random streams of a device: what each Philox `purpose` is for.

A purpose is a base plus the number of a plane of cells (side * slices + slice), of an array, or of a read's pass.
"""

READ = 0x0000_0000
"""Read noise per output; index: the read vector's number; plus slice * MAX_CYCLES + input cycle."""
WRITE = 0x0001_0000
"""Where a pulse lands; index: write number * MAX_PULSES + pulse; plus the plane."""
STUCK = 0x0002_0000
"""Which cells are stuck; a property of the chip: index 0; plus the plane."""
ARRAY = 0x0003_0000
"""Process variation of whole arrays; index 0; position: array."""
AGE = 0x0004_0000
"""Drift exponents (even) and relaxation (odd) of cells; index: write number; plus 2 * plane."""
ADC_OFFSET = 0x0005_0000
ADC_GAIN = 0x0005_0001
ADC_WIDTHS = 0x0005_0002
"""Errors of the ADCs of a chip; index 0; position: slice, row tile, column (and code)."""
CELL_READ = 0x0006_0000
"""Read noise per cell, in the slow reference mode; index: the read vector's number; plus the plane."""

MAX_PULSES = 256
MAX_CYCLES = 32
