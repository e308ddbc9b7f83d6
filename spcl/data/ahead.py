"""Work that is done in threads while something else goes on, and given out in order.

Threads, not processes: Pillow and torch leave the interpreter to others while they work, nothing
need travel, and no process is left behind whatever happens.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(work: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(work, items)`, with up to threads + 1 results made before they are asked for.

    An error of `work` is raised where its result would have come.  threads=0 does all in line.
    """
    if not threads:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()  # else an error or Ctrl-C would wait for them
