"""The definition of every operator in plain PyTorch: slow, readable, any device.

The compiled operators are tested against these, and nothing here calls them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oskt_ext._retrieval import RetrievalMetrics
from oskt_ext.expand import ExpansionPlan
from oskt_ext.kmeans import KMeansResult
from oskt_ext.merge_trees import MergeTrees
from oskt_ext.refining_loss import RefiningPlan


def expand(chain: Tensor, plan: ExpansionPlan) -> Tensor:
    """Per item: dense row matrix @ source @ dense column matrix, summed in float64 or float32."""
    accumulate = torch.float64 if chain.dtype == torch.float64 else torch.float32
    start, parts = 0, []
    for rows, columns, area in plan.items:
        shape = (rows.size, columns.size, area)
        source = chain[start : start + shape[0] * shape[1] * area].reshape(shape).to(accumulate)
        row_matrix, column_matrix = (m.dense().to(source) for m in (rows, columns))
        summed = torch.einsum("is,sto->ito", row_matrix, source)
        parts.append(torch.einsum("jt,ito->ijo", column_matrix, summed).flatten())
        start += source.numel()
    return torch.cat(parts).to(chain.dtype)


def refining_loss(
    teacher: list[Tensor], chain: Tensor, plan: RefiningPlan, *, scale: float = 1.0
) -> Tensor:
    """scale * sum over items l of weight_l * sum over rows n of w_n |T_l[n] - C_l[label(n)]|^2."""
    total = chain.new_zeros((), dtype=torch.float64)
    for tensor, item in zip(teacher, plan.items):
        rows = tensor.reshape(len(item.labels), item.row_length).double()
        clusters = chain[item.offset : item.end].double()
        labels = torch.as_tensor(item.labels, device=chain.device, dtype=torch.long)
        residual = rows - clusters.reshape(item.clusters, item.row_length)[labels]
        squares = residual.square().sum(1)
        if item.row_weights is not None:
            squares = squares * torch.from_numpy(item.row_weights).to(squares.device)
        total = total + item.weight * squares.sum()
    return (scale * total).to(torch.promote_types(chain.dtype, torch.float32))


def retrieval_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Whole distance matrix, float64 for float64, then `distance_metrics`."""
    accumulate = torch.float64 if query_features.dtype == torch.float64 else torch.float32
    queries, gallery = (f.detach().to(accumulate) for f in (query_features, gallery_features))
    if metric == "cosine":
        queries, gallery = (
            torch.nan_to_num(f / torch.linalg.vector_norm(f, dim=1, keepdim=True))
            for f in (queries, gallery)
        )
        distance = 1 - queries @ gallery.T
    else:
        distance = gallery.square().sum(1) - 2 * queries @ gallery.T
    return distance_metrics(
        distance, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank=max_rank
    )


def distance_metrics(
    distances: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    *,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Stable sort of every row of a whole matrix, then precision at every hit."""
    found = torch.zeros(max_rank, dtype=torch.int64)
    rows = torch.full((3, len(distances)), torch.nan, dtype=torch.float64)
    for q, order in enumerate(distances.argsort(dim=1, stable=True)):
        ids, cameras = gallery_ids[order], gallery_cameras[order]
        junk = (ids == -1) | ((ids == query_ids[q]) & (cameras == query_cameras[q]))
        hits = (ids[~junk] == query_ids[q]).cpu()
        ranks = (hits.nonzero().flatten() + 1).double()
        if len(ranks) == 0:
            continue
        k = torch.arange(1, len(ranks) + 1).double()
        before = torch.where(ranks == 1, 1.0, (k - 1) / (ranks - 1).clamp(min=1))
        found[int(ranks[0]) - 1 :] += 1
        rows[0, q] = (k / ranks).mean()
        rows[1, q] = len(ranks) / ranks[-1]
        rows[2, q] = ((k / ranks + before) / 2).mean()
    count = int((~rows[0].isnan()).sum())
    precision, inverse_penalty, trapezoid = rows.to(distances.device)
    return RetrievalMetrics(
        cmc=found.to(distances.device).double() / count,
        mAP=float(precision.nanmean()),
        mINP=float(inverse_penalty.nanmean()),
        num_valid_queries=count,
        average_precision=precision,
        mAP_trapezoid=float(trapezoid.nanmean()),
        trapezoid_average_precision=trapezoid,
    )


def k_reciprocal(
    query_features: Tensor,
    gallery_features: Tensor,
    *,
    metric: str = "cosine",
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
) -> Tensor:
    """Re-ranked distances [Q, G] by whole N x N matrices, in float64."""
    rows = torch.cat([query_features, gallery_features]).detach().double()
    if metric == "cosine":
        rows = torch.nan_to_num(rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True))
        distance = 1 - rows @ rows.T
    else:
        distance = _sq_dist(rows, rows)
    order = distance.argsort(dim=1, stable=True)
    share = torch.nan_to_num(distance / distance.amax(1, keepdim=True))

    def mutual(i: int, n: int) -> set[int]:
        return {j for j in order[i, :n].tolist() if i in order[j, :n].tolist()}

    encoding = torch.zeros_like(distance)
    for i in range(len(rows)):
        near = mutual(i, k1 + 1)
        wide = set(near)
        for c in near:
            half = mutual(c, round(k1 / 2) + 1)
            if 3 * len(half & near) > 2 * len(half):
                wide |= half
        members = sorted(wide)
        encoding[i, members] = torch.softmax(-share[i, members], 0)
    if k2 > 1:
        encoding = encoding[order[:, :k2]].mean(1)
    count = len(query_features)
    queries, gallery = encoding[:count], encoding[count:]
    smaller, larger = (
        torch.stack([pick(row, gallery).sum(1) for row in queries])
        for pick in (torch.minimum, torch.maximum)
    )
    original = share[:count, count:]
    return (1 - lambda_) * (1 - smaller / larger) + lambda_ * original


def kmeans(
    rows: list[Tensor],
    k: list[int],
    *,
    metric: str = "euclidean",
    init: str | list[Tensor] = "k-means++",
    algorithm: str = "hartigan",
    n_init: int = 1,
    max_iter: int = 100,
    seed: int = 0,
) -> KMeansResult:
    """Every problem and restart on its own, in float64, with distances by definition."""
    results = []
    for b, (stored, clusters) in enumerate(zip(rows, k)):
        x = stored.double()
        if metric == "cosine":
            length = x.norm(dim=1, keepdim=True)
            x = x / torch.where(length > 0, length, 1.0)
        best = None
        for restart in range(n_init if init == "k-means++" else 1):
            if isinstance(init, str) and init == "ward":
                labels = _ward(x, clusters)[0]
            elif isinstance(init, str):
                labels = _nearest(x, _plus_plus(x, clusters, seed, restart))
            else:
                labels = _nearest(x, init[b].double())
            labels, n_iter = _lloyd(x, clusters, labels, max_iter)
            if algorithm == "hartigan":
                labels, passes = _hartigan(x, clusters, labels, max_iter - n_iter)
                n_iter += passes
            centers = _means(x, labels, clusters)
            inertia = float((x - centers[labels]).square().sum())
            if best is None or inertia < best[2] - 1e-12 * float(x.square().sum()):
                best = (centers.to(stored.dtype), labels, inertia, n_iter)
        results.append(best)
    centers_, labels_, inertia_, n_iter_ = zip(*results)
    device = rows[0].device
    return KMeansResult(
        list(centers_),
        list(labels_),
        torch.tensor(inertia_, dtype=torch.float64, device=device),
        torch.tensor(n_iter_, device=device),
    )


def merge_trees(rows: list[Tensor]) -> MergeTrees:
    """Every problem on its own, in float64, with means by definition; positions by last merge."""
    results = []
    for stored in rows:
        position, order, parent, height = {0: 0}, [0], [-1], [0.0]
        for kept, retired, rise in reversed(_ward(stored.double(), 1)[1]):
            position[retired] = len(order)
            order.append(retired)
            parent.append(position[kept])
            height.append(rise)
        tree = torch.tensor([order, parent], device=stored.device)
        results.append((*tree, torch.tensor(height, dtype=torch.float64, device=stored.device)))
    order_, parent_, height_ = zip(*results)
    return MergeTrees(list(order_), list(parent_), list(height_))


def _sq_dist(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None, :] - y[None, :, :]).square().sum(2)


def _means(x: Tensor, labels: Tensor, k: int) -> Tensor:
    return torch.stack([x[labels == c].mean(0) for c in range(k)])


def _uniform(seed: int, restart: int, step: int, trial: int) -> float:
    """A number in [0, 1) from chained splitmix64 finalisers."""
    word, mask = seed, 2**64 - 1
    for index, key in enumerate((0, restart, step, trial)):
        word = ((word ^ key if index else word) + 0x9E3779B97F4A7C15) & mask
        word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & mask
        word ^= word >> 31
    return (word >> 11) * 2.0**-53


def _plus_plus(x: Tensor, k: int, seed: int, restart: int) -> Tensor:
    """Greedy k-means++; rows are enumerated by lane (i mod 512) and then by i."""
    order = (torch.arange(len(x), device=x.device) % 512).sort(stable=True).indices
    chosen = [int(_uniform(seed, restart, 0, 0) * len(x))]
    minimum = _sq_dist(x, x[chosen]).squeeze(1)
    for step in range(1, k):
        prefix = minimum[order].cumsum(0)
        candidates = [step]
        if prefix[-1] > 0:
            draws = [_uniform(seed, restart, step, t) for t in range(2 + int(math.log(k)))]
            target = torch.tensor(draws, dtype=x.dtype, device=x.device) * prefix[-1]
            candidates = order[torch.searchsorted(prefix, target, right=True)].tolist()
        reduced = torch.minimum(minimum, _sq_dist(x[candidates], x))
        winner = int(reduced.sum(1).argmin())
        chosen.append(candidates[winner])
        minimum = reduced[winner]
    return x[chosen]


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Labels of the nearest centers; an empty cluster takes the farthest row of a larger one."""
    distance, labels = _sq_dist(x, centers).min(1)
    for c in range(len(centers)):
        size = torch.bincount(labels, minlength=len(centers))
        if size[c] == 0:
            far = int(torch.where(size[labels] > 1, distance, -1.0).argmax())
            labels[far], distance[far] = c, 0.0
    return labels


def _lloyd(x: Tensor, k: int, labels: Tensor, max_iter: int) -> tuple[Tensor, int]:
    for iteration in range(max_iter):
        previous, labels = labels, _nearest(x, _means(x, labels, k))
        if torch.equal(previous, labels):
            return labels, iteration + 1
    return labels, max_iter


def _hartigan(x: Tensor, k: int, labels: Tensor, max_passes: int) -> tuple[Tensor, int]:
    """Passes of single-row moves: candidates from the start of the pass, gains of the moment."""
    labels = labels.clone()
    for number in range(max_passes):
        size = torch.bincount(labels, minlength=k).double()
        distance = _sq_dist(x, _means(x, labels, k))
        freed = (size / (size - 1) * distance).gather(1, labels[:, None])
        added = (size / (size + 1) * distance).scatter(1, labels[:, None], math.inf)
        target, moved = added.argmin(1), False
        for i in (freed > added.amin(1, keepdim=True)).flatten().nonzero().flatten().tolist():
            a, b = int(labels[i]), int(target[i])
            n_a, n_b = int((labels == a).sum()), int((labels == b).sum())
            if n_a == 1:
                continue
            from_a, from_b = ((x[i] - x[labels == c].mean(0)).square().sum() for c in (a, b))
            gain = n_a / (n_a - 1) * from_a - n_b / (n_b + 1) * from_b
            if gain > 1e-12 * x[i].square().sum():
                labels[i], moved = b, True
        if not moved:
            return labels, number + 1
    return labels, max(max_passes, 0)


def _ward(x: Tensor, k: int) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """Merges the two clusters whose union costs least, ties to the lower pair, down to k.

    Returns the labels, and per merge the lowest row of either cluster and the cost.
    """
    members, merges = [[i] for i in range(len(x))], []
    while len(members) > k:
        means = torch.stack([x[m].mean(0) for m in members])
        size = torch.tensor([len(m) for m in members], dtype=x.dtype, device=x.device)
        cost = _sq_dist(means, means) * size[:, None] * size / (size[:, None] + size)
        cost[torch.ones_like(cost, dtype=torch.bool).tril()] = math.inf
        a, b = divmod(int(cost.argmin()), len(members))
        merges.append((members[a][0], members[b][0], float(cost[a, b])))
        members[a] += members.pop(b)
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for label, m in enumerate(sorted(members, key=min)):
        labels[m] = label
    return labels, merges
