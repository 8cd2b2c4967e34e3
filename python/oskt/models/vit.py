"""Vision transformers for re-identification, of any width, with the names of timm and PASS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oskt.models.vit_layers import EPS, Block, Patches
from oskt.widths.presets import VIT_PRESETS as PRESETS
from oskt.widths.presets import vit_widths as widths

__all__ = ["PRESETS", "VisionTransformer", "widths"]


class VisionTransformer(nn.Module):
    """A plain vision transformer with a BNNeck head, for images of one size.

    In evaluation mode the output is the embedding (B, F), the feature *before* BNNeck, as in the
    published code: [cls ; mean of part tokens], F = 2 dim, or the class token alone, F = dim. In
    training mode it is (that feature, logits), what the losses read.

    Every width is read from the layers' own tensors, so that a student differs in their shapes
    alone: the stream, queries and keys, values and the MLP of each block, the stem.

    Args:
        dim: channels of the token stream, a multiple of heads; 384 is ViT-S, 768 ViT-B.
        depth: blocks.
        heads: attention heads; 6 for ViT-S, 12 for ViT-B. Students keep them all, narrower.
        mlp_ratio: hidden channels of the MLP over dim.
        patch: side of a patch, pixels; divides both sides of the image.
        image: (height, width) in pixels.
        parts: part tokens beside the class token. PASS has 3, each token with a position of its
            own (`cls_pos`, `part1_pos`, ...); 0 is timm's form (`pos_embed` begins with the class
            token's).
        num_classes: identities; 0 leaves the classifier out (logits are then an empty tensor).
        stem_dim: channels of patch embedding, tokens and positions, if others than dim: a linear
            layer without bias, `dw`, then leads to dim. Published students have it;
            `vit_stem.fold_dw` multiplies it out.
        drop_path: probability with which the last block's branches are left out of an image in
            training; it rises linearly from 0 at the first block.

    Raises:
        ValueError: sizes that do not divide, or are out of range; images of another size.

    Source: Dosovitskiy et al. 2021; part tokens and their BNNecks of PASS (Zhu et al. 2022), whose
    embedding is that of TransReID (He et al. 2021). Differences: no camera embedding (SIE); the
    last norm is applied to the tokens that are read.

    Example:
        >>> import torch
        >>> model = VisionTransformer(24, depth=2, heads=2, patch=8, image=(64, 32)).eval()
        >>> model(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 48])
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        patch: int = 16,
        image: Sequence[int] = (256, 128),
        parts: int = 3,
        num_classes: int = 0,
        *,
        stem_dim: int | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(dim, depth, heads, mlp_ratio, patch, image, parts, stem_dim, drop_path)
        self.spec = {
            "family": "vit",
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "patch": patch,
            "image": list(image),
            "parts": parts,
            "num_classes": num_classes,
            "stem_dim": stem_dim,
            "drop_path": drop_path,
        }
        self.parts = parts
        self.grid = (image[0] // patch, image[1] // patch)
        stem = stem_dim or dim
        patches = math.prod(self.grid)
        for name in self.token_names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, stem)))
        for name in self.position_names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, stem)))
        self.pos_embed = nn.Parameter(torch.empty(1, patches + (parts == 0), stem))
        self.patch_embed = Patches(stem, patch)
        self.dw = nn.Linear(stem, dim, bias=False) if stem_dim is not None else None
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(
            *(Block(dim, heads, int(dim * mlp_ratio), rate) for rate in rates)
        )
        self.norm = nn.LayerNorm(dim, EPS)
        for name in self.neck_names:
            self.add_module(name, nn.BatchNorm1d(dim))
        features = dim * (2 if parts else 1)
        self.classifier = nn.Linear(features, num_classes, bias=False) if num_classes else None
        self.reset_parameters()

    # -- names ----------------------------------------------------------------------------------

    @property
    def token_names(self) -> list[str]:
        """The tokens beside the patches, in the order of the sequence."""
        return ["cls_token", *(f"part_token{i}" for i in range(1, self.parts + 1))]

    @property
    def position_names(self) -> list[str]:
        """Their positions, where those are tensors of their own; pos_embed has the patches'."""
        return [f"{t}_pos" for t in ("cls", *self._part_numbers("part"))] if self.parts else []

    @property
    def stem_tensors(self) -> dict[str, int]:
        """What `dw` reads: name -> the dimension that is the stem's channels."""
        loose = (*self.token_names, *self.position_names, "pos_embed")
        return {"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, **dict.fromkeys(loose, 2)}

    @property
    def neck_names(self) -> list[str]:
        """The BNNecks: of the class token and of each part token."""
        return ["bottleneck", *self._part_numbers("bottleneck_")]

    @property
    def head(self) -> tuple[str, ...]:
        """Modules that sizes of the backbone leave out."""
        return (*self.neck_names, "classifier")

    @property
    def untrained(self) -> tuple[str, ...]:
        """Parameters that stay as they are."""
        return tuple(f"{name}.bias" for name in self.neck_names)

    @property
    def feature_dim(self) -> int:
        """F, the length of the feature that the classifier reads, at this network's width."""
        return self.norm.weight.shape[0] * (2 if self.parts else 1)

    def _part_numbers(self, stem: str) -> list[str]:
        return [f"{stem}{i}" for i in range(1, self.parts + 1)]

    # -- numbers --------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """N(0, 0.02) cut at 2, as in timm, biases 0; N(0, 0.001) of the classifier; `dw` between
        equal widths starts as the identity. BNNeck's biases stay 0 and are not trained."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in (*self.token_names, *self.position_names, "pos_embed"):
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)
        if self.dw is not None and self.dw.in_features == self.dw.out_features:
            nn.init.eye_(self.dw.weight)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)
        for name in self.untrained:
            self.get_parameter(name).requires_grad_(False)

    # -- function -------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self.tokens(images)
        whole, parts = tokens[:, 0], [tokens[:, i] for i in range(1, self.parts + 1)]
        feature = self._joined(whole, parts)
        if not self.training:
            return feature
        necks = [self.get_submodule(name) for name in self.neck_names]
        normed = self._joined(necks[0](whole), [neck(x) for neck, x in zip(necks[1:], parts)])
        if self.classifier is None:
            return feature, normed.new_empty(len(normed), 0)
        return feature, self.classifier(normed)

    @torch.no_grad()
    def scale_features(self, scale: Tensor) -> None:
        """Multiply the channels of the embedding by scale (F,), its halves equal. BNNecks undo it:
        logits stay as they are but for the eps of these norms."""
        scale = scale[: len(self.norm.weight)]
        self.norm.weight.mul_(scale)
        self.norm.bias.mul_(scale)
        for name in self.neck_names:
            neck = self.get_submodule(name)
            assert isinstance(neck, nn.BatchNorm1d)
            if neck.running_mean is not None and neck.running_var is not None:
                neck.running_mean.mul_(scale)
                neck.running_var.mul_(scale.square())

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1 + parts, dim): class and part tokens behind the last norm."""
        size = tuple(s * self.patch_embed.proj.stride[0] for s in self.grid)
        if tuple(images.shape[-2:]) != size:
            raise ValueError(
                f"VisionTransformer: images must be {size[0]} x {size[1]} (height x width), got "
                f"{' x '.join(str(int(s)) for s in images.shape[-2:])}. Resize them, or build the "
                "network with image=(height, width)."
            )
        # getattr: functional_call puts plain tensors where parameters were.
        own = torch.cat([getattr(self, name) for name in self.token_names], 1)
        x = torch.cat([own.expand(images.shape[0], -1, -1), self.patch_embed(images)], 1)
        x = x + torch.cat([getattr(self, name) for name in (*self.position_names, "pos_embed")], 1)
        if self.dw is not None:
            x = self.dw(x)
        return self.norm(self.blocks(x)[:, : 1 + self.parts])

    def _joined(self, whole: Tensor, parts: list[Tensor]) -> Tensor:
        """[class token ; mean of the part tokens]."""
        if not parts:
            return whole
        return torch.cat([whole, sum(parts[1:], parts[0]) / len(parts)], 1)


def _check(
    dim: int, depth: int, heads: int, mlp_ratio: float, patch: int, image: Sequence[int],
    parts: int, stem_dim: int | None, drop_path: float,
) -> None:  # fmt: skip
    def require(holds: bool, name: str, condition: str, value: object, remedy: str) -> None:
        if not holds:
            raise ValueError(
                f"VisionTransformer: {name} must be {condition}, got {value}. {remedy}"
            )

    for name, value in (("dim", dim), ("depth", depth), ("heads", heads), ("patch", patch)):
        require(value >= 1, name, ">= 1", value, "ViT-S has 384, 12, 6 and 16.")
    require(
        dim % heads == 0, "dim", f"a multiple of heads={heads}", dim,
        "Every head has the same width.",
    )  # fmt: skip
    require(int(dim * mlp_ratio) >= 1, "mlp_ratio", "> 0", mlp_ratio, "4 is standard.")
    whole = len(image) == 2 and all(side > 0 and side % patch == 0 for side in image)
    require(
        whole, "image", f"(height, width), multiples of patch={patch}", tuple(image),
        "Choose another patch or image size.",
    )  # fmt: skip
    require(parts >= 0, "parts", ">= 0", parts, "PASS has 3, timm 0.")
    require(
        stem_dim is None or stem_dim >= 1, "stem_dim", ">= 1 or None", stem_dim,
        "None leaves dw out.",
    )  # fmt: skip
    require(0 <= drop_path < 1, "drop_path", "in [0, 1)", drop_path, "0.1 is usual.")
