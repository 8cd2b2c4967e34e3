"""Identity-balanced batches as a pure function of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STREAM = 11  # keeps the sampler's random numbers apart from others of the same seed


@dataclass(frozen=True)
class PKSampler:
    """Batches of P identities x K images each.

    Identities come in shuffled rounds: each appears once before any appears again, and all P of a
    batch differ. So do the images of an identity; one with fewer than K images repeats them.

    Args:
        num_ids: P, identities per batch, >= 1.
        num_images: K, images per identity, >= 1.
        steps: batches per epoch; None for images // (P * K), at least 1.

    Source:
        Hermans et al. 2017, section 2. Difference: identities are drawn evenly, however many
        images they have; the sampler of the common baselines favours those with many.

    Example:
        >>> labels = np.array([0, 0, 1, 1, 2])
        >>> plan = PKSampler(2, 2).plan(labels, seed=0, epoch=0)
        >>> plan.shape
        (1, 4)
        >>> bool(labels[plan[0, 0]] == labels[plan[0, 1]])
        True
    """

    num_ids: int = 16
    num_images: int = 4
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_ids", "num_images", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"PKSampler: {name} must be at least 1, got {value}. Raise it.")

    def num_steps(self, labels: NDArray[np.int64]) -> int:
        """Batches of an epoch over images with these labels."""
        return self.steps or max(1, len(labels) // (self.num_ids * self.num_images))

    def plan(self, labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
        """The epoch's image indices.

        Args:
            labels: int64 [n], the identity of each image.
            seed: >= 0.
            epoch: >= 0.

        Returns:
            int64 [steps, P * K]; the K images of an identity lie side by side.

        Raises:
            ValueError: fewer than P identities.
        """
        values, inverse = np.unique(labels, return_inverse=True)
        if len(values) < self.num_ids:
            raise ValueError(
                f"PKSampler: num_ids must be at most the {len(values)} identities of the split, "
                f"got {self.num_ids}. Lower it (--identities)."
            )
        rng = np.random.default_rng([_STREAM, seed, epoch])
        steps = self.num_steps(labels)
        batches = _rounds(rng, len(values), steps * self.num_ids, self.num_ids)
        order = np.argsort(inverse, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        plan = np.empty((len(batches), self.num_images), dtype=np.int64)
        for identity, images in enumerate(members):
            visits = np.flatnonzero(batches == identity)
            plan[visits] = _deal(rng, images, len(visits), self.num_images)
        return plan.reshape(steps, self.num_ids * self.num_images)


def _rounds(rng: np.random.Generator, size: int, total: int, batch: int) -> NDArray[np.int64]:
    """`total` identities in shuffled rounds; those of a batch differ, also across a round's end."""
    rounds: list[NDArray[np.int64]] = []
    filled = 0
    while filled < total:
        following = rng.permutation(size)
        begun = filled % batch
        if begun:  # those already in the open batch wait until it is full
            open_batch = np.concatenate(rounds)[-begun:]
            waits = np.isin(following, open_batch)
            following = np.concatenate([following[~waits], following[waits]])
        rounds.append(following)
        filled += size
    return np.concatenate(rounds)[:total] if rounds else np.empty(0, dtype=np.int64)


def _deal(
    rng: np.random.Generator, images: NDArray[np.int64], visits: int, hand: int
) -> NDArray[np.int64]:
    """`visits` hands of `hand` images: all are dealt before one is dealt again, if they suffice."""
    repeats = -(-hand // len(images))  # 1 unless the identity has too few images
    hands = max(1, len(images) // hand)
    dealt = np.empty((-(-visits // hands), hands, hand), dtype=np.int64)
    for deck in dealt:
        shuffled = np.tile(rng.permutation(images), repeats)
        deck[:] = shuffled[: hands * hand].reshape(hands, hand)
    return dealt.reshape(-1, hand)[:visits]
