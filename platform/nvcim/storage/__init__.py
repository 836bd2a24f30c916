"""Results that survive: atomic files, run folders, and Parquet tables with one schema each."""

from nvcim.storage.files import atomic_write_bytes, atomic_write_text
from nvcim.storage.runs import RunFolder, RunRecord
from nvcim.storage.schemas import TABLES, table_schema

__all__ = ["TABLES", "RunFolder", "RunRecord", "atomic_write_bytes", "atomic_write_text", "table_schema"]
