"""Published vision transformers load: names, tokens, positions, normalisation, dw."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from oskt.models.pretrained import load_pretrained
from oskt.models.resnet import ResNet
from oskt.models.vit import VisionTransformer
from oskt.models.vit_checkpoint import fitted
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD

IMAGE = (64, 32)  # a grid of 4 x 2


def small(dim=12, depth=2, heads=2, image=IMAGE, **options):
    return VisionTransformer(dim, depth, heads, patch=16, image=image, **options)


def numbers(model):
    """A state whose every number is drawn: norms and biases too."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def backbone(model):
    return {n: t for n, t in numbers(model).items() if not n.startswith(("bottleneck", "classi"))}


def dino(state):
    """What PASS's pretraining writes before its own conversion."""
    head = {"module.head.mlp.0.weight": torch.zeros(3, 3)}
    teacher = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    return {"student": {"x": torch.ones(1)}, "teacher": {**teacher, **head}, "epoch": 100}


def timm(state):
    return {**state, "head.weight": torch.zeros(1000, 12), "head.bias": torch.zeros(1000)}


def deit(state):
    """A distillation token, whose position lies behind the class token's."""
    own, rest = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    extra = {"dist_token": torch.ones(1, 1, 12), "head_dist.weight": torch.zeros(1000, 12)}
    positions = torch.cat([own, torch.full_like(own, 9.0), rest], 1)
    return {"model": {**timm(state), **extra, "pos_embed": positions}}


def flat(state):
    return {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}


FILES = {
    "pass": (3, lambda state: state),
    "pass_raw": (3, dino),
    "oskt": (3, lambda state: {f"module.base.{name}": t for name, t in state.items()}),
    "timm": (0, timm),
    "timm_flat": (0, flat),
    "deit": (0, deit),
}


@pytest.mark.parametrize("kind", FILES)
def test_known_files_load_whole(tmp_path, kind):
    parts, wrap = FILES[kind]
    state = backbone(small(parts=parts))
    torch.save(wrap(state), tmp_path / "a.pth")
    model = small(parts=parts, num_classes=5)
    report = load_pretrained(model, tmp_path / "a.pth")
    assert report.tensor_coverage == report.element_coverage == 1
    assert not report.missing
    assert not report.mismatched
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_safetensors_and_trained_necks(tmp_path):
    state = numbers(small(num_classes=5))
    prefixed = {
        name if name.startswith(("bottleneck", "classifier")) else f"base.{name}": tensor
        for name, tensor in state.items()
    }
    save_file(prefixed, tmp_path / "a.safetensors")
    model = small(num_classes=5)
    report = load_pretrained(model, tmp_path / "a.safetensors", classifier=True)
    assert report.tensor_coverage == 1
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_published_teacher_loads(golden):
    """`base.` names, an identity `dw` that trained on, and beside them everything of the chain."""
    path = golden / "official_vit_a" / "transformer_120.pth"
    model = small(48, heads=6)
    report = load_pretrained(model, path)
    assert report.tensor_coverage == report.element_coverage == 1
    written = torch.load(path, weights_only=True)
    matrix = written["base.dw.weight"]
    own = model.blocks[1].mlp.fc2.weight
    assert torch.equal(own, written["base.blocks.1.mlp.fc2.weight"])
    # products of 48 float32 numbers, summed in float64 here and in float32 there
    expected = written["base.cls_pos"] @ matrix.T
    torch.testing.assert_close(model.cls_pos, expected, rtol=1e-5, atol=1e-6)


def test_files_with_dw_give_the_same_network_without(tmp_path):
    source = small(stem_dim=20).eval()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model, same = small().eval(), small(stem_dim=20).eval()
    load_pretrained(model, tmp_path / "a.pth")
    load_pretrained(same, tmp_path / "a.pth")
    images = torch.randn(2, 3, *IMAGE)
    assert torch.equal(same(images), source(images))
    torch.testing.assert_close(model(images), source(images), rtol=1e-4, atol=1e-5)


def test_positions_are_resized_and_tokens_kept(tmp_path):
    """A linear ramp stays one away from the border, whatever the sizes: bicubic is exact on it."""
    rows = torch.arange(16.0)[:, None].expand(16, 8)
    ramp = torch.stack([rows, torch.full_like(rows, 5.0)], -1).flatten(0, 1)[None]
    found = fitted(
        {"pos_embed": ramp, "cls_pos": torch.full((1, 1, 2), 7.0)},
        small(2, 1, 1, image=(128, 64)),
    )
    grid = found["pos_embed"].unflatten(1, (8, 4))
    # Row i of 8 covers rows 2i and 2i + 1 of 16: their middle is 2i + 0.5.
    torch.testing.assert_close(
        grid[0, 2:6, :, 0], (2 * torch.arange(2.0, 6)[:, None] + 0.5).expand(4, 4)
    )
    torch.testing.assert_close(grid[..., 1], torch.full((1, 8, 4), 5.0))
    assert found["cls_pos"].unique().tolist() == [7.0]


def test_square_positions_of_imagenet_reach_a_persons_grid():
    positions = torch.randn(1, 197, 6)
    found = fitted({"pos_embed": positions}, VisionTransformer(6, 1, 1, parts=0))
    assert found["pos_embed"].shape == (1, 129, 6)
    assert torch.equal(found["pos_embed"][:, :1], positions[:, :1])
    maps = positions[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    # torch's own filter on the whole map, here as the statement of what is meant
    wanted = F.interpolate(maps, (16, 8), mode="bicubic", antialias=True)
    assert torch.equal(found["pos_embed"][:, 1:], wanted.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("count", "grid"), [(128, (16, 8)), (192, (24, 8)), (196, (14, 14))])
def test_grids_of_known_aspects(count, grid):
    rows = (torch.arange(count) // grid[1]).float()[None, :, None]
    found = fitted({"pos_embed": rows, "cls_pos": torch.zeros(1, 1, 1)}, small(2, 1, 1))
    resized = found["pos_embed"].view(4, 2)
    # Read with another width, the rows would come apart between the two columns.
    torch.testing.assert_close(resized[:, 0], resized[:, 1])
    assert resized[:, 0].mean().item() == pytest.approx((grid[0] - 1) / 2)


def test_the_class_position_moves_between_the_forms():
    own, grid = torch.randn(1, 1, 12), torch.randn(1, 8, 12)
    apart = fitted({"pos_embed": torch.cat([own, grid], 1)}, small())
    assert torch.equal(apart["cls_pos"], own)
    assert torch.equal(apart["pos_embed"], grid)
    joined = fitted({"pos_embed": grid, "cls_pos": own}, small(parts=0))
    assert torch.equal(joined["pos_embed"], torch.cat([own, grid], 1))
    assert "cls_pos" not in joined
    bare = fitted({"pos_embed": grid}, small())
    assert torch.equal(bare["pos_embed"], grid)


def test_missing_part_tokens_are_reported_and_stay_drawn(tmp_path):
    torch.save(backbone(small(parts=0, depth=4)), tmp_path / "timm.pth")
    model = small(depth=4)
    before = copy.deepcopy(model.state_dict())
    report = load_pretrained(model, tmp_path / "timm.pth")
    parts = [f"part_token{i}" for i in (1, 2, 3)] + [f"part{i}_pos" for i in (1, 2, 3)]
    assert sorted(report.missing) == sorted(parts)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in parts)
    assert len({tuple(model.get_parameter(name).flatten().tolist()) for name in parts}) == 6


def test_another_normalisation_is_taken_up_exactly(tmp_path):
    """The file's network on pixels in -1..1 equals the loaded one on ImageNet's normalisation."""
    source = small().double().eval()
    source.load_state_dict(backbone(source), strict=False)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model = small().double().eval()
    load_pretrained(model, tmp_path / "a.pth", pixels="half")
    pixels = torch.rand(2, 3, *IMAGE, dtype=torch.float64)
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    expected, got = source((pixels - 0.5) / 0.5), model((pixels - mean) / std)
    # mean and std are float32 numbers inside: 2^-24 relative, times the depth of the network
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_errors_say_what_to_do(tmp_path):
    state = backbone(small())
    torch.save({**state, "pos_embed": torch.zeros(1, 11, 12)}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"pos_embed in '.*a\.pth' must lie on a grid .*got 11 pos"
    ):
        load_pretrained(small(), tmp_path / "a.pth")
    torch.save(backbone(small(24)), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"coverage must be at least 90%.*\n  other shapes"):
        load_pretrained(small(), tmp_path / "wide.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"pixels must be 'imagenet', or 'half' .* for a ResNet\."):
        load_pretrained(ResNet(18, 4), tmp_path / "b.pth", pixels="half")
    with pytest.raises(ValueError, match=r"pixels must be .*got 'unit' for a VisionTransformer"):
        load_pretrained(small(), tmp_path / "b.pth", pixels="unit")
    for stem in (torch.zeros(12, 64, 8, 8), torch.zeros(12, 100)):
        torch.save({**state, "patch_embed.proj.weight": stem}, tmp_path / "stem.pth")
        with pytest.raises(ValueError, match=r"patch_embed.proj in '.*stem\.pth' must be a convo"):
            load_pretrained(small(), tmp_path / "stem.pth", pixels="half")
        with pytest.raises(ValueError, match=r"coverage must be at least 100%.*\n  other shapes"):
            load_pretrained(small(), tmp_path / "stem.pth", min_coverage=1)
    del state["patch_embed.proj.bias"]
    torch.save(state, tmp_path / "bias.pth")
    with pytest.raises(ValueError, match=r"to take up pixels 'half', got .* and no bias\."):
        load_pretrained(small(), tmp_path / "bias.pth", pixels="half")


def test_half_precision_numpy_files(tmp_path):
    halves = {name: tensor.half() for name, tensor in backbone(small()).items()}
    torch.save({"state_dict": halves, "best": np.float64(0.9)}, tmp_path / "a.pth.tar")
    model = small()
    assert load_pretrained(model, tmp_path / "a.pth.tar").tensor_coverage == 1
    assert model.pos_embed.dtype == torch.float32
