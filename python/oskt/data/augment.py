"""Augmentation of whole batches: uint8 images in, normalised float images out."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD

OSKT_FILL = (0.4914, 0.4822, 0.4465)
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Draw:
    """What the dice said for each of B images; `augment[a:b]` of it belongs to images a..b."""

    flip: Tensor  # bool [B]
    shift: Tensor  # int64 [B, 2], rows and columns of the crop's offset
    box: Tensor  # int64 [B, 4], erased rows and columns: top, left, bottom, right; empty for none
    noise_seed: Tensor  # int64 [B], of the erased box's noise
    jitter: Tensor  # float32 [B, 3], factors of brightness, contrast and saturation

    def __getitem__(self, part: slice) -> Draw:
        return Draw(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Augment:
    """Flip, pad and crop, colour jitter, normalise, erase: the common recipe of person ReID.

    `augment(images, generator)` is `augment.apply(images, augment.draw(B, H, W, generator))`; the
    two steps let several processes share one draw.

    Args:
        flip: probability of a mirror image.
        pad: px of black around the image before a crop of its own size; scale it with the image
            (10 at 256 x 128).
        mean, std: per colour, for images in 0..1.
        erase: probability of erasing a box, after normalising.
        erase_area: least and greatest share of the image that is erased.
        erase_ratio: least height/width of the box; the greatest is its inverse.
        fill: value of an erased box per colour, in normalised units, or "noise" (normal).
        brightness, contrast, saturation: greatest deviation of the factor from 1; 0 is off.

    Source:
        Luo et al. 2019 (bag of tricks); Zhong et al. 2017 (random erasing). The published OSKT
        code erases with (0.4914, 0.4822, 0.4465) after normalising, and so do we. Difference: a
        box is drawn log-uniformly in its ratio and cut to the image, not drawn again up to 100
        times.

    Example:
        >>> images = torch.full((2, 3, 64, 32), 128, dtype=torch.uint8)
        >>> Augment(pad=2)(images, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 64, 32])
    """

    flip: float = 0.5
    pad: int = 10
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_ratio: float = 0.3
    fill: tuple[float, float, float] | Literal["noise"] = OSKT_FILL
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"Augment: {name} must be in [0, 1], got {value}. Change it.")
        if self.pad < 0:
            raise ValueError(f"Augment: pad must be at least 0, got {self.pad}. Raise it.")
        low, high = self.erase_area
        if not 0 < low <= high < 1:
            raise ValueError(
                f"Augment: erase_area must ascend within (0, 1), got {self.erase_area}. Change it."
            )
        if not 0 < self.erase_ratio <= 1:
            raise ValueError(
                f"Augment: erase_ratio must be in (0, 1], got {self.erase_ratio}. Change it."
            )

    @staticmethod
    def evaluation(
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Augment:
        """Only normalise."""
        return Augment(flip=0.0, pad=0, mean=mean, std=std, erase=0.0)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment uint8 [B, 3, H, W] with random numbers of the CPU generator."""
        batch, _, height, width = images.shape
        return self.apply(images, self.draw(batch, height, width, generator))

    def draw(self, batch: int, height: int, width: int, generator: torch.Generator) -> Draw:
        """Throw all dice for B images; the same number of them whatever the options."""
        dice = torch.rand(batch, 11, generator=generator, dtype=torch.float64)
        shift = (dice[:, 1:3] * (2 * self.pad + 1)).long() - self.pad
        low, high = self.erase_area
        area = (low + dice[:, 4] * (high - low)) * height * width
        ratio = torch.exp(-log(self.erase_ratio) * (2 * dice[:, 5] - 1))
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top = (dice[:, 6] * (height - tall + 1)).floor()
        left = (dice[:, 7] * (width - wide + 1)).floor()
        box = torch.stack([top, left, top + tall, left + wide], dim=1).long()
        reach = torch.tensor([self.brightness, self.contrast, self.saturation])
        return Draw(
            flip=dice[:, 0] < self.flip,
            shift=shift,
            box=box * (dice[:, 3] < self.erase)[:, None],
            noise_seed=(dice[:, 3] * 2**52).long(),
            jitter=(1 + (2 * dice[:, 8:11] - 1) * reach).float(),
        )

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment images as drawn.

        Args:
            images: uint8 [B, 3, H, W], any device; not changed.
            draw: for the same B, H and W.

        Returns:
            float32 [B, 3, H, W] on the same device.

        Raises:
            TypeError: `images` is not uint8.
            ValueError: wrong shape, or a draw for another number of images.
        """
        if images.dtype != torch.uint8:
            raise TypeError(
                f"augment: images must be uint8, got {images.dtype}. Pass the decoded pixels."
            )
        if images.dim() != 4 or images.shape[1] != 3 or len(images) != len(draw.flip):
            raise ValueError(
                f"augment: images must be of shape ({len(draw.flip)}, 3, H, W), got "
                f"{tuple(images.shape)}. Draw for this batch."
            )
        if draw.flip.any():
            chosen = draw.flip.to(images.device)[:, None, None, None]
            images = torch.where(chosen, images.flip(-1), images)
        if self.pad:
            images = _shift(images, draw.shift.tolist())

        def per_colour(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=images.device)[:, None, None]

        mean, std = per_colour(self.mean), per_colour(self.std)
        if self.brightness or self.contrast or self.saturation:
            pixels = _jitter(images.float().div_(255), draw.jitter.to(images.device))
            result = pixels.sub_(mean).div_(std)
        else:
            result = images.float().mul_(1 / (255 * std)).sub_(mean / std)
        self._erase(result, draw)
        return result

    def _erase(self, images: Tensor, draw: Draw) -> None:
        noisy = self.fill == "noise"
        fill = None if noisy else torch.tensor(self.fill, device=images.device)[:, None, None]
        for image, box, seed in zip(images, draw.box.tolist(), draw.noise_seed.tolist()):
            top, left, bottom, right = box
            if bottom <= top:
                continue
            if fill is None:
                dice = torch.Generator().manual_seed(seed)
                noise = torch.randn(3, bottom - top, right - left, generator=dice)
                image[:, top:bottom, left:right] = noise.to(image.device)
            else:
                image[:, top:bottom, left:right] = fill


def _shift(images: Tensor, shifts: list[list[int]]) -> Tensor:
    """Move each image by (rows, columns); black comes in."""
    _, _, height, width = images.shape
    moved = torch.zeros_like(images)
    for source, target, (down, right) in zip(images, moved, shifts):
        # Where the shift exceeds the image the slices are empty and the image stays black.
        target[:, max(down, 0) : max(height + down, 0), max(right, 0) : max(width + right, 0)] = (
            source[:, max(-down, 0) : max(height - down, 0), max(-right, 0) : max(width - right, 0)]
        )
    return moved


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast about the mean grey, and saturation about each pixel's grey."""
    bright, contrast, saturation = (f[:, None, None, None] for f in factors.unbind(1))
    luma = torch.tensor(_LUMA, device=images.device)[:, None, None]
    images = (images * bright).clamp_(0, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, contrast).clamp_(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey.expand_as(images), images, saturation).clamp_(0, 1)
