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


def run_threaded(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], num_threads: int) -> None:
    """Call `task(*args)` for every tuple of arguments, on up to `num_threads` threads; the order is not defined.

    Kernels release the GIL, so plain threads use all cores, and unlike a numba thread pool they may be used from
    several threads at once and after a fork.
    """
    if num_threads <= 1 or len(arguments) <= 1:
        for args in arguments:
            task(*args)
        return
    with ThreadPoolExecutor(min(num_threads, len(arguments))) as pool:
        for future in [pool.submit(task, *args) for args in arguments]:
            future.result()
