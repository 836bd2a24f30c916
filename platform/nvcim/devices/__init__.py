"""What one memory cell does: levels, variation, noise, ageing, faults; the catalogue of known devices.

The catalogue's side is imported here; what acts on tensors lies in `conductance` (siemens, temperature, current),
`reading` (read noise), `ageing` (drift, retention, relaxation) and `faults` (stuck cells, process variation).
"""

from nvcim.devices.catalogue import BUILT_IN, get_device, load_catalogue
from nvcim.devices.cell import EFFECTS, REFERENCE_SIGMA, CellDevice

__all__ = ["BUILT_IN", "EFFECTS", "REFERENCE_SIGMA", "CellDevice", "get_device", "load_catalogue"]
