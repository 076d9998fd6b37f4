"""Coordinate frames: which way x, y and z point, as a tag of three letters, and changing from one to another.

R or L (right, left), U or D (up, down), F or B (front, back) say where x, y and z point, in that order: "RDF" is what
most trainers write (x right, y down, z forward), "RUB" is OpenGL's. A tag is a claim about values, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ParameterError
from .gaussians import Gaussians
from .sh_rotation import orthogonal, row_blocks, turned_sh

__all__ = ["FRAMES", "convert_frame", "frame_change", "moved_metadata", "parse_frame", "turned_extras", "with_frame"]

Floats = npt.NDArray[np.float64]

_AXES = {"R": (0, 1), "L": (0, -1), "U": (1, 1), "D": (1, -1), "B": (2, 1), "F": (2, -1)}
#: Every tag: 6 orders of the axes with 8 choices of their ends.
FRAMES = tuple(a + b + c for a in _AXES for b in _AXES for c in _AXES if len({_AXES[k][0] for k in (a, b, c)}) == 3)

_NORMALS = ("nx", "ny", "nz")
# What a scene's camera may hold that moves with the scene; other entries stay as they are.
_CAMERA_POINTS = ("position", "target")
_CAMERA_DIRECTIONS = ("up", "forward")
_CAMERA_LENGTHS = ("near", "far", "safe_orbit_radius_min")


def parse_frame(tag: str) -> str:
    """`tag` in capitals.

    Raises:
        ParameterError: it is not three letters, one of R and L, one of U and D, one of F and B.

    >>> parse_frame("rub")
    'RUB'
    """
    if not isinstance(tag, str) or tag.upper() not in FRAMES:
        raise ParameterError(
            f"{tag!r} is not a coordinate frame",
            field="frame",
            hint="three letters for x, y, z: R or L, U or D, F or B, in any order, such as RDF or RUB",
        )
    return tag.upper()


def frame_change(from_frame: str, to_frame: str) -> Floats:
    """(3, 3) float64 of 0, 1 and -1: what turns coordinates in one frame into those in another.

    >>> frame_change("RDF", "RUB").diagonal().tolist()
    [1.0, -1.0, -1.0]
    """
    return _axes(to_frame).T @ _axes(from_frame) + 0.0


def _axes(tag: str) -> Floats:
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(parse_frame(tag)):
        axis, sign = _AXES[letter]
        matrix[axis, column] = sign
    return matrix


def with_frame(gaussians: Gaussians, frame: str) -> Gaussians:
    """The same values with the statement that they are in `frame`, whatever was stated before."""
    return gaussians.replaced(metadata={**gaussians.metadata, "frame": parse_frame(frame)})


def convert_frame(gaussians: Gaussians, to_frame: str, from_frame: str | None = None) -> Gaussians:
    """Express a scene in another coordinate frame: the same scene, other numbers.

    Positions, quaternions, scales and degree 1 of SH change order and signs only, so there and back again gives every
    bit; so do the higher bands where axes are flipped but not exchanged. Else they are rounded once to float32.
    A change of handedness (such as RDF to LDF) mirrors the numbers, not the scene.

    Args:
        gaussians: the scene; its `metadata["frame"]` says where it is now.
        to_frame: the frame wanted.
        from_frame: the frame it is in now, where the scene does not say so.

    Returns:
        The scene with `metadata["frame"]`, `up` and `camera`, and normals (`nx`, `ny`, `nz`), as they are there.

    Raises:
        ParameterError: a tag is none, the present frame is neither stated nor given, or both and they differ.
    """
    to_frame = parse_frame(to_frame)
    stated = gaussians.metadata.get("frame")
    if from_frame is not None and stated is not None and parse_frame(from_frame) != parse_frame(stated):
        raise ParameterError(f"the scene says that it is in {stated}, not {from_frame}", field="frame")
    if from_frame is None and stated is None:
        raise ParameterError("the scene does not say which frame it is in", field="frame", hint="state it: from_frame")
    turn = frame_change(parse_frame(from_frame or str(stated)), to_frame)
    metadata = {**moved_metadata(gaussians.metadata, turn=turn), "frame": to_frame}
    if (turn == np.eye(3)).all():
        return gaussians.replaced(metadata=metadata)
    # Row i of the new values is row order[i] of the old ones times signs[i].
    order = np.abs(turn).argmax(axis=1)
    signs = turn[np.arange(3), order].astype(np.float32)
    # P R S S^T R^T P^T is (P R P^T) (P S P^T)^2 (P R P^T)^T: the axes of each Gaussian are renamed like the world's,
    # and a quaternion's vector turns like any, reversed where the handedness changes.
    quats = np.empty_like(gaussians.quats)
    quats[:, 0] = gaussians.quats[:, 0]
    quats[:, 1:] = gaussians.quats[:, 1 + order] * (signs * np.float32(np.linalg.det(turn)))
    return gaussians.replaced(
        means=gaussians.means[:, order] * signs,
        quats=quats,
        scales=gaussians.scales[:, order],
        shN=turned_sh(gaussians.shN, turn),
        extras=turned_extras(gaussians.extras, turn),
        metadata=metadata,
    )


def turned_extras(extras: Mapping[str, npt.NDArray[Any]], turn: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
    """Side arrays of a scene that is turned: normals (`nx`, `ny`, `nz`, real numbers) turn, all others stay.

    A normal that is missing beside others counts as zero, as readers leave out columns of zeros.
    """
    result = dict(extras)
    given = [name for name in _NORMALS if name in extras]
    if not given or any(extras[name].ndim != 1 or extras[name].dtype.kind != "f" for name in given):
        return result
    matrix = orthogonal(turn)
    dtype = np.result_type(*(extras[name].dtype for name in given))
    count = len(extras[given[0]])
    turned = {name: np.empty(count, dtype) for name in _NORMALS}
    for rows in row_blocks(count):
        block = np.zeros((rows.stop - rows.start, 3))
        for name in given:
            block[:, _NORMALS.index(name)] = extras[name][rows]
        with np.errstate(invalid="ignore", over="ignore"):
            block = block @ matrix.T
            for axis, name in enumerate(_NORMALS):
                turned[name][rows] = block[:, axis]
    result.update({name: values for name, values in turned.items() if name in given or values.any()})
    return result


def moved_metadata(
    metadata: Mapping[str, Any],
    *,
    turn: npt.ArrayLike | None = None,
    factor: float = 1.0,
    offset: npt.ArrayLike = (0.0, 0.0, 0.0),
) -> dict[str, Any]:
    """What is stated about a scene whose positions x become factor * turn x + offset.

    `up` turns; of `camera`, `position` and `target` move, `up` and `forward` turn, `viewmat` (4 x 4, world to camera)
    keeps seeing the same, and `near`, `far` and `safe_orbit_radius_min` grow; `unit_m` shrinks. Entries that are not
    what their name says stay as they are. `source`, the file that the values were exactly, is left out.
    """
    matrix = np.eye(3) if turn is None else orthogonal(turn)
    shift = np.asarray(offset, np.float64)
    result = {name: value for name, value in metadata.items() if name != "source"}
    if (up := _numbers(result.get("up"), (3,))) is not None:
        result["up"] = _listed(matrix @ up)
    if (unit_m := _numbers(result.get("unit_m"), ())) is not None and factor != 1.0:
        result["unit_m"] = float(unit_m) / factor
    if not isinstance(result.get("camera"), Mapping):
        return result
    camera = dict(result["camera"])
    for name, value in camera.items():
        if name in _CAMERA_POINTS and (point := _numbers(value, (3,))) is not None:
            camera[name] = _listed(factor * (matrix @ point) + shift)
        elif name in _CAMERA_DIRECTIONS and (direction := _numbers(value, (3,))) is not None:
            camera[name] = _listed(matrix @ direction)
        elif name in _CAMERA_LENGTHS and (length := _numbers(value, ())) is not None:
            camera[name] = float(length) * factor
        elif name == "viewmat" and (viewmat := _numbers(value, (4, 4))) is not None:
            moved = viewmat.copy()
            moved[:3, :3] = viewmat[:3, :3] @ matrix.T
            moved[:3, 3] = factor * viewmat[:3, 3] - moved[:3, :3] @ shift
            camera[name] = _listed(moved)
    return {**result, "camera": camera}


def _numbers(value: Any, shape: tuple[int, ...]) -> Floats | None:
    if value is None or isinstance(value, str | bool):
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None


def _listed(values: Floats) -> list[Any]:
    return (values + 0.0).tolist()  # no minus zeros
