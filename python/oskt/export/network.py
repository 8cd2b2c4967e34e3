"""The network as it is deployed: images in, embedding out, nothing that only training needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from oskt.models import VisionTransformer
from oskt.models.vit_stem import fold_dw

aten = torch.ops.aten

INPUTS = ("normalised", "rgb", "uint8")
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def deployed(
    model: nn.Module,
    images: Tensor,
    *,
    inputs: str,
    mean: Sequence[float],
    std: Sequence[float],
    l2: bool,
) -> nn.Module:
    """A copy of a network for inference alone, in float32 on the CPU.

    Batch norms right behind a convolution or linear layer are multiplied into it, other ones become
    one scale and one shift, a transformer's `dw` goes into its stem, all in float64; parameters
    that the embedding does not depend on (the classifier) are gone.

    Args:
        model: gives (B, F) embeddings of normalised images in evaluation mode; left untouched.
        images: (B, 3, H, W), B >= 2, of the size that it takes; the numbers do not matter.
        inputs: what the copy takes: "normalised" as the model does, "rgb" in 0..1, or "uint8".
        mean, std: of R, G, B in 0..1, which "rgb" and "uint8" leave to the copy.
        l2: divide embeddings by their length.
    """
    network = copy.deepcopy(model).cpu().double().eval()
    if isinstance(network, VisionTransformer):
        network = fold_dw(network)
    _fold(network, images.cpu().double())
    network = network.float().requires_grad_(False)
    return _Deployed(network, inputs, mean, std, l2).eval()


class _Deployed(nn.Module):
    """A network with what else inference needs, before and behind it."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, inputs: str, mean: Sequence[float], std: Sequence[float], l2: bool
    ) -> None:
        super().__init__()
        self.network, self.l2, self.raw = network, l2, inputs != "normalised"
        unit = 255 if inputs == "uint8" else 1
        spread, centre = (
            torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in (std, mean)
        )
        self.register_buffer("scale", (1 / (unit * spread)).float())
        self.register_buffer("shift", (-centre / spread).float())

    def forward(self, images: Tensor) -> Tensor:
        if self.raw:
            images = images.float() * self.scale + self.shift
        embedding = self.network(images)
        if self.l2:  # as in F.normalize, without the operators of its expand_as
            embedding = embedding / embedding.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return embedding


class _ScaleShift(nn.Module):
    """A batch norm that no layer before it can take in: y = x * weight + bias, per channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        self.weight, self.bias = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


@torch.no_grad()
def _fold(network: nn.Module, images: Tensor) -> None:
    """Fold norms and drop what is not read, in place. What reads what is seen in the exported
    graph, so nothing need be known about the network."""
    program = torch.export.export(network, (images,))
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and not node.users:
            path, _, leaf = names[node.name].rpartition(".")
            setattr(network.get_submodule(path), leaf, None)
    for node in program.graph.nodes:
        if node.target is aten.batch_norm.default:
            _fold_norm(network, node, names)


def _fold_norm(network: nn.Module, node: fx.Node, names: Mapping[str, str]) -> None:
    """One use of a batch norm: into the layer before it, if both are used here alone."""
    source, mean = _input(node, 0), _input(node, 3)
    place, norm = _layer(network, mean, names)
    if not isinstance(norm, _BatchNorm):
        return  # a function's statistics, or another use of a norm that is replaced already
    if source.target in (*_CONVOLUTIONS, aten.linear.default):
        weight = _input(source, 1)
        where, layer = _layer(network, weight, names)
        alone = all(len(use.users) == 1 for use in (source, weight, mean))
        fused: nn.Module | None = None
        if alone and isinstance(layer, _ConvNd):
            fused = fuse_conv_bn_eval(layer, norm)
        elif alone and isinstance(layer, nn.Linear) and node.meta["val"].dim() == 2:
            fused = fuse_linear_bn_eval(layer, norm)
        if fused is not None:
            network.set_submodule(where, fused)
            network.set_submodule(place, nn.Identity())
            return
    network.set_submodule(place, _ScaleShift(norm))


def _input(node: fx.Node, position: int) -> fx.Node:
    value = node.args[position]
    assert isinstance(value, fx.Node)  # tensors of an exported graph are
    return value


def _layer(network: nn.Module, node: fx.Node, names: Mapping[str, str]) -> tuple[str, nn.Module]:
    """(path, module) that owns the parameter or buffer of a node."""
    path = names.get(node.name, "").rpartition(".")[0]
    return path, network.get_submodule(path)
