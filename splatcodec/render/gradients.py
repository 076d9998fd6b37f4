"""Gradients of a picture on the CPU: from pixels to 2-D Gaussians, and on to every attribute.

`draw` keeps what `backward` needs: the projection, the tile lists and the finished picture. The derivatives of the
projection follow Zwicker et al., "EWA splatting" (2002), and Kerbl et al., "3D Gaussian Splatting" (2023), written from
the definition in `render.reference`, with which they are compared in the tests.

Deterministic for any number of threads: every (tile, Gaussian) pair has its own row of sums, and the rows are added in
the order of the tiles.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .camera import Camera
from .compositing import GRADIENT_STATE, GRADIENT_SUMS, PLANE, differentiate_tiles, init_gradients, untile
from .constants import COLOUR_MAX, LOG_SCALE_MAX, LOW_PASS_PX2
from .kernel import kernel, run_threaded
from .layers import blank_states, composite_layer, sum_partials, tile_ranges
from .projection import (
    L11,
    L21,
    L22,
    MAX_VARIANCE_PX2,
    Projection,
    TileLists,
    frustum_limits,
    project_arrays,
)

__all__ = ["Drawing", "Gradients", "backward", "draw"]

# 48 bytes of partial results for each (tile, Gaussian) pair of a layer.
_MAX_ENTRIES = 1 << 21
_BLOCK = 1 << 12

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture, and what its gradients need.

    Attributes:
        rgb: (H, W, 3) float32 over the background, not clamped.
        alpha: (H, W) float32, coverage.
        depth: (H, W) float32, sum of w z in world units; None unless asked for.
        projection: what was drawn.
    """

    rgb: Array
    alpha: Array
    depth: Array | None
    projection: Projection
    background: Array
    antialiased: bool
    layers: list[TileLists]
    states: Array
    depth_states: Array


@dataclass(frozen=True, eq=False)
class Gradients:
    """Loss gradients by raw attributes, shaped as they are, zero where a Gaussian is not seen.

    Attributes:
        attributes: float32 arrays for means, quats, log scales, opacity logits, sh0, shN.
        background: (3,) float32.
        screen: (N, 2) float32, by the mean in pixels.
        screen_absolute: (N, 2) float32, sum over pixels of its absolute value.
    """

    attributes: tuple[Array, Array, Array, Array, Array, Array]
    background: Array
    screen: Array
    screen_absolute: Array


@kernel
def _add_sh_gradient(shN, x, y, z, g, channel, grad, direction):
    """Add g times the basis to grad (K - 1, 3) and g times the colour's slope by (x, y, z) to direction (3,)."""
    count = shN.shape[0]
    if count >= 3:
        c = 0.4886025119029199
        grad[0, channel] += np.float32(-c * y * g)
        grad[1, channel] += np.float32(c * z * g)
        grad[2, channel] += np.float32(-c * x * g)
        direction[0] -= c * shN[2, channel] * g
        direction[1] -= c * shN[0, channel] * g
        direction[2] += c * shN[1, channel] * g
    if count >= 8:
        a, b, d = 1.0925484305920792 * g, 0.31539156525252005 * g, 0.5462742152960396 * g
        xx, yy, zz = x * x, y * y, z * z
        s3, s4, s5, s6, s7 = shN[3, channel], shN[4, channel], shN[5, channel], shN[6, channel], shN[7, channel]
        grad[3, channel] += np.float32(a * x * y)
        grad[4, channel] -= np.float32(a * y * z)
        grad[5, channel] += np.float32(b * (2.0 * zz - xx - yy))
        grad[6, channel] -= np.float32(a * x * z)
        grad[7, channel] += np.float32(d * (xx - yy))
        direction[0] += a * (y * s3 - z * s6) - 2.0 * b * x * s5 + 2.0 * d * x * s7
        direction[1] += a * (x * s3 - z * s4) - 2.0 * b * y * s5 - 2.0 * d * y * s7
        direction[2] += -a * (y * s4 + x * s6) + 4.0 * b * z * s5
        if count >= 15:
            e, f, h = 0.5900435899266435 * g, 2.890611442640554 * g, 0.4570457994644658 * g
            m, n = 0.3731763325901154 * g, 1.445305721320277 * g
            s8, s9, s10, s11 = shN[8, channel], shN[9, channel], shN[10, channel], shN[11, channel]
            s12, s13, s14 = shN[12, channel], shN[13, channel], shN[14, channel]
            grad[8, channel] -= np.float32(e * y * (3.0 * xx - yy))
            grad[9, channel] += np.float32(f * x * y * z)
            grad[10, channel] -= np.float32(h * y * (4.0 * zz - xx - yy))
            grad[11, channel] += np.float32(m * z * (2.0 * zz - 3.0 * xx - 3.0 * yy))
            grad[12, channel] -= np.float32(h * x * (4.0 * zz - xx - yy))
            grad[13, channel] += np.float32(n * z * (xx - yy))
            grad[14, channel] -= np.float32(e * x * (xx - 3.0 * yy))
            direction[0] += (
                -6.0 * e * x * y * s8
                + f * y * z * s9
                + 2.0 * h * x * y * s10
                - 6.0 * m * x * z * s11
                - h * (4.0 * zz - 3.0 * xx - yy) * s12
                + 2.0 * n * x * z * s13
                - 3.0 * e * (xx - yy) * s14
            )
            direction[1] += (
                -3.0 * e * (xx - yy) * s8
                + f * x * z * s9
                - h * (4.0 * zz - xx - 3.0 * yy) * s10
                - 6.0 * m * y * z * s11
                + 2.0 * h * x * y * s12
                - 2.0 * n * y * z * s13
                + 6.0 * e * x * y * s14
            )
            direction[2] += (
                f * x * y * s9
                - 8.0 * h * y * z * s10
                + m * (6.0 * zz - 3.0 * xx - 3.0 * yy) * s11
                - 8.0 * h * x * z * s12
                + n * (xx - yy) * s13
            )


@kernel
def _all_finite(values):
    total = 0.0
    for value in values:
        total += value * 0.0
    return total == 0.0


@kernel
def _differentiate_block(
    start,
    stop,
    ids,
    records,
    colours,
    sums,
    means,
    quats,
    scales,
    opacities,
    sh0,
    shN,
    rotation,
    center,
    focal,
    limits,
    antialiased,
    by_means,
    by_quats,
    by_scales,
    by_opacities,
    by_sh0,
    by_shN,
    screen,
    screen_absolute,
):
    fx, fy = focal
    turned = np.empty((3, 3))
    axes = np.empty((3, 3))
    jacobian = np.empty((2, 3))
    by_jacobian = np.empty((2, 3))
    by_turned = np.empty((3, 3))
    by_axes = np.empty((3, 3))
    sigmas = np.empty(3)
    direction = np.empty(3)
    results = np.empty(11)
    for rank in range(start, stop):
        i = ids[rank]
        h, hu, huu, hv, huv, hvv = (
            sums[rank, 4],
            sums[rank, 5],
            sums[rank, 6],
            sums[rank, 7],
            sums[rank, 8],
            sums[rank, 9],
        )
        l11, l21, l22 = np.float64(records[rank, L11]), np.float64(records[rank, L21]), np.float64(records[rank, L22])
        px, py, pz = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
        z = rotation[2, 0] * px + rotation[2, 1] * py + rotation[2, 2] * pz
        x_z = (rotation[0, 0] * px + rotation[0, 1] * py + rotation[0, 2] * pz) / z
        y_z = (rotation[1, 0] * px + rotation[1, 1] * py + rotation[1, 2] * pz) / z

        largest = max(max(abs(quats[i, 0]), abs(quats[i, 1])), max(abs(quats[i, 2]), abs(quats[i, 3])))
        qw, qx, qy, qz, norm = 1.0, 0.0, 0.0, 0.0, 0.0
        if largest > 0.0:
            size = np.float64(largest)
            qw, qx, qy, qz = quats[i, 0] / size, quats[i, 1] / size, quats[i, 2] / size, quats[i, 3] / size
            norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw / norm, qx / norm, qy / norm, qz / norm
            norm *= size
        axes[0, 0], axes[0, 1], axes[0, 2] = (
            1 - 2 * (qy * qy + qz * qz),
            2 * (qx * qy - qw * qz),
            2 * (qx * qz + qw * qy),
        )
        axes[1, 0], axes[1, 1], axes[1, 2] = (
            2 * (qx * qy + qw * qz),
            1 - 2 * (qx * qx + qz * qz),
            2 * (qy * qz - qw * qx),
        )
        axes[2, 0], axes[2, 1], axes[2, 2] = (
            2 * (qx * qz - qw * qy),
            2 * (qy * qz + qw * qx),
            1 - 2 * (qx * qx + qy * qy),
        )
        bent_x = min(max(x_z, -limits[0]), limits[1])
        bent_y = min(max(y_z, -limits[2]), limits[3])
        a = b = c = 0.0
        for k in range(3):
            sigmas[k] = math.exp(min(np.float64(scales[i, k]), LOG_SCALE_MAX)) / z
            for j in range(3):
                turned[j, k] = (
                    rotation[j, 0] * axes[0, k] + rotation[j, 1] * axes[1, k] + rotation[j, 2] * axes[2, k]
                ) * sigmas[k]
            jacobian[0, k] = fx * (turned[0, k] - bent_x * turned[2, k])
            jacobian[1, k] = fy * (turned[1, k] - bent_y * turned[2, k])
            a += jacobian[0, k] * jacobian[0, k]
            b += jacobian[0, k] * jacobian[1, k]
            c += jacobian[1, k] * jacobian[1, k]
        veil = not (a + LOW_PASS_PX2 < MAX_VARIANCE_PX2 and c + LOW_PASS_PX2 < MAX_VARIANCE_PX2)

        # By the opacity drawn, then by the logit: d sigmoid = sigmoid (1 - sigmoid).
        logit = np.float64(opacities[i])
        sigmoid = 1.0 / (1.0 + math.exp(-logit)) if logit >= 0.0 else math.exp(logit) / (1.0 + math.exp(logit))
        by_logit = h * (1.0 - sigmoid)  # h = alpha dL/dalpha is dL/dlog opacity

        # By the 2-D covariance: with Sigma^-1 = L^T L it is L^T [huu huv; huv hvv] L / 2.
        g_xx = 0.5 * l11 * l11 * huu
        g_xy = 0.5 * l11 * (l21 * huu + l22 * huv)
        g_yy = 0.5 * (l21 * l21 * huu + 2.0 * l21 * l22 * huv + l22 * l22 * hvv)
        if antialiased and not veil:
            det0 = (
                (jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0]) ** 2
                + (jacobian[0, 0] * jacobian[1, 2] - jacobian[0, 2] * jacobian[1, 0]) ** 2
                + (jacobian[0, 1] * jacobian[1, 2] - jacobian[0, 2] * jacobian[1, 1]) ** 2
            )
            det = det0 + LOW_PASS_PX2 * (a + c) + LOW_PASS_PX2 * LOW_PASS_PX2
            # The opacity drawn has the factor sqrt(det0 / det): d log factor = (Sigma0^-1 - Sigma^-1) / 2.
            if det0 > 1e-30 * det:
                g_xx += 0.5 * h * (c / det0 - (c + LOW_PASS_PX2) / det)
                g_xy -= 0.5 * h * (b / det0 - b / det)
                g_yy += 0.5 * h * (a / det0 - (a + LOW_PASS_PX2) / det)
        if veil:
            g_xx = g_xy = g_yy = 0.0
        by_x_z = fx * l11 * hu
        by_y_z = fy * (l21 * hu + l22 * hv)
        screen[i, 0] = np.float32(l11 * hu)
        screen[i, 1] = np.float32(l21 * hu + l22 * hv)
        screen_absolute[i, 0] = np.float32(sums[rank, 10])
        screen_absolute[i, 1] = np.float32(sums[rank, 11])

        by_bent_x = by_bent_y = 0.0
        by_z = sums[rank, 3]
        for k in range(3):
            by_jacobian[0, k] = 2.0 * (g_xx * jacobian[0, k] + g_xy * jacobian[1, k])
            by_jacobian[1, k] = 2.0 * (g_xy * jacobian[0, k] + g_yy * jacobian[1, k])
            by_turned[0, k] = fx * by_jacobian[0, k]
            by_turned[1, k] = fy * by_jacobian[1, k]
            by_turned[2, k] = -bent_x * by_turned[0, k] - bent_y * by_turned[1, k]
            by_bent_x -= turned[2, k] * by_turned[0, k]
            by_bent_y -= turned[2, k] * by_turned[1, k]
            by_scale = 0.0
            for j in range(3):
                by_scale += by_turned[j, k] * turned[j, k]
            by_z -= by_scale / z
            results[k] = by_scale if scales[i, k] <= LOG_SCALE_MAX else 0.0
            for j in range(3):
                by_axes[j, k] = (
                    rotation[0, j] * by_turned[0, k]
                    + rotation[1, j] * by_turned[1, k]
                    + rotation[2, j] * by_turned[2, k]
                ) * sigmas[k]
        if -limits[0] <= x_z <= limits[1]:
            by_x_z += by_bent_x
        if -limits[2] <= y_z <= limits[3]:
            by_y_z += by_bent_y
        by_z -= (x_z * by_x_z + y_z * by_y_z) / z

        if norm > 0.0:
            by_w = 2.0 * (
                qx * (by_axes[2, 1] - by_axes[1, 2])
                + qy * (by_axes[0, 2] - by_axes[2, 0])
                + qz * (by_axes[1, 0] - by_axes[0, 1])
            )
            by_x = 2.0 * (
                -2.0 * qx * (by_axes[1, 1] + by_axes[2, 2])
                + qy * (by_axes[0, 1] + by_axes[1, 0])
                + qz * (by_axes[0, 2] + by_axes[2, 0])
                + qw * (by_axes[2, 1] - by_axes[1, 2])
            )
            by_y = 2.0 * (
                qx * (by_axes[0, 1] + by_axes[1, 0])
                - 2.0 * qy * (by_axes[0, 0] + by_axes[2, 2])
                + qz * (by_axes[1, 2] + by_axes[2, 1])
                + qw * (by_axes[0, 2] - by_axes[2, 0])
            )
            by_q = 2.0 * (
                qx * (by_axes[0, 2] + by_axes[2, 0])
                + qy * (by_axes[1, 2] + by_axes[2, 1])
                - 2.0 * qz * (by_axes[0, 0] + by_axes[1, 1])
                + qw * (by_axes[1, 0] - by_axes[0, 1])
            )
            along = by_w * qw + by_x * qx + by_y * qy + by_q * qz
            results[3], results[4] = (by_w - along * qw) / norm, (by_x - along * qx) / norm
            results[5], results[6] = (by_y - along * qy) / norm, (by_q - along * qz) / norm
        else:
            results[3:7] = 0.0
        results[7] = by_logit

        # Colours: through the clamp, then harmonics and the direction.
        dx, dy, dz = px / z, py / z, pz / z
        distance = math.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx / distance, dy / distance, dz / distance
        distance *= z
        direction[:] = 0.0
        for channel in range(3):
            if 0.0 < colours[rank, channel] < COLOUR_MAX:
                g = sums[rank, channel]
                by_sh0[i, 0, channel] = np.float32(0.28209479177387814 * g)
                _add_sh_gradient(shN[i], dx, dy, dz, g, channel, by_shN[i], direction)
        along = direction[0] * dx + direction[1] * dy + direction[2] * dz
        for j, own in enumerate((dx, dy, dz)):
            results[8 + j] = (
                rotation[0, j] * by_x_z / z
                + rotation[1, j] * by_y_z / z
                + rotation[2, j] * by_z
                + (direction[j] - along * own) / distance
            )
        if not _all_finite(results):
            continue
        for k in range(3):
            by_scales[i, k] = np.float32(results[k])
            by_means[i, k] = np.float32(results[8 + k])
        for k in range(4):
            by_quats[i, k] = np.float32(results[3 + k])
        by_opacities[i] = np.float32(results[7])


def _picture(states: Array, projection: Projection, background: Array) -> tuple[Array, Array]:
    camera = projection.camera
    rgb = np.empty((camera.height, camera.width, 3), np.float32)
    alpha = np.empty((camera.height, camera.width), np.float32)
    untile(states, projection.tiles_x, background, rgb, alpha)
    return rgb, alpha


def _composite(projection: Projection, layers: list[TileLists], colours: Array, num_threads: int) -> Array:
    states = blank_states(projection)
    finished = np.zeros(len(states), np.uint8)
    for lists in layers:
        composite_layer(projection, lists, colours, states, finished, num_threads)
    return states


def draw(
    attributes: Sequence[Array],
    camera: Camera,
    *,
    background: npt.ArrayLike = (0.0, 0.0, 0.0),
    antialiased: bool = False,
    with_depth: bool = False,
    num_threads: int = 1,
) -> Drawing:
    """Draw raw attributes as `render.cpu.render` does, and keep what `backward` needs.

    Args:
        attributes: C-contiguous float32 means (N, 3), quats (N, 4), log scales (N, 3), opacity logits (N,), sh0
            (N, 1, 3), shN (N, K - 1, 3).
        background: (3,).
        with_depth: also blend depths.
        num_threads: threads to use; no result depends on it.
    """
    projection = project_arrays(attributes, camera, antialiased=antialiased, num_threads=num_threads)
    states = blank_states(projection)
    finished = np.zeros(len(states), np.uint8)
    layers = []
    for start, stop in projection.layers(_MAX_ENTRIES):
        lists = projection.tile_lists(start, stop, finished, num_threads)
        composite_layer(projection, lists, projection.colours, states, finished, num_threads)
        layers.append(lists)
    behind = np.ascontiguousarray(background, np.float32)
    rgb, alpha = _picture(states, projection, behind)
    depth, depth_states = None, np.zeros((0, 2 * PLANE), np.float32)
    if with_depth:
        colours = np.zeros_like(projection.colours)
        colours[:, 0] = projection.depths
        depth_states = _composite(projection, layers, colours, num_threads)
        depth = np.ascontiguousarray(_picture(depth_states, projection, np.zeros(3, np.float32))[0][..., 0])
        depth_states = np.ascontiguousarray(depth_states[:, : 2 * PLANE])
    return Drawing(rgb, alpha, depth, projection, behind, antialiased, layers, states, depth_states)


def backward(
    drawing: Drawing,
    attributes: Sequence[Array],
    by_rgb: Array,
    by_alpha: Array | None = None,
    by_depth: Array | None = None,
    *,
    num_threads: int = 1,
) -> Gradients:
    """Loss gradients of a drawing by the attributes it was drawn from.

    Args:
        drawing: from `draw(attributes, ...)`.
        attributes: the same arrays.
        by_rgb: (H, W, 3) float32, loss gradient by `drawing.rgb`.
        by_alpha: (H, W), the same by `drawing.alpha`.
        by_depth: (H, W), the same by `drawing.depth`; needs `with_depth`.
        num_threads: threads to use; no result depends on it.
    """
    projection = drawing.projection
    camera = projection.camera
    alpha = np.zeros((camera.height, camera.width), np.float32) if by_alpha is None else by_alpha
    depth = np.zeros((0, 0), np.float32) if by_depth is None else by_depth
    depth_states = drawing.depth_states if by_depth is not None else np.zeros((0, 2 * PLANE), np.float32)
    states = np.empty((len(drawing.states), GRADIENT_STATE), np.float32)
    by_background = init_gradients(
        drawing.states,
        depth_states,
        drawing.background,
        np.ascontiguousarray(by_rgb, np.float32),
        np.ascontiguousarray(alpha, np.float32),
        np.ascontiguousarray(depth, np.float32),
        camera.width,
        camera.height,
        projection.tiles_x,
        states,
    )
    finished = np.zeros(len(states), np.uint8)
    sums = np.zeros((len(projection.ids), GRADIENT_SUMS))
    for lists in drawing.layers:
        partials = np.empty((len(lists.entries), GRADIENT_SUMS), np.float32)
        shared = (
            projection.tiles_x,
            projection.records,
            projection.colours,
            projection.depths,
            lists.starts,
            lists.entries,
            states,
            finished,
            partials,
        )
        run_threaded(differentiate_tiles, [(*tiles, *shared) for tiles in tile_ranges(projection)], num_threads)
        sum_partials(lists, partials, sums, num_threads)
    means, quats, scales, opacities, sh0, shN = (np.zeros_like(array) for array in attributes)
    screen, screen_absolute = np.zeros((2, projection.num_gaussians, 2), np.float32)
    arguments = (
        projection.ids,
        projection.records,
        projection.colours,
        sums,
        *attributes,
        np.ascontiguousarray(camera.viewmat[:3, :3]),
        camera.center,
        camera.focal_px,
        frustum_limits(camera),
        drawing.antialiased,
        means,
        quats,
        scales,
        opacities,
        sh0,
        shN,
        screen,
        screen_absolute,
    )
    count = len(projection.ids)
    run_threaded(
        _differentiate_block, [(k, min(k + _BLOCK, count), *arguments) for k in range(0, count, _BLOCK)], num_threads
    )
    return Gradients(
        (means, quats, scales, opacities, sh0, shN), by_background.astype(np.float32), screen, screen_absolute
    )
