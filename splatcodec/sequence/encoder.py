"""Encoding groups of frames with motion: the whole flow on one page.

frames -> Block (same rows in every frame) -> rigid nodes -> Fit: a still scene, and what each frame adds      (fit)
       -> importance over views of some frames -> slope K -> classes, steps -> PARM, TILE, SHC of the base     (static)
       -> tracks in base units -> principal components in time = shapes -> which Gaussians have which tracks
       -> closed loop in coding order -> contexts, tables -> MOTN, TRAJ                                        (motion)
       -> decode frames, render, compare -> better K; later groups keep K, and the base as long as it serves
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..bitstream.container import Chunk
from ..entropy.tables import ALPHABET, cluster_contexts, quantize_weights
from ..errors import ParameterError
from ..gaussians import Gaussians, unit_quats
from ..metrics.psnr import covered_psnr_db
from ..preprocess.plan import LossyOptions, Tuning, make_plan
from ..preprocess.view_weights import ViewWeights
from ..render.camera import encoder_cameras
from ..render.contribution import Contributions, contributions
from ..render.cpu import render
from ..stages.parameters import COLOR_FIRST, MATRIX_SCALE, OPACITY, SH_FIRST, SIZE_FIRST
from ..stages.tile import decode_layer, decode_tile
from ..stages.transform import rotation_matrices
from ..static.decoder import group_units, worker_count
from ..static.encoder import EncodedTiles, LevelPlan, encode_tiles
from ..static.quantization import project_sh
from .decoder import Base, BaseTile, MotionGroup
from .file import MOTION, GroupChunks
from .fit import Block, Fit, Nodes, fill_absent, find_nodes, fit_block
from .motion import (
    COLOR,
    OPACITY_TRACK,
    POSITION,
    SH,
    SHAPE_ONE,
    SIZE,
    TRACKS,
    TURN,
    MotionParameters,
    TileMotion,
    encode_trajectories,
    track_components,
    track_exponents,
)
from .motion_kernels import CELLS, quantize_tracks
from .rate import BitrateBudget

__all__ = ["EncodedGroup", "MotionEncoder", "MotionOptions"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class MotionOptions:
    """What a user asks of the encoder of moving scenes.

    Attributes:
        quality, target_psnr, effort, prune: as in `LossyOptions`; the PSNR is the mean over frames.
        target_bitrate: bytes a second not to exceed, averaged over `keep` groups (or the whole scene, if it is shorter
            and its length is known), instead of a quality; None = by quality.
        group: frames a group, 1..256.
        keep: groups that use one base before a new one is made.
        nodes: look for rigid nodes; they are kept where they save at least 15 %.
        profile: "motion", "video" (for video decoders), or "auto", the smaller of them.
        video_codec: of the profile video: "h264", which every phone decodes, "hevc" or "av1".
    """

    quality: float = 60.0
    target_psnr: float | None = None
    target_bitrate: float | None = None
    effort: int = 5
    prune: bool = True
    group: int = 30
    keep: int = 8
    nodes: bool = True
    profile: str = "motion"
    video_codec: str = "h264"

    def __post_init__(self) -> None:
        self.lossy()
        if not 1 <= self.group <= 256:
            raise ParameterError(f"{self.group} frames a group, expected 1 to 256", field="group")
        if self.profile not in ("motion", "video", "auto"):
            raise ParameterError(f"unknown profile {self.profile!r}", field="profile", hint="motion, video, auto")
        if self.video_codec not in ("h264", "hevc", "av1"):
            raise ParameterError(f"unknown codec {self.video_codec!r}", field="video_codec", hint="h264, hevc, av1")
        if self.target_bitrate is not None and self.profile == "auto":
            raise ParameterError("a bitrate is met by one profile", field="target_bitrate", hint="motion or video")
        if self.keep < 1:
            raise ParameterError(f"a base for {self.keep} groups, expected 1 or more", field="keep")
        if self.target_bitrate is not None and (self.target_psnr is not None or not self.target_bitrate > 0):
            raise ParameterError(f"a target of {self.target_bitrate} bytes a second", field="target_bitrate")

    def lossy(self) -> LossyOptions:
        """The part that the still codec understands."""
        return LossyOptions(
            quality=self.quality, target_psnr=self.target_psnr, effort=self.effort, prune=self.prune, levels=False
        )


# Steps of tracks over those that the base would have for the same attribute, chosen on the sequences of
# tools/make_sequences.py (docs/sequences.md).
_POSITION_FACTOR = 1.0
_TURN_FACTOR = 0.25
_ELONGATION = 8.0  # (see `_Tracks`) of a Gaussian whose turns show as much as steps of its size
_DEAD = 0.6  # residuals below this share of a step become 0
_BITS_A_TRACK = 3.0
_PRICE = 2 * np.log(2) / 12  # squared steps that a bit is worth
_BITS_A_SHAPE = 11.0  # and frame
_BITS_TO_FOLLOW = 1.0  # of a Gaussian that does what its neighbours do
_REGION = 64  # Gaussians in a row that may drift together
_MOST_SHAPES = 48  # of all tracks; the format allows 64
_NODE_SAVING = 0.85
_EVENT_STEPS = 3  # a jump of so many steps is an event
_MOST_DELTA = 1 << 22
_TRIALS = 5
_TOLERANCE_DB = 0.3
_DB_PER_OCTAVE = -5.5
_LEAST_DB_PER_OCTAVE = 1.0
_DB_A_HALVING = 2.8  # of the steps of motion on a kept base
_FINER = (0.2, 2.0)  # steps of motion over those of the base, where a quality is asked for
_COARSEST = 64.0
_PATIENCE = 1.3
_NOT_ENOUGH_DB = 1.0  # so much less than wanted takes a new base
_WELL_USED, _AIM = 0.93, 0.97  # of a budget in bytes
_MISSING = 0.002  # share of a group's importance that may be left out of a base before it is extended
_VIEWS = {1: 12, 2: 18, 3: 24, 4: 36, 5: 48, 6: 72, 7: 96, 8: 128, 9: 160}
_VIEW_PX = 256
_CHECK_PX = 320


@dataclass
class _Part:
    """One scene of a base: as coded, decoded, and the still scene that tracks start from.

    Attributes:
        group: number of the group that holds it.
        encoded: its chunks.
        tiles: decoded.
        ids: of each tile, who its Gaussians are. fitted: of each tile, the uncoded still scene.
        considered: who could have been in it; those of them who are not were left out.
        coherence: how much more an error of colour shows that neighbours share than one that each has for itself.
    """

    group: int
    encoded: EncodedTiles
    tiles: list[BaseTile]
    ids: list[npt.NDArray[np.int64]]
    fitted: list[Gaussians]
    considered: npt.NDArray[np.int64]
    coherence: float


@dataclass
class EncodedGroup:
    """A coded group.

    Attributes:
        chunks: for the writer.
        decoded: what a decoder makes of it.
        rate_bits: bits by purpose.
    """

    chunks: GroupChunks
    decoded: MotionGroup
    rate_bits: dict[str, float] = field(default_factory=dict)


class MotionEncoder:
    """Encodes group after group.

    Args:
        options: what is asked for.
        rate: frames a second, for bitrates.
        threads: worker threads; the bytes do not depend on it.
        progress: called with (stage, share done).

    Attributes:
        notes: for people.
        seconds: by stage.
        frames_left: frames to come, with those of the next group; None where nobody knows.
    """

    def __init__(
        self,
        options: MotionOptions,
        rate: float = 30.0,
        *,
        tuning: Tuning | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.options = options
        self.rate = rate
        self.tuning = tuning or Tuning()
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.frames_left: int | None = None
        self._threads = threads
        self._tell = progress or (lambda stage, share: None)
        self._slope: float | None = None
        self._finer = 1.0
        self._reached = np.inf  # PSNR of the last group with a scene
        self._budget: BitrateBudget | None = None
        self._kept: _Part | None = None
        self._still_serves = 0.0  # bytes of motion at which the kept base was better than another
        self._next = 0

    def start_at(self, number: int) -> None:
        """Number of the next group, where a file is gone on with."""
        self._next = number

    def skip(self) -> None:
        """The next group was coded otherwise."""
        self._next += 1

    def forget(self, group: EncodedGroup) -> None:
        """The last group is not in the file: no later one may use its scene."""
        if group.chunks.uses is None:
            self._kept = None

    def encode(self, block: Block) -> EncodedGroup:
        """Encode the next group.

        Args:
            block: its frames; ids name the same Gaussians in all groups.
        """
        with ThreadPoolExecutor(worker_count(self._threads)) as pool:
            number = self._next
            kept = self._kept if self._kept and number - self._kept.group < self.options.keep else None
            group = None
            if kept is not None and self._slope is not None:
                group = self._with_kept_base(block, kept, number, pool)
            if group is None:
                group = self._with_own_base(block, number, pool)
            if self._budget is not None:
                self._budget.spend(group.chunks.size_bytes, block.num_frames / self.rate, group.chunks.uses is None)
            self._next += 1
        return group

    def _budget_of(self, block: Block) -> BitrateBudget:
        """The budget; its window is as long as a scene serves, or all there is."""
        if self._budget is None:
            assert self.options.target_bitrate is not None
            window = self.options.keep * self.options.group / self.rate
            if self.frames_left is not None:
                window = min(window, self.frames_left / self.rate)
            self._budget = BitrateBudget(self.options.target_bitrate, max(window, block.num_frames / self.rate))
        return self._budget

    # ------------------------------------------------------------------------------------------------- bases

    def _with_own_base(self, block: Block, number: int, pool: ThreadPoolExecutor) -> EncodedGroup:
        clock = time.perf_counter()
        nodes = self._nodes(block, None)
        fit = fit_block(block, nodes)
        self._spend("fit", clock)
        clock = time.perf_counter()
        measured, seen_from = self._importance(block)
        self._spend("importance", clock)

        def encode(slope: float, fit: Fit) -> tuple[EncodedGroup, _Part]:
            part = self._code_part(fit.still, fit.ids, measured, seen_from, slope, number, pool)
            return self._motion(fit, [part], number, pool), part

        if self.options.target_bitrate is not None:
            group, part, self._slope = self._search_bytes(block, fit, measured, encode)
        elif self._slope is None or self.options.effort > 2:
            group, part, self._slope = self._search(block, fit, measured, encode, pool)
        else:
            group, part = encode(self._slope, fit)
        if len(nodes):
            plain = fit_block(block, Nodes.none(len(block), block.num_frames))
            other, other_part = encode(self._slope, plain)
            saves = _motion_bytes(group) <= _NODE_SAVING * _motion_bytes(other)
            fits = self._budget is None or other.chunks.size_bytes <= self._budget.allowed(block.num_frames / self.rate)
            if not saves and fits:
                group, part = other, other_part
        self._kept, self._still_serves = part, 0.0
        return group

    def _with_kept_base(self, block: Block, kept: _Part, number: int, pool: ThreadPoolExecutor) -> EncodedGroup | None:
        """A group on an earlier base, extended by what that lacks; None if too much of it has changed."""
        assert self._slope is not None
        if not kept.ids:
            return None
        known = np.concatenate(kept.ids)
        common = np.isin(block.ids, known)
        new = len(block) - int(np.isin(block.ids, kept.considered).sum())
        if new > 0.4 * len(block) or common.sum() < 0.5 * len(known):
            return None
        clock = time.perf_counter()
        order = np.argsort(known)
        at = order[np.searchsorted(known, block.ids[common], sorter=order)]
        fitted = _concatenated(kept.fitted)
        reference = fill_absent(block.means, block.present)[0].copy()
        reference[common] = fitted.means[at]
        nodes = self._nodes(block, reference, common)
        still = _rows_replaced(fit_block(block, nodes).still, common, fitted, at)
        fit = fit_block(block, nodes, still)
        self._spend("fit", clock)
        parts = [kept]
        fresh = ~common
        if fresh.any():
            clock = time.perf_counter()
            measured, _ = self._importance(block, fewer=2)
            self._spend("importance", clock)
            # Most of what a base lacks was left out of it because it hardly shows.
            price = _PRICE * 2.0 ** (2 * self._slope)
            fresh &= measured.removal_error > self.tuning.prune * self.tuning.bits_kept * price
            share = measured.s_logalpha[fresh].sum() / max(float(measured.s_logalpha.sum()), 1e-30)
            if share > _MISSING:
                rows = np.flatnonzero(fresh)
                some = _some(measured, rows)
                part = self._code_part(
                    still.selected(rows), block.ids[rows], some, None, self._slope, number, pool, drop_unseen=True
                )
                if len(part.encoded.order):
                    parts.append(part)
        if self.options.target_bitrate is not None:
            return self._fitting_motion(block, fit, parts, number, pool)
        group, enough = self._good_motion(block, fit, parts, number, pool)
        # A base that no longer fits costs more motion than a new one would, or is not good enough.
        moves = _motion_bytes(group)
        if not enough or moves > max(0.5 * kept.encoded.size_bytes, self._still_serves):
            slope, finer = self._slope, self._finer
            own = self._with_own_base(block, number, pool)
            if not enough or own.chunks.size_bytes <= group.chunks.size_bytes:
                self._finer = 1.0
                return own
            self._kept, self._slope, self._finer = kept, slope, finer
            # What little effort has tried once it does not try again before things get worse.
            self._still_serves = _PATIENCE * moves if self.options.effort <= 2 else 0.0
        return group

    def _good_motion(
        self, block: Block, fit: Fit, parts: Sequence[_Part], number: int, pool: ThreadPoolExecutor
    ) -> tuple[EncodedGroup, bool]:
        """Motion on a kept base as good as wanted, and whether it is: its steps follow what decoded frames show."""
        wanted = self.options.lossy().wanted_psnr_db
        check = self._checks(block, pool, fewer=self.options.effort <= 2)
        best: tuple[float, EncodedGroup] | None = None
        finer = self._finer
        for _ in range(3 if self.options.effort > 2 else 1):
            group = self._motion(fit, parts, number, pool, finer)
            miss = wanted - check(group)
            if best is None or abs(miss) < abs(best[0]):
                best, self._finer = (miss, group), finer
            following = float(np.clip(finer * 2.0 ** (-miss / _DB_A_HALVING), *_FINER))
            if abs(miss) < _TOLERANCE_DB or following == finer:
                break
            finer = following
        assert best is not None
        if self.options.effort <= 2:
            self._finer = following  # for the next group
        enough = wanted - best[0] > min(wanted, self._reached) - _NOT_ENOUGH_DB
        return best[1], enough or self.options.effort <= 2

    def _fitting_motion(
        self, block: Block, fit: Fit, parts: Sequence[_Part], number: int, pool: ThreadPoolExecutor
    ) -> EncodedGroup | None:
        """Motion on a kept base in the bytes that it may have; None where that is too little for any."""
        budget = self._budget_of(block).without_scene(block.num_frames / self.rate)
        best: EncodedGroup | None = None
        finer, coarsest_above = self._finer, 0.0
        for _ in range(6):
            group = self._motion(fit, parts, number, pool, finer)
            size = group.chunks.size_bytes
            if size <= budget:
                if best is None or size > best.chunks.size_bytes:
                    best, self._finer = group, finer
                if size > _WELL_USED * budget or finer <= _FINER[0]:
                    break
            else:
                coarsest_above = max(coarsest_above, finer)
            following = finer * float(np.clip((size / (_AIM * budget)) ** 1.5, 0.25, 16.0))
            if best is not None:
                following = max(following, 1.02 * coarsest_above)
            following = float(np.clip(following, _FINER[0], _COARSEST))
            if following == finer:
                break
            finer = following
        return best

    def _nodes(
        self, block: Block, reference: npt.NDArray[np.float32] | None, fixed: npt.NDArray[np.bool_] | None = None
    ) -> Nodes:
        if not self.options.nodes or block.num_frames < 2 or not len(block):
            return Nodes.none(len(block), block.num_frames)
        paths = fill_absent(block.means, block.present)
        if reference is None:
            reference = paths[block.num_frames // 2]
        if fixed is None:
            fixed = np.zeros(len(block), bool)
        sizes = np.exp(np.minimum(block.scales.mean((0, 2)), 80.0))
        away = np.linalg.norm(paths - reference, axis=2).max(0)
        return find_nodes(block, reference, away > 0.3 * sizes, fixed)

    def _importance(self, block: Block, fewer: int = 1) -> tuple[Contributions, ViewWeights | None]:
        """Contributions of all rows over views of three frames, each frame's as if there were no others."""
        frames = np.unique(np.linspace(0, block.num_frames - 1, min(3, block.num_frames)).round().astype(int))
        views = max(4, _VIEWS[self.options.effort] // len(frames) // fewer)
        found: list[Contributions] = []
        all_cameras = []
        codes: list[npt.NDArray[np.uint8]] = []
        for k, f in enumerate(frames):
            scene = block.gaussians(int(f))
            cameras = encoder_cameras(scene, num_views=views, size_px=_VIEW_PX, seed=int(k))
            all_cameras += cameras
            seen = ViewWeights(cameras, len(scene)) if scene.sh_degree else None
            found.append(
                contributions(
                    scene, cameras, equalize=True, num_threads=self._threads, on_view=seen.add if seen else None
                )
            )
            if seen is not None:
                codes.append(seen.codes)
            self._tell("importance", (k + 1) / len(frames))
        # Those that are in few of the frames count as much as the others while they are there.
        share = len(frames) / np.maximum(block.present[frames].sum(0), 1)
        sums = {
            name: np.sum([getattr(c, name) for c in found], axis=0) * share
            for name in ("sum_weight", "sum_weight2", "s_logalpha", "s_position", "s_cov")
        }
        total = Contributions(
            max_weight=np.max([c.max_weight for c in found], axis=0),
            hits=np.sum([c.hits for c in found], axis=0),
            pixel_size=np.min([c.pixel_size for c in found], axis=0),
            num_views=sum(c.num_views for c in found),
            **sums,
        )
        if not codes:
            return total, None
        weights = ViewWeights(all_cameras, len(block))
        weights.codes = np.concatenate(codes)
        return total, weights

    def _code_part(
        self,
        still: Gaussians,
        ids: npt.NDArray[np.int64],
        measured: Contributions,
        seen_from: ViewWeights | None,
        slope: float,
        number: int,
        pool: ThreadPoolExecutor,
        drop_unseen: bool = False,
    ) -> _Part:
        """Code and decode a still scene."""
        options = replace(self.options.lossy(), drop_unseen=drop_unseen)
        plan = make_plan(still, measured, 2.0**slope, options, self.tuning, seen_from)
        encoded = encode_tiles(still, plan, LevelPlan(np.arange(len(still)), levels=False), pool)
        units = group_units(encoded.chunks)

        def decode(k: int) -> BaseTile:
            chunk = units[k].tile
            parameters = encoded.parameters
            tile = decode_tile(parameters, chunk.payload, chunk.count)
            layers = [
                decode_layer(parameters, bounds, layer.payload, tile) if layer else None
                for bounds, layer in zip(parameters.layers(), units[k].layers)
            ]
            return BaseTile.of(chunk.tile, parameters, tile, layers)

        tiles = list(pool.map(decode, range(len(units))))
        # Weights of a pixel add up to about 1: what all share shows with that, what each has alone with its square.
        alone = float(measured.sum_weight2.sum())
        coherence = max(float(measured.sum_weight.sum()) / alone, 1.0) if alone > 0 else 1.0
        rows, at = [], 0
        for tile in tiles:
            rows.append(encoded.order[at : at + len(tile)])
            at += len(tile)
        return _Part(number, encoded, tiles, [ids[r] for r in rows], [still.selected(r) for r in rows], ids, coherence)

    # ------------------------------------------------------------------------------------------------ quality

    def _search(
        self,
        block: Block,
        fit: Fit,
        measured: Contributions,
        encode: Callable[[float, Fit], tuple[EncodedGroup, _Part]],
        pool: ThreadPoolExecutor,
    ) -> tuple[EncodedGroup, _Part, float]:
        """Find the slope at which decoded frames have the PSNR that is asked for."""
        wanted = self.options.lossy().wanted_psnr_db
        slope = self._slope if self._slope is not None else _start(measured, wanted)
        check = self._checks(block, pool)
        tried: list[tuple[float, float]] = []
        best: tuple[float, float, EncodedGroup, _Part] | None = None
        clock = time.perf_counter()
        for trial in range(_TRIALS if self.options.effort > 2 else 2):
            self._tell("coding", trial / _TRIALS)
            group, part = encode(slope, fit)
            psnr = check(group)
            miss = wanted - psnr
            if best is None or abs(miss) < best[0]:
                best = abs(miss), slope, group, part
            tried.append((slope, psnr))
            if abs(miss) < _TOLERANCE_DB or not len(fit.ids):
                break
            gradient = _DB_PER_OCTAVE
            if len(tried) > 1 and abs(tried[-1][0] - tried[-2][0]) > 0.05:
                gradient = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0])
                if miss > 0 and -gradient < _LEAST_DB_PER_OCTAVE:
                    self.notes.append(
                        f"{wanted:.1f} dB would take the noise of single frames: {psnr:.1f} dB is what pays"
                    )
                    break
            slope += float(np.clip(miss / min(gradient, -2.0), -3.0, 3.0))
        self._tell("coding", 1.0)
        self._spend("coding", clock)
        assert best is not None
        self._reached = max(psnr_db for _, psnr_db in tried) if best[0] >= _TOLERANCE_DB else wanted
        return best[2], best[3], best[1]

    def _checks(self, block: Block, pool: ThreadPoolExecutor, fewer: bool = False) -> Callable[[EncodedGroup], float]:
        """What tells the mean PSNR of some of a group's frames in some views, whose originals are drawn once."""
        most = min(2 if fewer else 4, max(block.num_frames, 1))
        frames = ((np.arange(most) + 0.5) * block.num_frames / most).astype(int)
        checks = []
        for k, f in enumerate(frames):
            scene = block.gaussians(int(f))
            # Without the fourth, which is near, the mix is that of the views that scenes are compared by.
            for camera in encoder_cameras(scene, num_views=4, size_px=_CHECK_PX, seed=5 + k)[: 2 if fewer else 3]:
                checks.append((int(f), camera, render(scene, camera, num_threads=self._threads)))

        def psnr_db(group: EncodedGroup) -> float:
            decoded = {int(f): group.decoded.frame(int(f), pool) for f in frames}
            return float(
                np.mean(
                    [
                        covered_psnr_db(a, render(decoded[f], camera, num_threads=self._threads))
                        for f, camera, a in checks
                    ]
                )
            )

        return psnr_db

    def _search_bytes(
        self,
        block: Block,
        fit: Fit,
        measured: Contributions,
        encode: Callable[[float, Fit], tuple[EncodedGroup, _Part]],
    ) -> tuple[EncodedGroup, _Part, float]:
        """The finest slope at which a base and the motion of the groups that use it stay below the bitrate."""
        seconds = block.num_frames / self.rate
        planned = self.options.keep * self.options.group / self.rate
        if self.frames_left is not None:
            planned = min(planned, self.frames_left / self.rate)
        budget = self._budget_of(block).with_scene(seconds, planned)
        slope = self._slope if self._slope is not None else _start(measured, 43.0)
        self._finer = 1.0
        best: tuple[float, EncodedGroup, _Part, float] | None = None
        above: tuple[float, float] | None = None
        for trial in range(10):
            self._tell("coding", trial / 10)
            group, part = encode(slope, fit)
            size = float(group.chunks.size_bytes)
            if size <= budget:
                if best is None or size > best[0]:
                    best = size, group, part, slope
                if size > _WELL_USED * budget:
                    break
            elif above is None or size < above[0]:
                above = size, slope
            if best and above:
                share = np.log(_AIM * budget / best[0]) / np.log(above[0] / best[0])
                slope = best[3] + float(np.clip(share, 0.05, 0.95)) * (above[1] - best[3])
            else:
                slope += float(np.clip(2.0 * np.log2(size / (_AIM * budget)), -4.0, 4.0))
        if best is None:
            raise ParameterError(
                f"a group does not fit {max(budget, 0):.0f} bytes; the smallest tried has "
                f"{above[0] if above else 0:.0f}",
                field="target_bitrate",
            )
        return best[1], best[2], best[3]

    def _spend(self, stage: str, since: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - since

    # ------------------------------------------------------------------------------------------------- motion

    def _motion(
        self, fit: Fit, parts: Sequence[_Part], number: int, pool: ThreadPoolExecutor, finer: float = 1.0
    ) -> EncodedGroup:
        """Code what the frames of a fit add to the parts of a base.

        Args:
            finer: steps over those that the base has for the same attributes.
        """
        frames = len(fit.offsets)
        tiles = [tile for part in parts for tile in part.tiles]
        ids = [rows for part in parts for rows in part.ids]
        degree = parts[0].encoded.parameters.sh_degree
        base = Base(degree, tiles)
        order = np.argsort(fit.ids)

        def rows_of(who: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
            """Rows of the fit, and whether each Gaussian is in this group at all."""
            if not len(order):
                return np.zeros(len(who), np.int64), np.zeros(len(who), bool)
            at = np.minimum(np.searchsorted(fit.ids, who, sorter=order), len(order) - 1)
            return order[at], fit.ids[order[at]] == who

        found = [rows_of(who) for who in ids]
        sources = [_Tracks.of(fit, rows, here, tile, self.tuning) for (rows, here), tile in zip(found, tiles)]
        bias = max((-source.lowest for source in sources), default=0)
        position_step = float(np.float32(2.0**-bias * _POSITION_FACTOR * finer * self.tuning.size_base * np.sqrt(2.0)))
        turn_step = float(np.float32(0.5 * _TURN_FACTOR * finer * self.tuning.size_base))
        exponents = [track_exponents(tile.coded.values, tile.parameters, bias) for tile in tiles]
        scale = np.zeros(TRACKS)
        scale[POSITION], scale[TURN] = 1.0 / position_step, 1.0 / turn_step
        scale[[SIZE, OPACITY_TRACK, COLOR, SH]] = 1.0 / finer  # in base units already
        events = [source.events(tile) for source, tile in zip(sources, tiles)]
        shapes, coefficients, masks = _choose_tracks(sources, exponents, scale, frames, degree, parts[0].coherence)
        # Shapes that are so much smaller make the steps of what is in base units finer, too.
        for track in (SIZE, OPACITY_TRACK, COLOR, SH):
            shapes[track] = np.rint(shapes[track] * finer).astype(np.int64)
        counts = np.array([len(s) for s in shapes])
        weights = _fit_weights(coefficients, masks, tiles, counts, degree, [f[0] for f in found], fit)
        parameters = MotionParameters(
            frames, degree, shapes, fit.nodes.pivots, fit.nodes.turns, fit.nodes.shifts, position_step, turn_step,
            fit.nodes.step, bias, any(e.rows for e in events), weights,
            np.zeros((int(counts.sum()), CELLS), np.uint8),
        )  # fmt: skip
        motions: list[TileMotion] = []
        loops: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        histogram = np.zeros((CELLS * max(int(counts.sum()), 1), ALPHABET), np.int64)
        for k, ((rows, here), tile) in enumerate(zip(found, tiles)):
            motion = TileMotion.still(len(tile), parameters, len(events[k].rows))
            events[k].put(motion)
            motion.masks = masks[k]
            motion.nodes = np.where(here, fit.nodes.assignment[rows] if len(fit.ids) else 0, 0).astype(np.int32)
            motion.births = np.where(here, fit.births[rows] if len(fit.ids) else 0, 0).astype(np.int32)
            motion.deaths = np.where(here, fit.deaths[rows] if len(fit.ids) else 0, 0).astype(np.int32)
            magnitudes, residuals = np.zeros_like(motion.coefficients), np.zeros_like(motion.coefficients)
            dead = np.full((len(tile), TRACKS), _DEAD)
            dead[:, TURN] = _DEAD / np.clip(sources[k].shows, 0.25, 1.0)
            quantize_tracks(
                parameters.counts, parameters.components, parameters.columns, weights, tile.coded.neighbors,
                exponents[k], motion.nodes, motion.masks, coefficients[k], dead, motion.coefficients, magnitudes,
                residuals, histogram,
            )  # fmt: skip
            motions.append(motion)
            loops.append((magnitudes, residuals))
        parameters.maps, parameters.table_weights = _contexts(histogram, counts)
        chunks = [chunk for part in parts if part.group == number for chunk in part.encoded.chunks]
        own_bits = sum(8.0 * len(chunk.payload) for chunk in chunks)
        shared = parameters.to_bytes()
        chunks.append(Chunk("MOTN", shared))
        spent: Floats = np.zeros(4 + TRACKS)
        for k, tile in enumerate(tiles):
            payload, bits = encode_trajectories(parameters, motions[k], *loops[k], exponents[k], tile.coded.neighbors)
            spent += bits
            chunks.append(Chunk("TRAJ", payload, level=1, tile=tile.number, count=len(tile)))
        names = ("nodes", "lives", "events", "tracks", "position", "turn", "size", "opacity", "color", "sh")
        rate_bits = {f"motion {name}": float(bits) for name, bits in zip(names, spent)}
        rate_bits["motion parameters"] = 8.0 * len(shared)
        rate_bits["base"] = own_bits
        own = sum(len(tile) for part in parts if part.group == number for tile in part.tiles)
        features = ("lossy-1",) if any(part.group == number for part in parts) else ()
        coded = GroupChunks(
            chunks, frames, MOTION, own, uses=None if parts[0].group == number else parts[0].group, features=features
        )
        return EncodedGroup(coded, MotionGroup(base, parameters, motions), rate_bits)


def _start(measured: Contributions, wanted_db: float) -> float:
    """A slope to begin with: about that of still scenes of the same PSNR."""
    pixels = max(float(measured.sum_weight.sum()), 1.0)
    active = max(float((measured.hits > 0).sum()), 1.0)
    return float(np.log2(0.6 * np.sqrt(max(10 ** (-wanted_db / 10) * 3 * pixels, 1e-30) / active)))


def _motion_bytes(group: EncodedGroup) -> int:
    return sum(len(chunk.payload) for chunk in group.chunks.chunks if chunk.type in ("MOTN", "TRAJ"))


def _some(c: Contributions, rows: npt.NDArray[np.int64]) -> Contributions:
    """Contributions of some Gaussians."""
    names = ("max_weight", "sum_weight", "sum_weight2", "hits", "s_logalpha", "s_position", "s_cov", "pixel_size")
    return replace(c, **{name: getattr(c, name)[rows] for name in names})


def _concatenated(scenes: Sequence[Gaussians]) -> Gaussians:
    names = ("means", "quats", "scales", "opacities", "sh0", "shN")
    return scenes[0].replaced(**{name: np.concatenate([getattr(scene, name) for scene in scenes]) for name in names})


def _rows_replaced(
    scene: Gaussians, rows: npt.NDArray[np.bool_], other: Gaussians, at: npt.NDArray[np.int64]
) -> Gaussians:
    """`scene` with `rows` from the rows `at` of another."""
    changed = {}
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        values = getattr(scene, name).copy()
        values[rows] = getattr(other, name)[at]
        changed[name] = values
    return scene.replaced(**changed)


@dataclass
class _Events:
    """Changes for good of a tile, in the order of its Gaussians and of time."""

    rows: list[int]
    frames: list[int]
    tracks: list[int]
    deltas: list[npt.NDArray[np.int64]]

    def put(self, motion: TileMotion) -> None:
        """Write them into a motion that has room for them."""
        if not self.rows:
            return
        motion.event_starts[1:] = np.cumsum(np.bincount(self.rows, minlength=len(motion.nodes)))
        motion.event_frames[:], motion.event_tracks[:] = self.frames, self.tracks
        for k, delta in enumerate(self.deltas):
            motion.event_deltas[k, : len(delta)] = delta


@dataclass
class _Tracks:
    """What a tile's Gaussians do, in base units before steps.

    Attributes:
        values: of each track (F, n, components) float32; position and turn in world units and tangents.
        lowest: least of position exponents with bias 0.
        jumps: of opacity, colour and SH (n,) frames, see `Fit`.
        shows: (n,) how much a step of a turn shows over a step of size: of what is round nothing.
        here: (n,) whether each is in the group. present: (F, n) and in the frame; all of what is never here.
    """

    values: list[npt.NDArray[np.float32]]
    lowest: int
    here: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_]
    shows: Floats
    jumps: tuple[npt.NDArray[np.int32], ...] = ()

    @classmethod
    def of(
        cls, fit: Fit, rows: npt.NDArray[np.int64], here: npt.NDArray[np.bool_], tile: BaseTile, tuning: Tuning
    ) -> _Tracks:
        p = tile.parameters
        frames, n = len(fit.offsets), len(tile)
        components = track_components(p.sh_degree)
        values: list[npt.NDArray[np.float32]] = []
        streams = tile.coded.values
        if not len(fit.ids):
            values = [np.zeros((frames, n, c), np.float32) for c in components]
            return cls(values, 0, here, np.ones((frames, n), bool), np.ones(n))
        values.append(fit.offsets[:, rows])
        values.append(fit.turns[:, rows])
        # Growth along the axes of the decoded Gaussian, which may be in another order or turned where they are alike.
        own = rotation_matrices(unit_quats(tile.quats))
        original = rotation_matrices(unit_quats(fit.still.quats[rows]))
        overlap = np.einsum("nji,njk->nik", own, original) ** 2
        ranks = np.argsort(tile.scales, axis=1, kind="stable")
        overlap = np.take_along_axis(overlap, ranks[:, :, None], axis=1).astype(np.float32)
        unit = 1024.0 / np.log(2.0) / p.size_step
        values.append(np.einsum("nik,fnk->fni", overlap, fit.growth[:, rows]) * np.float32(unit))
        octaves = -np.log2(np.clip(fit.alphas[:, rows], 2.0**-12, 4095 / 4096))
        still = -np.log2(np.clip(fit.still.alphas()[rows].astype(np.float64), 2.0**-12, 4095 / 4096))
        values.append(((octaves - still) * (1024.0 / p.opacity_step)).astype(np.float32)[..., None])
        to_color = (np.linalg.inv(p.color_basis / MATRIX_SCALE) / p.color_step).astype(np.float32)
        values.append((fit.sh0[:, rows] - fit.still.sh0[rows, 0]) @ to_color.T)
        if p.sh_degree:
            to_band = np.linalg.inv(p.sh_band_basis / MATRIX_SCALE) / p.sh_step
            to_tint = np.linalg.inv(p.sh_color_basis / MATRIX_SCALE)
            change = np.empty((frames, n, components[SH]), np.float32)
            out = np.empty((components[SH], n), np.float32)
            every = np.arange(n)
            for f in range(frames):
                project_sh(fit.shN[f, rows] - fit.still.shN[rows], every, to_tint, to_band, out)
                change[f] = out.T
            values.append(change)
        else:
            values.append(np.zeros((frames, n, 0), np.float32))
        sizes = streams[:, SIZE_FIRST : SIZE_FIRST + 3].astype(np.int64).sum(1) * p.size_step
        lowest = int((sizes // 3072 + streams[:, 0]).min()) if n else 0
        for track in values:
            track[:, ~here] = 0.0
        jumps = tuple(np.where(here, jump[rows], 0).astype(np.int32) for jump in fit.jumps)
        # Turning a Gaussian changes its covariance, in units of itself, by the angle times this.
        spread = np.clip((tile.scales.max(1) - tile.scales.min(1)).astype(np.float64), 0.0, 20.0)
        shows = np.clip(2.0 * np.sinh(spread) / _ELONGATION, 0.05, 4.0)
        return cls(values, lowest, here, fit.present[:, rows] | ~here, shows, jumps)

    def events(self, tile: BaseTile) -> _Events:
        """Changes for good as events, which are taken out of the values."""
        found: list[tuple[int, int, int, npt.NDArray[np.int64]]] = []
        for track, jump in zip((OPACITY_TRACK, COLOR, SH), self.jumps):
            exponents = tile.coded.values[:, 0 if track == OPACITY_TRACK else 1] + 1
            values = self.values[track]
            for row in np.flatnonzero(jump):
                frame = int(jump[row])
                change = values[frame:, row].mean(0) - values[:frame, row].mean(0)
                steps = np.rint(change / 2.0 ** int(exponents[row])).astype(np.int64)
                if np.abs(steps).max(initial=0) < _EVENT_STEPS:
                    continue
                delta = np.clip(steps << int(exponents[row]), -_MOST_DELTA, _MOST_DELTA)
                delta = delta >> int(exponents[row]) << int(exponents[row])
                values[frame:, row] -= delta
                found.append((int(row), frame, track, delta))
        found.sort(key=lambda event: event[:3])
        return _Events([e[0] for e in found], [e[1] for e in found], [e[2] for e in found], [e[3] for e in found])


def _choose_tracks(
    sources: list[_Tracks],
    exponents: list[npt.NDArray[np.int32]],
    scale: Floats,
    frames: int,
    degree: int,
    coherence: float,
) -> tuple[list[npt.NDArray[np.int64]], list[Floats], list[npt.NDArray[np.int32]]]:
    """Shapes of all tracks, coefficients (n, C) of all Gaussians in base units, and which tracks each has.

    A Gaussian has a track where that is worth its bits for itself. Colours may also drift together, by less than a
    step of each: then all of a region have the track, and follow each other by prediction at next to no cost.
    """
    components = track_components(degree)
    candidates: list[tuple[npt.NDArray[np.int64], Floats]] = []
    shared: list[npt.NDArray[np.float32]] = []
    for track in range(TRACKS):
        paths = _paths(sources, exponents, scale, track) if components[track] and frames > 1 else []
        drifts = (
            [_shared(path, e[:, track], components[track]) for path, e in zip(paths, exponents)]
            if track == COLOR
            else []
        )
        shared = drifts or shared
        shows = [source.shows if track == TURN else np.ones(len(source.shows)) for source in sources]
        candidates.append(
            _shapes_of(paths, frames, drifts, components[track], coherence, shows)
            if paths
            else (np.zeros((0, frames), np.int64), np.zeros(0))
        )
    # What is worth most, whichever track it is of.
    worths = np.sort(np.concatenate([worth for _, worth in candidates]))[::-1]
    least = worths[_MOST_SHAPES - 1] if len(worths) >= _MOST_SHAPES else -np.inf
    shapes: list[npt.NDArray[np.int64]] = []
    columns: list[list[Floats]] = [[] for _ in sources]
    masks = [np.zeros(len(source.here), np.int32) for source in sources]
    for track, (candidate, worth_of) in enumerate(candidates):
        found = candidate[worth_of >= least]
        paths = _paths(sources, exponents, scale, track) if len(found) else []
        basis = found / SHAPE_ONE
        root = np.sqrt(_frame_weights(frames))
        # coefficients = paths @ solve
        solve = root[:, None] * np.linalg.pinv(basis * root) if len(found) else basis.T
        for k, (path, e) in enumerate(zip(paths, exponents)):
            c: Floats = path @ solve
            _mend(c, path, sources[k].present, basis, components[track])
            c = c.reshape(-1, components[track], len(found)).transpose(0, 2, 1)  # (n, J, components)
            shown = sources[k].shows[:, None, None] if track == TURN else np.float64(1.0)
            worth = _worth(c, shown).sum((1, 2)) - _PRICE * _BITS_A_TRACK > 0
            if track == COLOR and len(found):
                drift = shared[k] @ solve
                drift = drift.reshape(-1, components[track], len(found)).transpose(0, 2, 1)
                together = _drifts((drift * drift).sum((1, 2)), coherence) & ~worth
                c[together] = drift[together]
                worth |= together
            masks[k] |= worth.astype(np.int32) << track
            c = c * np.exp2(e[:, track].astype(np.float64))[:, None, None]
            columns[k].append(c.reshape(len(c), -1))
        shapes.append(found)
    stacked = [
        np.ascontiguousarray(np.concatenate(column, axis=1)) if column else np.zeros((len(source.here), 0))
        for column, source in zip(columns, sources)
    ]
    return shapes, stacked, masks


def _frame_weights(frames: int) -> Floats:
    """(F,) how much errors of each frame count, 1 on average.

    Shapes are like polynomials of a low degree. With equal weights those are largest at both ends, and so is what
    rounding of their coefficients does; with these weights they are like Chebyshev's, the same size everywhere.
    """
    x = (2.0 * np.arange(frames) + 1.0) / frames - 1.0
    weights = (1.0 - x * x) ** -0.5
    return weights / weights.mean()


def _paths(
    sources: list[_Tracks], exponents: list[npt.NDArray[np.int32]], scale: Floats, track: int
) -> list[npt.NDArray[np.float32]]:
    """Of each tile (n * components, F) what a track does, in steps, a row a component."""
    paths = []
    for source, e in zip(sources, exponents):
        steps = (scale[track] / np.exp2(e[:, track].astype(np.float64))).astype(np.float32)
        values = source.values[track] * steps[None, :, None]
        paths.append(np.ascontiguousarray(values.transpose(1, 2, 0)).reshape(-1, len(values)))
    return paths


def _shared(path: npt.NDArray[np.float32], e: npt.NDArray[np.int32], components: int) -> npt.NDArray[np.float32]:
    """What the neighbours of each Gaussian do on average, in its own steps: (n * components, F), as `path`."""
    n = len(e)
    if not n:
        return path
    own = np.exp2(e.astype(np.float64))[:, None]
    weights = own**-2.0
    values = path.reshape(n, -1) * own * weights
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    total = np.concatenate([[0.0], np.cumsum(weights[:, 0])])
    # Coding order is along a curve that fills the space: neighbours in it are neighbours.
    low = np.maximum(np.arange(n) - _REGION // 2, 0)
    high = np.minimum(low + _REGION, n)
    low = np.maximum(high - _REGION, 0)
    mean = (sums[high] - sums[low]) / (total[high] - total[low])[:, None]
    return (mean / own).astype(np.float32).reshape(path.shape)


def _drifts(squares: Floats, coherence: float) -> npt.NDArray[np.bool_]:
    """(n,) whether what a region shares, `squares` of its steps, shows for more than the bits it takes."""
    n = len(squares)
    if not n:
        return np.zeros(0, bool)
    gain = coherence * squares - _PRICE * _BITS_TO_FOLLOW
    starts = np.arange(0, n, _REGION)
    return np.repeat(np.add.reduceat(gain, starts) > 0, np.diff(np.append(starts, n)))


def _mend(
    c: Floats, path: npt.NDArray[np.float32], present: npt.NDArray[np.bool_], basis: Floats, components: int
) -> None:
    """Fit the coefficients (n * components, J) of rows that are not always there to the frames in which they are."""
    partial = np.flatnonzero(~present.all(0))
    ridge = 1e-3 * np.eye(len(basis)) * basis.shape[1]
    for a in range(0, len(partial), 1 << 12):
        rows = partial[a : a + (1 << 12)]
        seen = present[:, rows].T * _frame_weights(basis.shape[1])
        normal = np.einsum("nf,jf,kf->njk", seen, basis, basis, optimize=True) + ridge
        at = rows[:, None] * components + np.arange(components)
        right = np.einsum("nf,ncf,jf->njc", seen, path[at].astype(np.float64), basis, optimize=True)
        c[at] = np.linalg.solve(normal, right).transpose(0, 2, 1)


def _worth(c: Floats, shows: Floats | np.float64) -> Floats:
    """What coding each coefficient (in steps) saves of squared error, less the price of its bits.

    Args:
        shows: how much an error of a step shows over what a step should.
    """
    size = np.abs(c)
    gain = np.maximum(c * c - 1.0 / 12.0, 0.0) * shows**2 - _PRICE * (2.0 + 1.7 * np.log2(1.0 + size))
    return np.where(size >= _DEAD, gain, -_PRICE * 0.5)


def _shapes_of(
    paths: Sequence[npt.NDArray[np.float32]],
    frames: int,
    shared: Sequence[npt.NDArray[np.float32]],
    components: int,
    coherence: float,
    shows: Sequence[Floats],
) -> tuple[npt.NDArray[np.int64], Floats]:
    """(J, F) shapes that pay, and what each is worth: principal components of paths in steps.

    Over the frames, as they are weighted, they have a mean square of 1, and are in 1/4096.
    """
    weights = _frame_weights(frames)
    root = np.sqrt(weights)
    moment = np.zeros((frames, frames))
    for path, shown in zip(paths, shows):
        weighted = path * np.repeat(shown, components).astype(np.float32)[:, None]
        moment += (weighted.T @ weighted).astype(np.float64)
    for path in shared:
        moment += coherence * (path.T @ path).astype(np.float64)
    moment *= root[:, None] * root
    if not moment.any():
        return np.zeros((0, frames), np.int64), np.zeros(0)
    _, vectors = np.linalg.eigh(moment / np.abs(moment).max())
    found, worths = [], []
    price = _PRICE * _BITS_A_SHAPE * frames
    for vector in vectors[:, ::-1][:, : min(_MOST_SHAPES // 2, frames)].T:
        shape = vector / root * np.sqrt(frames) * np.sign(vector[np.abs(vector).argmax()])
        exact = (shape * weights / frames).astype(np.float32)
        worth = (
            sum(
                float(np.maximum(_worth(path @ exact, np.repeat(w, components)), 0.0).sum())
                for path, w in zip(paths, shows)
            )
            - price
        )
        for path in shared:
            squares = ((path @ exact).astype(np.float64) ** 2).reshape(-1, components).sum(1)
            worth += float((coherence * squares - _PRICE * _BITS_TO_FOLLOW)[_drifts(squares, coherence)].sum())
        if worth > 0:
            found.append(np.rint(shape * SHAPE_ONE).astype(np.int64))
            worths.append(worth)
    return np.array(found, np.int64).reshape(len(found), frames), np.array(worths)


def _fit_weights(
    coefficients: list[Floats],
    masks: list[npt.NDArray[np.int32]],
    tiles: list[BaseTile],
    counts: npt.NDArray[np.int64],
    degree: int,
    rows: list[npt.NDArray[np.int64]],
    fit: Fit,
) -> npt.NDArray[np.int64]:
    """(S,) weight of the neighbours' mean in each shape's prediction, by least squares on uncoded coefficients."""
    components = track_components(degree)
    weights = []
    at = 0
    for track in range(TRACKS):
        for _ in range(int(counts[track])):
            columns = slice(at, at + components[track])
            at += components[track]
            cross = square = 0.0
            for c, mask, tile, row in zip(coefficients, masks, tiles, rows):
                has = (mask >> track) & 1 == 1
                near = tile.coded.neighbors
                nodes = fit.nodes.assignment[row] if len(fit.ids) else np.zeros(len(row), np.int32)
                with_track = has[near] & (near >= 0) & (nodes[near] == nodes[:, None])
                total = with_track.sum(1)
                chosen = np.flatnonzero(has & (total > 0))
                if not len(chosen):
                    continue
                values = c[:, columns]
                mean = (values[near[chosen]] * with_track[chosen, :, None]).sum(1) / total[chosen, None]
                cross += float((mean * values[chosen]).sum())
                square += float((mean * mean).sum())
            weights.append(int(np.clip(np.rint(4096 * cross / square), 0, 8192)) if square > 0 else 0)
    return np.array(weights, np.int64)


def _contexts(
    histogram: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Context maps (S, 32) and table weights; cells are merged within a track."""
    maps, tables = [], []
    at = first = 0
    for count in counts:
        if not count:
            continue
        cells = histogram[at : at + CELLS * count]
        at += CELLS * int(count)
        context_map, merged = cluster_contexts(cells, 32)
        maps.append(context_map.astype(np.int64) + first)
        tables += [quantize_weights(row) for row in merged]
        first += len(merged)
    if not tables:
        return np.zeros((0, CELLS), np.uint8), quantize_weights(np.ones(ALPHABET))[None]
    return np.concatenate(maps).astype(np.uint8).reshape(-1, CELLS), np.stack(tables)


assert (COLOR_FIRST, SH_FIRST, OPACITY) == (9, 12, 8)
