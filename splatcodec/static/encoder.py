"""Encoding a still scene: the whole flow on one page.

Gaussians -> importance over the encoder's views -> display order, thumbnail                    (preprocess)
          -> slope K -> which are kept, classes, steps, levels
          -> tiles: order, octree -> closed-loop prediction -> contexts, tables -> PARM, TILE, SHC (stages, entropy)
          -> decode, render, compare with the original -> better K, until quality or size is met
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..bitstream.container import Chunk
from ..errors import ParameterError
from ..gaussians import Gaussians
from ..metrics.psnr import covered_psnr_db
from ..preprocess.levels import (
    UNDER_LOOK,
    best_look,
    best_prefix_looks,
    display_ranks,
    level_shares,
    scaled,
    thumbnail_count,
)
from ..preprocess.plan import LossyOptions, Plan, Tuning, make_plan
from ..preprocess.refit import RefitViews, refit_colors
from ..preprocess.thumbnail import thumbnail_of
from ..preprocess.thumbnail_fit import fitted
from ..preprocess.view_weights import ViewWeights, balanced
from ..render.camera import Camera, check_cameras, encoder_cameras
from ..render.contribution import Contributions, contributions, restoration
from ..render.cpu import render
from ..render.rendering import Rendering
from ..stages.parameters import COLOR_FIRST, OPACITY, SH_FIRST, SIZE_FIRST, SceneParameters, StreamModel, num_streams
from ..stages.tile import NEUTRAL, set_prefix_look
from .cluster import EmittedTile, current_cluster, emitted
from .decoder import BlankScene, group_units, worker_count
from .quantization import (
    ColorBases,
    Feedback,
    PackedTile,
    Sources,
    Tile,
    TileCut,
    TileTargets,
    choose_contexts,
    cut_tiles,
    fit_predictors,
    fit_scales,
    make_tile,
    no_contexts,
    quantize_tile,
    tile_histograms,
    tile_targets,
)

__all__ = ["EncodedTiles", "LevelPlan", "Refinement", "decode_encoded", "encode_lossy", "encode_tiles", "tile_jobs"]

Progress = Callable[[str, float], None]
Rows = npt.NDArray[np.int64]


@dataclass
class EncodedTiles:
    """Chunks of a lossy scene, with the order in which they hold the Gaussians.

    Attributes:
        chunks: PARM, TBOX, then of each level TILE and SHC chunks.
        order: (M,) int64 rows of the scene in decoding order.
        parameters: what PARM holds.
        level_counts: Gaussians of level 0 (merged ones), 1, ...
        rate_bits: bits by what they were spent on.
        seconds: by stage. notes: for people.
        mixing: whether reading it needs the feature `mixing-1`.
    """

    chunks: list[Chunk]
    order: npt.NDArray[np.int64]
    parameters: SceneParameters
    level_counts: list[int]
    rate_bits: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixing: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the chunks and of their entries in the table of contents."""
        return sum(len(chunk.payload) + _ENTRY_BYTES for chunk in self.chunks)


@dataclass(frozen=True)
class LevelPlan:
    """What comes first when a scene is loaded.

    Attributes:
        ranks: (N,) int64 place of each Gaussian in the order in which they are shown.
        thumbnail: merged Gaussians from their number and the number of Gaussians of level 1; None = no thumbnail.
        levels: False puts all Gaussians into level 1.
    """

    ranks: npt.NDArray[np.int64]
    thumbnail: Callable[[int, int], Gaussians] | None = None
    levels: bool = True


class Refinement(Protocol):
    """What a caller may do to a scene while it is encoded: `training.refine` fits it to the original's pictures."""

    @property
    def gain_db(self) -> float:
        """The PSNR that the scene may lose at first, because `before` and `after` win it back."""
        ...

    @property
    def reduces(self) -> bool:
        """Whether `before` leaves Gaussians out: others have become important by it, and next to none goes later."""
        ...

    def before(self, gaussians: Gaussians, plan: Callable[[Gaussians, float], Plan]) -> tuple[Gaussians, Rows]:
        """Another scene to encode in place of this, and which row of this each of its Gaussians comes from.

        Args:
            plan: from a scene and how many times more than usual its pruning may cost to what the encoder would make of
                it at about the final slope.
        """
        ...

    def after(
        self, scene: Gaussians, plan: Plan, levels: LevelPlan, rows: Rows, decoded: Gaussians, pool: ThreadPoolExecutor
    ) -> Gaussians:
        """The scene with other opacities and colours, now that it is known what `rows` of it decode to.

        It will be coded with the bases and predictors that it was coded with to get `decoded`.
        """
        ...


@dataclass(frozen=True)
class TileJob:
    """A level of a tile to be coded: rows of the scene, or (level 0) of the thumbnail."""

    level: int
    number: int
    rows: npt.NDArray[np.int64]


_ENTRY_BYTES = 16  # about, of the table of contents
_BOX_SIGMAS = 3.0


def encode_tiles(
    gaussians: Gaussians,
    plan: Plan,
    levels: LevelPlan,
    pool: ThreadPoolExecutor,
    *,
    like: SceneParameters | None = None,
) -> EncodedTiles:
    """Code the kept Gaussians of a cleaned scene.

    Args:
        gaussians: finite values only (`Gaussians.cleaned`).
        levels: in which order they are shown.
        pool: worker threads; the bytes do not depend on their number.
        like: parameters of another encoding of the scene with this plan. With its colour bases and predictors values
            are rounded as they were there, so that a scene fitted to that rounding decodes to what it was fitted to.
    """
    steps, trellis = plan.steps.units, plan.trellis
    bases = ColorBases.fit(gaussians, plan.kept, plan.color_weights) if like is None else ColorBases.of(like)
    cut = cut_tiles(gaussians.means, plan.kept)
    sources, jobs = tile_jobs(gaussians, plan, levels, cut)
    streams = num_streams(gaussians.sh_degree)

    def make(job: TileJob) -> Tile:
        scene, classes = sources.of(job.level)
        return make_tile(scene, job.rows, classes, steps, job.level, job.number)

    cluster = current_cluster()  # the same functions, on other machines
    if cluster:
        tiles = cluster.make(sources, steps, ((job.level, job.number, job.rows) for job in jobs))
    else:
        tiles = list(pool.map(make, jobs))

    def targets_of(tile: Tile) -> TileTargets:
        scene, classes = sources.of(tile.level)
        return tile_targets(scene, tile, classes, steps, bases)

    if like is None:
        models = fit_predictors(tiles, targets_of, streams, pool)
    else:
        models = [StreamModel(model.predictor) for model in like.models]
    fit_scales(models, tiles, targets_of, steps, bases, trellis, pool)
    feedback = None
    if plan.view_weights is not None:
        feedback = Feedback(gaussians.means, plan.view_weights, plan.direction_ridge)
    packed: dict[int, PackedTile] = {}

    def quantize(k: int) -> list[npt.NDArray[np.int64]]:
        exact = targets_of(tiles[k])
        q = quantize_tile(tiles[k], exact, models, steps, bases, trellis, feedback)
        packed[k] = PackedTile.of(q)
        return [] if plan.mixing else tile_histograms(tiles[k], q, models, trellis)

    def quantized() -> Iterator[list[npt.NDArray[np.int64]]]:
        assert cluster
        done = cluster.quantize(sources, tiles, models, steps, bases, trellis, feedback, not plan.mixing)
        for k, (kept, counts) in enumerate(done):
            packed[k] = kept
            yield counts

    histograms = quantized() if cluster else pool.map(quantize, range(len(tiles)))
    if plan.mixing:
        deque(histograms, maxlen=0)
        weights = no_contexts(models)
    else:
        weights = choose_contexts(models, histograms, pool)
    parameters = SceneParameters(
        gaussians.sh_degree, steps.size, steps.opacity, steps.precision, steps.shape, steps.color, steps.sh,
        bases.color, bases.sh_color, bases.sh_band, models, weights, trellis,
    )  # fmt: skip
    parameters.table_set()

    def emit(k: int) -> EmittedTile:
        return emitted(parameters, sources.of(tiles[k].level)[0], tiles[k], packed.pop(k), plan.mixing)

    if cluster:
        coded = cluster.emit(sources, tiles, packed, parameters, plan.mixing)
    else:
        coded = pool.map(emit, range(len(tiles)))
    chunks = [Chunk("PARM", parameters.to_bytes()), _tile_boxes(gaussians, cut)]
    spent: npt.NDArray[np.float64] = np.zeros(SH_FIRST + 2)
    sh_spent = thumbnail_spent = 0.0
    level_chunks: dict[tuple[int, int], list[Chunk]] = {}
    for tile, (payload, layers, bits, sh_bits) in zip(tiles, coded):
        for k, content in enumerate([payload, *layers]):
            kind = f"SHC{k}" if k else "TILE"
            chunk = Chunk(kind, content, level=tile.level, tile=tile.number, count=len(tile.rows))
            level_chunks.setdefault((tile.level, k), []).append(chunk)
        if tile.level:
            spent += bits
            sh_spent += sum(sh_bits)
        else:
            thumbnail_spent += float(bits.sum()) + sum(sh_bits)
    for key in sorted(level_chunks):
        chunks += level_chunks[key]
    order = [tile.rows for tile in tiles if tile.level]
    counts = np.bincount([tile.level for tile in tiles], [len(tile.rows) for tile in tiles], 1).astype(int)
    by_stream = spent[1:-1]
    rate_bits = {
        "parameters": 8.0 * len(chunks[0].payload),
        "thumbnail": thumbnail_spent,
        "positions": float(spent[0] + spent[-1]),
        "classes": float(by_stream[:SIZE_FIRST].sum()),
        "covariance": float(by_stream[SIZE_FIRST:OPACITY].sum()),
        "opacity": float(by_stream[OPACITY]),
        "color": float(by_stream[COLOR_FIRST:SH_FIRST].sum()),
        "sh": sh_spent,
    }
    rows = np.concatenate(order) if order else np.zeros(0, np.int64)
    return EncodedTiles(chunks, rows, parameters, counts.tolist(), rate_bits)


def tile_jobs(gaussians: Gaussians, plan: Plan, levels: LevelPlan, cut: TileCut) -> tuple[Sources, list[TileJob]]:
    """What is coded, in file order."""
    n, kept = gaussians.num_gaussians, plan.kept
    level_of = np.ones(n, np.int64)
    shares = level_shares(len(kept), gaussians.sh_degree) if levels.levels else (1.0,)
    shown = kept[np.argsort(levels.ranks[kept], kind="stable")]
    for share in shares[:-1]:
        level_of[shown[int(share * len(kept)) :]] += 1
    # What shows most in its first level comes first.
    worth = [float(plan.color_weights[rows].sum()) for rows in cut.rows]
    tile_order = np.argsort(-np.array(worth), kind="stable")
    jobs = []
    thumbnail = gaussians.selected(slice(0))
    count = thumbnail_count(len(kept), gaussians.sh_degree) if levels.thumbnail and levels.levels else 0
    if count and levels.thumbnail:
        thumbnail = levels.thumbnail(count, int(shares[0] * len(kept)))
        tile_of = cut.tile_of(thumbnail.means)
        jobs += [TileJob(0, int(t), np.flatnonzero(tile_of == t)) for t in tile_order]
    for level in range(1, len(shares) + 1):
        jobs += [TileJob(level, int(t), cut.rows[t][level_of[cut.rows[t]] == level]) for t in tile_order]
    coarse = np.broadcast_to(np.array(plan.thumbnail_classes, np.int32), (len(thumbnail), 2))
    return Sources(gaussians, plan.classes, thumbnail, coarse), [job for job in jobs if len(job.rows)]


def _tile_boxes(gaussians: Gaussians, cut: TileCut) -> Chunk:
    """The TBOX chunk."""
    boxes = np.zeros((len(cut.rows), 2, 3), "<f4")
    for box, rows in zip(boxes, cut.rows):
        means = gaussians.means[rows].astype(np.float64)
        reach = _BOX_SIGMAS * np.exp(np.minimum(gaussians.scales[rows].max(1), 80.0).astype(np.float64))[:, None]
        box[0], box[1] = np.clip([(means - reach).min(0), (means + reach).max(0)], -3e38, 3e38)
    return Chunk("TBOX", boxes.tobytes(), critical=False, count=len(boxes))


def decode_encoded(encoded: EncodedTiles, pool: ThreadPoolExecutor, levels: Sequence[int] | None = None) -> Gaussians:
    """What a decoder makes of the chunks, in their order; of all levels but 0, or of those given."""
    units = [
        unit
        for unit in group_units(encoded.chunks)
        if (unit.tile.level in levels if levels is not None else unit.tile.level > 0)
    ]
    decoded = BlankScene([unit.tile.count for unit in units], encoded.parameters.sh_degree)

    def work(k: int) -> None:
        tile, layers = units[k].tile, units[k].layers
        decoded.decode(k, encoded.parameters, tile.payload, [layer.payload if layer else None for layer in layers])

    deque(pool.map(work, range(len(units))), maxlen=0)
    return decoded.gaussians()


@dataclass(frozen=True)
class Effort:
    """What an effort level turns on (table in docs/cli.md).

    Attributes:
        pixels: pixels of all importance views together; more of them, and smaller, beat few large ones.
        views: most importance views.
        trials: most encodings to meet the quality aimed at; 1 trusts the model of the slope.
        check_views: views a trial is judged on.
        refit_views: views that colours are fitted to again once geometry is quantized; 0 = no refit.
        mixing: code by context mixing.
    """

    pixels: int
    views: int
    trials: int
    check_views: int
    refit_views: int = 0
    mixing: bool = False


_EFFORTS = {
    1: Effort(1_000_000, 24, 1, 0),
    2: Effort(2_000_000, 32, 1, 0),
    3: Effort(3_000_000, 48, 2, 8),
    4: Effort(5_000_000, 80, 3, 8),
    5: Effort(8_000_000, 128, 4, 12),
    6: Effort(12_000_000, 192, 4, 12),
    7: Effort(16_000_000, 256, 4, 12, 32),
    8: Effort(24_000_000, 320, 5, 16, 48),
    9: Effort(24_000_000, 320, 5, 16, 48, mixing=True),
}
_IMPORTANCE_SEED, _REFIT_SEED, _LOOK_SEED = 0, 2, 3
_REFIT_PX, _REFIT_STEPS = 256, 5
# Of fitting the thumbnail: views, by how many Gaussians may be drawn in all of them; and of small scenes and of others
# their size, the steps, and the share of steps below level 1.
_FIT_DRAWN, _LEAST_FIT_VIEWS, _MOST_FIT_VIEWS = 10_000_000, 24, 96
_FIT_SMALL, _FIT = (352, 600, 0.7), (448, 300, 0.3)
_TOLERANCE_DB = 0.25
# How much Gaussians of level 1 count in the thumbnail, which is shown below them later: without and with SH.
_SHARE_OF_FIRST = (1.0, 0.2)
_MAX_REFINED_TRIALS = 3  # each one is minutes of fitting, and begins near its goal
_DEFAULT_TUNING = Tuning()
_LARGE_SCENE = 400_000  # a trial takes long: half the views, at most two trials below effort 7
_SMALL_SCENE = 30_000  # trials are cheap and statistics poor: two more of them
_OCTAVES, _SH_OCTAVES, _OCTAVES_PER_DB = 0.7, 0.1, 0.025  # of `_first_slope`
_DB_PER_OCTAVE = -5.5  # how the PSNR follows K before two trials tell
# Power by which views count that are expected to look bad, and norm over views (`balanced`): what is begun with, and
# what is gone on to while the worst view is further below the mean than is wanted.
_BALANCES = ((0.5, 1.0), (1.0, 2.0), (1.0, 4.0))
_MOST_BELOW_DB = 4.5
# Importance views for each that shows what is missed of the Gaussians left out, and what that counts in the rounds in
# which they come back: all at once, those in one place would all seem to be missed.
_MENDED_EVERY = 4
_LEAST_CHECKED = 0.08  # share of a Gaussian's weight in those views at which what they say is trusted
_ROUNDS = (0.1, 0.3, 1.0)
_REDUCED = 0.2  # of what pruning usually may cost, once a refinement has left out what others stand in for


class _Pruning:
    """Which Gaussians are left out, once it is known what those left out are missed for (`restoration`).

    What is missed most comes back first; each plan after the first begins with what was found.

    Args:
        scene: all that may be coded. measured, seen_from: what rendering says of it over `cameras`.
    """

    def __init__(
        self,
        scene: Gaussians,
        measured: Contributions,
        seen_from: ViewWeights,
        cameras: list[Camera],
        tuning: Tuning,
        threads: int | None,
    ) -> None:
        # A leading part of the views is a fair sample, every fourth is not.
        self._cameras = cameras[: -(-len(cameras) // _MENDED_EVERY)]
        self._scene, self._threads = scene, threads
        self._share = _ratio(seen_from.sums(len(self._cameras)), measured.sum_weight2)  # what of each weight they show
        # Of what these views hardly show, each one's own removal error is all that is known.
        alone = measured.removal_error * (tuning.restore / tuning.prune)
        self._known = np.where(self._share < _LEAST_CHECKED, alone, 0.0)
        self._rounds = _ROUNDS if len(scene) <= _LARGE_SCENE else _ROUNDS[-1:]

    def plan(self, planned: Callable[[npt.NDArray[np.float64]], Plan]) -> Plan:
        """The plan that `planned` makes of what each Gaussian would mend, as over all importance views."""
        for share in self._rounds:
            self._known = np.maximum(self._known, share * self._missed(planned(self._known).kept))
        self._rounds = _ROUNDS[-1:]
        return planned(self._known)

    def _missed(self, kept: Rows) -> npt.NDArray[np.float64]:
        """What each of all but `kept` would mend, as over all importance views."""
        drawn = np.zeros(len(self._scene), np.bool_)
        drawn[kept] = True
        found = restoration(self._scene, drawn, self._cameras, num_threads=self._threads)
        return found / np.maximum(self._share, _LEAST_CHECKED)


def encode_lossy(
    gaussians: Gaussians,
    options: LossyOptions,
    *,
    tuning: Tuning = _DEFAULT_TUNING,
    overhead_bytes: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    refinement: Refinement | None = None,
) -> EncodedTiles:
    """Encode a cleaned scene to the quality or size asked for.

    Args:
        gaussians: finite values only (`Gaussians.cleaned`).
        tuning: the encoder's constants.
        overhead_bytes: what of a target size goes to other chunks.
        threads: worker threads; the bytes do not depend on it.
        progress: called with (stage, share done).
        refinement: changes the scene before and while it is encoded; quality is still that beside `gaussians`.

    Raises:
        ParameterError: the target size cannot be met.
    """
    tell = progress or (lambda stage, share: None)
    effort = _EFFORTS[options.effort]
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(worker_count(threads)) as pool:

        def measure(scene: Gaussians) -> tuple[Contributions, ViewWeights]:
            seen_from = ViewWeights(cameras, scene.num_gaussians)
            measured = contributions(
                scene,
                cameras,
                equalize=True,
                num_threads=threads,
                on_view=seen_from.add,
                progress=lambda k, n: tell("importance", k / n),
            )
            return measured, seen_from

        def search(encode: Callable[[float, int], EncodedTiles], less_db: float = 0.0) -> tuple[float, EncodedTiles]:
            if options.target_size is not None:
                return _meet_size(measured, encode, options.target_size - overhead_bytes, first, tell)
            wanted = options.wanted_psnr_db - less_db
            return _meet_quality(gaussians, measured, encode, wanted, effort, pool, first, tell)

        clock = time.perf_counter()
        cameras = _importance_cameras(gaussians, effort)
        measured, seen_from = measure(gaussians)
        seconds["importance"] = time.perf_counter() - clock
        scene, rows, first = gaussians, None, None  # `first`: log2 K to begin with
        levels = LevelPlan(np.arange(gaussians.num_gaussians), levels=False)

        weighted: dict[int, tuple[Contributions, ViewWeights]] = {}

        def pruning(part: Gaussians, sums: Contributions, seen: ViewWeights, tuning: Tuning) -> _Pruning | None:
            if not options.prune or effort.trials == 1:
                return None
            return _Pruning(part, sums, seen, cameras, tuning, threads)

        pruned = pruning(gaussians, measured, seen_from, tuning)

        def plan_at(slope: float, balance: int = 0) -> Plan:
            if balance not in weighted:
                weighted.clear()
                weighted[balance] = balanced(measured, seen_from, *_BALANCES[balance])
            sums, views = weighted[balance]
            factors = _ratio(sums.s_logalpha, measured.s_logalpha)

            def planned(mended: npt.NDArray[np.float64] | None) -> Plan:
                back = None if mended is None else mended * factors
                return make_plan(scene, sums, 2.0**slope, options, tuning, views if scene.sh_degree else None, back)

            return replace(pruned.plan(planned) if pruned else planned(None), mixing=effort.mixing)

        if refinement:
            clock = time.perf_counter()
            start, _ = search(
                lambda slope, balance: encode_tiles(gaussians, plan_at(slope, balance), levels, pool),
                refinement.gain_db,
            )

            def plan_of(part: Gaussians, times: float) -> Plan:
                sums, seen = (measured, seen_from) if part is gaussians else measure(part)
                more = tuning.pruning(times)
                rounds = pruning(part, sums, seen, more)

                def planned(mended: npt.NDArray[np.float64] | None) -> Plan:
                    return make_plan(part, sums, 2.0**start, options, more, None, mended)

                return rounds.plan(planned) if rounds else planned(None)

            scene, rows = refinement.before(gaussians, plan_of)
            first = start
            if scene is not gaussians:
                measured, seen_from = measure(scene)
            if refinement.reduces:
                pruned, tuning = None, tuning.pruning(_REDUCED)
            weighted.clear()
            seconds["refinement"] = time.perf_counter() - clock

        clock = time.perf_counter()
        if options.levels:
            levels = _level_plan(scene, measured, cameras, options.effort, threads)
        seconds["levels"] = time.perf_counter() - clock
        clock = time.perf_counter()
        views = None
        if effort.refit_views and not refinement:
            fit_cameras = encoder_cameras(gaussians, num_views=effort.refit_views, size_px=_REFIT_PX, seed=_REFIT_SEED)
            views = RefitViews.of(gaussians, fit_cameras)

        def encode(slope: float, balance: int) -> EncodedTiles:
            plan = plan_at(slope, balance)
            encoded = encode_tiles(scene, plan, levels, pool)
            if refinement:
                decoded = decode_encoded(encoded, pool).replaced(metadata=scene.metadata)
                fitted = refinement.after(scene, plan, levels, encoded.order, decoded, pool)
                return encode_tiles(fitted, plan, levels, pool, like=encoded.parameters)
            return _with_fitted_colors(scene, plan, levels, encoded, views, measured, pool) if views else encoded

        _, best = search(encode)
        best.mixing = effort.mixing
        seconds["coding"] = time.perf_counter() - clock
        clock = time.perf_counter()
        _set_looks(gaussians, best, pool)
        seconds["levels"] += time.perf_counter() - clock
    if rows is not None:
        best.order = rows[best.order]
    best.seconds = seconds
    dropped = gaussians.num_gaussians - len(best.order)
    if dropped:
        best.notes.append(f"{dropped} Gaussians left out that showed less than they cost")
    return best


def _ratio(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(a, b, out=np.ones(len(a)), where=b > 0)


def _level_plan(
    gaussians: Gaussians, measured: Contributions, cameras: list[Camera], effort: int, threads: int | None
) -> LevelPlan:
    """Order of display and thumbnail, from some of the importance views."""
    n = gaussians.num_gaussians
    views = 0 if effort <= 2 else 6 if n > _LARGE_SCENE else 16
    under = None
    if views and thumbnail_count(n, gaussians.sh_degree):
        under = thumbnail_of(gaussians, measured.sum_weight, thumbnail_count(n, gaussians.sh_degree))
        under = scaled(under, *UNDER_LOOK)
    ranks = display_ranks(
        gaussians, measured, cameras[:: max(1, len(cameras) // views)][:views] if views else [], under
    )
    look_cameras = encoder_cameras(gaussians, num_views=4 if n > _LARGE_SCENE else 6, size_px=192, seed=_LOOK_SEED)
    originals = [render(gaussians, camera) for camera in look_cameras]
    fit_px, steps, share_under = _FIT_SMALL if n < _SMALL_SCENE else _FIT
    fit_cameras: list[Camera] = []
    if effort > 2 and thumbnail_count(n, gaussians.sh_degree):
        fit_views = int(np.clip(_FIT_DRAWN / n, _LEAST_FIT_VIEWS, _MOST_FIT_VIEWS))
        fit_cameras = encoder_cameras(gaussians, num_views=fit_views, size_px=fit_px, seed=_REFIT_SEED)
    fit_pictures = [render(gaussians, camera, num_threads=threads) for camera in fit_cameras]
    made: dict[tuple[int, int], Gaussians] = {}

    def thumbnail(count: int, first: int) -> Gaussians:
        # In steps, as the count is, so that trials share one.
        first = int(1.1 ** round(np.log(max(first, 1)) / np.log(1.1)))
        if (count, first) not in made:
            made.clear()
            weights = np.where(ranks < first, _SHARE_OF_FIRST[gaussians.sh_degree > 0], 1.0) * measured.sum_weight
            merged = thumbnail_of(gaussians, weights, count)
            merged = scaled(merged, *best_look(merged, look_cameras, originals, shrink=True))
            made[count, first] = fitted(
                merged,
                gaussians.selected(ranks < first),
                fit_cameras,
                fit_pictures,
                steps=steps,
                share_under=share_under,
                num_threads=worker_count(threads),
            )
        return made[count, first]

    return LevelPlan(ranks, thumbnail)


def _set_looks(gaussians: Gaussians, encoded: EncodedTiles, pool: ThreadPoolExecutor) -> None:
    """Say in each tile's chunks how its first levels look without the others."""
    highest: dict[int, int] = {}
    for chunk in encoded.chunks:
        if chunk.type == "TILE":
            highest[chunk.tile] = max(chunk.level, highest.get(chunk.tile, 0))
    last = max(highest.values(), default=0)
    if last < 2:
        return
    cameras = encoder_cameras(
        gaussians, num_views=4 if gaussians.num_gaussians > _LARGE_SCENE else 6, size_px=192, seed=_LOOK_SEED
    )
    originals = [render(gaussians, camera) for camera in cameras]
    thumbnail = decode_encoded(encoded, pool, [0])
    for level in range(1, last):
        part = decode_encoded(encoded, pool, range(1, level + 1)).replaced(metadata=gaussians.metadata)
        if len(thumbnail):
            looks = best_prefix_looks(part, thumbnail, cameras, originals)
        else:
            looks = best_look(part, cameras, originals), NEUTRAL
        for k, chunk in enumerate(encoded.chunks):
            if chunk.type == "TILE" and chunk.level == level and level < highest[chunk.tile]:
                encoded.chunks[k] = replace(chunk, payload=set_prefix_look(chunk.payload, *looks))


def _with_fitted_colors(
    gaussians: Gaussians,
    plan: Plan,
    levels: LevelPlan,
    encoded: EncodedTiles,
    views: RefitViews,
    measured: Contributions,
    pool: ThreadPoolExecutor,
) -> EncodedTiles:
    """Encode again with the colours that suit the decoded geometry best; geometry and classes stay as they are."""
    rows = encoded.order
    decoded = decode_encoded(encoded, pool).replaced(
        sh0=gaussians.sh0[rows], shN=gaussians.shN[rows], metadata=gaussians.metadata
    )
    weights = measured.sum_weight2[rows] / max(measured.num_views, 1)
    fitted0, fittedN = refit_colors(decoded, views, weights, iterations=_REFIT_STEPS)
    sh0, shN = gaussians.sh0.copy(), gaussians.shN.copy()
    sh0[rows], shN[rows] = fitted0, fittedN
    return encode_tiles(gaussians.replaced(sh0=sh0, shN=shN), plan, levels, pool)


def _importance_cameras(gaussians: Gaussians, effort: Effort) -> list[Camera]:
    """Views for importance: a view costs time by Gaussian as well as by pixel, so the larger the scene the fewer."""
    share = 150_000 / max(gaussians.num_gaussians, 1)
    views = max(16, round(effort.views * (min(share**0.4, 2.5) if share > 1 else share)))
    size_px = 16 * round((effort.pixels / effort.views) ** 0.5 / 16)
    if share < 1:  # fewer views may be larger, for the same time
        size_px = min(400, round(size_px * (effort.views / views) ** 0.5))
    return encoder_cameras(gaussians, num_views=views, size_px=size_px, seed=_IMPORTANCE_SEED)


def _first_slope(measured: Contributions, wanted_psnr_db: float, sh_degree: int = 0) -> float:
    """K at which the model's error is the one wanted: each of about 12 numbers a Gaussian adds K^2 / 12.

    Gaussians cover each other, and the coarser, the more are left out or as coarse as they may be: the constants are
    those of five scenes at efforts 1 and 2.
    """
    pixels = float(measured.sum_weight.sum())
    active = float((measured.hits > 0).sum())
    error = 10.0 ** (-wanted_psnr_db / 10.0)
    octaves = (_SH_OCTAVES if sh_degree else _OCTAVES) + _OCTAVES_PER_DB * (43.0 - wanted_psnr_db)
    return 0.6 * 2.0**octaves * float(np.sqrt(max(error * 3.0 * max(pixels, 1.0), 1e-30) / max(active, 1.0)))


def _meet_quality(
    gaussians: Gaussians,
    measured: Contributions,
    encode: Callable[[float, int], EncodedTiles],
    wanted: float,
    effort: Effort,
    pool: ThreadPoolExecutor,
    first: float | None,
    tell: Progress,
) -> tuple[float, EncodedTiles]:
    """Secant steps on log2 K until the check views are within tolerance of the PSNR wanted.

    Where the worst of them is far below the mean, views are balanced more.

    Args:
        encode: from log2 K and a row of `_BALANCES`.
        first: log2 K to begin with; None = what the model says.

    Returns:
        log2 K and the encoding nearest to what is wanted.
    """
    n = gaussians.num_gaussians
    slope = float(np.log2(_first_slope(measured, wanted, gaussians.sh_degree))) if first is None else first
    if effort.trials == 1 or not n:
        tell("coding", 0.0)
        return slope, encode(slope, 0)
    share, size_px = (2, 384) if n > _LARGE_SCENE else (1, 512)
    views = effort.check_views * (2 if n < _SMALL_SCENE else 1) // share
    cameras = check_cameras(gaussians, num_views=max(4, views), size_px=size_px)
    originals = [render(gaussians, camera) for camera in cameras]
    trials = min(effort.trials, 2) if n > _LARGE_SCENE else effort.trials
    trials += 2 if n < _SMALL_SCENE else 0
    trials = min(trials, _MAX_REFINED_TRIALS) if first is not None else trials
    balance = 0
    tried: list[tuple[float, float]] = []
    best: tuple[float, float, EncodedTiles] | None = None
    trial = 0
    while True:
        tell("coding", trial / trials)
        encoded = encode(slope, balance)
        trial += 1
        psnrs = _psnrs_db(gaussians, encoded, cameras, originals, pool)
        miss = wanted - float(np.mean(psnrs))
        below = float(np.mean(psnrs) - np.min(psnrs)) - _MOST_BELOW_DB
        # Too low a worst view weighs half as much as a wrong mean, within what the mean may be off.
        score = abs(miss) + 0.5 * max(below, 0.0)
        if best is None or score < best[0]:
            best = score, slope, encoded
        tried.append((slope, wanted - miss))
        if below > 0 and balance + 1 < len(_BALANCES) and abs(miss) < 4 * _TOLERANCE_DB:
            balance += 1  # counts as no trial: it begins a new search near its end
            trials += 2
            tried.clear()
        elif abs(miss) < _TOLERANCE_DB:
            break
        if trial >= trials:
            break
        slope += float(np.clip(miss / _gradient(tried), -4.0, 4.0))
    assert best is not None
    tell("coding", 1.0)
    return best[1], best[2]


def _psnrs_db(
    gaussians: Gaussians,
    encoded: EncodedTiles,
    cameras: list[Camera],
    originals: list[Rendering],
    pool: ThreadPoolExecutor,
) -> list[float]:
    """PSNR over covered pixels of every view; the decoded scene does not outlive this."""
    decoded = decode_encoded(encoded, pool).replaced(metadata=gaussians.metadata)  # which says how to draw it
    return [covered_psnr_db(a, render(decoded, c)) for a, c in zip(originals, cameras)]


def _gradient(tried: list[tuple[float, float]]) -> float:
    """dB an octave of K, from the two trials nearest each other in time; always clearly negative."""
    if len(tried) < 2 or tried[-1][0] == tried[-2][0]:
        return _DB_PER_OCTAVE
    return min((tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]), -2.0)


def _meet_size(
    measured: Contributions,
    encode: Callable[[float, int], EncodedTiles],
    target_size: int,
    first: float | None,
    tell: Progress,
) -> tuple[float, EncodedTiles]:
    """Find the largest encoding that does not exceed the target size, and uses at least 97 % of it; and its log2 K."""
    budget = target_size - 64
    slope = float(np.log2(_first_slope(measured, 43.0))) if first is None else first
    below: tuple[float, int, EncodedTiles] | None = None  # slope, bytes
    above: tuple[float, int] | None = None
    trials = 14
    for trial in range(trials):
        tell("coding", trial / trials)
        encoded = encode(slope, 0)
        size = encoded.size_bytes
        if size <= budget:
            if below is None or size > below[1]:
                below = slope, size, encoded
            if size >= 0.985 * budget:
                break
        elif above is None or size < above[1]:
            above = slope, size
        if below and above:
            # Log size is close to linear in log K; aim a little below the budget.
            share = np.log(0.993 * budget / below[1]) / np.log(above[1] / below[1])
            slope = below[0] + float(np.clip(share, 0.05, 0.95)) * (above[0] - below[0])
        else:
            slope += float(np.clip(2.0 * np.log2(size / (0.993 * max(budget, 1))), -4.0, 4.0)) or 0.1
        if below and not above and below[0] < -40:
            break  # nothing finer to spend bytes on
    tell("coding", 1.0)
    if below is None:
        raise ParameterError(
            f"the scene does not fit in {target_size} bytes; the smallest tried has {above[1] if above else 0}",
            field="target_size",
        )
    return below[0], below[2]
