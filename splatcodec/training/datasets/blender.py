"""Blender sets as NeRF-synthetic has them, and D-NeRF's, which add a `time`: transforms_train.json and its sisters.

Pictures with transparency on white; no points, so the scene starts from random ones in the cube of +-1.3 that holds
these scenes.
"""

from __future__ import annotations

from pathlib import Path

from ._transforms import read_json, read_shots
from .base import WHITE, Dataset, DatasetKind, ReadOptions, Shot, build_dataset, hold_out

__all__ = ["KIND"]

_HALF_SIDE = 1.3
_TRAIN, _TESTS = "transforms_train.json", ("transforms_test.json", "transforms_val.json")


def _read(folder: Path, options: ReadOptions) -> Dataset:
    def shots(name: str) -> list[Shot]:
        return read_shots(folder / name, read_json(folder / name, options), options)

    notes: list[str] = []
    train = shots(_TRAIN)
    held_out = next((name for name in _TESTS if (folder / name).is_file()), None)
    if options.test_every is not None:
        train, test = hold_out(train, options.test_every)
    elif held_out is not None:
        test = shots(held_out)
        if held_out != _TESTS[0]:
            notes.append(f"no {_TESTS[0]}: the views of {held_out} are for testing")
    else:
        train, test = hold_out(train, None)
        notes.append(f"no {_TESTS[0]}: every 8th view of {_TRAIN} is for testing")
    half = (_HALF_SIDE,) * 3
    return build_dataset(
        "blender",
        folder,
        train,
        test,
        None,
        options,
        background=WHITE,
        box=([-value for value in half], half),
        up=(0.0, 0.0, 1.0),
        notes=notes,
    )


KIND = DatasetKind(
    name="blender",
    title="Blender / NeRF-synthetic, D-NeRF",
    matches=lambda folder: (folder / _TRAIN).is_file(),
    read=_read,
    looks_for=_TRAIN,
)
