"""Sentences about what a file will not hold of a scene (see `Format.losses`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gaussians import CleanReport, Gaussians, num_sh_coefficients
from .base import WriteOptions

__all__ = [
    "FILE_FACTS",
    "SCENE_FACTS",
    "Tally",
    "drawable",
    "is_json",
    "lost_bands",
    "lost_extras",
    "lost_gaussians",
    "lost_metadata",
    "out_of_range",
]

# Metadata about the scene, which every reader of the format could use; see `Gaussians`.
SCENE_FACTS = ("frame", "antialiased", "up", "background", "camera", "unit_m", "colour_space", "comments")
# Metadata about the file that the scene came from: not part of the scene, so leaving it out is no loss.
FILE_FACTS = frozenset({"extras", "generator", "glb", "ksplat", "lod", "sog", "source", "spz"})

_NORMALS = ("nx", "ny", "nz")
# Renderers draw nothing where alpha is below 1/255.
_FAINTEST_LOGIT = -math.log(254.0)


def lost_extras(gaussians: Gaussians) -> list[str]:
    """For formats without room for side arrays."""
    return [f"side arrays dropped: {', '.join(gaussians.extras)}"] if gaussians.extras else []


def lost_metadata(gaussians: Gaussians, kept: Collection[str]) -> list[str]:
    """For formats that hold only the metadata of the names `kept`."""
    lost = [
        name
        for name, value in gaussians.metadata.items()
        if name not in kept and name not in FILE_FACTS and value is not None and value != []
    ]
    return [f"metadata dropped: {', '.join(lost)}"] if lost else []


def lost_bands(gaussians: Gaussians, max_sh_degree: int) -> list[str]:
    """For formats that end at `max_sh_degree`."""
    first = num_sh_coefficients(max_sh_degree) - 1
    if gaussians.sh_degree <= max_sh_degree or not gaussians.shN[:, first:].any():
        return []
    return [f"spherical harmonics above degree {max_sh_degree} dropped (the scene has degree {gaussians.sh_degree})"]


def _kept(gaussians: Gaussians, options: WriteOptions) -> tuple[Gaussians, CleanReport, int]:
    """What `drawable` returns, what was mended or dropped for that, and how many were too faint."""
    scene, report = gaussians.cleaned()
    if options.quality is None:
        return scene, report, 0
    shown = scene.opacities >= _FAINTEST_LOGIT
    return (scene, report, 0) if shown.all() else (scene.selected(shown), report, int((~shown).sum()))


def drawable(gaussians: Gaussians, options: WriteOptions) -> Gaussians:
    """The Gaussians that a packed format is written from: all values finite; with a quality, none that never shows."""
    return _kept(gaussians, options)[0]


def lost_gaussians(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    """What `drawable` changes."""
    _, report, faint = _kept(gaussians, options)
    lost = [str(report)] if report else []
    if faint:
        lost.append(f"{faint} Gaussians too faint to show (opacity below 1/255) left out")
    return lost


def out_of_range(what: str, values: npt.NDArray[np.floating[Any]], low: float, high: float) -> list[str]:
    """A sentence if any of `values` (N, ...) lies outside; a format clamps those."""
    outside = (values < low) | (values > high)
    count = int(outside.reshape(len(outside), -1).any(axis=1).sum()) if outside.size else 0
    return [f"{what} of {count} Gaussians clamped to {low:.4g}..{high:.4g}"] if count else []


def is_json(value: Any) -> bool:
    """Whether JSON holds `value` as it is."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


class Tally:
    """The losses of a scene that is written block by block, told as they are of the whole.

    Args:
        losses: of a block, as `Format.losses` tells them; counts of Gaussians in a sentence are summed.
    """

    _COUNT = re.compile(r"\b[0-9]+(?= Gaussians\b)")

    def __init__(self, losses: Callable[[Gaussians], list[str]]) -> None:
        self._losses = losses
        self._extras: dict[str, None] = {}
        self._cleaned = CleanReport()
        self._counts: dict[str, int] = {}

    def drawable(self, block: Gaussians) -> Gaussians:
        """Count what is lost of a block, and return what is written of it."""
        scene, report = block.cleaned()
        names = self._cleaned.__dataclass_fields__
        self._cleaned = CleanReport(*(getattr(self._cleaned, name) + getattr(report, name) for name in names))
        self._extras |= dict.fromkeys(block.extras)
        for sentence in self._losses(scene.replaced(extras={})):
            count = self._COUNT.search(sentence)
            told = self._COUNT.sub("{}", sentence, count=1)
            self._counts[told] = self._counts.get(told, 0) + (int(count[0]) if count else 0)
        return scene

    def sentences(self) -> list[str]:
        """All that was lost."""
        # Normals first, as readers have them: a block may be the first with any.
        names = sorted(self._extras, key=lambda name: (name not in _NORMALS, name if name in _NORMALS else ""))
        extras = [f"side arrays dropped: {', '.join(names)}"] if names else []
        report = [str(self._cleaned)] if self._cleaned else []
        return [*extras, *report, *(told.replace("{}", str(count), 1) for told, count in self._counts.items())]
