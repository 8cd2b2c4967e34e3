"""What only a CUDA device can show of the operators: graphs, streams, devices that do not match."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oskt_ext import (
    ExpansionPlan,
    IndexMap,
    RefiningPlan,
    expand,
    kmeans,
    merge_trees,
    refining_loss,
)
from oskt_ext.refining_loss import RefiningItem

pytestmark = pytest.mark.cuda
OPERATORS = [
    "distance_metrics", "expand", "kmeans gram", "kmeans direct", "kmeans direct high",
    "merge_trees", "refining_loss", "retrieval_metrics",
]  # fmt: skip
CHUNKED = 150  # tensors or problems: more than travel in one launch


def operator_call(name, device):
    """A call without a host synchronisation, and the tensor that it reads."""
    ops = torch.ops.oskt_ext
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(CHUNKED * 60, generator=generator).to(device)
    if name == "expand":
        rows = IndexMap.select(np.arange(7) % 5, 5)
        plan = ExpansionPlan([(rows, IndexMap.identity(12), 1)] * CHUNKED).to(device)
        return source, lambda: [expand(source, plan)]
    parts = list(source.view(CHUNKED, 12, 5))
    if name.startswith("kmeans"):
        way = name.split()[1:]  # route and precision
        arguments = ([3] * CHUNKED, "euclidean", "k-means++", [], "hartigan", 2, 20, 0, *way)

        def kmeans():
            centers, labels, inertia, n_iter = ops.kmeans(parts, *arguments)
            return [*centers, *labels, inertia, n_iter]

        return source, kmeans
    if name == "merge_trees":
        return source, lambda: [x for kind in ops.merge_trees(parts) for x in kind]
    if name == "refining_loss":
        labels = np.arange(12) % 4
        items = [RefiningItem(labels, 4, 5, 20 * i) for i in range(CHUNKED)]
        plan = RefiningPlan(items).to(device)
        chain = torch.zeros(CHUNKED * 20, device=device)
        return source, lambda: [refining_loss(parts, chain, plan)]
    features = source.view(-1, 60)
    numbers = torch.arange(len(features), device=device)
    if name == "distance_metrics":
        labels = (numbers % 3, numbers[:60] % 3, numbers % 2, numbers[:60] % 5)
        return source, lambda: list(ops.distance_metrics(features, *labels))
    arguments = (numbers % 3, numbers % 3, numbers % 2, numbers % 5, "cosine", 10)
    return source, lambda: list(ops.retrieval_metrics(features, features, *arguments))


def equal(results, expected):
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(results, expected))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_captured_graph_replays_on_new_values(name):
    """A synchronisation or a copy from pageable memory would fail the capture or the replay."""
    source, call = operator_call(name, "cuda")
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for _ in range(3):
        source.copy_(torch.randn(source.shape).to(source))
        graph.replay()
        assert equal(results, call())


def test_checks_of_values_are_left_out_while_a_graph_is_captured():
    rows = [torch.randn(40, 7, device="cuda"), torch.randn(12, 5, device="cuda")]

    def call():
        given = kmeans(rows, [3, 4], init=[rows[0][:3], rows[1][:4]])
        trees = merge_trees(rows)
        return [*given.labels, given.inertia, *kmeans(rows, [3, 4]).labels, *trees.height]

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    rows[0].normal_()
    graph.replay()
    assert equal(results, call())
    rows[0][2, 3] = torch.nan
    graph.replay()
    assert results[2].isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"rows\[0\] must be finite"):
        kmeans(rows, [3, 4])


@pytest.mark.parametrize("name", OPERATORS)
def test_launches_follow_the_current_stream(name):
    """The input is overwritten late on the side stream; a launch elsewhere would read it early."""
    source, call = operator_call(name, "cuda")
    values = source.flip(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        source.copy_(values)
        results = call()
    stream.synchronize()
    assert equal(results, call())


@pytest.mark.parametrize("name", OPERATORS)
def test_a_device_that_is_not_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    (_, here), (_, there) = operator_call(name, "cuda:0"), operator_call(name, "cuda:1")
    results = there()
    assert {result.device.index for result in results} == {1}
    assert equal([result.to("cuda:0") for result in results], here())


def test_direct_calls_with_mixed_devices():
    ops = torch.ops.oskt_ext
    plan = ExpansionPlan([(IndexMap.identity(2), IndexMap.identity(3), 1)]).to("cuda")
    tables = (plan.table, plan.coefficient, plan.transposed_table, plan.transposed_coefficient, 6)
    with pytest.raises(ValueError, match="expand: source must be on the device of the plan"):
        ops.expand(torch.zeros(6), *tables)
    ids = torch.zeros(2, dtype=torch.int64, device="cuda")
    with pytest.raises(ValueError, match="retrieval_metrics: query_ids must be"):
        ops.retrieval_metrics(torch.ones(2, 3), torch.ones(2, 3), *[ids] * 4, "cosine", 5)
    loss = RefiningPlan([RefiningItem([0, 0], 1, 3, 0)]).to("cuda")
    with pytest.raises(ValueError, match="refining_loss: table and weight must be"):
        ops.refining_loss(
            [torch.ones(2, 3)], torch.ones(3), loss.table, loss.weight, 1.0, True, True
        )
