"""Two pieces of work at once on CPU, each with half of torch's threads.

threads of torch -> two workers, their numbers set -> function, two items -> both results

Short passes gain little from a second thread inside; two of them side by side gain nearly a factor of two.
"""

import concurrent.futures
import threading

import torch


class Halves:
    """A pair of worker threads; `threads` is what torch had when they were made."""

    def __init__(self, threads):
        self.threads = threads
        self.pool = concurrent.futures.ThreadPoolExecutor(2)
        barrier = threading.Barrier(2)

        def begin(_):
            torch.set_num_threads(max(threads // 2, 1))
            # A thread takes over the number last set anywhere when it asks for the first time.
            torch.get_num_threads()
            barrier.wait()

        list(self.pool.map(begin, range(2)))
        torch.set_num_threads(threads)

    def map(self, function, items):
        """Call a function with two items at once; return both results, or raise what the first failure raised."""
        return list(self.pool.map(function, items))
