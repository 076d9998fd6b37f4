"""How the compiled loops of this package are compiled and run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

__all__ = ["default_num_threads", "kernel", "run_threaded"]

#: Decorator of compiled functions. No fast-math: sums keep their order and products are not fused, so the numbers are
#: the same on any machine. Compiled code is cached by the source file's date: a kernel may only call kernels of its own
#: file, except small ones that never change.
kernel: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


def default_num_threads() -> int:
    """Threads that renderers use unless told: the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


_helpers: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.clear)  # threads do not survive a fork


def run_threaded(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], num_threads: int) -> None:
    """Call `task(*args)` for every tuple of arguments, on up to `num_threads` threads; the order is not defined.

    Kernels release the GIL, so plain threads use all cores, and unlike a numba thread pool they may be used from
    several threads at once and after a fork. The threads are kept: a scene is drawn in thousands of short calls. A
    task must not call this function itself.
    """
    if num_threads <= 1 or len(arguments) <= 1:
        for args in arguments:
            task(*args)
        return
    count = num_threads - 1
    helpers = _helpers.get(count) or _helpers.setdefault(count, ThreadPoolExecutor(count, "splatcodec-render"))
    pending = iter(arguments)  # shared: each tuple goes to the thread that asks first

    def work() -> None:
        for args in pending:
            task(*args)

    futures = [helpers.submit(work) for _ in range(min(count, len(arguments) - 1))]
    try:
        work()
    finally:
        for future in futures:
            future.result()
