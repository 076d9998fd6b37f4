"""Steps that move a whole scene: translate, rotate, scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..frames import moved_metadata, turned_extras
from ..gaussians import Gaussians
from ..sh_rotation import row_blocks, turned_sh
from ._checks import number, vector

__all__ = ["quat_of_rotation", "rotate", "rotation_axis_angle", "rotation_xyz", "scale", "translate"]

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]


def _mapped(values: Floats32, function: Callable[[Floats], Floats]) -> Floats32:
    """`function` of float32 rows, computed in float64 and rounded once, a block at a time."""
    result = np.empty_like(values)
    with np.errstate(invalid="ignore", over="ignore"):  # beyond float32 is infinite, which `cleaned` reports
        for rows in row_blocks(len(values)):
            result[rows] = function(values[rows].astype(np.float64))
    return result


def translate(gaussians: Gaussians, offset: npt.ArrayLike) -> Gaussians:
    """Move a scene by `offset` (3,), world units.

    Raises:
        ParameterError: not three finite numbers.
    """
    shift = vector("offset", offset)
    means = _mapped(gaussians.means, lambda block: block + shift)
    return gaussians.replaced(means=means, metadata=moved_metadata(gaussians.metadata, offset=shift))


def scale(gaussians: Gaussians, factor: float) -> Gaussians:
    """Make a scene `factor` times as large, from the origin; `unit_m` shrinks, so that it keeps its size in metres.

    Raises:
        ParameterError: not a finite number above 0.
    """
    ratio = number("factor", factor, least=0.0)
    if ratio == 0.0:
        raise ParameterError("factor is 0, expected a number above 0", field="factor")
    growth = math.log(ratio)
    return gaussians.replaced(
        means=_mapped(gaussians.means, lambda block: block * ratio),
        scales=_mapped(gaussians.scales, lambda block: block + growth),
        metadata=moved_metadata(gaussians.metadata, factor=ratio),
    )


def rotate(gaussians: Gaussians, rotation: npt.ArrayLike) -> Gaussians:
    """Turn a scene around the origin: positions, quaternions, SH, normals, `up` and `camera`.

    Args:
        rotation: (4,) quaternion w, x, y, z of any norm, or (3, 3) matrix (see also `rotation_xyz`,
            `rotation_axis_angle`).

    Returns:
        The scene, computed in float64 and rounded once. Quaternions keep their norm; zero ones, which mean no
        rotation, become unit ones.

    Raises:
        ParameterError: not a rotation.
    """
    matrix = _rotation_matrix(rotation)
    w, x, y, z = quat_of_rotation(matrix)
    product = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]).T

    def turned_quats(block: Floats) -> Floats:
        block[(block == 0).all(axis=1)] = (1.0, 0.0, 0.0, 0.0)
        return block @ product

    return gaussians.replaced(
        means=_mapped(gaussians.means, lambda block: block @ matrix.T),
        quats=_mapped(gaussians.quats, turned_quats),
        shN=turned_sh(gaussians.shN, matrix),
        extras=turned_extras(gaussians.extras, matrix),
        metadata=moved_metadata(gaussians.metadata, turn=matrix),
    )


def _rotation_matrix(rotation: npt.ArrayLike) -> Floats:
    """(3, 3) float64, orthogonal to float64 precision."""
    try:
        given = np.asarray(rotation, np.float64)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.shape == (4,) and np.isfinite(given).all() and given.any():
        return _matrix_of_quat(given)
    if given.shape == (3, 3) and np.isfinite(given).all():
        if np.abs(given @ given.T - np.eye(3)).max() < 1e-5 and np.linalg.det(given) > 0:
            exact = np.array_equal(given @ given.T, np.eye(3))
            return given if exact else _matrix_of_quat(quat_of_rotation(given))
        raise ParameterError("the matrix is not a rotation (orthogonal, of determinant 1)", field="rotation")
    raise ParameterError("a rotation is a quaternion w, x, y, z, not zero, or a 3 x 3 matrix", field="rotation")


def _matrix_of_quat(quat: Floats) -> Floats:
    quat = quat / np.abs(quat).max()
    w, x, y, z = quat / math.sqrt(float(quat @ quat))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quat_of_rotation(matrix: npt.ArrayLike) -> Floats:
    """(4,) float64 unit quaternion w, x, y, z of a (3, 3) rotation matrix, w not negative.

    >>> quat_of_rotation([[0, -1, 0], [1, 0, 0], [0, 0, 1]]).round(6).tolist()
    [0.707107, 0.0, 0.0, 0.707107]
    """
    m = np.asarray(matrix, np.float64)
    # Four times the products of the quaternion's components; the row of the largest one loses no digits.
    outer = np.array(
        [
            [1 + m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2]],
        ]
    )
    quat = outer[int(np.argmax(outer.diagonal()))]
    quat = quat / np.sqrt(quat @ quat)
    return (-quat if quat[0] < 0 else quat) + 0.0


def rotation_xyz(degrees: npt.ArrayLike) -> Floats:
    """(3, 3) float64: turn around x, then around y, then around z, all three fixed in the world, by `degrees` (3,).

    Right-handed: 90 degrees around z take x to y. Quarter turns are exact.

    Raises:
        ParameterError: not three finite numbers.
    """
    angles = vector("degrees", degrees)
    return (
        rotation_axis_angle("z", angles[2]) @ rotation_axis_angle("y", angles[1]) @ rotation_axis_angle("x", angles[0])
    )


def rotation_axis_angle(axis: npt.ArrayLike | str, degrees: float) -> Floats:
    """(3, 3) float64: turn around an axis through the origin, right-handed.

    Args:
        axis: (3,) of any length but zero, or "x", "y", "z".
        degrees: how far. Quarter turns around x, y and z are exact.

    Raises:
        ParameterError: no axis, or not finite.

    >>> rotation_axis_angle("z", 90) @ [1, 0, 0]
    array([0., 1., 0.])
    """
    if isinstance(axis, str) and axis in ("x", "y", "z"):
        direction = np.eye(3)["xyz".index(axis)]
    else:
        direction = vector("axis", axis)
    largest = np.abs(direction).max()
    if not largest > 0:
        raise ParameterError("the axis has no direction", field="axis")
    x, y, z = (direction / largest) / np.linalg.norm(direction / largest)
    cosine, sine = _cos_sin(number("degrees", degrees))
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    outer = np.outer((x, y, z), (x, y, z))
    return cosine * np.eye(3) + sine * cross + (1.0 - cosine) * outer + 0.0


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Exact at quarter turns."""
    quarter, rest = divmod(math.fmod(degrees, 360.0) + 45.0, 90.0)
    c, s = math.cos(math.radians(rest - 45.0)), math.sin(math.radians(rest - 45.0))
    return ((c, s), (-s, c), (-c, -s), (s, -c))[int(quarter) % 4]
