"""From a scene and a camera to 2-D Gaussians in depth order, and to the list of them that each screen tile draws.

EWA splatting (Zwicker et al., "EWA splatting", 2002) as used by 3D Gaussian Splatting (Kerbl et al., 2023). Geometry is
computed in float64 relative to the camera, then stored as float32, so that a far-away origin costs no precision.

All kernels use + - * / and square roots only (exponentials are polynomials) and are compiled without fused or
reordered arithmetic: the numbers are the same on any machine and for any number of threads.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians
from .camera import Camera
from .constants import ALPHA_MIN, COLOUR_MAX, FRUSTUM_MARGIN, LOG_SCALE_MAX, LOW_PASS_PX2, TILE_PX
from .kernel import default_num_threads, kernel, run_threaded

__all__ = ["MAX_VARIANCE_PX2", "RECORD", "Projection", "TileLists", "frustum_limits", "project", "project_arrays"]

# Columns of a projected Gaussian's record. With dx, dy from the mean to a pixel centre the squared Mahalanobis distance
# is m = (L11 dx + L21 dy)^2 + (L22 dy)^2: a Cholesky factor of the inverse covariance, which stays accurate for needles
# where the usual quadratic form cancels. CUT is the m beyond which alpha is below ALPHA_MIN.
MX, MY, L11, L21, L22, OPACITY, CUT = range(7)
RECORD = 7

# Widths beyond this many pixels (one standard deviation) are an even veil.
MAX_VARIANCE_PX2 = 1e24
_BLOCK = 1 << 14
# 1 / n! for n = 13 down to 0: exp to the last digit on +-log(2)/2.
_EXP_SERIES = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))


@kernel
def _exp(x: float) -> float:
    """exp in float64 from exactly rounded operations only (libraries differ in the last digit)."""
    x = min(max(x, -700.0), 700.0)
    k = math.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    p = 0.0
    for coefficient in _EXP_SERIES:
        p = p * r + coefficient
    return math.ldexp(p, int(k))


@kernel
def _tile_span(record, row, height, tiles_x):
    """First and last tile column (inclusive; empty if last < first) that the ellipse m <= CUT touches in tile `row`.

    Exact up to a slack of a hundredth of a pixel: the ellipse is convex, so within the row's pixel centres its leftmost
    and rightmost points lie at their own height or, where that is outside of the row, at the nearest one.
    """
    low = (row * TILE_PX + 0.5) - record[MY]
    high = min((row + 1) * TILE_PX, height) - 0.5 - record[MY]
    reach = math.sqrt(record[CUT]) / record[L22] * 1.0001 + 0.01
    low, high = max(low, -reach), min(high, reach)
    if not low <= high:
        return 0, -1
    # Height of the rightmost point; the leftmost one is opposite.
    peak = -record[L21] * math.sqrt(record[CUT] / (record[L21] ** 2 + record[L22] ** 2)) / record[L22]
    lean = -record[L21] / record[L11]
    y = min(max(peak, low), high)
    right = lean * y + math.sqrt(max(0.0, record[CUT] - (record[L22] * y) ** 2)) / record[L11]
    y = min(max(-peak, low), high)
    left = lean * y - math.sqrt(max(0.0, record[CUT] - (record[L22] * y) ** 2)) / record[L11]
    slack = 0.02 + 1e-5 * max(abs(left), abs(right))
    first = (record[MX] + left - slack - 0.5) / TILE_PX
    last = (record[MX] + right + slack - 0.5) / TILE_PX
    # Clamped as floats first: far-off ellipses do not fit an integer.
    return math.floor(min(max(first, 0.0), tiles_x * 1.0)), math.floor(min(max(last, -1.0), tiles_x - 1.0))


@kernel
def _tile_rows(record, tiles_y):
    """First and last tile row (inclusive) that the ellipse m <= CUT may touch."""
    reach = math.sqrt(record[CUT]) / record[L22] * 1.0001 + 0.02
    first = (record[MY] - reach - 0.5) / TILE_PX
    last = (record[MY] + reach - 0.5) / TILE_PX
    return math.floor(min(max(first, 0.0), tiles_y * 1.0)), math.floor(min(max(last, -1.0), tiles_y - 1.0))


@kernel
def _sh_colour(sh0, shN, x, y, z, channel):
    """Value of one channel in direction (x, y, z), a unit vector: 0.5 + the harmonics, not clamped."""
    value = 0.5 + 0.28209479177387814 * sh0[0, channel]
    count = shN.shape[0]
    if count >= 3:
        value += 0.4886025119029199 * (-y * shN[0, channel] + z * shN[1, channel] - x * shN[2, channel])
    if count >= 8:
        xx, yy, zz = x * x, y * y, z * z
        value += (
            1.0925484305920792 * (x * y * shN[3, channel] - y * z * shN[4, channel] - x * z * shN[6, channel])
            + 0.31539156525252005 * (2.0 * zz - xx - yy) * shN[5, channel]
            + 0.5462742152960396 * (xx - yy) * shN[7, channel]
        )
        if count >= 15:
            value += (
                -0.5900435899266435 * y * (3.0 * xx - yy) * shN[8, channel]
                + 2.890611442640554 * x * y * z * shN[9, channel]
                - 0.4570457994644658 * y * (4.0 * zz - xx - yy) * shN[10, channel]
                + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * shN[11, channel]
                - 0.4570457994644658 * x * (4.0 * zz - xx - yy) * shN[12, channel]
                + 1.445305721320277 * z * (xx - yy) * shN[13, channel]
                - 0.5900435899266435 * x * (xx - 3.0 * yy) * shN[14, channel]
            )
    return value


@kernel
def _project_block(
    start,
    stop,
    means,
    quats,
    scales,
    opacities,
    sh0,
    shN,
    rotation,
    center,
    intrinsics,
    limits,
    width,
    height,
    near,
    antialiased,
    records,
    colours,
    depths,
    rhos,
    tile_counts,
):
    fx, fy, cx, cy = intrinsics
    tiles_x = (width + TILE_PX - 1) // TILE_PX
    tiles_y = (height + TILE_PX - 1) // TILE_PX
    turned = np.empty((3, 3))
    jacobian = np.empty((2, 3))
    for i in range(start, stop):
        tile_counts[i] = 0
        # NaN fails every comparison: written so that such a Gaussian is left out.
        if not opacities[i] > -6.0:  # alpha below 1/255 starts at a logit of -5.54
            continue
        px, py, pz = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
        z = rotation[2, 0] * px + rotation[2, 1] * py + rotation[2, 2] * pz
        if not (z > near and z < 1e37):
            continue
        x_z = (rotation[0, 0] * px + rotation[0, 1] * py + rotation[0, 2] * pz) / z
        y_z = (rotation[1, 0] * px + rotation[1, 1] * py + rotation[1, 2] * pz) / z

        # Rotation matrix of the normalised quaternion; zero means identity.
        largest = max(max(abs(quats[i, 0]), abs(quats[i, 1])), max(abs(quats[i, 2]), abs(quats[i, 3])))
        qw, qx, qy, qz = 1.0, 0.0, 0.0, 0.0
        if largest > 0.0:
            size = np.float64(largest)
            qw, qx, qy, qz = quats[i, 0] / size, quats[i, 1] / size, quats[i, 2] / size, quats[i, 3] / size
            norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw / norm, qx / norm, qy / norm, qz / norm
        if not qw * qw + qx * qx + qy * qy + qz * qz > 0.5:
            continue
        if not max(max(scales[i, 0], scales[i, 1]), scales[i, 2]) < np.inf:
            continue
        for k in range(3):
            if k == 0:
                a0, a1, a2 = 1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy + qw * qz), 2 * (qx * qz - qw * qy)
            elif k == 1:
                a0, a1, a2 = 2 * (qx * qy - qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz + qw * qx)
            else:
                a0, a1, a2 = 2 * (qx * qz + qw * qy), 2 * (qy * qz - qw * qx), 1 - 2 * (qx * qx + qy * qy)
            sigma = _exp(min(np.float64(scales[i, k]), LOG_SCALE_MAX)) / z
            for j in range(3):
                turned[j, k] = (rotation[j, 0] * a0 + rotation[j, 1] * a1 + rotation[j, 2] * a2) * sigma
        # The projection linearised at the mean, or at the edge of the picture's surroundings if the mean is beyond.
        bent_x = min(max(x_z, -limits[0]), limits[1])
        bent_y = min(max(y_z, -limits[2]), limits[3])
        a = b = c = 0.0
        for k in range(3):
            jacobian[0, k] = fx * (turned[0, k] - bent_x * turned[2, k])
            jacobian[1, k] = fy * (turned[1, k] - bent_y * turned[2, k])
            a += jacobian[0, k] * jacobian[0, k]
            b += jacobian[0, k] * jacobian[1, k]
            c += jacobian[1, k] * jacobian[1, k]
        # Determinants by minors (Cauchy-Binet): all terms are positive, so needles do not cancel.
        det0 = (
            (jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0]) ** 2
            + (jacobian[0, 0] * jacobian[1, 2] - jacobian[0, 2] * jacobian[1, 0]) ** 2
            + (jacobian[0, 1] * jacobian[1, 2] - jacobian[0, 2] * jacobian[1, 1]) ** 2
        )
        det = det0 + LOW_PASS_PX2 * (a + c) + LOW_PASS_PX2 * LOW_PASS_PX2
        a += LOW_PASS_PX2
        c += LOW_PASS_PX2
        if not (a < MAX_VARIANCE_PX2 and c < MAX_VARIANCE_PX2):
            if not (a == a and c == c):
                continue
            a = c = det = MAX_VARIANCE_PX2
            det *= det
            det0 = det
            b = 0.0

        opacity = np.float64(opacities[i])
        if opacity >= 0.0:
            opacity = 1.0 / (1.0 + _exp(-opacity))
        else:
            opacity = _exp(opacity)
            opacity = opacity / (1.0 + opacity)
        if antialiased:
            opacity *= math.sqrt(det0 / det)
        if not opacity * 1.00001 >= ALPHA_MIN:
            continue

        record = records[i]
        record[MX] = np.float32(fx * x_z + cx)
        record[MY] = np.float32(fy * y_z + cy)
        record[L11] = np.float32(math.sqrt(c / det))
        record[L21] = np.float32(-b / math.sqrt(c * det))
        record[L22] = np.float32(1.0 / math.sqrt(c))
        record[OPACITY] = np.float32(opacity)
        # A little generous: the compositor's own alpha decides.
        record[CUT] = np.float32(max(0.0, 2.0 * math.log(opacity / ALPHA_MIN)) + 0.001)
        count = 0
        first_row, last_row = _tile_rows(record, tiles_y)
        for row in range(first_row, last_row + 1):
            first, last = _tile_span(record, row, height, tiles_x)
            count += max(0, last - first + 1)
        if count == 0:
            continue
        tile_counts[i] = count
        depths[i] = np.float32(z)
        rhos[i] = np.float32(min(max(1.0 - 0.5 * LOW_PASS_PX2 * (a + c) / det, 0.0), 1.0))
        # Direction from the camera, safe for any distance: z has been divided out of two components.
        dx, dy, dz = px / z, py / z, pz / z
        norm = math.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx / norm, dy / norm, dz / norm
        for channel in range(3):
            value = _sh_colour(sh0[i], shN[i], dx, dy, dz, channel)
            if not abs(value) < np.inf:  # only from infinite or NaN coefficients
                tile_counts[i] = 0
            colours[i, channel] = np.float32(min(max(value, 0.0), COLOUR_MAX))


@kernel
def _radix_argsort(keys):
    """Stable ascending order of (N,) uint32 keys as (N,) int32: three passes of 11, 11 and 10 bits."""
    n = len(keys)
    order = np.arange(n).astype(np.int32)
    other = np.empty(n, np.int32)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for i in range(n):
            starts[((keys[i] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for i in range(n):
            digit = (keys[order[i]] >> np.uint32(shift)) & np.uint32(2047)
            other[starts[digit]] = order[i]
            starts[digit] += 1
        order, other = other, order
    return order


@kernel
def _gather_block(
    start,
    stop,
    ids,
    records,
    colours,
    depths,
    rhos,
    tile_counts,
    out_records,
    out_colours,
    out_depths,
    out_rhos,
    out_tile_counts,
):
    for rank in range(start, stop):
        i = ids[rank]
        for column in range(RECORD):
            out_records[rank, column] = records[i, column]
        for channel in range(3):
            out_colours[rank, channel] = colours[i, channel]
        out_depths[rank] = depths[i]
        out_rhos[rank] = rhos[i]
        out_tile_counts[rank] = tile_counts[i]


@kernel
def _count_tiles(start, stop, records, height, tiles_x, tiles_y, finished, counts):
    counts[:] = 0
    for rank in range(start, stop):
        first_row, last_row = _tile_rows(records[rank], tiles_y)
        for row in range(first_row, last_row + 1):
            first, last = _tile_span(records[rank], row, height, tiles_x)
            for tile in range(row * tiles_x + first, row * tiles_x + last + 1):
                counts[tile] += 1 - finished[tile]


@kernel
def _fill_tiles(start, stop, records, height, tiles_x, tiles_y, finished, cursors, entries):
    for rank in range(start, stop):
        first_row, last_row = _tile_rows(records[rank], tiles_y)
        for row in range(first_row, last_row + 1):
            first, last = _tile_span(records[rank], row, height, tiles_x)
            for tile in range(row * tiles_x + first, row * tiles_x + last + 1):
                if not finished[tile]:
                    entries[cursors[tile]] = rank
                    cursors[tile] += 1


@dataclass(frozen=True, eq=False)
class TileLists:
    """Which Gaussians each tile draws, front to back.

    Attributes:
        starts: (tiles + 1,) int64, where each tile's entries begin; tiles run along rows.
        entries: (E,) int32, ranks (rows of the projection's records).
    """

    starts: npt.NDArray[np.int64]
    entries: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Projection:
    """The Gaussians that a camera sees, front to back (by float32 depth of the centre, ties by index).

    Attributes:
        ids: (V,) int32, which Gaussian of the scene each is.
        records: (V, RECORD) float32, see the column names above; means in pixels.
        colours: (V, 3) float32, display values towards this camera, at least 0.
        depths: (V,) float32, world units.
        rhos: (V,) float32, share of the 2-D covariance that is not low-pass blur, 0..1.
        tile_counts: (V,) int32, screen tiles touched.
    """

    camera: Camera
    num_gaussians: int
    ids: npt.NDArray[np.int32]
    records: npt.NDArray[np.float32]
    colours: npt.NDArray[np.float32]
    depths: npt.NDArray[np.float32]
    rhos: npt.NDArray[np.float32]
    tile_counts: npt.NDArray[np.int32]

    @property
    def tiles_x(self) -> int:
        """Tiles in a row of the picture."""
        return -(-self.camera.width // TILE_PX)

    @property
    def tiles_y(self) -> int:
        """Rows of tiles."""
        return -(-self.camera.height // TILE_PX)

    def layers(self, max_entries: int) -> Iterator[tuple[int, int]]:
        """Ranges of ranks, front to back, whose tile lists together have about `max_entries` entries at most."""
        ends = np.cumsum(self.tile_counts, dtype=np.int64)
        start = 0
        while start < len(ends):
            base = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, base + max_entries, side="right")))
            yield start, stop
            start = stop

    def tile_lists(
        self, start: int, stop: int, finished: npt.NDArray[np.uint8] | None = None, num_threads: int = 1
    ) -> TileLists:
        """Tile lists of ranks `start` to `stop`; tiles with `finished` set get none. A counting sort, stable."""
        num_tiles = self.tiles_x * self.tiles_y
        if finished is None:
            finished = np.zeros(num_tiles, np.uint8)
        blocks = max(1, min(num_threads, (stop - start) // 4096))
        edges = [start + (stop - start) * k // blocks for k in range(blocks + 1)]
        counts = np.empty((blocks, num_tiles), np.int64)
        shared = (self.records, self.camera.height, self.tiles_x, self.tiles_y, finished)
        run_threaded(_count_tiles, [(edges[k], edges[k + 1], *shared, counts[k]) for k in range(blocks)], num_threads)
        # A tile's entries from the first block come first, then those of the second: front to back.
        ends = np.cumsum(counts.T.reshape(-1)).reshape(num_tiles, blocks)
        cursors = np.ascontiguousarray(ends.T) - counts
        starts = np.zeros(num_tiles + 1, np.int64)
        starts[1:] = ends[:, -1]
        entries = np.empty(int(starts[-1]), np.int32)
        tasks = [(edges[k], edges[k + 1], *shared, cursors[k], entries) for k in range(blocks)]
        run_threaded(_fill_tiles, tasks, num_threads)
        return TileLists(starts, entries)


def frustum_limits(camera: Camera) -> tuple[float, float, float, float]:
    """Largest -x/z, x/z, -y/z, y/z at which the projection is linearised: the picture's edges plus a margin."""
    (fx, fy), (cx, cy) = camera.focal_px, camera.principal_point_px
    margin_x = FRUSTUM_MARGIN * 0.5 * camera.width / fx
    margin_y = FRUSTUM_MARGIN * 0.5 * camera.height / fy
    return (
        max(cx, 0.0) / fx + margin_x,
        max(camera.width - cx, 0.0) / fx + margin_x,
        max(cy, 0.0) / fy + margin_y,
        max(camera.height - cy, 0.0) / fy + margin_y,
    )


def project(
    gaussians: Gaussians, camera: Camera, *, antialiased: bool | None = None, num_threads: int | None = None
) -> Projection:
    """The Gaussians that `camera` sees, as 2-D Gaussians with colours, in depth order.

    Args:
        gaussians: any scene; rows with NaN or infinite values that cannot be drawn are left out.
        antialiased: whether opacities make up for the low-pass blur (Yu et al., "Mip-Splatting", 2024); None takes the
            scene's `metadata["antialiased"]`, False where that is missing.
        num_threads: threads to use; the result does not depend on it.

    Raises:
        ParameterError: the picture is more than 65,536 pixels wide or high.
    """
    if antialiased is None:
        antialiased = bool(gaussians.metadata.get("antialiased", False))
    threads = default_num_threads() if num_threads is None else num_threads
    attributes = (
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.sh0,
        gaussians.shN,
    )
    return project_arrays(attributes, camera, antialiased=antialiased, num_threads=threads)


def project_arrays(
    attributes: Sequence[npt.NDArray[np.float32]], camera: Camera, *, antialiased: bool, num_threads: int
) -> Projection:
    """As `project`, from raw arrays: means, quats, log scales, opacity logits, sh0, shN as in `Gaussians`."""
    if max(camera.width, camera.height) > 1 << 16:
        raise ParameterError(f"picture of {camera.width} x {camera.height} pixels, at most 65536 are supported")
    n = len(attributes[0])
    records = np.empty((n, RECORD), np.float32)
    colours = np.empty((n, 3), np.float32)
    depths = np.empty(n, np.float32)
    rhos = np.empty(n, np.float32)
    tile_counts = np.empty(n, np.int32)
    arguments = (
        *attributes,
        np.ascontiguousarray(camera.viewmat[:3, :3]),
        camera.center,
        (*camera.focal_px, *camera.principal_point_px),
        frustum_limits(camera),
        camera.width,
        camera.height,
        camera.near,
        antialiased,
        records,
        colours,
        depths,
        rhos,
        tile_counts,
    )
    blocks = [(k, min(k + _BLOCK, n), *arguments) for k in range(0, n, _BLOCK)]
    run_threaded(_project_block, blocks, num_threads)
    visible = np.flatnonzero(tile_counts)
    # Positive floats sort like their bits.
    ids = visible[_radix_argsort(depths[visible].view(np.uint32))].astype(np.int32)
    count = len(ids)
    ordered = (
        np.empty((count, RECORD), np.float32),
        np.empty((count, 3), np.float32),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
        np.empty(count, np.int32),
    )
    tasks = [
        (k, min(k + _BLOCK, count), ids, records, colours, depths, rhos, tile_counts, *ordered)
        for k in range(0, count, _BLOCK)
    ]
    run_threaded(_gather_block, tasks, num_threads)
    return Projection(camera, n, ids, *ordered)
