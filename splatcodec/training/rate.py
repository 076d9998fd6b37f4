"""The encoder in the loop: what a scene would cost in a file, and how it would decode, as training sees it.

`RateModel.fit` does what the encoder does up to its tables: tiles, octrees, neighbours, predictors, contexts. After
that `RateModel.estimate` quantizes any other values of the same Gaussians in the coder's own closed loop, looks the
bits up in the tables, and gives the gradient of the bits by every attribute. It is the gradient of the expected cost
under a rounding that is dithered by one step (Balle et al., 2017, use the same smoothing), through the predictions
too: what makes a neighbour's residual smaller is cheaper. Octree, classes and parameters are counted, without a
gradient; so is which table a residual meets.

Estimated bits are of a model that is some steps old, so they are not those of the file; a test holds them within 8 %
of values that moved by steps.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from ..entropy.rans import PROB_BITS
from ..entropy.tables import ALPHABET, build_tables, token_bits, token_of
from ..gaussians import Gaussians, num_sh_coefficients
from ..preprocess.plan import Plan
from ..render.reference import rotation_matrices
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
    num_streams,
    stream_group,
)
from ..stages.streams import COEFFICIENT_BITS, FEATURE_MEAN, FEATURE_NEAREST, FEATURE_OWN, choose_tables
from ..stages.tile import num_states, stream_classes
from ..stages.transform import position_bits
from ..static.encoder import LevelPlan, TileJob, tile_jobs
from ..static.quantization import (
    ColorBases,
    Feedback,
    QuantizedTile,
    Tile,
    TileTargets,
    choose_contexts,
    cut_tiles,
    fit_predictors,
    fit_scales,
    make_tile,
    quantize_tile,
    tile_histograms,
    tile_targets,
)

__all__ = ["RateEstimate", "RateModel", "geometry_noise"]

Attributes = Mapping[str, torch.Tensor]

_REACH = 512  # residuals beyond it cost by their bit length
# About, beside what is counted: header, table of contents, the encoder's name; heads of a tile and of each layer.
_FILE_BYTES, _TILE_BYTES, _LAYER_BYTES = 165, 52, 22


@dataclass(frozen=True)
class RateEstimate:
    """What a file would hold, of one set of values.

    Attributes:
        rate_est_bits: of the whole file; its gradient reaches log_scales, quats, opacity_logits, sh0 and shN.
        gaussian_bits: (N,) float32 bits of each Gaussian without SH, sh_bits: (N,) of its SH; 0 for what is not coded.
            No gradient.
        sh0: (N, 1, 3), shN: (N, K-1, 3), opacity_logits: (N,): what a decoder would get. No gradient.
    """

    rate_est_bits: torch.Tensor
    gaussian_bits: torch.Tensor
    sh_bits: torch.Tensor
    sh0: torch.Tensor
    shN: torch.Tensor
    opacity_logits: torch.Tensor


class _Feedback(Feedback):
    """SH error feedback whose factors are computed once: positions hardly move until the next fit."""

    def factors(self, rows: npt.NDArray[np.int64], bases: ColorBases) -> npt.NDArray[np.float32]:
        known: dict[int, Any] = self.__dict__.setdefault("known", {})
        if id(rows) not in known:
            known[id(rows)] = super().factors(rows, bases)
        return known[id(rows)]


@dataclass
class RateModel:
    """An encoder that has chosen everything but the values.

    Attributes:
        plan: which Gaussians, how precisely.
        num_gaussians: N of the scene it was fitted on.
        tiles: in file order, without those of merged Gaussians. parameters: as in the file.
        cost: (T, 2 * 512 + 1) float32 bits of residuals -512..512 by table.
        fixed_bits: parameters, headers, merged Gaussians.
    """

    plan: Plan
    num_gaussians: int
    tiles: list[Tile]
    parameters: SceneParameters
    bases: ColorBases
    feedback: Feedback | None
    cost: npt.NDArray[np.float32]
    fixed_bits: float
    _rows: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def fit(
        cls, gaussians: Gaussians, plan: Plan, pool: ThreadPoolExecutor, levels: LevelPlan | None = None
    ) -> RateModel:
        """Choose what the encoder chooses for a cleaned scene.

        Args:
            gaussians: N Gaussians, finite values only.
            plan: which are coded, and how. Tables are assumed, also where it asks for context mixing.
            pool: threads; the result does not depend on their number.
            levels: as for the encoder; None: all in one level.
        """
        steps, trellis = plan.steps.units, plan.trellis
        bases = ColorBases.fit(gaussians, plan.kept, plan.color_weights)
        cut = cut_tiles(gaussians.means, plan.kept)
        levels = levels or LevelPlan(np.arange(len(gaussians)), levels=False)
        sources, jobs = tile_jobs(gaussians, plan, levels, cut)

        def make(job: TileJob) -> Tile:
            scene, classes = sources.of(job.level)
            return make_tile(scene, job.rows, classes, steps, job.level, job.number)

        tiles = list(pool.map(make, jobs))

        def targets_of(tile: Tile) -> TileTargets:
            scene, classes = sources.of(tile.level)
            return tile_targets(scene, tile, classes, steps, bases)

        models = fit_predictors(tiles, targets_of, num_streams(gaussians.sh_degree), pool)
        fit_scales(models, tiles, targets_of, steps, bases, trellis, pool)
        feedback = None
        if plan.view_weights is not None:
            feedback = _Feedback(gaussians.means, plan.view_weights, plan.direction_ridge)

        def histograms(tile: Tile) -> list[npt.NDArray[np.int64]]:
            q = quantize_tile(tile, targets_of(tile), models, steps, bases, trellis, feedback)
            return tile_histograms(tile, q, models, trellis)

        weights = choose_contexts(models, pool.map(histograms, tiles), pool)
        parameters = SceneParameters(
            gaussians.sh_degree, steps.size, steps.opacity, steps.precision, steps.shape, steps.color, steps.sh,
            bases.color, bases.sh_color, bases.sh_band, models, weights, trellis,
        )  # fmt: skip
        fixed = len(parameters.to_bytes()) + _FILE_BYTES + len(json.dumps(dict(gaussians.metadata)))
        for tile in tiles:
            states = 4 * num_states(len(tile.rows))
            fixed += _TILE_BYTES + states + gaussians.sh_degree * (_LAYER_BYTES + states)
        model = cls(
            plan, len(gaussians), [tile for tile in tiles if tile.level], parameters, bases, feedback,
            _cost_table(build_tables(weights).freq), 8.0 * fixed,
        )  # fmt: skip
        for tile in tiles:
            if not tile.level:
                exact = targets_of(tile)
                bits, _ = model._count(tile, exact, quantize_tile(tile, exact, models, steps, bases, trellis))
                model.fixed_bits += float(bits.sum()) + _interval_bits(tile.tree.intervals)
        model._rows = [torch.from_numpy(tile.rows) for tile in model.tiles]
        return model

    @property
    def sh_degree(self) -> int:
        """Of the scene."""
        return self.parameters.sh_degree

    def estimate(self, attributes: Attributes) -> RateEstimate:
        """Quantize the attributes as the encoder would, and count.

        Args:
            attributes: raw, by the names of `training.splats.RAW`, N rows; on the CPU. Positions only say how many bits
                they have.
        """
        n = self.num_gaussians
        gaussian_bits, sh_bits = torch.zeros(n), torch.zeros(n)
        sh0, shN = torch.zeros(n, 1, 3), torch.zeros(n, num_sh_coefficients(self.sh_degree) - 1, 3)
        logits = torch.full((n,), -20.0)
        total = torch.tensor(self.fixed_bits)
        for tile, rows in zip(self.tiles, self._rows):
            bits, found = self._tile(tile, {name: value[rows] for name, value in attributes.items()})
            total = total + bits
            gaussian_bits[rows], sh_bits[rows] = found.gaussian_bits, found.sh_bits
            sh0[rows], shN[rows], logits[rows] = found.sh0, found.shN, found.opacity_logits
        return RateEstimate(total, gaussian_bits, sh_bits, sh0, shN, logits)

    def _tile(self, tile: Tile, attributes: Attributes) -> tuple[torch.Tensor, RateEstimate]:
        targets, shape = self._targets(tile, attributes)
        exact = TileTargets(targets.detach().numpy(), shape.detach().numpy())
        steps = self.plan.steps.units
        q = quantize_tile(tile, exact, self.parameters.models, steps, self.bases, self.plan.trellis, self.feedback)
        bits, slopes = self._count(tile, exact, q)
        octree = float(tile.tree.intervals.size and _interval_bits(tile.tree.intervals))
        base = torch.from_numpy(bits[:SH_FIRST].sum(0) + bits[-1]) + octree / len(tile.rows)
        sh = torch.from_numpy(bits[SH_FIRST:-1].sum(0))
        total = _Counted.apply(targets, torch.from_numpy(slopes), float(bits.sum()) + octree)
        values = torch.from_numpy(q.values).to(torch.float32)
        color = torch.from_numpy(self.bases.color / MATRIX_SCALE * steps.color).to(torch.float32)
        sh0 = (values[COLOR_FIRST:SH_FIRST].T @ color.T)[:, None]
        shN = torch.zeros(len(base), 0, 3)
        if self.sh_degree:
            bands = torch.from_numpy(self.bases.sh_band / MATRIX_SCALE * steps.sh).to(torch.float32)
            colors = torch.from_numpy(self.bases.sh_color / MATRIX_SCALE).to(torch.float32)
            mixed = values[SH_FIRST:].reshape(len(bands), 3, -1)
            shN = torch.einsum("bk,kcn,xc->nbx", bands, mixed, colors)
        alphas = torch.exp2(-values[OPACITY].clamp(min=0) * (steps.opacity / 1024.0)).clamp(1 / 4096, 4095 / 4096)
        logits = torch.logit(alphas)
        return total, RateEstimate(total, base.to(torch.float32), sh.to(torch.float32), sh0, shN, logits)

    def _targets(self, tile: Tile, attributes: Attributes) -> tuple[torch.Tensor, torch.Tensor]:
        """As `static.quantization.tile_targets`, differentiable: (S, n) float32, and (n, 3) off-diagonals."""
        steps, n = self.plan.steps.units, len(tile.rows)
        roots, shape = _factors(attributes["quats"], attributes["log_scales"], tile.grid.blur)
        classes = torch.from_numpy(np.ascontiguousarray(self.plan.classes[tile.rows].T)).to(torch.float32)
        ratios = torch.stack([roots[:, 0] / roots[:, 1], roots[:, 0] / roots[:, 2], roots[:, 1] / roots[:, 2]], 1)
        octaves = -torch.nn.functional.logsigmoid(attributes["opacity_logits"]) / np.log(2.0)
        to_color = torch.from_numpy(np.linalg.inv(self.bases.color / MATRIX_SCALE) / steps.color).to(torch.float32)
        parts = [
            classes,
            (torch.log2(roots).T * (1024.0 / steps.size)).to(torch.float32),
            (shape * ratios / steps.shape).T.to(torch.float32),
            (octaves.clamp(max=12.0) * (1024.0 / steps.opacity))[None],
            to_color @ attributes["sh0"][:, 0].T,
        ]
        if self.sh_degree:
            to_band = torch.from_numpy(np.linalg.inv(self.bases.sh_band / MATRIX_SCALE) / steps.sh).to(torch.float32)
            to_sh = torch.from_numpy(np.linalg.inv(self.bases.sh_color / MATRIX_SCALE)).to(torch.float32)
            parts.append(torch.einsum("kb,nbx,cx->kcn", to_band, attributes["shN"], to_sh).reshape(-1, n))
        return torch.cat(parts), shape

    def _count(
        self, tile: Tile, exact: TileTargets, q: QuantizedTile
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(S + 1, n) bits of every stream and of plain position bits, and (S, n) what the total changes by a target."""
        streams, n = exact.targets.shape
        bits = np.zeros((streams + 1, n), np.float32)
        slopes = np.zeros((streams, n), np.float32)
        tables = np.empty(n, np.uint8)
        for stream, model in enumerate(self.parameters.models):
            classes = stream_classes(stream, q.values)
            trellis = self.plan.trellis if stream > COLOR_CLASS else (0, 0)
            choose_tables(
                stream, stream_group(stream), model.mode, model.scale, classes, q.magnitudes, q.residuals,
                tile.tree.neighbors, model.context_map, *trellis, tables,
            )  # fmt: skip
            p = model.predictor
            _count_stream(
                stream, tables, self.cost, classes, exact.targets[stream], q.values[stream], q.residuals[stream],
                tile.tree.neighbors, p.kinds, p.sources, p.coefficients, stream > COLOR_CLASS, bits[stream], slopes,
            )  # fmt: skip
        steps = self.plan.steps.units
        _count_positions(tile.grid.exponent, tile.tree.depths, q.values, steps.size, steps.precision, bits[-1], slopes)
        slopes[:SIZE_FIRST] = 0.0
        return bits, slopes


class _Counted(torch.autograd.Function):
    """A number with a given gradient."""

    @staticmethod
    def forward(ctx: Any, targets: torch.Tensor, slopes: torch.Tensor, total: float) -> torch.Tensor:
        ctx.save_for_backward(slopes)
        return torch.tensor(total)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient, None, None


def geometry_noise(
    attributes: Attributes, steps: torch.Tensor, blur: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Positions, quaternions and log scales with noise as quantization makes it.

    Args:
        attributes: `means`, `quats` (any norm) and `log_scales` of n Gaussians.
        steps: (n,) geometry step of each, in standard deviations and natural log units.
        blur: world units below which the coder does not resolve an axis.
        generator: of the noise, on the CPU; three uniform numbers of -1/2..1/2 a Gaussian and attribute.

    Returns:
        the three attributes, differentiable as they came.
    """
    device = attributes["means"].device
    noise = (torch.rand((3, len(steps), 3), generator=generator) - 0.5).to(device) * steps[None, :, None]
    quats, log_scales = attributes["quats"], attributes["log_scales"]
    with torch.no_grad():
        sigmas = log_scales.clamp(max=80.0).exp()
        coarse = torch.sqrt(1.0 + (blur / sigmas.clamp(min=1e-12)).square())
        shift = torch.einsum("nij,nj->ni", rotation_matrices(quats), sigmas * coarse * noise[0])
        grow = noise[1] * coarse.square().clamp(max=3.0)
        turn = torch.empty_like(sigmas)
        for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
            # A small turn mixes two axes by (r - 1 / r) of it.
            ratio = (log_scales[:, i] - log_scales[:, j]).abs().clamp(max=10.0)
            turn[:, k] = (noise[2, :, k] / (2.0 * torch.sinh(ratio)).clamp(min=1e-3)).clamp(-0.1, 0.1)
        w, x, y, z = quats.unbind(1)
        a, b, c = (0.5 * turn).unbind(1)
        turned = torch.stack(
            [-x * a - y * b - z * c, w * a - z * b + y * c, z * a + w * b - x * c, -y * a + x * b + w * c], 1
        )
    return {"means": attributes["means"] + shift, "quats": quats + turned, "log_scales": log_scales + grow}


def _factors(quats: torch.Tensor, log_scales: torch.Tensor, blur: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `stages.transform.covariance_factors`, differentiable."""
    rotation = rotation_matrices(quats.to(torch.float64))
    s = log_scales.to(torch.float64)
    s = torch.exp(torch.maximum(s, s.detach().amax(1, keepdim=True) - 11.5))
    a, b, c = (rotation * s[:, None, :]).unbind(1)
    extra = float(blur) ** 2
    d1 = (a * a).sum(1) + extra
    l21 = (a * b).sum(1) / d1
    l31 = (a * c).sum(1) / d1
    full2, full3 = (b * b).sum(1) + extra, (c * c).sum(1) + extra
    d2 = torch.maximum(full2 - l21 * l21 * d1, 1e-12 * full2)
    l32 = ((b * c).sum(1) - l31 * l21 * d1) / d2
    d3 = torch.maximum(full3 - l31 * l31 * d1 - l32 * l32 * d2, 1e-12 * full3)
    return torch.sqrt(torch.stack([d1, d2, d3], 1)), torch.stack([l21, l31, l32], 1)


def _cost_table(freq: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Bits of residuals -512..512 by table; those a table cannot code cost as one of its rarest tokens."""
    lengths = PROB_BITS - np.log2(np.maximum(freq.astype(np.float64), 0.25))
    cost = np.empty((len(freq), 2 * _REACH + 1), np.float32)
    for r in range(-_REACH, _REACH + 1):
        token, bits, _ = token_of(r)
        assert token < ALPHABET
        assert token_bits(token) == bits
        cost[:, r + _REACH] = lengths[:, token] + bits
    return cost


def _interval_bits(intervals: npt.NDArray[np.uint32]) -> float:
    frequencies = (intervals >> np.uint32(16)).astype(np.float64)
    return float((PROB_BITS - np.log2(frequencies)).sum())


@njit(cache=True, inline="always")
def _between(row, x):
    """Bits of a residual that is not whole: between those of its neighbours."""
    top = np.float64(_REACH) - 1e-3
    x = min(max(x, -top), top)
    k = np.int64(np.floor(x))
    part = x - k
    return (1.0 - part) * row[k + _REACH] + part * row[k + 1 + _REACH]


@njit(cache=True, nogil=True)
def _count_stream(
    stream, tables, cost, classes, targets, values, residuals, neighbors, kinds, sources, coefficients, learn, bits,
    slopes,
):  # fmt: skip
    """Bits (n,) of a stream; adds to `slopes` (S, n) how the total changes with every target it depends on."""
    for i in range(len(targets)):
        row = cost[tables[i]]
        r = np.int64(residuals[i])
        bits[i] = row[max(-_REACH, min(r, np.int64(_REACH))) + _REACH]  # type: ignore[operator]
        if abs(r) > _REACH:
            bits[i] += 2.0 * np.log2(np.float64(abs(r)) / _REACH)
        if not learn:
            continue
        width = np.float64(np.int64(2) << np.int64(classes[i]))  # between the points of one quantizer
        x = (targets[i] - values[i]) / width + r
        slope = (_between(row, x + 0.5) - _between(row, x - 0.5)) / width
        slopes[stream, i] += slope
        if i == 0:
            continue
        for f in range(len(kinds)):
            share = slope * coefficients[f] / (1 << COEFFICIENT_BITS)
            source = sources[f]
            if kinds[f] == FEATURE_MEAN:
                for k in range(4):
                    slopes[source, neighbors[i, k]] -= 0.25 * share
            elif kinds[f] == FEATURE_NEAREST:
                slopes[source, neighbors[i, 0]] -= share
            elif kinds[f] == FEATURE_OWN:
                slopes[source, i] -= share


@njit(cache=True, nogil=True)
def _count_positions(exponent, depths, values, size_step, precision, bits, slopes):
    """Plain bits (n,) of positions: the larger a Gaussian, the fewer."""
    for i in range(len(bits)):
        for axis in range(3):
            count = position_bits(
                exponent, np.int64(depths[i]), np.int64(values[SIZE_FIRST + axis, i]), size_step, precision,
                np.int64(values[GEOMETRY_CLASS, i]),
            )  # fmt: skip
            bits[i] += count
            if 0 < count < 30:
                slopes[SIZE_FIRST + axis, i] -= size_step / 1024.0


assert SHAPE_FIRST == SIZE_FIRST + 3
