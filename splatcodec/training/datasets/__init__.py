"""Photographs with camera poses, as other tools leave them: one module a kind of data set, found without a list.

>>> sorted(kinds())
['blender', 'colmap', 'transforms']
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ...errors import ParameterError, SplatCodecError, UnknownIdError
from ...files import PathLike, os_error
from .base import Dataset, DatasetKind, PointCloud, ReadOptions, View

__all__ = ["Dataset", "DatasetKind", "PointCloud", "ReadOptions", "View", "detect", "kinds", "read_dataset"]


@functools.cache
def kinds() -> Mapping[str, DatasetKind]:
    """Every kind by name: the `KIND` of each module here whose name has no leading underscore."""
    found: dict[str, DatasetKind] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        kind = importlib.import_module(f"{__name__}.{module.name}").KIND
        assert isinstance(kind, DatasetKind), module.name
        assert kind.name not in found, kind.name
        found[kind.name] = kind
    return MappingProxyType(found)


def detect(folder: PathLike) -> DatasetKind:
    """The kind of data set that lies in a folder, by the names in it.

    Raises:
        ParameterError: there is no such folder, or no known data set in it.
    """
    where = Path(folder)
    if not where.is_dir():
        what = "is a file, not the folder of a data set" if where.exists() else "no such folder"
        raise ParameterError(what, file=str(folder))
    known = sorted(kinds().values(), key=lambda kind: (kind.rank, kind.name))
    for kind in known:
        if kind.matches(where):
            return kind
    raise ParameterError(
        "no data set that is known",
        file=str(folder),
        hint="looked for " + "; ".join(f"{kind.looks_for} ({kind.title})" for kind in known),
    )


def read_dataset(folder: PathLike, options: ReadOptions | None = None, *, kind: str | None = None) -> Dataset:
    """Read what a data set says about itself, and check it; pictures are decoded when they are asked for.

    Args:
        folder: the data set.
        options: how; `ReadOptions()` if None.
        kind: which kind it is; None: found by what is in the folder.

    Raises:
        ParameterError: no such folder or kind, or no data set in it.
        FormatError, UnsupportedError, LimitExceededError: as `build_dataset`, and whatever is wrong with its files.
    """
    if kind is not None and kind not in kinds():
        raise UnknownIdError.of("kind of data set", kind, kinds())
    chosen = detect(folder) if kind is None else kinds()[kind]
    try:
        return chosen.read(Path(folder), options or ReadOptions())
    except SplatCodecError as error:
        raise error.locate(file=str(folder)) from None
    except OSError as error:
        raise os_error(error, os.fspath(folder), "read") from None
