"""One array and its periphery: mapping of weights to cells, programming, converters, matmul."""

from nvcim.crossbar.array import Crossbar
from nvcim.crossbar.settings import CrossbarConfig

__all__ = ["Crossbar", "CrossbarConfig"]
