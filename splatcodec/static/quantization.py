"""From Gaussians to quantized tiles: targets in base units, fitted predictors, contexts and tables.

This is the encoder's side of `stages`: everything here is a free choice of the encoder; the decoder only sees the
numbers that result (SceneParameters and integers).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..entropy.tables import ALPHABET, cluster_contexts, quantize_weights
from ..gaussians import Gaussians, num_sh_coefficients
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
    feature_matrix,
    histogram_stream,
    quantize_stream,
)
from ..stages.tile import MAX_TILE, TileGrid, TileTree, morton_codes, plant_tree, stream_classes
from ..stages.transform import covariance_factors

__all__ = ["ColorBases", "QuantizedTile", "Steps", "cut_tiles", "fit_parameters", "quantize_tile", "tile_targets"]

_FIT_GAUSSIANS = 1 << 17  # predictors are fitted on at most this many Gaussians
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Steps:
    """Base steps of all attributes; a Gaussian of class c uses 2**c of them.

    Attributes:
        size: 1/1024 octaves of sqrt(D).
        shape: whitened units of the off-diagonals.
        opacity: 1/1024 octaves of alpha.
        precision: position step relative to sqrt(D), in 1/1024 octaves.
        color, sh: SH coefficient units.
        blur: world units added to covariances, one value a tile.
    """

    size: int = 16
    shape: float = 0.0153
    opacity: int = 16
    precision: int = -4096
    color: float = 0.01
    sh: float = 0.02
    blur: float = 0.0


@dataclass
class TileTargets:
    """One tile of the scene, ready to be quantized with any parameters.

    Attributes:
        index: (n,) int64 rows of the scene, in coding order.
        grid, tree: geometry of the tile.
        targets: (S, n) float64 wanted values in base units; the rows of L21..L32 are not in units yet (see `shape`).
        shape: (n, 3) float64 L21, L31, L32 of the coded covariance.
        fractions: (n, 3) float64 position in the leaf, 0..1.
    """

    index: npt.NDArray[np.int64]
    grid: TileGrid
    tree: TileTree
    targets: Floats
    shape: Floats
    fractions: Floats


@dataclass
class QuantizedTile:
    """Streams of one tile after the closed loop, (S, n) int32 each."""

    values: Ints
    magnitudes: Ints
    residuals: Ints


@dataclass(frozen=True)
class ColorBases:
    """Orthonormal bases in 1/2048: columns are components, largest first."""

    color: npt.NDArray[np.int64]
    sh_color: npt.NDArray[np.int64]
    sh_band: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, gaussians: Gaussians, weights: Floats) -> ColorBases:
        """Separable KLT: eigenvectors of weighted second moments over colour and over basis functions.

        Args:
            weights: (N,) how much each Gaussian's colour matters; clipped at the 95th percentile.
        """
        bands = num_sh_coefficients(gaussians.sh_degree) - 1
        w = np.minimum(weights, np.percentile(weights, 95)) if len(weights) else weights
        w = w + 1e-9 * (w.max(initial=0.0) + 1.0)
        color = _integer_basis(_second_moment(gaussians.sh0[:, 0].astype(np.float64), w, centered=True))
        if not bands:
            return cls(color, np.zeros((3, 3), np.int64), np.zeros((0, 0), np.int64))
        over_color, over_band = np.zeros((3, 3)), np.zeros((bands, bands))
        for a in range(0, gaussians.num_gaussians, MAX_TILE):
            sh = gaussians.shN[a : a + MAX_TILE].astype(np.float64)
            part = sh * w[a : a + MAX_TILE, None, None]
            over_color += np.einsum("nkc,nkd->cd", part, sh, optimize=True)
            over_band += np.einsum("nkc,nlc->kl", part, sh, optimize=True)
        return cls(color, _integer_basis(over_color), _integer_basis(over_band))


def _second_moment(x: Floats, weights: Floats, centered: bool) -> Floats:
    if centered and weights.sum() > 0:
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


def cut_tiles(means: npt.NDArray[np.float32], max_tile: int = MAX_TILE) -> list[npt.NDArray[np.int64]]:
    """Rows of each tile, in Morton order; tiles are equal runs of that order.

    Args:
        means: (N, 3) float32, finite.
    """
    n = len(means)
    if n == 0:
        return []
    low = means.min(0).astype(np.float64)
    extent = float((means.max(0).astype(np.float64) - low).max())
    codes = np.empty(n, np.uint64)
    morton_codes(means, low, ((1 << MAX_DEPTH) - 1) / extent if extent > 0 else 0.0, codes)
    order = np.argsort(codes, kind="stable")
    count = -(-n // max_tile)
    return [order[n * k // count : n * (k + 1) // count] for k in range(count)]


def tile_targets(
    gaussians: Gaussians,
    rows: npt.NDArray[np.int64],
    classes: Ints,
    steps: Steps,
    bases: ColorBases,
    alphas: Floats,
) -> TileTargets:
    """Order one tile, code its octree and put every attribute in base units.

    Args:
        gaussians: the cleaned scene. rows: (n,) its rows in this tile.
        classes: (N, 2) int32 geometry and colour class.
        alphas: (N,) float64 opacities after the sigmoid.
    """
    grid = TileGrid.around(gaussians.means[rows], steps.blur)
    codes = np.empty(len(rows), np.uint64)
    cells_a_unit = float(2.0 ** (MAX_DEPTH - grid.exponent))
    morton_codes(np.ascontiguousarray(gaussians.means[rows]), np.array(grid.origin), cells_a_unit, codes)
    order = np.argsort(codes, kind="stable")
    rows, codes = rows[order], codes[order]
    scene = gaussians.selected(rows)
    roots, shape = covariance_factors(scene.normalized_quats(), scene.scales, grid.blur)
    octaves = np.log2(roots)
    geometry = classes[rows, 0]
    finest = octaves.min(1) + geometry + steps.precision / 1024.0
    stop = np.clip(np.ceil(grid.exponent - finest), 0, MAX_DEPTH).astype(np.int32)
    tree = plant_tree(codes, stop)
    edges = np.exp2(grid.exponent - tree.depths.astype(np.float64))[:, None]
    fractions = (scene.means.astype(np.float64) - np.array(grid.origin)) / edges - tree.cells
    n = len(rows)
    targets = np.empty((num_streams(gaussians.sh_degree), n))
    targets[GEOMETRY_CLASS], targets[COLOR_CLASS] = geometry, classes[rows, 1]
    targets[SIZE_FIRST : SIZE_FIRST + 3] = octaves.T * (1024.0 / steps.size)
    ratios = np.stack([roots[:, 0] / roots[:, 1], roots[:, 0] / roots[:, 2], roots[:, 1] / roots[:, 2]])
    targets[SHAPE_FIRST : SHAPE_FIRST + 3] = shape.T * ratios / steps.shape
    targets[OPACITY] = -np.log2(np.maximum(alphas[rows], 1.0 / 4096.0)) * (1024.0 / steps.opacity)
    targets[COLOR_FIRST : COLOR_FIRST + 3] = color_targets(scene, steps, bases)
    if gaussians.sh_degree:
        targets[SH_FIRST:] = sh_targets(scene, steps, bases)
    return TileTargets(rows, grid, tree, targets, shape, np.clip(fractions, 0.0, 1.0))


def color_targets(scene: Gaussians, steps: Steps, bases: ColorBases) -> Floats:
    """(3, n) sh0 in the colour basis, in base units."""
    return np.linalg.solve(bases.color / MATRIX_SCALE, scene.sh0[:, 0].astype(np.float64).T) / steps.color


def sh_targets(scene: Gaussians, steps: Steps, bases: ColorBases) -> Floats:
    """(3 (K - 1), n) shN in the SH bases, in base units, component innermost."""
    color_inverse = np.linalg.inv(bases.sh_color / MATRIX_SCALE)
    band_inverse = np.linalg.inv(bases.sh_band / MATRIX_SCALE)
    mixed = np.einsum("kl,nlc->nkc", band_inverse, scene.shN.astype(np.float64), optimize=True)
    mixed = np.einsum("nkc,dc->kdn", mixed, color_inverse, optimize=True)
    return mixed.reshape(-1, scene.num_gaussians) / steps.sh


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
    return [*same, (FEATURE_OWN, COLOR_FIRST), (FEATURE_MEAN, COLOR_FIRST)]


def _fit_predictor(stream: int, tiles: Sequence[TileTargets], rounded: Sequence[Ints]) -> Predictor:
    """Robust weighted least squares on the unquantized values."""
    features = _features_of(stream)
    kinds = np.array([kind for kind, _ in features], np.int64)
    sources = np.array([source for _, source in features], np.int64)
    parts, wanted, widths = [], [], []
    for tile, values in zip(tiles, rounded):
        matrix = np.empty((values.shape[1], len(features)))
        feature_matrix(values, tile.tree.neighbors, tile.tree.depths, kinds, sources, matrix)
        parts.append(matrix)
        wanted.append(tile.targets[stream])
        row = GEOMETRY_CLASS if stream < COLOR_FIRST else COLOR_CLASS
        widths.append(np.exp2(values[row]) if stream > COLOR_CLASS else np.ones(values.shape[1]))
    x = np.concatenate([*parts]) if len(parts) > 1 else parts[0]
    x = np.concatenate([x, np.full((len(x), 1), 1.0)], 1)
    y, width = np.concatenate(wanted), np.concatenate(widths)
    # Columns of very different size: scale them before the normal equations, with a little ridge.
    scale = np.abs(x).mean(0) + 1e-9
    x = x / scale
    weight = 1.0 / (width * width)
    solution = np.zeros(x.shape[1])
    for _ in range(3):
        weighted = x * weight[:, None]
        normal = weighted.T @ x
        normal[np.diag_indices_from(normal)] *= 1.0 + 1e-6
        normal[np.diag_indices_from(normal)] += 1e-9 * weight.sum()
        solution = np.linalg.solve(normal, weighted.T @ y)
        # Code length grows with log |residual|, not its square.
        weight = 1.0 / (width * (np.abs(y - x @ solution) + width))
    solution = solution / scale * (1 << COEFFICIENT_BITS)
    limit = 1 << 20
    coefficients = np.clip(np.rint(solution[:-1]), -limit, limit).astype(np.int64)
    bias = int(np.clip(np.rint(solution[-1]), -(1 << 28), 1 << 28))
    used = coefficients != 0
    return Predictor(bias, kinds[used], sources[used], coefficients[used])


def quantize_tile(tile: TileTargets, models: Sequence[StreamModel], steps: Steps) -> QuantizedTile:
    """Run the closed loop over all streams of a tile."""
    streams, n = tile.targets.shape
    q = QuantizedTile(*(np.zeros((streams, n), np.int32) for _ in range(3)))
    roots = np.empty((3, n))
    for stream, model in enumerate(models):
        classes = stream_classes(stream, q.values)
        target = tile.targets[stream]
        if SHAPE_FIRST <= stream < SHAPE_FIRST + 3:
            target = _shape_target(stream - SHAPE_FIRST, tile, q.values, roots, steps)
        p = model.predictor
        quantize_stream(
            stream, target, classes, q.values, q.magnitudes, q.residuals, tile.tree.neighbors, tile.tree.depths,
            p.bias, p.kinds, p.sources, p.coefficients,
        )  # fmt: skip
        if SIZE_FIRST <= stream < SIZE_FIRST + 3:
            roots[stream - SIZE_FIRST] = _decoded_roots(q.values[stream], steps.size)
    return q


def _decoded_roots(values: Ints, size_step: int) -> Floats:
    return np.exp2(np.clip(values.astype(np.float64) * (size_step / 1024.0), -500, 500))


def _shape_target(which: int, tile: TileTargets, values: Ints, roots: Floats, steps: Steps) -> Floats:
    """L21, L31 or L32 in whitened base units of the decoded sizes; L31 makes up for the error in L21."""
    l21, l31, l32 = tile.shape.T
    if which == 0:
        return l21 * (roots[0] / roots[1]) / steps.shape
    if which == 1:
        decoded = values[SHAPE_FIRST] * steps.shape * (roots[1] / roots[0])
        return (l31 + l32 * (decoded - l21)) * (roots[0] / roots[2]) / steps.shape
    return l32 * (roots[1] / roots[2]) / steps.shape


def fit_parameters(
    tiles: Sequence[TileTargets], steps: Steps, bases: ColorBases, sh_degree: int, pool: ThreadPoolExecutor
) -> SceneParameters:
    """Fit predictors on some tiles, then contexts and tables on what they leave of all tiles.

    Args:
        tiles: all tiles of the scene.
        pool: threads for independent streams and tiles; results do not depend on their number.
    """
    streams = num_streams(sh_degree)
    chosen = _fit_sample(tiles)
    limit = float(1 << 27)
    rounded = [np.clip(np.rint(t.targets), -limit, limit).astype(np.int32) for t in chosen]
    if chosen:
        predictors = list(pool.map(lambda s: _fit_predictor(s, chosen, rounded), range(streams)))
    else:
        predictors = [Predictor()] * streams
    models = [StreamModel(p) for p in predictors]
    if sh_degree:
        sample = list(pool.map(lambda t: quantize_tile(t, models, steps), chosen))
        for stream in range(SH_FIRST, streams):
            mean = np.mean([q.magnitudes[stream].mean() for q in sample]) if sample else 0.0
            models[stream].mode, models[stream].scale = 3, round(4 * float(mean))
        del sample
    weights = _choose_contexts(models, tiles, steps, pool)
    return SceneParameters(
        sh_degree, steps.size, steps.opacity, steps.precision,
        float(np.float32(steps.shape)), float(np.float32(steps.color)), float(np.float32(steps.sh)),
        bases.color, bases.sh_color, bases.sh_band, models, weights,
    )  # fmt: skip


def _fit_sample(tiles: Sequence[TileTargets]) -> list[TileTargets]:
    total = sum(len(t.index) for t in tiles)
    every = max(1, -(-total // _FIT_GAUSSIANS))
    return list(tiles[::every])


def _tile_histograms(tile: TileTargets, models: Sequence[StreamModel], steps: Steps) -> list[npt.NDArray[np.int64]]:
    """Token counts of one tile: modes 0 to 2 of each stream before SH, then one of all SH streams together."""
    q = quantize_tile(tile, models, steps)
    histograms = []
    shared = np.zeros((CONTEXT_CELLS[3], ALPHABET), np.int64)
    for stream, model in enumerate(models):
        classes = stream_classes(stream, q.values)
        for mode in (3,) if stream >= SH_FIRST else (0, 1, 2):
            histogram = shared if mode == 3 else np.zeros((CONTEXT_CELLS[mode], ALPHABET), np.int64)
            histogram_stream(
                stream, stream_group(stream), mode, model.scale, classes, q.magnitudes, q.residuals,
                tile.tree.neighbors, histogram,
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


def _choose_contexts(
    models: list[StreamModel], tiles: Sequence[TileTargets], steps: Steps, pool: ThreadPoolExecutor
) -> npt.NDArray[np.int64]:
    """Set mode and context map of every model; returns the table weights."""
    sums: list[npt.NDArray[np.int64]] = []
    for histograms in pool.map(lambda t: _tile_histograms(t, models, steps), tiles):
        sums = histograms if not sums else [a + b for a, b in zip(sums, histograms)]
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
