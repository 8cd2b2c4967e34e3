"""Work that threads do ahead of who asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Item], Made], items: Iterable[Item], workers: int, most: int
) -> Iterator[Made]:
    """make(item) of every item, in order.

    Args:
        make: called in threads, for each item once.
        items: read as they are needed.
        workers: threads; with 0 an item is made when it is asked for.
        most: items that may be made or waiting beyond the one asked for, >= 1.

    Notes:
        An error of `make` is raised at its item's turn. Whoever stops asking leaves nothing behind:
        what is not begun is cancelled.

    Example:
        >>> list(ahead(abs, [-1, 2, -3], workers=2, most=2))
        [1, 2, 3]
    """
    if workers == 0:
        yield from map(make, items)
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
