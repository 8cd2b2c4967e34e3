"""Data: reading, checking and drawing person re-identification sets, and batches of them."""

from oskt.data.augment import Augment
from oskt.data.check import DataReport, check_data
from oskt.data.draw import contact_sheet, make_pedestrians
from oskt.data.fewshot import few_shot
from oskt.data.images import CorruptImageError, check_images, load_image
from oskt.data.loader import Batch, ImageStore, ReIDLoader
from oskt.data.read import read_data
from oskt.data.sampler import PKSampler
from oskt.data.source import DataSource
from oskt.data.split import ReIDSet, Split

__all__ = [
    "Augment",
    "Batch",
    "CorruptImageError",
    "DataReport",
    "DataSource",
    "ImageStore",
    "PKSampler",
    "ReIDLoader",
    "ReIDSet",
    "Split",
    "check_data",
    "check_images",
    "contact_sheet",
    "few_shot",
    "load_image",
    "make_pedestrians",
    "read_data",
]
