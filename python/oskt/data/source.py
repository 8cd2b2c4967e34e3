"""The one notation for a data set in arguments and on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIANTS = ("labeled", "detected")
_KEYS = ("variant", "val", "few_shot", "seed")


@dataclass(frozen=True)
class DataSource:
    """Where a data set lies and how it is read: `PATH` or `PATH?key=value,key=value`.

    Args:
        path: a folder, or a CSV file.
        variant: "labeled" or "detected", of CUHK03-NP.
        val: of MSMT17, whether its validation images are training images, too; written `val=in` or
            `val=out`.
        few_shot, seed: ratio and seed of `oskt.data.few_shot`.

    Raises:
        ValueError: a value outside its range, or a seed without few_shot.

    Notes:
        None leaves an option to `read_data`. `&` separates as well as the comma, but a shell wants
        quotes around it. A path that exists as it stands is not split, so folders may have `?` in
        their names.

    Example:
        >>> DataSource.parse("CUHK03-NP?variant=detected").variant
        'detected'
        >>> DataSource.parse("market1501?few_shot=0.1,seed=3").seed
        3
    """

    path: Path
    variant: str | None = None
    val: bool | None = None
    few_shot: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in (None, *VARIANTS):
            raise _wrong("variant", " or ".join(VARIANTS), self.variant)
        if self.val not in (None, True, False):
            raise _wrong("val", "True or False", self.val)
        if self.seed is not None and self.few_shot is None:
            raise ValueError(
                f"read_data: seed must come with few_shot, got seed {self.seed} alone. It chooses "
                "the identities to keep: give their share as few_shot, or leave the seed out."
            )

    @staticmethod
    def parse(source: str | Path, **options: Any) -> DataSource:
        """Read the notation.

        Args:
            source: `PATH` or `PATH?key=value,...`.
            options: fields given beside it; None where they are not.

        Raises:
            ValueError: an unknown key, a value outside its range, or an option given twice.
        """
        text = str(source)
        path, mark, written = text.partition("?")
        if not mark or Path(text).exists():
            return DataSource(Path(text), **options)
        for part in re.split("[,&]", written):
            key, equals, value = part.partition("=")
            if key not in _KEYS or not equals:
                raise ValueError(
                    f"read_data: after ? there must be key=value with the keys {', '.join(_KEYS)}, "
                    f"got {part!r} in {text!r}. Example: market1501?few_shot=0.1,seed=3."
                )
            if options.get(key) is not None:
                raise ValueError(
                    f"read_data: {key} must be given once, got {value!r} in {text!r} and "
                    f"{options[key]!r}. Drop one."
                )
            options[key] = _value(key, value)
        return DataSource(Path(path), **options)


def _value(key: str, text: str) -> str | bool | float | int:
    if key == "variant":
        return text
    if key == "val":
        if text not in ("in", "out"):
            raise _wrong(key, "in or out", text)
        return text == "in"
    kind = int if key == "seed" else float
    try:
        return kind(text)
    except ValueError:
        raise _wrong(key, "a whole number" if kind is int else "a number", text) from None


def _wrong(key: str, condition: str, value: object) -> ValueError:
    return ValueError(f"read_data: {key} must be {condition}, got {value!r}. Change it.")
