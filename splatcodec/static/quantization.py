"""From Gaussians to quantized tiles: targets in base units, fitted predictors, contexts and tables.

This is the encoder's side of `stages`: everything here is a free choice of the encoder; the decoder only sees the
numbers that result (SceneParameters and integers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.tables import ALPHABET, cluster_contexts, quantize_weights
from ..gaussians import Gaussians, num_sh_coefficients, unit_quats
from ..preprocess.plan import Steps
from ..preprocess.view_weights import ViewWeights, direction_grams
from ..stages.octree import MAX_DEPTH
from ..stages.parameters import (
    COLOR_CLASS,
    COLOR_FIRST,
    GEOMETRY_CLASS,
    MATRIX_SCALE,
    OPACITY,
    SH_FIRST,
    SHAPE_FIRST,
    SIZE_FIRST,
    SceneParameters,
    StreamModel,
    num_streams,
    stream_group,
)
from ..stages.streams import (
    COEFFICIENT_BITS,
    CONTEXT_CELLS,
    FEATURE_DEPTH,
    FEATURE_MEAN,
    FEATURE_NEAREST,
    FEATURE_OWN,
    Predictor,
    feature_column,
    histogram_stream,
    quantize_stream,
    round_stream,
)
from ..stages.tile import MAX_TILE, TileGrid, TileTree, morton_codes, plant_tree, stream_classes
from ..stages.transform import covariance_factors

__all__ = [
    "ColorBases",
    "Feedback",
    "PackedTile",
    "QuantizedTile",
    "Tile",
    "TileCut",
    "TileTargets",
    "choose_contexts",
    "cut_tiles",
    "fit_predictors",
    "fit_scales",
    "make_tile",
    "no_contexts",
    "quantize_tile",
    "tile_geometry",
    "tile_histograms",
    "tile_targets",
]

_FIT_GAUSSIANS = 1 << 16  # predictors are fitted on at most this many Gaussians
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Tile:
    """Which Gaussians a level of a tile holds, in coding order, and its coded octree.

    Attributes:
        level, number: level and number of the tile.
        rows: (n,) int64 rows of the scene, of level 0 of the thumbnail.
        grid, tree: geometry of the tile.
    """

    level: int
    number: int
    rows: npt.NDArray[np.int64]
    grid: TileGrid
    tree: TileTree


@dataclass(frozen=True)
class TileTargets:
    """The attributes of a tile, ready to be quantized. Made when needed: they are twice the size of the scene.

    Attributes:
        targets: (S, n) float32 wanted values in base units; the rows of L21, L31, L32 are those of exact sizes.
        shape: (n, 3) float64 L21, L31, L32 of the coded covariance.
    """

    targets: npt.NDArray[np.float32]
    shape: Floats


@dataclass
class QuantizedTile:
    """Streams of one tile after the closed loop, (S, n) int32 each."""

    values: Ints
    magnitudes: Ints
    residuals: Ints


@dataclass(frozen=True)
class PackedTile:
    """A QuantizedTile in a fraction of the memory, kept from choosing contexts until the tile is written.

    Attributes:
        head: (SH_FIRST, n) int32 values of the streams before SH.
        residuals: of each stream, (n,) in the narrowest integers that hold them.
    """

    head: Ints
    residuals: list[npt.NDArray[np.integer]]

    @classmethod
    def of(cls, q: QuantizedTile) -> PackedTile:
        """Keep what cannot be derived."""
        narrow = [row.astype(np.min_scalar_type(-1 - int(np.abs(row).max(initial=0)))) for row in q.residuals]
        return cls(q.values[:SH_FIRST].copy(), narrow)

    def unpacked(self) -> QuantizedTile:
        """Streams as `emit_tile` needs them; values of SH streams are left out."""
        residuals = np.stack(self.residuals, dtype=np.int32, casting="same_kind")
        magnitudes = np.abs(residuals)
        for stream in range(len(residuals)):
            magnitudes[stream] <<= stream_classes(stream, self.head)
        values = np.zeros_like(residuals)
        values[:SH_FIRST] = self.head
        return QuantizedTile(values, magnitudes, residuals)


@dataclass(frozen=True)
class Feedback:
    """Error feedback of SH coefficients: later ones make up for the errors of earlier ones, as seen from the views.

    Attributes:
        means: (N, 3) float32.
        weights: from where each is seen.
        ridge: see `direction_grams`.
    """

    means: npt.NDArray[np.float32]
    weights: ViewWeights
    ridge: float

    def factors(self, rows: npt.NDArray[np.int64], bases: ColorBases) -> npt.NDArray[np.float32]:
        """(n, K (K-1) / 2) factors of a tile's Gaussians (see `direction_grams`)."""
        size = len(bases.sh_band) + 1
        factors = np.empty((len(rows), size * (size - 1) // 2), np.float32)
        direction_grams(
            rows, self.means, self.weights.codes, self.weights.centers,
            bases.sh_band / MATRIX_SCALE, self.ridge, factors,
        )  # fmt: skip
        return factors


@dataclass(frozen=True)
class ColorBases:
    """Orthonormal bases in 1/2048: columns are components, largest first."""

    color: npt.NDArray[np.int64]
    sh_color: npt.NDArray[np.int64]
    sh_band: npt.NDArray[np.int64]

    @classmethod
    def of(cls, parameters: SceneParameters) -> ColorBases:
        """Those of a file."""
        return cls(parameters.color_basis, parameters.sh_color_basis, parameters.sh_band_basis)

    @classmethod
    def fit(cls, gaussians: Gaussians, rows: npt.NDArray[np.int64], weights: Floats) -> ColorBases:
        """Separable KLT: eigenvectors of weighted second moments over colour and over basis functions.

        Args:
            rows: (M,) Gaussians that count.
            weights: (N,) how much each Gaussian's colour matters; clipped at the 95th percentile.
        """
        bands = num_sh_coefficients(gaussians.sh_degree) - 1
        w = weights[rows]
        w = np.minimum(w, np.percentile(w, 95)) if len(w) else w
        w = w + 1e-9 * (w.max(initial=0.0) + 1.0)
        color = _integer_basis(_second_moment(gaussians.sh0[rows, 0].astype(np.float64), w))
        if not bands:
            return cls(color, np.zeros((3, 3), np.int64), np.zeros((0, 0), np.int64))
        over_color, over_band = np.zeros((3, 3)), np.zeros((bands, bands))
        for a in range(0, len(rows), 1 << 13):
            block = slice(a, a + (1 << 13))
            sh = gaussians.shN[rows[block]].astype(np.float64) * np.sqrt(w[block])[:, None, None]
            by_color = sh.reshape(-1, 3)
            by_band = sh.transpose(0, 2, 1).reshape(-1, bands)
            over_color += by_color.T @ by_color
            over_band += by_band.T @ by_band
        return cls(color, _integer_basis(over_color), _integer_basis(over_band))


def _second_moment(x: Floats, weights: Floats) -> Floats:
    """Weighted second moment about the mean."""
    if weights.sum() > 0:
        x = x - np.average(x, axis=0, weights=weights)
    return (x * weights[:, None]).T @ x


def _integer_basis(moment: Floats) -> npt.NDArray[np.int64]:
    """Eigenvectors of a symmetric matrix, largest eigenvalue first, with a fixed sign, in 1/2048."""
    scale = np.abs(moment).max(initial=0.0)
    if not np.isfinite(scale) or scale == 0:
        return np.eye(len(moment), dtype=np.int64) * MATRIX_SCALE
    # Rounding hides differences in the last bits between linear algebra libraries.
    _, vectors = np.linalg.eigh(moment / scale)
    vectors = vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(moment))])
    return np.rint(vectors * signs * MATRIX_SCALE).astype(np.int64)


@dataclass(frozen=True)
class Sources:
    """What tiles are cut from: rows of a tile of level 0 count in the thumbnail, of all others in the scene.

    Attributes:
        scene, thumbnail: Gaussians. scene_classes, thumbnail_classes: (., 2) int32 geometry and colour classes of each.
    """

    scene: Gaussians
    scene_classes: Ints
    thumbnail: Gaussians
    thumbnail_classes: Ints

    def of(self, level: int) -> tuple[Gaussians, Ints]:
        """The Gaussians of a level, and their classes."""
        return (self.scene, self.scene_classes) if level else (self.thumbnail, self.thumbnail_classes)


@dataclass(frozen=True)
class TileCut:
    """How space is cut into tiles: equal runs of the Morton order of the coded Gaussians.

    Attributes:
        rows: of each tile, (n,) int64 rows of the scene.
        origin, cells_a_unit: of the Morton codes. first_codes: (T,) uint64 lowest code of each tile.
    """

    rows: list[npt.NDArray[np.int64]]
    origin: Floats
    cells_a_unit: float
    first_codes: npt.NDArray[np.uint64]

    def tile_of(self, means: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(n,) int64 tile of each of (n, 3) other positions; those outside go to the nearest in code."""
        codes = np.empty(len(means), np.uint64)
        morton_codes(np.ascontiguousarray(means), self.origin, self.cells_a_unit, codes)
        return np.maximum(np.searchsorted(self.first_codes, codes, side="right") - 1, 0).astype(np.int64)


def cut_tiles(means: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], max_tile: int = MAX_TILE) -> TileCut:
    """Cut Gaussians into tiles of at most `max_tile`.

    Args:
        means: (N, 3) float32, finite where it counts. rows: (M,) the Gaussians that are coded.
    """
    n = len(rows)
    if n == 0:
        return TileCut([], np.zeros(3), 0.0, np.zeros(0, np.uint64))
    means = means[rows]
    low = means.min(0).astype(np.float64)
    extent = float((means.max(0).astype(np.float64) - low).max())
    scale = ((1 << MAX_DEPTH) - 1) / extent if extent > 0 else 0.0
    codes = np.empty(n, np.uint64)
    morton_codes(means, low, scale, codes)
    order = np.argsort(codes, kind="stable")
    count = -(-n // max_tile)
    runs = [order[n * k // count : n * (k + 1) // count] for k in range(count)]
    return TileCut([rows[run] for run in runs], low, scale, codes[[run[0] for run in runs]])


def make_tile(
    scene: Gaussians, rows: npt.NDArray[np.int64], classes: Ints, steps: Steps, level: int, number: int
) -> Tile:
    """Order one level of a tile and code its octree.

    Args:
        scene: all coded Gaussians. rows: (n,) its rows in this level and tile.
        classes: (N, 2) int32 geometry and colour class.
        level, number: see `Tile`.
    """
    grid = TileGrid.around(scene.means[rows], steps.blur)
    codes = np.empty(len(rows), np.uint64)
    cells_a_unit = float(2.0 ** (MAX_DEPTH - grid.exponent))
    morton_codes(np.ascontiguousarray(scene.means[rows]), np.array(grid.origin), cells_a_unit, codes)
    order = np.argsort(codes, kind="stable")
    rows, codes = rows[order], codes[order]
    roots, _ = covariance_factors(unit_quats(scene.quats[rows]), scene.scales[rows], grid.blur)
    finest = np.log2(roots).min(1) + classes[rows, 0] + steps.precision / 1024.0
    stop = np.clip(np.ceil(grid.exponent - finest), 0, MAX_DEPTH).astype(np.int32)
    return Tile(level, number, rows, grid, plant_tree(codes, stop))


def tile_geometry(scene: Gaussians, tile: Tile) -> tuple[Floats, Floats]:
    """(n, 3) positions in their leaves, 0..1, and (n, 3) L21, L31, L32 of the coded covariances."""
    _, shape = covariance_factors(unit_quats(scene.quats[tile.rows]), scene.scales[tile.rows], tile.grid.blur)
    edges = np.exp2(tile.grid.exponent - tile.tree.depths.astype(np.float64))[:, None]
    fractions = (scene.means[tile.rows].astype(np.float64) - np.array(tile.grid.origin)) / edges - tile.tree.cells
    return np.clip(fractions, 0.0, 1.0), shape


def tile_targets(scene: Gaussians, tile: Tile, classes: Ints, steps: Steps, bases: ColorBases) -> TileTargets:
    """Every attribute of a tile in base units."""
    rows = tile.rows
    roots, shape = covariance_factors(unit_quats(scene.quats[rows]), scene.scales[rows], tile.grid.blur)
    targets = np.empty((num_streams(scene.sh_degree), len(tile.rows)), np.float32)
    targets[GEOMETRY_CLASS], targets[COLOR_CLASS] = classes[rows].T
    targets[SIZE_FIRST : SIZE_FIRST + 3] = np.log2(roots).T * (1024.0 / steps.size)
    ratios = np.stack([roots[:, 0] / roots[:, 1], roots[:, 0] / roots[:, 2], roots[:, 1] / roots[:, 2]])
    targets[SHAPE_FIRST : SHAPE_FIRST + 3] = shape.T * ratios / steps.shape
    # log2 of the sigmoid, without overflow.
    octaves = -np.logaddexp(0.0, -scene.opacities[rows].astype(np.float64)) / np.log(2.0)
    targets[OPACITY] = -np.maximum(octaves, -12.0) * (1024.0 / steps.opacity)
    to_color = np.linalg.inv(bases.color / MATRIX_SCALE) / steps.color
    targets[COLOR_FIRST:SH_FIRST] = to_color @ scene.sh0[rows, 0].astype(np.float64).T
    if scene.sh_degree:
        to_band = np.linalg.inv(bases.sh_band / MATRIX_SCALE) / steps.sh
        project_sh(scene.shN, rows, np.linalg.inv(bases.sh_color / MATRIX_SCALE), to_band, targets[SH_FIRST:])
    return TileTargets(targets, shape)


@njit(cache=True, nogil=True)
def project_sh(shN, rows, to_color, to_band, targets):  # type: ignore[no-untyped-def]
    """(3 (K-1), n) components of Gaussians `rows` in the SH bases, colour innermost."""
    bands = shN.shape[1]
    mixed = np.zeros((bands, 3))
    for i in range(len(rows)):
        row = rows[i]
        mixed[:, :] = 0.0
        for k in range(bands):
            for band in range(bands):
                f = to_band[k, band]
                for channel in range(3):
                    mixed[k, channel] += f * shN[row, band, channel]
        for k in range(bands):
            for component in range(3):
                total = 0.0
                for channel in range(3):
                    total += to_color[component, channel] * mixed[k, channel]
                targets[3 * k + component, i] = total


def _features_of(stream: int) -> list[tuple[int, int]]:
    """(kind, source) of the features a stream's predictor may use."""
    same = [(FEATURE_MEAN, stream), (FEATURE_NEAREST, stream)]
    if stream == GEOMETRY_CLASS:
        return [*same, (FEATURE_DEPTH, 0)]
    if stream == COLOR_CLASS:
        return [*same, (FEATURE_DEPTH, 0), (FEATURE_OWN, GEOMETRY_CLASS), (FEATURE_MEAN, GEOMETRY_CLASS)]
    first = stream_group(stream)
    earlier = [(kind, s) for s in range(first, stream) for kind in (FEATURE_OWN, FEATURE_MEAN)]
    if first == SIZE_FIRST:
        return [*same, (FEATURE_DEPTH, 0), (FEATURE_OWN, GEOMETRY_CLASS), *earlier]
    if first == SHAPE_FIRST:
        return [*same, *earlier]
    if first == OPACITY:
        sizes = [(FEATURE_OWN, s) for s in range(SIZE_FIRST, SIZE_FIRST + 3)]
        return [*same, (FEATURE_OWN, GEOMETRY_CLASS), (FEATURE_OWN, COLOR_CLASS), *sizes]
    if first == COLOR_FIRST:
        return [*same, *earlier]
    return same[:1]  # of what was tried for SH, only the neighbours' mean pays for the time it takes to decode


def _fit_predictor(
    stream: int, tiles: Sequence[Tile], exact: Sequence[TileTargets], rounded: Sequence[Ints]
) -> Predictor:
    """Robust weighted least squares on the unquantized values."""
    features = _features_of(stream)
    kinds = np.array([kind for kind, _ in features], np.int64)
    sources = np.array([source for _, source in features], np.int64)
    total = sum(values.shape[1] for values in rounded)
    x = np.ones((len(features) + 1, total))  # one row a feature; the last is the bias
    y, width = np.empty(total), np.ones(total)
    at = 0
    for tile, targets, values in zip(tiles, exact, rounded):
        n = values.shape[1]
        column = np.empty(n, np.int64)
        for row, (kind, source) in zip(x, features):
            feature_column(kind, source, values, tile.tree.neighbors, tile.tree.depths, column)
            row[at : at + n] = column
        y[at : at + n] = targets.targets[stream]
        if stream > COLOR_CLASS:
            width[at : at + n] = np.exp2(values[GEOMETRY_CLASS if stream < COLOR_FIRST else COLOR_CLASS])
        at += n
    # Columns of very different size: scale them before the normal equations, with a little ridge.
    scale = np.abs(x).mean(1) + 1e-9
    x /= scale[:, None]
    weight = 1.0 / (width * width)
    solution: Floats = np.zeros(len(x))
    for _ in range(3):
        weighted = x * weight
        normal = weighted @ x.T
        normal[np.diag_indices_from(normal)] *= 1.0 + 1e-6
        normal[np.diag_indices_from(normal)] += 1e-9 * weight.sum()
        solution = np.asarray(np.linalg.solve(normal, weighted @ y), np.float64)
        # Code length grows with log |residual|, not its square.
        weight = 1.0 / (width * (np.abs(y - solution @ x) + width))
    solution = solution / scale * (1 << COEFFICIENT_BITS)
    limit = 1 << 20
    coefficients = np.clip(np.rint(solution[:-1]), -limit, limit).astype(np.int64)
    bias = int(np.clip(np.rint(solution[-1]), -(1 << 28), 1 << 28))
    used = coefficients != 0
    return Predictor(bias, kinds[used], sources[used], coefficients[used])


def quantize_tile(
    tile: Tile,
    exact: TileTargets,
    models: Sequence[StreamModel],
    steps: Steps,
    bases: ColorBases,
    trellis: tuple[int, int],
    feedback: Feedback | None = None,
) -> QuantizedTile:
    """Run the closed loop over all streams of a tile."""
    streams, n = exact.targets.shape
    q = QuantizedTile(*(np.zeros((streams, n), np.int32) for _ in range(3)))
    roots = np.empty((3, n))
    # A thumbnail is not worth it, and no view has seen it.
    factors = feedback.factors(tile.rows, bases) if feedback and streams > SH_FIRST and tile.level else None
    errors = np.zeros((1 + (streams - SH_FIRST) // 3, 3, n), np.float32)
    for stream, model in enumerate(models):
        target = exact.targets[stream]
        if SHAPE_FIRST <= stream < SHAPE_FIRST + 3:
            target = _shape_target(stream - SHAPE_FIRST, exact.shape, q.values, roots, steps)
        if factors is not None and stream >= SH_FIRST:
            k, component = divmod(stream - SH_FIRST, 3)
            target = target.copy()
            add_feedback(k + 1, component, factors, errors, target)
        p = model.predictor
        out = q.values, q.magnitudes, q.residuals
        model_of = tile.tree.neighbors, tile.tree.depths, p.bias, p.kinds, p.sources, p.coefficients
        if stream <= COLOR_CLASS:
            round_stream(stream, target, *out, *model_of)
        else:
            quantize_stream(stream, target, stream_classes(stream, q.values), *out, *model_of, *trellis)
        if SIZE_FIRST <= stream < SIZE_FIRST + 3:
            roots[stream - SIZE_FIRST] = _decoded_roots(q.values[stream], steps.size)
        if factors is not None and stream == SH_FIRST - 1:
            # Errors of sh0, in the colour basis and unit of the SH streams.
            wanted = exact.targets[COLOR_FIRST:SH_FIRST].astype(np.float64)
            missed = (q.values[COLOR_FIRST:SH_FIRST] - wanted) * (steps.color / steps.sh)
            errors[0] = np.linalg.inv(bases.sh_color / MATRIX_SCALE) @ (bases.color / MATRIX_SCALE) @ missed
        elif factors is not None and stream >= SH_FIRST:
            errors[k + 1, component] = q.values[stream] - exact.targets[stream]
    return q


@njit(cache=True, nogil=True)
def add_feedback(k, component, factors, errors, target):  # type: ignore[no-untyped-def]
    """Shift the targets (n,) of coefficient k by what errors (K, 3, n) of earlier ones ask of it."""
    first = (k * (k - 1)) // 2
    for i in range(len(target)):
        shift = 0.0
        for j in range(k):
            shift += factors[i, first + j] * errors[j, component, i]
        target[i] -= shift


def _decoded_roots(values: Ints, size_step: int) -> Floats:
    return np.exp2(np.clip(values.astype(np.float64) * (size_step / 1024.0), -500, 500))


def _shape_target(which: int, shape: Floats, values: Ints, roots: Floats, steps: Steps) -> Floats:
    """L21, L31 or L32 in whitened base units of the decoded sizes; L31 makes up for the error in L21."""
    l21, l31, l32 = shape.T
    if which == 0:
        return l21 * (roots[0] / roots[1]) / steps.shape
    if which == 1:
        decoded = values[SHAPE_FIRST] * steps.shape * (roots[1] / roots[0])
        return (l31 + l32 * (decoded - l21)) * (roots[0] / roots[2]) / steps.shape
    return l32 * (roots[1] / roots[2]) / steps.shape


def _sample(tiles: Sequence[Tile]) -> list[Tile]:
    """Every k-th tile, so that there are about as many Gaussians as statistics need."""
    total = sum(len(tile.rows) for tile in tiles)
    return list(tiles[:: max(1, -(-total // _FIT_GAUSSIANS))])


def fit_predictors(
    tiles: Sequence[Tile],
    targets_of: Callable[[Tile], TileTargets],
    streams: int,
    pool: ThreadPoolExecutor,
) -> list[StreamModel]:
    """Fit the predictors of the first `streams` streams on a sample of the tiles.

    Args:
        targets_of: makes the targets of a tile.
        pool: threads; the result does not depend on their number.
    """
    chosen = _sample(tiles)
    if not chosen:
        return [StreamModel() for _ in range(streams)]
    exact = list(pool.map(targets_of, chosen))
    limit = float(1 << 27)
    rounded = [np.clip(np.rint(part.targets), -limit, limit).astype(np.int32) for part in exact]
    predictors = pool.map(lambda s: _fit_predictor(s, chosen, exact, rounded), range(streams))
    return [StreamModel(predictor) for predictor in predictors]


def fit_scales(
    models: list[StreamModel],
    tiles: Sequence[Tile],
    targets_of: Callable[[Tile], TileTargets],
    steps: Steps,
    bases: ColorBases,
    trellis: tuple[int, int],
    pool: ThreadPoolExecutor,
) -> None:
    """Set mode and expected residual of the SH streams, on the sample that predictors were fitted on."""
    if len(models) <= SH_FIRST:
        return
    chosen = _sample(tiles)

    def means(tile: Tile) -> Floats:
        return quantize_tile(tile, targets_of(tile), models, steps, bases, trellis).magnitudes.mean(1)

    mean = np.mean(list(pool.map(means, chosen)), axis=0) if chosen else np.zeros(len(models))
    for stream in range(SH_FIRST, len(models)):
        models[stream].mode, models[stream].scale = 3, round(4 * float(mean[stream]))


def tile_histograms(
    tile: Tile, q: QuantizedTile, models: Sequence[StreamModel], trellis: tuple[int, int]
) -> list[npt.NDArray[np.int64]]:
    """Token counts of one tile: modes 0 to 2 of each stream before SH, then one of all SH streams together."""
    histograms = []
    shared = np.zeros((CONTEXT_CELLS[3], ALPHABET), np.int64)
    for stream, model in enumerate(models):
        classes = stream_classes(stream, q.values)
        for mode in (3,) if stream >= SH_FIRST else (0, 1, 2):
            histogram = shared if mode == 3 else np.zeros((CONTEXT_CELLS[mode], ALPHABET), np.int64)
            histogram_stream(
                stream, stream_group(stream), mode, model.scale, classes, q.magnitudes, q.residuals,
                tile.tree.neighbors, *(trellis if stream > COLOR_CLASS else (0, 0)), histogram,
            )  # fmt: skip
            if mode != 3:
                histograms.append(histogram)
    return [*histograms, shared]


def _entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    """Code length of (T, ALPHABET) counts under their own tables, with an estimate of the tables' cost."""
    total = counts.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(counts > 0, counts * np.log2(total / counts), 0.0).sum()
    return float(bits + 4.6 * (counts > 0).sum())


def no_contexts(models: list[StreamModel]) -> npt.NDArray[np.int64]:
    """One table for all, for tiles that do not use tables."""
    for stream, model in enumerate(models):
        if stream < SH_FIRST:
            model.mode = 0
        model.context_map = np.zeros(CONTEXT_CELLS[model.mode], np.uint8)
    weights = np.zeros((1, ALPHABET), np.int64)
    weights[0, 0] = 1
    return weights


def choose_contexts(
    models: list[StreamModel], histograms: Iterable[list[npt.NDArray[np.int64]]], pool: ThreadPoolExecutor
) -> npt.NDArray[np.int64]:
    """Set mode and context map of every model from the `tile_histograms` of all tiles.

    Returns:
        (T, ALPHABET) int64 table weights.
    """
    sums: list[npt.NDArray[np.int64]] = []
    for part in histograms:
        sums = part if not sums else [a + b for a, b in zip(sums, part)]
    if not sums:  # an empty scene still has valid tables
        sums = [np.zeros((CONTEXT_CELLS[mode], ALPHABET), np.int64) for _ in range(SH_FIRST) for mode in (0, 1, 2)]
        sums.append(np.zeros((CONTEXT_CELLS[3], ALPHABET), np.int64))
    clustered = list(pool.map(lambda h: cluster_contexts(h, 12 if len(h) == CONTEXT_CELLS[0] else 48), sums))
    counts: list[npt.NDArray[np.int64]] = []
    first = 0
    for stream, model in enumerate(models[:SH_FIRST]):
        options = clustered[3 * stream : 3 * stream + 3]
        mode = min(range(3), key=lambda m: _entropy_bits(options[m][1]))
        model.mode, model.context_map = mode, (options[mode][0] + first).astype(np.uint8)
        counts.append(options[mode][1])
        first += len(options[mode][1])
    if len(models) > SH_FIRST:
        context_map = (clustered[-1][0] + first).astype(np.uint8)
        for model in models[SH_FIRST:]:
            model.context_map = context_map
        counts.append(clustered[-1][1])
    return np.stack([quantize_weights(row.astype(np.float64)) for row in np.concatenate(counts)])
