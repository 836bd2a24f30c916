"""The page that people look at: one self-contained HTML file for a run."""

from nvcim.report.page import write_report

__all__ = ["write_report"]
