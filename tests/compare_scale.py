"""A scale so small that a table takes seconds."""

from __future__ import annotations

from dataclasses import replace

from oskt.compare import Scale
from oskt.train import RECIPES


def tiny(**changes):
    small = {
        "height": 32, "width": 16, "pad": 2, "identities": 4, "instances": 2, "epochs": 1,
        "warmup_epochs": 0, "lr": 2e-3,
    }  # fmt: skip
    options = {
        "data": {
            "train_ids": 8, "test_ids": 4, "images_per_id": 4, "cameras": 2, "height": 32,
            "width": 16,
        },
        "network": {"depth": 50, "layers": (1, 1, 1, 1), "in_planes": 8},
        "teacher": replace(RECIPES["demo-teacher"], **small),
        "refine": replace(RECIPES["demo-refine"], **small),
        "nested": replace(RECIPES["demo-nested"], **small),
        "student": replace(RECIPES["demo-student"], **small),
        "networks": {
            "ResNet-14": {},
            "ResNet-18": {"network": {"depth": 18, "layers": None, "in_planes": 8}},
            "ViT": {
                "network": {
                    "family": "vit", "dim": 16, "depth": 1, "heads": 2, "patch": 8,
                    "image": [32, 16],
                },
                "refine": replace(RECIPES["demo-vit-refine"], **small),
            },
        },
        "equal_time": 1.0,
        "seeds": 1,
    }  # fmt: skip
    return Scale(**{**options, **changes})
