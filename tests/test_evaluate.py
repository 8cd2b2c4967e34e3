"""Evaluation: embeddings, the Market-1501 protocol against brute force, ranking lists."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from oskt.evaluation import evaluate
from oskt.evaluation.embedding import ImageFiles, embed
from oskt.evaluation.rankings import ranking_lists, spread_queries
from oskt_ext import reference

HEIGHT, WIDTH = 8, 4


@dataclass
class Part:
    paths: list[Path]
    ids: list[int]
    cameras: list[int]


@dataclass
class Market:
    query: Part
    gallery: Part


class Flat(nn.Module):
    """Gives pixels as the embedding, and a pair when training, as our networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.dropout(images).flatten(1)
        return (features, features) if self.training else features


def draw_part(folder: Path, name: str, ids: list[int], cameras: list[int]) -> Part:
    generator = np.random.default_rng(len(name))
    paths = []
    for index, identity in enumerate(ids):
        base = np.random.default_rng(identity).integers(80, 176, (HEIGHT, WIDTH, 3))
        pixels = (base + generator.integers(-90, 91, base.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{name}_{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return Part(paths, ids, cameras)


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Market:
    """Ten identities on three cameras, distractors (id 0), and one query without a hit (id 77)."""
    folder = tmp_path_factory.mktemp("market")
    generator = np.random.default_rng(7)
    query_ids = [*range(1, 11), 77]
    gallery_ids = [*np.repeat(range(1, 11), 4).tolist(), *[0] * 8]
    query = draw_part(folder, "query", query_ids, generator.integers(0, 3, 11).tolist())
    gallery = draw_part(folder, "gallery", gallery_ids, generator.integers(0, 3, 48).tolist())
    return Market(query, gallery)


def kept_order(market: Market, query_features, gallery_features, index: int) -> list[int]:
    """The gallery of one query by (distance, index) without junk, one Python loop at a time."""
    distances = 1 - (gallery_features @ query_features[index])
    order = sorted(range(len(distances)), key=lambda g: (distances[g].item(), g))
    query, gallery = market.query, market.gallery
    return [
        g
        for g in order
        if (gallery.ids[g], gallery.cameras[g]) != (query.ids[index], query.cameras[index])
    ]


def unit_features(part: Part) -> Tensor:
    rows = embed(Flat(), ImageFiles(part.paths, HEIGHT, WIDTH), device="cpu", progress=None)
    return nn.functional.normalize(rows.double())


def test_evaluate_matches_brute_force(market):
    query, gallery = unit_features(market.query), unit_features(market.gallery)
    average_precisions, trapezoids, penalties, first_hits = [], [], [], []
    for index, identity in enumerate(market.query.ids):
        order = kept_order(market, query, gallery, index)
        ranks = [r for r, g in enumerate(order, 1) if market.gallery.ids[g] == identity]
        if ranks:
            precisions = [hits / rank for hits, rank in enumerate(ranks, 1)]
            average_precisions.append(sum(precisions) / len(precisions))
            before = [1.0 if r == 1 else (hits - 1) / (r - 1) for hits, r in enumerate(ranks, 1)]
            trapezoids.append((sum(precisions) + sum(before)) / (2 * len(ranks)))
            penalties.append(len(ranks) / ranks[-1])
            first_hits.append(ranks[0])
    found = evaluate(
        Flat(), market, height=HEIGHT, width=WIDTH, batch_size=16, workers=0, keep_features=True
    )
    # One swap of neighbours moves a result by 1/1000 at least; float32 means round below 1e-6.
    assert found.mAP == pytest.approx(np.mean(average_precisions), abs=1e-6)
    assert found.mAP_trapezoid == pytest.approx(np.mean(trapezoids), abs=1e-6)
    assert found.mINP == pytest.approx(np.mean(penalties), abs=1e-6)
    for r in (1, 5, 10):
        assert found.rank(r) == pytest.approx(np.mean([h <= r for h in first_hits]), abs=1e-6)
    assert found.num_valid_queries == len(average_precisions) < found.num_queries == 11
    assert found.num_gallery == 48
    assert 0.2 < found.mAP < 0.9, found.mAP
    valid = found.average_precision[~found.average_precision.isnan()]
    torch.testing.assert_close(
        valid.double(), torch.tensor(average_precisions).double(), atol=1e-6, rtol=0
    )
    assert found.features is not None
    assert found.features[0].shape == (11, 3 * HEIGHT * WIDTH)


def test_ranking_lists_match_brute_force(market):
    query, gallery = unit_features(market.query), unit_features(market.gallery)
    lists = ranking_lists(query, gallery, market.query, market.gallery, k=6, chunk=4)
    assert lists.gallery.shape == (11, 6)
    for index, identity in enumerate(market.query.ids):
        order = kept_order(market, query, gallery, index)[:6]
        assert lists.gallery[index].tolist() == order
        assert lists.right[index].tolist() == [market.gallery.ids[g] == identity for g in order]


def test_ranking_lists_break_ties_by_index_and_pad_with_minus_one():
    query = Part([], [1], [0])
    gallery = Part([], [2, 1, 1, 1, -1], [0, 1, 0, 2, 1])  # items 2 and 4 are junk
    ones = torch.ones(5, 3)
    for metric in ("cosine", "euclidean"):
        lists = ranking_lists(ones[:1], ones, query, gallery, k=9, metric=metric)
        assert lists.gallery.tolist() == [[0, 1, 3, *[-1] * 6]]
        assert lists.right.tolist() == [[False, True, True, *[False] * 6]]


def test_ranking_lists_of_chosen_queries(market):
    query, gallery = unit_features(market.query), unit_features(market.gallery)
    everything = ranking_lists(query, gallery, market.query, market.gallery, k=3)
    some = ranking_lists(query, gallery, market.query, market.gallery, k=3, queries=[4, 0])
    assert some.queries.tolist() == [4, 0]
    assert torch.equal(some.gallery, everything.gallery[[4, 0]])
    none = ranking_lists(query, gallery, market.query, market.gallery, k=3, queries=[])
    assert none.gallery.shape == none.right.shape == (0, 3)


def test_ranking_lists_refuse_an_unknown_metric():
    part = Part([], [1], [0])
    with pytest.raises(ValueError, match=r"ranking_lists: metric must be .*, got 'l1'"):
        ranking_lists(torch.ones(1, 2), torch.ones(1, 2), part, part, metric="l1")


@pytest.mark.parametrize("name", ["k", "chunk"])
def test_ranking_lists_hold_one_item_at_least(name):
    part = Part([], [1], [1])
    with pytest.raises(ValueError, match=rf"ranking_lists: {name} must be at least 1, got -1\."):
        ranking_lists(torch.ones(1, 2), torch.ones(1, 2), part, part, **{name: -1})


def test_embed_restores_every_mode():
    model = Flat().train()
    model.dropout.eval()
    embed(model, torch.ones(2, 3, 4, 4), progress=None)
    assert model.training
    assert not model.dropout.training


def test_embed_restores_modes_after_an_error():
    class Broken(Flat):
        def forward(self, images):
            raise KeyError("broken")

    model = Broken().train()
    with pytest.raises(KeyError):
        embed(model, torch.ones(2, 3, 4, 4), progress=None)
    assert model.training
    assert model.dropout.training


def test_embed_does_not_depend_on_batches_or_workers(market):
    files = ImageFiles(market.gallery.paths, HEIGHT, WIDTH)
    whole = embed(Flat(), files, batch_size=64, progress=None)
    assert torch.equal(whole, embed(Flat(), files, batch_size=7, workers=2, progress=None))


def test_embed_flip_averages_with_the_mirror_image():
    images = torch.arange(24.0).reshape(1, 3, 2, 4)
    expected = (images + images.flip(-1)).flatten(1) / 2
    assert torch.equal(embed(Flat(), images, flip=True, progress=None), expected)


def test_embed_on_device(device):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    features = embed(model, torch.rand(5, 3, 8, 4), amp=True, progress=None)
    assert features.device.type == device.type
    assert features.dtype == torch.float32
    assert features.shape == (5, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embed_gives_images_in_the_dtype_of_the_model(market, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    files = ImageFiles(market.query.paths, HEIGHT, WIDTH)
    expected = embed(model, files, progress=None)
    features = embed(model.to(dtype), files, progress=None)
    assert features.dtype == torch.float32
    # a few roundings of weights, of pixels below 3 and of sums of them
    torch.testing.assert_close(features, expected, rtol=0, atol=20 * torch.finfo(dtype).eps + 1e-6)


def test_embed_refuses_no_images_and_wrong_outputs():
    with pytest.raises(ValueError, match="embed: images must hold at least 1 image, got 0"):
        embed(Flat(), torch.ones(0, 3, 4, 4), progress=None)
    with pytest.raises(ValueError, match="embed: batch_size must be at least 1, got 0"):
        embed(Flat(), torch.ones(1, 3, 4, 4), batch_size=0, progress=None)
    with pytest.raises(ValueError, match=r"shape \(2, F\) in evaluation mode, got \(2, 3, 4, 4\)"):
        embed(nn.Identity(), torch.ones(2, 3, 4, 4), progress=None)


def test_evaluate_refuses_empty_parts_and_diverged_models(market):
    with pytest.raises(ValueError, match="evaluate: query must hold at least 1 image, got 0"):
        evaluate(Flat(), (Part([], [], []), market.gallery))

    class Diverged(Flat):
        def forward(self, images):
            return images.flatten(1) * torch.nan

    with pytest.raises(ValueError, match="evaluate: query embeddings must be finite"):
        evaluate(Diverged(), market, height=HEIGHT, width=WIDTH, workers=0)


def test_evaluate_prints_the_toolkit_lines_and_the_table(market):
    console = Console(file=io.StringIO(), width=120)
    found = evaluate(Flat(), market, height=HEIGHT, width=WIDTH, workers=0, console=console)
    printed = console.file.getvalue()
    assert f"mAP: {found.mAP:.1%}" in printed
    assert f"CMC curve, Rank-1  :{found.rank1:.1%}" in printed
    assert f"CMC curve, Rank-10 :{found.rank10:.1%}" in printed
    assert f"{found.num_valid_queries} of 11" in printed


def test_evaluate_scores_the_re_ranking_beside_the_plain_ranking(market):
    """Against the dense definition: float32 moves no rank here, as for the plain scores."""
    distances = reference.k_reciprocal(unit_features(market.query), unit_features(market.gallery))
    labels = [
        torch.tensor(column)
        for column in (
            market.query.ids, market.gallery.ids, market.query.cameras, market.gallery.cameras,
        )
    ]  # fmt: skip
    expected = reference.distance_metrics(distances, *labels)
    plain = evaluate(Flat(), market, height=HEIGHT, width=WIDTH, workers=0)
    console = Console(file=io.StringIO(), width=120)
    found = evaluate(
        Flat(), market, height=HEIGHT, width=WIDTH, workers=0, rerank=True, console=console
    )
    assert plain.reranked is None
    assert found.mAP == plain.mAP
    assert found.reranked.mAP == pytest.approx(expected.mAP, abs=1e-6)
    assert found.reranked.mINP == pytest.approx(expected.mINP, abs=1e-6)
    assert found.reranked.cmc == pytest.approx(expected.cmc.tolist(), abs=1e-6)
    assert found.reranked.mAP != found.mAP
    assert found.reranked.peak_bytes >= found.peak_bytes > 2**20
    printed = console.file.getvalue()
    assert re.search(r"plain +re-ranked", printed)
    for name, scores in (("mAP", "mAP"), ("mINP", "mINP"), ("Rank-1", "rank1")):
        pair = [f"{100 * getattr(one, scores):.1f}" for one in (found, found.reranked)]
        assert re.search(rf"^{name} +{pair[0]} +{pair[1]}$", printed, re.MULTILINE)


def test_image_files_resize_and_normalise(tmp_path):
    Image.new("RGB", (10, 30), (255, 0, 51)).save(tmp_path / "a.png")
    (image,) = ImageFiles([tmp_path / "a.png"], 6, 3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert image.shape == (3, 6, 3)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]))


def test_spread_queries_covers_hard_to_easy():
    average_precision = torch.linspace(1, 0, 101)
    assert spread_queries(average_precision, 5) == [100, 75, 50, 25, 0]
    assert spread_queries(torch.tensor([0.5, torch.nan]), 4) == [0]
