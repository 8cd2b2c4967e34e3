"""Data: reading, checking and drawing person re-identification sets, and batches of them."""

from oskt.data.augment import Augment
from oskt.data.check import DataReport, check_data
from oskt.data.draw import contact_sheet, make_pedestrians
from oskt.data.loader import Batch, ImageStore, ReIDLoader
from oskt.data.market import (
    CorruptImageError,
    MarketData,
    Split,
    check_images,
    load_image,
    read_market,
)
from oskt.data.sampler import PKSampler

__all__ = [
    "Augment",
    "Batch",
    "CorruptImageError",
    "DataReport",
    "ImageStore",
    "MarketData",
    "PKSampler",
    "ReIDLoader",
    "Split",
    "check_data",
    "check_images",
    "contact_sheet",
    "load_image",
    "make_pedestrians",
    "read_market",
]
