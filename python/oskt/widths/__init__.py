"""Widths: which copies a student makes of which chain rows, and what a student costs."""

from oskt.widths.clustering import Clustering, Copies, allocate, cut
from oskt.widths.costs import Costs, Term, macs, parameters, terms
from oskt.widths.resolving import EIGHTHS, resolve, round_width

__all__ = [
    "EIGHTHS",
    "Clustering",
    "Copies",
    "Costs",
    "Term",
    "allocate",
    "cut",
    "macs",
    "parameters",
    "resolve",
    "round_width",
    "terms",
]
