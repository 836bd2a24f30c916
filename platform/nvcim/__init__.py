"""nvcim: what becomes of a model that learns and runs on non-volatile computing-in-memory."""

__version__ = "0.1.0"
