"""Other formats' files as columns of their own numbers, and back: what lossless recompression codes (SPEC.md, 1.6).

A `NativeScene` holds everything of a file but its compression: `head` (whatever is not a value of a Gaussian), and one
column for each number that a Gaussian has, in the integers or floats of the file. What `unpack` takes apart `content`
puts together again, to the byte; callers compare, and leave files alone where that fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from ..limits import Limits
from ..stages.lossless_boxes import Boxes

__all__ = ["Column", "NativeFormat", "NativeScene", "by_code", "by_name"]

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class NativeScene:
    """A file, taken apart.

    Attributes:
        head: what is not in columns, as the format's section of SPEC.md says.
        columns: (n,) by name; positions are called x, y, z.
        palette: (m,) by name, of formats that have a second table: entries that columns pick from.
    """

    head: bytes
    columns: Mapping[str, Column]
    palette: Mapping[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def permuted(self, order: npt.NDArray[np.intp]) -> NativeScene:
        """The Gaussians in another order."""
        return replace(self, columns={name: values[order] for name, values in self.columns.items()})


@dataclass(frozen=True)
class NativeFormat:
    """How one format is taken apart.

    Attributes:
        code: in `NATV`. name: of the `Format`.
        is_plain: whether a file is its content. If not, the content is packed anew, and the file may differ.
        unpack: file that its reader has accepted -> scene, and its content as `content` gives it. Raises FormatError
            if the file is of a kind that is not taken apart.
        content: scene -> everything of the file, uncompressed. Raises FormatError: the head is damaged, or the columns
            are not those of such a file.
        write: (scene, file, threads): writes the file.
        gaussians: (scene, limits) -> what the format's reader makes of the file.
        reordered: scene -> the same in an order that takes fewer bytes and that the format allows.
        boxes: (head, n) -> boxes of integer columns, if the format has such. Raises FormatError: the head is damaged.
    """

    code: int
    name: str
    is_plain: bool
    unpack: Callable[[Path], tuple[NativeScene, bytes]]
    content: Callable[[NativeScene], bytes]
    write: Callable[[NativeScene, BinaryIO, int | None], None]
    gaussians: Callable[[NativeScene, Limits], Gaussians]
    reordered: Callable[[NativeScene], NativeScene]
    boxes: Callable[[bytes, int], Boxes] | None = None


_MODULES = {
    "splat": "_native_splat",
    "spz": "_native_spz",
    "compressed-ply": "_native_compressed_ply",
    "ksplat": "_native_ksplat",
    "sog": "_native_sog",
}


def by_name(name: str) -> NativeFormat | None:
    """How files of the format `name` are taken apart, or None."""
    if name not in _MODULES:
        return None
    module = importlib.import_module(f"{__package__}.{_MODULES[name]}")
    assert isinstance(module.NATIVE, NativeFormat)
    return module.NATIVE


def by_code(code: int) -> NativeFormat | None:
    """The format of a number in `NATV`, or None."""
    known = (by_name(name) for name in _MODULES)
    return next((native for native in known if native is not None and native.code == code), None)
