"""From Gaussians to the textures of a SOG: every byte as precise as it shows.

    views -> what errors of each Gaussian cost -> price of a bit -> codes of all attributes -> textures -> WebP

The price, squared error of the pictures worth one bit, is the one number that sets quality. Without `quality` it is so
low that the format's own precision remains the larger part of the error.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gaussians import SH_C0, Gaussians, unit_quats
from ..metrics.psnr import covered_psnr_db
from ..render.camera import encoder_cameras
from ..render.constants import ALPHA_MIN
from ..render.contribution import contributions
from ..render.cpu import render
from ..render.kernel import default_num_threads, run_threaded
from ..render.sh import sh_basis
from ..version import __version__
from . import _sog_kernels as kernels
from ._hilbert import hilbert_keys
from ._kmeans import Palette, fit_palette
from ._losses import FILE_FACTS
from ._packing import row_blocks
from ._quantize import (
    LEVELS,
    SAMPLE,
    Coded,
    best_bytes,
    best_colors,
    blocks,
    quantize_bytes,
    quantize_colors,
    sample_rows,
    table_of,
)
from ._sog_read import MAX_LOG_POSITION, METADATA_KEY, Files, read_scene
from ._webp import encode_webp
from .base import ErrorBounds

__all__ = ["Plan", "Tuning", "choose", "encode_sog", "file_order", "largest_errors", "make_plan", "measure", "pack"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Tell = Callable[[str, float], None]

PALETTE_COLUMNS = 64
MAX_PALETTE = 65536
_TINY = 1e-30
_ROUNDS = 5
_PRICE_STEPS = 3
# Trials of a quality: views unlike those of the measurement, and how PSNR follows the price before two trials tell.
_CHECK_VIEWS, _CHECK_PX, _CHECK_SEED = 12, 224, 1
_TRIALS, _NEAR_DB, _DB_PER_OCTAVE = 4, 0.25, 2.7
_TINY_SCENE = 2048
# Rows of a block, and the most that tables and codebooks are learnt from.
_ROWS, _LEARNT = 1 << 15, 1 << 17
_ALPHAS = np.arange(LEVELS) / 255


@dataclass(frozen=True)
class Tuning:
    """The writer's constants, fitted on donut, banana and leica.

    Attributes:
        position, turn, scale, opacity, color: squared error of the pictures per squared standard deviation, squared
            off-diagonal of the whitened covariance, squared log scale, squared relative alpha and squared SH unit, over
            the sensitivities that `contributions` measures.
        most_stretch: the off-diagonal that a small turn makes is the turn times (r - 1 / r), r the ratio of two axes;
            its square saturates here.
        position_top, scale_top, opacity_top, color_top: errors of Gaussians that show nothing still count as if steps
            of this size (standard deviations, log scale, alpha, SH units) were as bad as any.
        blur_px: blur in pixels of the finest view: what is thinner does not show.
        usual_color_db: without a quality, PSNR if nothing but base colours were off.
        direction_ridge: how much directions that no view saw count, as a share of a seen one's.
        bits_kept: bits that a Gaussian costs, for pruning. prune: removal error at which one is dropped, over the
            error that its bits would buy elsewhere.
        top_bits: bits that a zero bit at the end of a position's high byte saves.
    """

    position: float = 0.7
    turn: float = 0.6
    most_stretch: float = 1e4
    scale: float = 1.5
    opacity: float = 1.0
    color: float = 0.7
    position_top: float = 0.5
    scale_top: float = 0.3
    opacity_top: float = 0.1
    color_top: float = 1.5
    blur_px: float = 0.75
    usual_color_db: float = 68.0
    direction_ridge: float = 1.0
    bits_kept: float = 60.0
    prune: float = 0.1
    top_bits: float = 0.5


# Without a quality the scene may be looked at from where no view was, inside of objects say: no value may be far off.
_USUAL = Tuning(position_top=0.1, scale_top=0.06, opacity_top=0.02, color_top=0.1)


@functools.cache
def _turns() -> tuple[Floats, Rows]:
    """The 24 turns of an ellipsoid onto its own axes: quaternions (24, 4), and the axis that each new one was."""
    quats = [np.eye(4)[i] for i in range(4)]
    for i, j in itertools.combinations(range(4), 2):
        quats += [math.sqrt(0.5) * (np.eye(4)[i] + sign * np.eye(4)[j]) for sign in (1.0, -1.0)]
    quats += [0.5 * np.array([1.0, *signs]) for signs in itertools.product((1.0, -1.0), repeat=3)]
    turns = np.array(quats)
    return turns, np.argmax(np.abs(rotations(turns)), axis=1)


def rotations(quats: Floats) -> Floats:
    """(N, 3, 3) rotation matrices of unit quaternions."""
    w, x, y, z = quats.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


# ----------------------------------------------------------------------------------------------------- sensitivities


@dataclass(frozen=True)
class Sensitivities:
    """Squared error of the pictures that errors of each Gaussian make.

    Attributes:
        position: per squared standard deviation. covariance: per squared log. opacity: per squared log alpha.
        color: per squared SH unit of a channel. removal: of leaving it out. seen: whether any view draws it.
        mean_basis: (N, K - 1) float32, the part of each SH coefficient above degree 0 that degree 0 can make good.
        blur: world units that do not show. pixels: what all views show, in pixels.
    """

    position: Floats
    covariance: Floats
    opacity: Floats
    color: Floats
    removal: Floats
    seen: npt.NDArray[np.bool_]
    mean_basis: npt.NDArray[np.float32]
    blur: float
    pixels: float

    def selected(self, rows: npt.NDArray[Any]) -> Sensitivities:
        """Those of some rows."""
        fields = ("position", "covariance", "opacity", "color", "removal", "seen", "mean_basis")
        return Sensitivities(**{name: getattr(self, name)[rows] for name in fields}, blur=self.blur, pixels=self.pixels)


def measure(gaussians: Gaussians, tuning: Tuning, threads: int, tell: Tell) -> Sensitivities:
    """Render the scene from the encoder's views."""
    cameras = _cameras(gaussians)
    count, size = len(gaussians), gaussians.shN.shape[1]
    seen_along = np.zeros((count, size + 1), np.float32)

    def add(view: int, ids: npt.NDArray[np.int32], weights: Floats) -> None:
        for part in row_blocks(len(ids)):
            rows = ids[part]
            away = gaussians.means[rows] - cameras[view].center
            away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), _TINY)
            seen_along[rows] += weights[part, None].astype(np.float32) * sh_basis(gaussians.sh_degree, away)

    measured = contributions(
        gaussians,
        cameras,
        equalize=True,
        num_threads=threads,
        on_view=add if size else None,
        progress=lambda done, total: tell("importance", done / total),
    )
    pixel = measured.pixel_size[np.isfinite(measured.pixel_size) & (measured.pixel_size > 0)]
    # Seen from everywhere, degree 0 makes nothing good; the more one-sided the views, the more. G_0k / G_00.
    for part in row_blocks(count):
        block = seen_along[part]
        alone = SH_C0 * block[:, :1] * (1 + tuning.direction_ridge) + _TINY
        block[:, 1:] = SH_C0 * block[:, 1:] / alone

    def finite(values: Floats) -> Floats:
        return np.nan_to_num(values, nan=0.0, posinf=0.0)

    return Sensitivities(
        position=tuning.position * finite(measured.s_position),
        covariance=finite(measured.s_cov),
        opacity=tuning.opacity * finite(measured.s_logalpha),
        color=tuning.color * SH_C0**2 * finite(measured.s_colour),
        removal=finite(measured.removal_error),
        seen=measured.hits > 0,
        mean_basis=seen_along[:, 1:],
        blur=tuning.blur_px * float(np.quantile(pixel, 0.05)) if len(pixel) else 0.0,
        pixels=float(measured.sum_weight.sum()),
    )


def _cameras(gaussians: Gaussians) -> list[Any]:
    """Small pictures of many views for small scenes, fewer for large ones, where a view costs time by Gaussian."""
    views = round(28 * min((100_000 / max(len(gaussians), 1)) ** 0.4, 1.5))
    if len(gaussians) < _TINY_SCENE:
        views = 24
    return encoder_cameras(gaussians, num_views=max(views, 16), size_px=192)


# ---------------------------------------------------------------------------------------------------------- geometry


def _at_least(values: Floats, price: float, top: float) -> Floats:
    """Sensitivities, none so small that steps larger than `top` would pay."""
    # A step of s at weight w costs w s^2 / 12, and s d/ds of it equals the price of a bit over ln 2.
    return np.maximum(values, max(6.0 / math.log(2.0) * price / top**2, _TINY))


def color_weights(sensitivities: Floats, price: float, tuning: Tuning) -> Floats:
    """What a squared error of colours counts."""
    return _at_least(sensitivities, price, tuning.color_top)


class _Geometry:
    """Everything about some rows of the cleaned scene that choices of codes need, 400 bytes a Gaussian.

    Args:
        ends: lowest and highest logarithms of positions of the scene; None: those of these rows.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        sensitivities: Sensitivities,
        tuning: Tuning,
        threads: int,
        ends: tuple[Floats, Floats] | None = None,
    ) -> None:
        self.gaussians, self.sensitivities, self.tuning, self.threads = gaussians, sensitivities, tuning, threads
        self.count = len(gaussians)
        logs = log_positions(gaussians.means)
        self.lows, self.highs = _ends([logs]) if ends is None else ends
        extent = np.where(self.highs == self.lows, 1.0, self.highs - self.lows)
        self.position_codes = (logs - self.lows) / extent * 65535.0
        self.quats = unit_quats(gaussians.quats).astype(np.float64)
        self.scales = gaussians.scales.astype(np.float64)
        blur2 = max(sensitivities.blur, 1e-18) ** 2
        variances = np.exp(2 * np.minimum(self.scales, 40.0))
        self.visible_variances = variances + blur2
        self.scale_shares = (variances / self.visible_variances) ** 2
        # delta^T covariance^-1 delta of a step of one code along each axis.
        steps = np.exp(np.abs(logs)) * extent / 65535.0
        turned = rotations(self.quats)
        inverse = np.einsum("nak,nk,nbk->nab", turned, 1 / self.visible_variances, turned)
        inverse *= steps[:, :, None] * steps[:, None, :]
        self.position_forms = inverse[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
        self.alphas = gaussians.alphas().astype(np.float64)
        self.colors = gaussians.sh0[:, 0].astype(np.float64)

    def weights(self, price: float) -> dict[str, Floats]:
        """Sensitivities, none so small that steps larger than the tuning's tops would pay."""
        t, s = self.tuning, self.sensitivities
        return {
            "position": _at_least(s.position, price, t.position_top),
            "turn": _at_least(s.covariance, price, t.scale_top),
            "scale": _at_least(t.scale * s.covariance[:, None] * self.scale_shares, price, t.scale_top),
            "opacity": _at_least(s.opacity / np.maximum(self.alphas, 1 / 510) ** 2, price, t.opacity_top),
            "color": color_weights(s.color, price, t),
        }

    def position_bits(self, price: float, weights: Floats) -> Floats:
        """Bits of the low bytes of positions."""
        bits = np.full((3, LEVELS), 8.0)
        sample = sample_rows(self.count, SAMPLE)
        for _ in range(_ROUNDS if price > 0 else 0):
            bits = _tables((self._chosen_positions(price, weights, sample, bits)[0] & 255).astype(np.uint8))
        return bits

    def positions(self, price: float, weights: Floats, bits: Floats) -> tuple[npt.NDArray[np.uint16], float]:
        """(N, 3) codes, and the squared error."""
        codes, errors = self._chosen_positions(price, weights, slice(None), bits)
        return codes, _true_error(errors, self.sensitivities.position, weights)

    def _chosen_positions(
        self, price: float, weights: Floats, rows: Any, bits: Floats
    ) -> tuple[npt.NDArray[np.uint16], Floats]:
        values, own = self.position_codes[rows], self.position_forms[rows] * weights[rows, None]
        codes, errors = np.zeros((len(values), 3), np.uint16), np.zeros(len(values))
        shared = (values, own, price, bits, self.tuning.top_bits, codes, errors)
        run_threaded(kernels.choose_positions, [(*block, *shared) for block in blocks(len(values))], self.threads)
        return codes, errors

    def shape_tables(self, price: float, weights: dict[str, Floats]) -> tuple[Floats, Coded]:
        """Bits of quaternions, and codebook and bits of scales, which are chosen together."""
        bits = np.full((3, LEVELS), 8.0)
        scaled = best_bytes(self.scales, weights["scale"], price, threads=self.threads)
        sample = sample_rows(self.count, SAMPLE)
        for _ in range(_ROUNDS if price > 0 else 0):
            codes, orders, _ = self._chosen_rotations(price, weights, sample, bits, scaled)
            bits = _tables(codes)
            scaled = quantize_bytes(
                _ordered(self.scales[sample], orders),
                _ordered(weights["scale"][sample], orders),
                price,
                scaled.book,
                rounds=3,
                bits=scaled.bits,
                threads=self.threads,
            )
        return bits, scaled

    def shapes(self, price: float, weights: dict[str, Floats], bits: Floats, scaled: Coded) -> _Shapes:
        """Rotations and scales, with the tables of `shape_tables`."""
        codes, orders, errors = self._chosen_rotations(price, weights, slice(None), bits, scaled)
        scales = _ordered(self.scales, orders)
        own = _ordered(weights["scale"], orders)
        scaled = quantize_bytes(scales, own, price, scaled.book, rounds=1, bits=scaled.bits, threads=self.threads)
        true = _ordered(self.tuning.scale * self.sensitivities.covariance[:, None] * self.scale_shares, orders)
        error = float((true * (scaled.book[scaled.codes] - scales) ** 2).sum())
        error += _true_error(errors, self.sensitivities.covariance, weights["turn"])
        return _Shapes(codes, scaled, error)

    def _chosen_rotations(
        self, price: float, weights: dict[str, Floats], rows: Any, bits: Floats, scaled: Coded
    ) -> tuple[npt.NDArray[np.uint8], Rows, Floats]:
        turns, axes = _turns()
        quats = self.quats[rows]
        count = len(quats)
        codes, orders, errors = np.zeros((count, 3), np.uint8), np.zeros((count, 3), np.int64), np.zeros(count)
        shared = (
            quats,
            self.scales[rows],
            self.visible_variances[rows],
            weights["turn"][rows],
            weights["scale"][rows],
            self.tuning.turn,
            self.tuning.most_stretch,
            price,
            turns,
            axes,
            bits,
            scaled.book,
            scaled.bits,
            codes,
            orders,
            errors,
        )
        run_threaded(kernels.choose_rotations, [(*block, *shared) for block in blocks(count)], self.threads)
        return codes, orders, errors

    def opacity_bits(self, price: float, weights: Floats) -> Floats:
        """Bits of alphas."""
        sample = sample_rows(self.count, SAMPLE)
        coded = quantize_bytes(self.alphas[sample, None], weights[sample, None], price, _ALPHAS, move=False,
                               threads=self.threads)  # fmt: skip
        return coded.bits

    def opacities(self, price: float, weights: Floats, bits: Floats) -> tuple[npt.NDArray[np.uint8], float]:
        """(N,) alphas in steps of 1/255, and the squared error."""
        coded = quantize_bytes(self.alphas[:, None], weights[:, None], price, _ALPHAS, rounds=1, bits=bits,
                               threads=self.threads)  # fmt: skip
        true = self.sensitivities.opacity / np.maximum(self.alphas, 1 / 510) ** 2
        return coded.codes[:, 0], float((true * (coded.codes[:, 0] / 255 - self.alphas) ** 2).sum())

    def base_colors(self, price: float, weights: Floats, colors: Floats) -> tuple[Coded, float]:
        """Codes of degree 0, and the squared error."""
        coded = best_colors(colors, weights, price, threads=self.threads)
        return coded, self.color_error(coded, colors)

    def color_error(self, coded: Coded, colors: Floats) -> float:
        """Squared error of base colours."""
        return float((self.sensitivities.color[:, None] * (coded.book[coded.codes] - colors) ** 2).sum())

    def error(self, price: float) -> float:
        """Squared error of the pictures at a price, by the model, without harmonics above degree 0."""
        weights = self.weights(price)
        positions, opacities = weights["position"], weights["opacity"]
        return (
            self.positions(price, positions, self.position_bits(price, positions))[1]
            + self.shapes(price, weights, *self.shape_tables(price, weights)).error
            + self.opacities(price, opacities, self.opacity_bits(price, opacities))[1]
            + self.base_colors(price, weights["color"], self.colors)[1]
        )


def _ordered(values: Floats, orders: Rows) -> Floats:
    return np.take_along_axis(values, orders, 1)


def _ends(logs: Iterable[Floats]) -> tuple[Floats, Floats]:
    """Lowest and highest (3,) of blocks of positions (N, 3); zeros where there are none."""
    lows, highs = np.full(3, np.inf), np.full(3, -np.inf)
    for block in logs:
        lows, highs = np.minimum(lows, block.min(0, initial=np.inf)), np.maximum(highs, block.max(0, initial=-np.inf))
    return (lows, highs) if np.isfinite(lows).all() else (np.zeros(3), np.zeros(3))


def _tables(codes: npt.NDArray[np.uint8]) -> Floats:
    return np.stack([table_of(np.bincount(column, minlength=LEVELS)) for column in codes.T])


@dataclass(frozen=True)
class _Shapes:
    codes: npt.NDArray[np.uint8]
    scales: Coded
    error: float


def _true_error(errors: Floats, sensitivities: Floats, weights: Floats) -> float:
    """Errors that were counted at raised weights, at the true ones."""
    return float((errors * sensitivities / weights).sum())


def log_positions(means: npt.NDArray[np.float32]) -> Floats:
    """sign(p) ln(1 + |p|), as far as the format goes."""
    wide = means.astype(np.float64)
    return np.clip(np.sign(wide) * np.log1p(np.abs(wide)), -MAX_LOG_POSITION, MAX_LOG_POSITION)


# ------------------------------------------------------------------------------------------------------------ coding


@dataclass(frozen=True)
class Textures:
    """Codes of a scene in the order of the file.

    Attributes:
        rows: (M,) which Gaussians of the input.
        positions: (M, 3) uint16. lows, highs: (3,). quats: (M, 3) uint8, w left out. scales, sh0: codes and codebook.
        alphas: (M,) uint8. palette: SH above degree 0, None without. bands: their degree.
        antialiased: None where not known.
        errors: squared error by attribute, by the model.
    """

    rows: Rows
    positions: npt.NDArray[np.uint16]
    lows: Floats
    highs: Floats
    quats: npt.NDArray[np.uint8]
    scales: Coded
    sh0: Coded
    alphas: npt.NDArray[np.uint8]
    palette: Palette | None
    bands: int
    metadata: dict[str, Any]
    errors: dict[str, float] = field(default_factory=dict)


def choose(
    gaussians: Gaussians,
    sensitivities: Sensitivities,
    rows: Rows,
    price: float,
    tuning: Tuning,
    threads: int,
    tell: Callable[[float], None],
) -> Textures:
    """All codes of the Gaussians `rows`, in this order, at a price."""
    count = len(rows)
    ends = _ends(log_positions(gaussians.means[rows[part]]) for part in row_blocks(count, _ROWS))

    def geometry_of(places: Any) -> _Geometry:
        scene, sensed = base.selected(rows[places]), sensitivities.selected(rows[places])
        return _Geometry(scene, sensed, tuning, threads, ends)

    base = gaussians.with_sh_degree(0).replaced(extras={})
    # Tables and codebooks are learnt from a part of large scenes; then codes are chosen block by block.
    learnt = sample_rows(count, _LEARNT)
    some = geometry_of(learnt)
    weights = some.weights(price)
    position_bits = some.position_bits(price, weights["position"])
    rotation_bits, scaled = some.shape_tables(price, weights)
    opacity_bits = some.opacity_bits(price, weights["opacity"])
    tell(0.2)
    palette = None
    if gaussians.sh_degree and count:
        palette = _palette(
            gaussians, sensitivities, rows, price, tuning, threads, lambda share: tell(0.2 + 0.5 * share)
        )

    def colors_of(places: Any, geometry: _Geometry) -> tuple[Floats, float]:
        """Base colours that make up for what the harmonics miss, and the squared error of those."""
        if palette is None:
            return geometry.colors, 0.0
        missed = palette.entries[palette.labels[places]] - gaussians.shN[rows[places]]
        sensed = geometry.sensitivities
        colors = geometry.colors - np.einsum("nk,nkc->nc", sensed.mean_basis, missed)
        return colors, float((sensed.color[:, None, None] * missed**2).sum())

    colored, _ = some.base_colors(price, weights["color"], colors_of(learnt, some)[0])
    del some, weights
    errors = dict.fromkeys(("positions", "shapes", "sh", "colors", "opacities"), 0.0)
    positions, alphas = np.empty((count, 3), np.uint16), np.empty(count, np.uint8)
    quats, scales, sh0 = (np.empty((count, 3), np.uint8) for _ in range(3))
    for part in row_blocks(count, _ROWS):
        geometry = geometry_of(part)
        weights = geometry.weights(price)
        positions[part], error = geometry.positions(price, weights["position"], position_bits)
        errors["positions"] += error
        shapes = geometry.shapes(price, weights, rotation_bits, scaled)
        quats[part], scales[part] = shapes.codes, shapes.scales.codes
        errors["shapes"] += shapes.error
        colors, error = colors_of(part, geometry)
        errors["sh"] += error
        coded = quantize_colors(colors, weights["color"], price, colored.book, differences=colored.differences,
                                bits=colored.bits, rounds=1, threads=threads)  # fmt: skip
        sh0[part] = coded.codes
        errors["colors"] += geometry.color_error(coded, colors)
        alphas[part], error = geometry.opacities(price, weights["opacity"], opacity_bits)
        errors["opacities"] += error
        tell(0.7 + 0.2 * part.stop / count)
    return Textures(rows, positions, *ends, quats, replace(scaled, codes=scales), replace(colored, codes=sh0), alphas,
                    palette, gaussians.sh_degree, dict(gaussians.metadata), errors)  # fmt: skip


def _palette(
    gaussians: Gaussians,
    sensitivities: Sensitivities,
    rows: Rows,
    price: float,
    tuning: Tuning,
    threads: int,
    tell: Callable[[float], None],
) -> Palette:
    """Entries for the harmonics of the Gaussians `rows`."""

    def some(places: Any) -> tuple[npt.NDArray[np.float32], Floats]:
        chosen = rows[places]
        return gaussians.shN[chosen].reshape(len(chosen), -1), color_weights(sensitivities.color[chosen], price, tuning)

    return fit_palette(some, len(rows), price, max_entries=MAX_PALETTE, threads=threads, progress=tell)


def kept_rows(gaussians: Gaussians, sensitivities: Sensitivities, price: float, tuning: Tuning) -> Rows:
    """Gaussians that are worth their bits; what no view saw is, unless it is too faint to show from anywhere."""
    kept = sensitivities.removal > tuning.prune * tuning.bits_kept * price
    kept |= ~sensitivities.seen & (gaussians.alphas() >= ALPHA_MIN)
    return np.flatnonzero(kept) if kept.any() else np.argmax(sensitivities.removal, keepdims=True)


def file_order(means: npt.NDArray[np.float32]) -> Rows:
    """Along Hilbert's curve through the positions as the file has them: the high bytes then change slowly."""
    if not len(means):
        return np.zeros(0, np.int64)
    lows, highs = _ends(log_positions(means[part]) for part in row_blocks(len(means), _ROWS))
    extent = highs - lows
    keys = []
    for part in row_blocks(len(means), _ROWS):
        cells = (log_positions(means[part]) - lows) / np.where(extent > 0, extent, 1.0) * 65535.0
        keys.append(hilbert_keys(cells.astype(np.uint32), 16))
    return np.argsort(np.concatenate(keys), kind="stable")


# ---------------------------------------------------------------------------------------------------------- packing


def pack(textures: Textures, threads: int) -> dict[str, bytes]:
    """The files of a SOG folder, `meta.json` first."""
    count = len(textures.rows)
    width = max(4, 4 * math.ceil(math.sqrt(count) / 4))
    height = max(4, 4 * math.ceil(count / width / 4))

    def image(*channels: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        pixels = np.zeros((height * width, 4), np.uint8)
        pixels[:, 3] = 255
        for k, channel in enumerate(channels):
            pixels[:count, k] = channel
        if alpha is not None:
            pixels[:count, 3] = alpha
        if count:
            pixels[count:] = pixels[count - 1]
        return pixels.reshape(height, width, 4)

    low, high = (textures.positions & 255).astype(np.uint8), (textures.positions >> 8).astype(np.uint8)
    images = {
        "means_l.webp": image(*low.T),
        "means_u.webp": image(*high.T),
        "quats.webp": image(*textures.quats.T, alpha=np.full(count, 252, np.uint8)),
        "scales.webp": image(*textures.scales.codes.T),
        "sh0.webp": image(*textures.sh0.codes.T, alpha=textures.alphas),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"splatcodec {__version__}"},
        "count": count,
        "means": {
            "mins": textures.lows.tolist(),
            "maxs": textures.highs.tolist(),
            "files": ["means_l.webp", "means_u.webp"],
        },
        "scales": {"codebook": _numbers(textures.scales.book), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _numbers(textures.sh0.book), "files": ["sh0.webp"]},
    }
    # Textures that are packed in more than one way, of which the smallest is taken.
    choices = {name: [{name: pixels}] for name, pixels in images.items()}
    if textures.palette is not None:
        choices["shN"] = []
        for codes, labels in _entry_orders(textures.palette):
            entries, size = codes.shape[:2]
            rows = -(-entries // PALETTE_COLUMNS)
            pixels = np.zeros((rows * PALETTE_COLUMNS, size, 4), np.uint8)
            pixels[..., 3] = 255
            pixels[:entries, :, :3] = codes
            pixels[entries:, :, :3] = codes[-1]
            choices["shN"].append(
                {
                    "shN_centroids.webp": pixels.reshape(rows, PALETTE_COLUMNS * size, 4),
                    "shN_labels.webp": image((labels & 255).astype(np.uint8), (labels >> 8).astype(np.uint8)),
                }
            )
        meta["shN"] = {
            "count": entries,
            "bands": textures.bands,
            "codebook": _numbers(textures.palette.book),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
    facts = {name: value for name, value in textures.metadata.items() if name not in FILE_FACTS}
    antialiased = facts.pop("antialiased", None)
    if antialiased is not None:
        meta["antialias"] = bool(antialiased)
        if antialiased:
            meta["model"] = "antialiased"
    if facts:
        meta[METADATA_KEY] = facts
    files = {"meta.json": json.dumps(meta, separators=(",", ":")).encode()}
    with ThreadPoolExecutor(threads) as pool:
        # The largest, which come last, are begun first.
        waiting = [
            [{name: pool.submit(encode_webp, pixels) for name, pixels in group.items()} for group in groups]
            for groups in reversed(choices.values())
        ]
        packed = [
            min(
                ({name: future.result() for name, future in group.items()} for group in groups),
                key=lambda group: sum(map(len, group.values())),
            )
            for groups in reversed(waiting)
        ]
    for group in packed:
        files |= group
    return files


def _entry_orders(palette: Palette) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]]:
    """Orders of entries that may suit WebP, and the labels that go with them.

    In the order in which Gaussians first name them, labels of new entries count up. In the order of how much they are
    used, entries that are as precise as each other lie together, and share the tables of a part of the texture.
    """
    count = len(palette.codes)
    first = np.full(count, len(palette.labels))
    np.minimum.at(first, palette.labels, np.arange(len(palette.labels)))
    for order in (np.argsort(first, kind="stable"), np.argsort(palette.masses, kind="stable")):
        rank = np.empty(count, np.int32)
        rank[order] = np.arange(count, dtype=np.int32)
        yield palette.codes[order], rank[palette.labels]


def _numbers(book: Floats) -> list[float]:
    """A codebook as short decimal numbers, off by far less than its steps."""
    return [float(f"{value:.5g}") for value in book]


# ------------------------------------------------------------------------------------------------------------- flow


@dataclass(frozen=True)
class Plan:
    """How a scene is to be coded.

    Attributes:
        sensitivities: of all its Gaussians. price: squared error worth one bit. rows: which Gaussians, in file order.
    """

    sensitivities: Sensitivities
    price: float
    rows: Rows
    tuning: Tuning


def encode_sog(
    gaussians: Gaussians,
    *,
    quality: float | None = None,
    threads: int | None = None,
    progress: Tell | None = None,
) -> tuple[dict[str, bytes], int]:
    """The files of a SOG of a cleaned scene.

    Args:
        gaussians: finite values only (`Gaussians.cleaned`), JSON-able metadata.
        quality: 0..100, aims at a covered PSNR of 25 + 0.3 quality dB; None: the format's usual precision.

    Returns:
        Contents by name, `meta.json` first; and how many Gaussians the quality left out.
    """
    tell = progress or (lambda stage, share: None)
    workers = threads or default_num_threads()
    if not len(gaussians):
        return pack(_nothing(gaussians), 1), 0
    plan, files = make_plan(gaussians, quality, workers, tell)
    return files or _encoded(gaussians, plan, workers, tell), len(gaussians) - len(plan.rows)


def _encoded(gaussians: Gaussians, plan: Plan, threads: int, tell: Tell) -> dict[str, bytes]:
    textures = choose(gaussians, plan.sensitivities, plan.rows, plan.price, plan.tuning, threads,
                      lambda share: tell("coding", share))  # fmt: skip
    files = pack(textures, threads)
    tell("coding", 1.0)
    return files


def _nothing(gaussians: Gaussians) -> Textures:
    codes = np.zeros((0, 3), np.uint8)
    coded = Coded(codes, np.zeros(LEVELS), np.zeros((3, LEVELS)), 0.0, 0.0)
    return Textures(np.zeros(0, np.int64), codes.astype(np.uint16), np.zeros(3), np.zeros(3), codes, coded, coded,
                    codes[:, 0], None, 0, dict(gaussians.metadata))  # fmt: skip


def make_plan(
    gaussians: Gaussians, quality: float | None, threads: int, tell: Tell
) -> tuple[Plan, dict[str, bytes] | None]:
    """Measure a scene and find its price; with a quality, also the files of the trial that came nearest to it."""
    tuning = _USUAL if quality is None else Tuning()
    sensitivities = measure(gaussians, tuning, threads, tell)
    everything = np.arange(len(gaussians))
    if quality is None:
        rows = everything[file_order(gaussians.means)]
        return Plan(sensitivities, _usual_price(gaussians, sensitivities, tuning, threads), rows, tuning), None
    wanted_db = 25.0 + 0.3 * quality
    price = _quality_price(gaussians, sensitivities, tuning, threads, wanted_db)
    views = [camera for k, camera in enumerate(encoder_cameras(gaussians, num_views=_CHECK_VIEWS, size_px=_CHECK_PX,
                                                               seed=_CHECK_SEED)) if k % 4 != 3]  # fmt: skip
    pictures = [render(gaussians, camera, num_threads=threads) for camera in views]
    tried: list[tuple[float, float]] = []
    best: tuple[float, Plan, dict[str, bytes]] | None = None
    for trial in range(_TRIALS):
        tell("trials", trial / _TRIALS)
        rows = kept_rows(gaussians, sensitivities, price, tuning)
        plan = Plan(sensitivities, price, rows[file_order(gaussians.means[rows])], tuning)
        files = _encoded(gaussians, plan, threads, lambda stage, share: None)
        copy = read_scene(Files(files)).replaced(metadata=gaussians.metadata)  # which says how to draw it
        psnr = float(np.mean([covered_psnr_db(picture, render(copy, camera, num_threads=threads))
                              for picture, camera in zip(pictures, views)]))  # fmt: skip
        if best is None or abs(psnr - wanted_db) < best[0]:
            best = abs(psnr - wanted_db), plan, files
        tried.append((math.log2(price), psnr))
        if abs(psnr - wanted_db) < _NEAR_DB or (psnr < wanted_db and price < _TINY):
            break
        price = 2.0 ** _next_price(tried, wanted_db)
    assert best is not None
    tell("trials", 1.0)
    return best[1], best[2]


def _next_price(tried: list[tuple[float, float]], wanted_db: float) -> float:
    """log2 of the price at which the line through the last two trials meets the PSNR wanted."""
    at, psnr = tried[-1]
    fall = _DB_PER_OCTAVE
    if len(tried) > 1 and tried[-2][0] != at:
        fall = (tried[-2][1] - psnr) / (at - tried[-2][0])
    return at + min(max((psnr - wanted_db) / min(max(fall, 1.0), 5.0), -8.0), 8.0)


def _usual_price(gaussians: Gaussians, sensitivities: Sensitivities, tuning: Tuning, threads: int) -> float:
    """The price at which base colours alone are off by `tuning.usual_color_db`; all else is then in proportion.

    Colours, because their error is known best: pictures are linear in them.
    """

    def error(geometry: _Geometry, price: float) -> float:
        return geometry.base_colors(price, geometry.weights(price)["color"], geometry.colors)[1]

    wanted = 3.0 * sensitivities.pixels * 10.0 ** (-tuning.usual_color_db / 10.0)
    return _price_of(gaussians, sensitivities, tuning, threads, wanted, error, 3)


def _quality_price(
    gaussians: Gaussians, sensitivities: Sensitivities, tuning: Tuning, threads: int, wanted_db: float
) -> float:
    """The price at which the model expects a PSNR, harmonics not counted."""
    wanted = 3.0 * sensitivities.pixels * 10.0 ** (-wanted_db / 10.0)
    return _price_of(gaussians, sensitivities, tuning, threads, wanted, _Geometry.error, 10)


def _price_of(
    gaussians: Gaussians,
    sensitivities: Sensitivities,
    tuning: Tuning,
    threads: int,
    wanted: float,
    error: Callable[[_Geometry, float], float],
    symbols: int,
) -> float:
    """The price at which the model's error is `wanted` in all, by a sample of the scene.

    Args:
        error: of the sample at a price. symbols: how many a Gaussian has.
    """
    rows = sample_rows(len(gaussians), SAMPLE)
    geometry = _Geometry(gaussians.selected(rows), sensitivities.selected(rows), tuning, threads)
    # What a price of zero costs is in any error.
    least = error(geometry, 0.0)
    more = max(wanted * len(rows) / len(gaussians) - least, 0.25 * least)
    # Each symbol adds about 1 / (2 ln 2) of the price of a bit.
    price = more / (0.72 * symbols * len(rows)) + _TINY
    for _ in range(_PRICE_STEPS):
        added = max(error(geometry, price) - least, 1e-3 * more)
        price *= min(max(more / max(added, _TINY), 0.05), 20.0)
    return price


def largest_errors(gaussians: Gaussians, threads: int | None = None) -> ErrorBounds:
    """How far values are off in what `encode_sog` makes of a scene without a quality: found by doing it.

    How exact a value is depends on how much it shows, so there is no bound for all scenes. Axes of ellipsoids are
    compared by the turn onto their own axes that brings them nearest.
    """
    if not len(gaussians):
        return ErrorBounds()
    workers = threads or default_num_threads()
    plan, _ = make_plan(gaussians, None, workers, lambda stage, share: None)
    copy = read_scene(Files(_encoded(gaussians, plan, workers, lambda stage, share: None)))
    return errors_between(copy, gaussians.selected(plan.rows))


def errors_between(copy: Gaussians, scene: Gaussians) -> ErrorBounds:
    """The largest errors of a copy in the same order."""
    quats, scales = nearest_axes(copy, scene)

    def error(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
        return float(np.abs(a.astype(np.float64) - b).max(initial=0.0))

    return ErrorBounds(
        means=error(copy.means, scene.means),
        scales=error(scales, scene.scales),
        alphas=error(copy.alphas(), scene.alphas()),
        colours=SH_C0 * error(copy.sh0, scene.sh0),
        quats=error(quats, unit_quats(scene.quats)),
        shN=error(copy.shN, scene.shN),
    )


def larger_errors(a: ErrorBounds, b: ErrorBounds) -> ErrorBounds:
    """The larger of each."""
    names = ("means", "scales", "alphas", "colours", "quats", "shN")
    return ErrorBounds(**{name: max(getattr(a, name), getattr(b, name)) for name in names})


def nearest_axes(gaussians: Gaussians, reference: Gaussians) -> tuple[Floats, Floats]:
    """Quaternions and log scales of the same ellipsoids, their axes named as in `reference` as nearly as possible."""
    turns, axes = _turns()
    a, b = unit_quats(gaussians.quats).astype(np.float64), unit_quats(reference.quats).astype(np.float64)
    w, x, y, z = turns.T
    # a g as a matrix on a, for each turn g.
    turning = np.moveaxis(np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]]), -1, 0)
    turned = np.einsum("gij,nj->ngi", turning, a)
    likeness = np.einsum("ngi,ni->ng", turned, b)
    # Of turns that are as good (spheres), the one with the nearest scales.
    scales = gaussians.scales.astype(np.float64)[:, axes]
    score = np.abs(likeness) - 1e-3 * np.abs(scales - reference.scales[:, None]).sum(2)
    best = np.argmax(score, axis=1)
    rows = np.arange(len(a))
    return turned[rows, best] * np.sign(likeness[rows, best])[:, None], scales[rows, best]
