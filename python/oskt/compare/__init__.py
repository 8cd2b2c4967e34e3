"""Honest tables: every method on the same data, teacher, augmentation and number of steps."""

from oskt.compare.cells import Cell, Request
from oskt.compare.report import markdown, write_report, write_reports
from oskt.compare.rows import Row, read_rows
from oskt.compare.runner import run_table
from oskt.compare.scales import SCALES, SIZES, Scale, Size
from oskt.compare.tables import TABLES

__all__ = [
    "SCALES",
    "SIZES",
    "TABLES",
    "Cell",
    "Request",
    "Row",
    "Scale",
    "Size",
    "markdown",
    "read_rows",
    "run_table",
    "write_report",
    "write_reports",
]
