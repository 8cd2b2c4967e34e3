"""Readings: how every tensor of a student is made of those of a chain. Needs no torch."""

from oskt.reading.lists import Item, Reading, apply
from oskt.reading.tensors import (
    SHARE,
    Inputs,
    chain,
    copy_shares,
    kept,
    norm_shares,
    shares_on,
    statistic,
    student,
    student_shares,
    tied,
    tied_shares,
    truncation,
)

__all__ = [
    "SHARE",
    "Inputs",
    "Item",
    "Reading",
    "apply",
    "chain",
    "copy_shares",
    "kept",
    "norm_shares",
    "shares_on",
    "statistic",
    "student",
    "student_shares",
    "tied",
    "tied_shares",
    "truncation",
]
