"""Ward's merge trees: the dendrograms of a ragged batch of weight rows, in one operator call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oskt_ext._arrays import restorer
from oskt_ext._rows import check_finite, check_gram_rows, check_rows


class MergeTrees(NamedTuple):
    """What `merge_trees` returns: one tree per problem, by position, the last merge first.

    Args:
        order: B arrays int64 (N_b,), the row that position i is once all have split.
        parent: B arrays int64 (N_b,), the position that i splits off from, parent[i] < i; -1 at 0.
        height: B arrays float64 (N_b,), what the split of position i takes off the sum of squared
            distances to the cluster means; never rising from position 1 on; 0 at 0.
    """

    order: list[Any]
    parent: list[Any]
    height: list[Any]


def merge_trees(rows: Sequence[Any]) -> MergeTrees:
    """Merge the rows of every problem, two clusters at a time, by Ward's criterion.

    Of all pairs of clusters those two merge whose union raises the sum of squares least, by

        n_a n_b / (n_a + n_b) |mean_a - mean_b|^2,

    until one is left. Read backwards, from everything to single rows: position 0 begins as all rows
    and each position i splits off from an earlier one, parent[i]. So the first n positions are the
    n clusters of the cut at n, and sum(height) is the sum of squares around the mean of all rows.

    Args:
        rows: B arrays (N_b, D_b), 1 <= N_b <= 16384, of one dtype (float64, float32, float16 or
            bfloat16) and one device, finite, squared lengths too; strided arrays are
            copied. NumPy and CuPy arrays are taken as they are.

    Returns:
        MergeTrees of arrays of the kind and on the device of rows. They carry no gradient:
        clustering is not differentiable.

    Raises:
        TypeError: rows of a wrong type or dtype.
        ValueError: wrong rank, size or device; a NaN or Inf in rows (when called eagerly).

    Notes:
        A cluster goes by its lowest row: order[i] is the lowest row of position i at every cut,
        order[0] is 0, and order[i] > order[parent[i]]. Ties: the nearest-neighbour chain starts at
        the cluster of row 0, prefers to merge with the cluster it came from and else goes to the
        one with the lowest row; among equal heights the merge found first splits last.
        Rounding could put a merge below those that made its clusters; it is raised to them.
        The cut at n is the partition of `kmeans` with init="ward" and max_iter=0 (to such
        rounding), which builds the same tree. Bitwise repeatable on a device, whatever the number
        of threads and the rest of the batch.
        O(N^2 D) for the Gram matrix X X^T (sums in float32 for float32 and half types on the CPU,
        float64 otherwise), then O(N^2) whatever D is. Memory: 2 N^2 numbers for each of threads + 1
        problems at a time (CPU), or for every problem (CUDA).
        The check for NaN and Inf waits for the device once; under torch.compile and while a CUDA
        graph is captured it is left out, and the heights of such a problem are NaN.

    Source:
        Ward 1963; Murtagh 1983 (nearest-neighbour chain). SciPy's linkage(method="ward") reports
        sqrt(2 height), in merging order.

    Example:
        >>> import torch
        >>> trees = merge_trees([torch.tensor([[0.0], [10.0], [2.0], [11.0]])])
        >>> trees.order[0].tolist(), trees.parent[0].tolist(), trees.height[0].tolist()
        ([0, 1, 2, 3], [-1, 0, 0, 1], [0.0, 90.25, 2.0, 0.5])
    """
    tensors = check_rows("merge_trees", rows)
    for b, tensor in enumerate(tensors):
        check_gram_rows("merge_trees", b, tensor, "Cluster a subset of rows.")
    order, parent, height = torch.ops.oskt_ext.merge_trees.default(
        [tensor.detach().contiguous() for tensor in tensors]
    )
    finite = torch.stack([heights.isfinite().all() for heights in height])
    check_finite("merge_trees", "rows", finite)
    restore = restorer(rows[0])
    return MergeTrees(
        [restore(x) for x in order], [restore(x) for x in parent], [restore(x) for x in height]
    )


@torch.library.register_fake("oskt_ext::merge_trees")
def _(rows: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def new(dtype: torch.dtype) -> list[Tensor]:
        return [row.new_empty(row.shape[0], dtype=dtype) for row in rows]

    return new(torch.int64), new(torch.int64), new(torch.float64)
