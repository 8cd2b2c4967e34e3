"""CUHK03-NP: the new protocol (767 / 700 identities) in its two variants of bounding boxes."""

from __future__ import annotations

from pathlib import Path

from oskt.data.market import is_market, read_market
from oskt.data.source import VARIANTS
from oskt.data.split import Listing

_PREFIXES = ("", "cuhk03_")


def is_cuhk03(folder: Path) -> bool:
    """Whether a folder holds variants of CUHK03-NP or is one of them."""
    return bool(_variants(folder))


def read_cuhk03(folder: Path, variant: str | None) -> Listing:
    """List one variant of CUHK03-NP.

    Args:
        folder: holds `labeled/`, `detected/` or both (also as `cuhk03_labeled/`,
            `cuhk03_detected/`), each in the layout of Market-1501; or is one of them.
        variant: "labeled" (boxes drawn by hand) or "detected" (by a detector); None where the
            folder leaves no choice.

    Raises:
        FileNotFoundError: the variant is not there.
        ValueError: no variant chosen among two.

    Source:
        Zhong et al. 2017 (the protocol). The variants' scores cannot be compared and the toolkits
        differ in their default (the published OSKT code reads "detected"), so there is none here.
    """
    found = _variants(folder)
    if variant is None:
        if len(found) > 1:
            raise ValueError(
                f"read_data: variant must be chosen for CUHK03-NP, got {folder} with both "
                f"{' and '.join(found)}. Pass {folder}?variant=detected or ?variant=labeled."
            )
        (variant,) = found
    if variant not in found:
        raise FileNotFoundError(
            f"read_data: variant must be one that is there, got {variant}, but {folder} holds "
            f"CUHK03-NP {' and '.join(found)} only. Choose that, or add the folder {variant}."
        )
    return read_market(found[variant], f"CUHK03-NP {variant}")


def _variants(folder: Path) -> dict[str, Path]:
    """Variant -> its folder: the children of `folder` or itself, by name."""
    name = folder.resolve().name
    if is_market(folder):
        return {v: folder for v in VARIANTS if name in [prefix + v for prefix in _PREFIXES]}
    children = {v: [folder / (prefix + v) for prefix in _PREFIXES] for v in VARIANTS}
    return {v: path for v, paths in children.items() for path in paths if is_market(path)}
