"""Sentences about what a file will not hold of a scene (see `Format.losses`)."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..gaussians import Gaussians, num_sh_coefficients

__all__ = ["FILE_FACTS", "SCENE_FACTS", "is_json", "lost_bands", "lost_extras", "lost_metadata"]

# Metadata about the scene, which every reader of the format could use; see `Gaussians`.
SCENE_FACTS = ("frame", "antialiased", "up", "background", "camera", "unit_m", "colour_space", "comments")
# Metadata about the file that the scene came from: not part of the scene, so leaving it out is no loss.
FILE_FACTS = frozenset({"extras", "generator", "glb", "ksplat", "lod", "sog", "source", "spz"})


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


def is_json(value: Any) -> bool:
    """Whether JSON holds `value` as it is."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
