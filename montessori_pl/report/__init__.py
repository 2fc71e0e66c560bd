"""What came out of a run, made from its directory alone."""

from montessori_pl.report.summary import summarize, write_summary
from montessori_pl.report.table import print_summary

__all__ = ["print_summary", "summarize", "write_summary"]
