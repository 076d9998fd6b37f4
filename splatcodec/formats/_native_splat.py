"""`.splat` files as columns: their records, field by field."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import FormatError
from ..gaussians import Gaussians
from ..limits import Limits
from ._native import NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, sorted_in_space
from .splat import _RECORD, read_stream

__all__ = ["NATIVE"]

_FIELDS = (
    *((name, "mean", k) for k, name in enumerate(AXES)),
    *((f"scale_{k}", "scale", k) for k in range(3)),
    *((f"f_dc_{k}", "rgba", k) for k in range(3)),
    ("opacity", "rgba", 3),
    *((f"rot_{k}", "quat", k) for k in range(4)),
)
_COLUMNS = [(name, _RECORD[field].base) for name, field, _ in _FIELDS]


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    content = path.read_bytes()
    rows = np.frombuffer(content, _RECORD)
    return NativeScene(b"", {name: np.ascontiguousarray(rows[field][:, k]) for name, field, k in _FIELDS}), content


def _content(scene: NativeScene) -> bytes:
    check_columns(scene.columns, _COLUMNS)
    if scene.head:
        raise FormatError(".splat files have no head", chunk="NATV")
    rows = np.empty(len(scene), _RECORD)
    for name, field, k in _FIELDS:
        rows[field][:, k] = scene.columns[name]
    return rows.tobytes()


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    file.write(_content(scene))


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    return read_stream(io.BytesIO(_content(scene)), limits)


NATIVE = NativeFormat(1, "splat", True, _unpack, _content, _write, _gaussians, sorted_in_space)
