"""Published vision transformers' tensors in the form that a VisionTransformer has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from oskt.models.vit import VisionTransformer
from oskt.models.vit_stem import multiplied
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD

# Height over width of the grids that checkpoints are trained on: ImageNet's squares, and persons
# at 256x128 and at 384x128.
ASPECTS = (1, 2, 3)


def fitted(
    tensors: Mapping[str, Tensor],
    model: VisionTransformer,
    pixels: str = "imagenet",
    path: str | Path = "",
) -> dict[str, Tensor]:
    """A checkpoint's tensors with the tokens, positions and stem that a model has.

    Positions are resized to the model's grid, bicubically with antialiasing; those of tokens are
    no part of a grid and stay. The class token's lies at the front of `pos_embed` in timm's form
    and in `cls_pos` in PASS's: each becomes the other. A distillation token is left out. Part
    tokens that a file does not have are missing; they start at random, since equal ones would
    stay equal. Flat patch embeddings become convolutions. A file's `dw` that the model does not
    have is multiplied into its stem (see `vit_stem.fold_dw`). A network that read pixels in -1..1
    reads ImageNet's normalisation afterwards: both are affine per colour, so weight and bias of
    the patch embedding take it up exactly.

    Args:
        tensors: names without prefixes -> tensors; those that are not named above pass through.
        model: tells which tokens and which grid are wanted. Its numbers are not read.
        pixels: "imagenet", or "half": mean and std were 0.5 (timm's ViTs, TransReID, OSKT_ViT).
        path: the file, for errors.

    Raises:
        ValueError: positions that lie on no known grid, or patches that cannot take up "half".

    Source: bicubic resizing as in timm (`resample_abs_pos_embed`); TransReID resizes bilinearly.

    Example:
        >>> model = VisionTransformer(8, 1, 2, image=(64, 32), parts=0)
        >>> fitted({"pos_embed": torch.zeros(1, 197, 8)}, model)["pos_embed"].shape
        torch.Size([1, 9, 8])
    """
    found = dict(tensors)
    if "patch_embed.proj.weight" in found:
        _fit_patches(found, pixels, path)
    if "pos_embed" in found:
        _fit_positions(found, model, path)
    if model.dw is None and "dw.weight" in found:
        matrix = found.pop("dw.weight")
        for name, dim in model.stem_tensors.items():
            if name in found:
                found[name] = multiplied(found[name], matrix, dim)
    return found


def _fit_patches(found: dict[str, Tensor], pixels: str, path: str | Path) -> None:
    weight, bias = found["patch_embed.proj.weight"], found.get("patch_embed.proj.bias")
    if weight.dim() == 2:  # the linear layer of timm's first models
        side = math.isqrt(weight.shape[1] // 3)
        if 3 * side * side == weight.shape[1]:
            weight = weight.unflatten(1, (3, side, side))
    if pixels == "half":
        if bias is None or weight.dim() != 4 or weight.shape[1] != 3:
            form = "x".join(map(str, weight.shape))
            raise ValueError(
                f"load_pretrained: patch_embed.proj in '{path}' must be a convolution of images "
                f"with a bias to take up pixels 'half', got weights {form} and "
                f"{'no bias' if bias is None else 'a bias'}. Convolutional stems do not load into "
                "this network: choose a file with patches."
            )
        weight, found["patch_embed.proj.bias"] = from_half(weight, bias)
    found["patch_embed.proj.weight"] = weight


def from_half(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A patch embedding that read pixels of mean and std 0.5 as one that reads ImageNet's
    normalisation and computes the same.

    Args:
        weight: [C, 3, P, P].
        bias: [C].
    """
    # (p - 0.5) / 0.5 = scale * (p - mean) / std + shift
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    scale, shift = 2 * std, 2 * mean - 1
    return weight * scale, bias + (weight * shift).sum((1, 2, 3))


def _fit_positions(found: dict[str, Tensor], model: VisionTransformer, path: str | Path) -> None:
    apart = "cls_pos" in found  # else the class token's position leads, or there is none
    leading = (2,) if "dist_token" in found else (0,) if apart else (1, 0)
    own, grid = _split(found.pop("pos_embed"), leading, model.grid, path)
    if own is not None:
        found["cls_pos"] = own
    found["pos_embed"] = _resized(grid, model.grid)
    if not model.parts and "cls_pos" in found:
        found["pos_embed"] = torch.cat([found.pop("cls_pos"), found["pos_embed"]], 1)


def _split(
    positions: Tensor, leading: Sequence[int], wanted: tuple[int, int], path: str | Path
) -> tuple[Tensor | None, Tensor]:
    """(first position or None, (1, H, W, C) of the patches) of a pos_embed (1, T, C) that begins
    with the positions of one of `leading` numbers of tokens."""
    count = positions.shape[1]
    for tokens in leading:
        grid = _grid(count - tokens, wanted)
        if grid is not None:
            own = positions[:, :1] if tokens else None
            return own, positions[:, tokens:].unflatten(1, grid)
    raise ValueError(
        f"load_pretrained: pos_embed in '{path}' must lie on a grid of height/width 1, 2 or 3, or "
        f"on the network's {wanted[0]} x {wanted[1]}, got {count} positions. Build the network "
        "with the image size of the file."
    )


def _grid(count: int, wanted: tuple[int, int]) -> tuple[int, int] | None:
    if count == math.prod(wanted):
        return wanted
    for aspect in ASPECTS:
        width = math.isqrt(max(count, 0) // aspect)
        if width and aspect * width * width == count:
            return aspect * width, width
    return None


def _resized(grid: Tensor, wanted: tuple[int, int]) -> Tensor:
    """(1, H, W, C) -> (1, H' W', C)."""
    if tuple(grid.shape[1:3]) != wanted:
        maps = grid.permute(0, 3, 1, 2).float()
        maps = F.interpolate(maps, wanted, mode="bicubic", antialias=True)
        grid = maps.permute(0, 2, 3, 1).to(grid.dtype)
    return grid.flatten(1, 2)
