"""What every Gaussian of a scene contributes to pictures: blending weights, and how much errors in it would show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from .camera import Camera
from .compositing import (
    CONTRIBUTION_STATE,
    PARTIALS,
    PLANE,
    RESTORATION_STATE,
    contribute_tiles,
    finish_statistics,
    init_contributions,
    init_restoration,
    restore_tiles,
)
from .cpu import composite
from .kernel import default_num_threads, run_threaded
from .layers import sum_partials, tile_ranges
from .projection import OPACITY, project

__all__ = ["BACKGROUND", "Contributions", "contributions", "restoration"]

#: The grey behind the scene, so that silhouettes count whatever they are shown on.
BACKGROUND = 0.5
# 28 bytes of partial results for each (tile, Gaussian) pair of a layer.
_MAX_ENTRIES = 1 << 21
_COVERED_ALPHA = 0.05  # as in metrics.psnr
_LEAST_COVERED = 0.02


@dataclass(frozen=True, eq=False)
class Contributions:
    """Sums over all pixels of all views, one row a Gaussian. Zero where a Gaussian is never seen.

    With w = alpha T the blending weight, alpha e the change of the picture (RGB) when the Gaussian is removed,
    m the squared Mahalanobis distance and rho the share of the 2-D covariance that is not low-pass blur:

    Attributes:
        max_weight: (N,) float64, largest w, 0..1.
        sum_weight: (N,) float64, sum of w, pixels.
        sum_weight2: (N,) float64, sum of w^2: squared error (one channel) per squared error of the colour.
        hits: (N,) int64, pixels drawn on.
        s_logalpha: (N,) float64, sum of |alpha e|^2: squared error per squared error of log alpha. Exactly the squared
            error that removing this Gaussian alone would cost.
        s_position: (N,) float64, sum of |alpha e|^2 m rho: the same for the position in standard deviations.
        s_cov: (N,) float64, sum of |alpha e|^2 m^2 rho^2 / 4: the same for log covariance (twice a log scale).
        pixel_size: (N,) float64, world units a pixel at the Gaussian's depth in the finest view that drew it; inf
            where none did.
        num_views: how many views were summed.
    """

    max_weight: npt.NDArray[np.float64]
    sum_weight: npt.NDArray[np.float64]
    sum_weight2: npt.NDArray[np.float64]
    hits: npt.NDArray[np.int64]
    s_logalpha: npt.NDArray[np.float64]
    s_position: npt.NDArray[np.float64]
    s_cov: npt.NDArray[np.float64]
    pixel_size: npt.NDArray[np.float64]
    num_views: int

    @property
    def s_colour(self) -> npt.NDArray[np.float64]:
        """(N,) sensitivity of the colour: `sum_weight2`."""
        return self.sum_weight2

    @property
    def removal_error(self) -> npt.NDArray[np.float64]:
        """(N,) squared error (RGB sum, grey background) of leaving this Gaussian out: `s_logalpha`."""
        return self.s_logalpha


def contributions(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    *,
    antialiased: bool | None = None,
    equalize: bool = False,
    num_threads: int | None = None,
    on_view: Callable[[int, npt.NDArray[np.int32], npt.NDArray[np.float64]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Contributions:
    """Measure the contributions of every Gaussian with two passes of the compositor over each view.

    Args:
        gaussians: any scene; rows that cannot be drawn contribute nothing.
        cameras: the views (an encoder takes `encoder_cameras`).
        antialiased: as for `render.cpu.render`.
        equalize: give every view the weight of a view of average coverage, so that errors count as in a mean over
            views of the PSNR over covered pixels: the fewer pixels a view covers, the more each one counts.
        num_threads: threads to use; the result does not depend on it.
        on_view: called as on_view(view, ids, sum_weight2) with the (V,) Gaussians a view draws and what the view adds
            to their `sum_weight2`.
        progress: called as progress(views done, views in all).

    Returns:
        Contributions, in the order of `gaussians`.
    """
    threads = default_num_threads() if num_threads is None else num_threads
    n = len(gaussians)
    totals = np.zeros((n, 6))
    hits = np.zeros(n, np.int64)
    pixel_sizes = np.full(n, np.inf)
    for view, camera in enumerate(cameras):
        projection = project(gaussians, camera, antialiased=antialiased, num_threads=threads)
        pictures = composite(projection, threads)
        states = np.empty((len(pictures), CONTRIBUTION_STATE), np.float32)
        share = _covered_share(pictures, camera) if equalize else 1.0
        init_contributions(pictures, np.float32(BACKGROUND), camera.width, camera.height, projection.tiles_x, states)
        del pictures
        finished = np.zeros(len(states), np.uint8)
        sums = np.zeros((len(projection.ids), PARTIALS))
        for start, stop in projection.layers(_MAX_ENTRIES):
            lists = projection.tile_lists(start, stop, finished, threads)
            partials = np.empty((len(lists.entries), PARTIALS), np.float32)
            shared = (
                projection.tiles_x,
                projection.records,
                projection.colours,
                lists.starts,
                lists.entries,
                states,
                finished,
                partials,
            )
            run_threaded(contribute_tiles, [(*tiles, *shared) for tiles in tile_ranges(projection)], threads)
            sum_partials(lists, partials, sums, threads, maximum=2)
        if equalize:
            sums[:, [0, 1, 4, 5, 6]] /= share
        finish_statistics(
            0,
            len(sums),
            projection.ids,
            sums,
            projection.rhos,
            projection.depths,
            max(camera.focal_px),
            totals,
            hits,
            pixel_sizes,
        )
        if on_view is not None:
            on_view(view, projection.ids, sums[:, 1])
        if progress is not None:
            progress(view + 1, len(cameras))
    columns = np.ascontiguousarray(totals.T)
    return Contributions(
        max_weight=columns[0],
        sum_weight=columns[1],
        sum_weight2=columns[2],
        hits=hits,
        s_logalpha=columns[3],
        s_position=columns[4],
        s_cov=columns[5],
        pixel_size=pixel_sizes,
        num_views=len(cameras),
    )


def restoration(
    gaussians: Gaussians,
    kept: npt.NDArray[np.bool_],
    cameras: Sequence[Camera],
    *,
    antialiased: bool | None = None,
    num_threads: int | None = None,
) -> npt.NDArray[np.float64]:
    """What drawing each Gaussian that was left out would mend, once all of them are gone.

    Errors of leaving Gaussians out do not add: of two in the same place either can go, but not both.

    Args:
        gaussians: any scene of N Gaussians.
        kept: (N,) which of them are drawn.
        cameras: the views, all of the same weight, as by `contributions(equalize=True)`.
        antialiased, num_threads: as there.

    Returns:
        (N,) float64, squared error (RGB sum, grey background) of the pictures without those left out, less that with
        this one drawn again; negative where it would do harm, 0 for what is kept.
    """
    threads = default_num_threads() if num_threads is None else num_threads
    totals = np.zeros(len(gaussians))
    for camera in cameras:
        projection = project(gaussians, camera, antialiased=antialiased, num_threads=threads)
        absent = (~kept[projection.ids]).astype(np.uint8)
        if not absent.any():
            continue
        wanted = composite(projection, threads)
        share = _covered_share(wanted, camera)
        records = projection.records.copy()
        records[absent > 0, OPACITY] = 0.0
        pictures = composite(replace(projection, records=records), threads)
        states = np.empty((len(pictures), RESTORATION_STATE), np.float32)
        size = camera.width, camera.height, projection.tiles_x
        init_restoration(wanted, pictures, np.float32(BACKGROUND), *size, states)
        finished = np.zeros(len(states), np.uint8)
        sums = np.zeros((len(projection.ids), 1))
        for start, stop in projection.layers(_MAX_ENTRIES):
            lists = projection.tile_lists(start, stop, finished, threads)
            partials = np.empty((len(lists.entries), 1), np.float32)
            shared = (
                projection.tiles_x,
                projection.records,
                projection.colours,
                absent,
                lists.starts,
                lists.entries,
                states,
                finished,
                partials,
            )
            run_threaded(restore_tiles, [(*tiles, *shared) for tiles in tile_ranges(projection)], threads)
            sum_partials(lists, partials, sums, threads)
        totals[projection.ids] += sums[:, 0] / share
    return totals


def _covered_share(pictures: npt.NDArray[np.float32], camera: Camera) -> float:
    """Share of the picture that is covered; bounded, for the sake of nearly empty views."""
    covered = int((np.abs(pictures[:, :PLANE]) < 1.0 - _COVERED_ALPHA).sum())
    return max(covered / (camera.width * camera.height), _LEAST_COVERED)
