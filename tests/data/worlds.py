"""Several ranks in one process: threads that meet where ranks gather."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable


class World:
    """`run` calls a function for each rank, with the `gather` that ranks share."""

    def __init__(self, size: int):
        self.size, self.barrier, self.parts = size, threading.Barrier(size, timeout=60), [[]] * size

    def gather(self, rank: int) -> Callable[[list], list]:
        def gather(own: list) -> list:
            self.parts[rank] = copy.deepcopy(own)  # as through a wire
            self.barrier.wait()
            found = [item for part in self.parts for item in part]
            self.barrier.wait()
            return found

        return gather

    def run(self, function: Callable[[int, Callable], object]) -> list:
        """What `function(rank, gather)` gives on each rank; the first error of a rank is raised."""
        results, errors = [None] * self.size, []

        def one(rank: int) -> None:
            try:
                results[rank] = function(rank, self.gather(rank))
            except Exception as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if real:
            raise real[0]
        assert not errors, "ranks did not meet"
        return results
