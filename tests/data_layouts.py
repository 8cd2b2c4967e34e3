"""Tiny data sets of every layout, written for a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def write_image(path, size=(8, 16), colour=(10, 200, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_broken(path):
    """A file cut short still has a good header, so only decoding finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def make_market(
    root,
    train=("0002_c1s1_01", "0007_c2s1_01"),
    query=("0001_c1s1_01",),
    gallery=("0001_c2s1_01", "0000_c1s1_01", "-1_c1s1_01"),
):
    for folder, names in zip(MARKET_FOLDERS, (train, query, gallery)):
        (root / folder).mkdir(parents=True)
        for name in names:
            write_image(root / folder / (name if "." in name else name + ".jpg"))
    return root


def make_msmt17(root, folders=("train", "test")):
    """Three training identities, the last with a validation image; test identities from 0."""
    lists = {
        "list_train.txt": ((0, 0, 1), (0, 1, 14), (1, 0, 2), (2, 0, 3)),
        "list_val.txt": ((2, 1, 15),),
        "list_query.txt": ((0, 0, 1), (1, 0, 4)),
        "list_gallery.txt": ((0, 1, 12), (1, 1, 5), (2, 0, 6)),
    }
    for name, rows in lists.items():
        folder = root / folders[0 if name in ("list_train.txt", "list_val.txt") else 1]
        lines = []
        for identity, image, camera in rows:
            path = f"{identity:04}/{identity:04}_{image:03}_{camera:02}_0303morning_0015_0.jpg"
            write_image(folder / path)
            lines.append(f"{path} {identity}\n")
        (root / name).write_text("".join(reversed(lines)))  # a list need not be sorted
    return root


def make_cuhk03(root, folders=("labeled", "detected")):
    """Variants that differ in their numbers of training images: 2 labeled, 3 detected."""
    train = ("0001_c1_1.png", "0002_c2_6.png", "0002_c1_1.png")
    for folder in folders:
        make_market(
            root / folder,
            train=train if "detected" in folder else train[:2],
            query=("0003_c1_1.png",),
            gallery=("0003_c2_6.png",),
        )
    return root


OWN_ROWS = (
    "people/b.jpg,9,1,train",
    "people/a.jpg,4,1,train",
    "people/q.jpg,11,1,query",
    "people/g.jpg,11,2,gallery",
    "people/d.jpg,0,1,gallery",
    "people/j.jpg,-1,1,gallery",
)


def make_own(root, rows=OWN_ROWS, header="path,id,camera,split", name="set.csv") -> Path:
    """A CSV file of `rows` and, for every row with a name in it, the image."""
    root.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = row.split(",")[0]
        if path.endswith(".jpg"):
            write_image(root / path)
    (root / name).write_text("\n".join((header, *rows)) + "\n")
    return root
