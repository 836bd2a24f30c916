"""What one memory cell does: levels and programming variation; the catalogue of known devices."""

from nvcim.devices.catalogue import BUILT_IN, get_device, load_catalogue
from nvcim.devices.cell import REFERENCE_SIGMA, CellDevice

__all__ = ["BUILT_IN", "REFERENCE_SIGMA", "CellDevice", "get_device", "load_catalogue"]
