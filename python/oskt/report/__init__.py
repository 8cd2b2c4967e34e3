"""The report of a run: one table, the plots, the ranking lists, in one self-contained page."""

from oskt.report.data import (
    Group,
    Hit,
    Ranking,
    ReportData,
    ResultRow,
    load_report,
    read_log,
    read_rows,
    write_rows,
)
from oskt.report.page import write_report
from oskt.report.pictures import picture, rankings, samples
from oskt.report.table import headline, rich_table

__all__ = [
    "Group",
    "Hit",
    "Ranking",
    "ReportData",
    "ResultRow",
    "headline",
    "load_report",
    "picture",
    "rankings",
    "read_log",
    "read_rows",
    "rich_table",
    "samples",
    "write_report",
    "write_rows",
]
