"""What a group of frames has in common: rigid nodes, one still scene, and what each frame adds to it.

Nothing here is needed to decode. Frames come as a `Block`: the same rows in every frame, with a mark for those that are
there. The fit is to all frames at once, so that noise of single frames is averaged out of the still scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians, unit_quats
from ..sh_rotation import turned_sh
from ..stages.transform import rotation_matrices

__all__ = ["Block", "Fit", "Nodes", "fill_absent", "find_nodes", "fit_block", "quat_product"]

Floats = npt.NDArray[np.float64]
_SAMPLES = 8  # frames that nodes are looked for in
_REFINEMENTS = 12
_FOLLOWS = 2.5  # times the noise of a row's own path that it may be away from a node's motion
_NODE_STEP = 1 / 16  # of a Gaussian's size, see `Nodes.quantized`
_ALPHA_SEEN = 1.0 / 255.0
# A change for good of opacity, colour or SH is looked at from this size on, if it explains so much of the variance.
_LEAST_JUMPS = (0.1, 0.15, 0.2)
_JUMP_SHARE = 0.85


@dataclass
class Block:
    """The frames of a group, row by row the same Gaussians.

    Attributes:
        ids: (M,) int64 who each row is, over all groups.
        means, quats, scales, opacities, sh0, shN: (F, M, ...) float32, as in Gaussians; unit quaternions.
        present: (F, M) bool: which are there.
    """

    ids: npt.NDArray[np.int64]
    means: npt.NDArray[np.float32]
    quats: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    opacities: npt.NDArray[np.float32]
    sh0: npt.NDArray[np.float32]
    shN: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.means)

    def __len__(self) -> int:
        return self.means.shape[1]

    @classmethod
    def of(cls, frames: list[tuple[npt.NDArray[np.int64], Gaussians]]) -> Block:
        """Frames of Gaussians with the number of each; rows too faint to be drawn are not there.

        Args:
            frames: of each frame (n,) who each row is, no number twice, and finite Gaussians.
        """
        ids = frames[0][0]
        if not all(np.array_equal(ids, other) for other, _ in frames[1:]):
            ids = np.unique(np.concatenate([other for other, _ in frames]))
        count, size = len(frames), len(ids)
        bands = frames[0][1].shN.shape[1]
        shapes = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "sh0": (3,), "shN": (bands, 3)}
        arrays = {name: np.zeros((count, size, *shape), np.float32) for name, shape in shapes.items()}
        arrays["quats"][..., 0] = 1.0
        present = np.zeros((count, size), bool)
        for f, (rows, frame) in enumerate(frames):
            at = slice(None) if rows is ids or np.array_equal(rows, ids) else np.searchsorted(ids, rows)
            for name, array in arrays.items():
                values = unit_quats(frame.quats) if name == "quats" else getattr(frame, name)
                array[f, at] = values[:, 0] if name == "sh0" else values
            present[f, at] = frame.alphas() >= _ALPHA_SEEN
        seen = present.any(0)
        if not seen.all():
            ids, present = ids[seen], present[:, seen]
            arrays = {name: array[:, seen] for name, array in arrays.items()}
        return cls(ids, present=present, **arrays)

    def gaussians(self, frame: int) -> Gaussians:
        """All rows as they are in a frame; those that are not there have no opacity."""
        hidden = np.where(self.present[frame], self.opacities[frame], np.float32(-20.0))
        return Gaussians(
            self.means[frame], self.quats[frame], self.scales[frame], hidden, self.sh0[frame][:, None], self.shN[frame]
        )

    def lives(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(M,) first frame, and the frame after the last, that each row is there in."""
        births = self.present.argmax(0).astype(np.int32)
        deaths = (self.num_frames - self.present[::-1].argmax(0)).astype(np.int32)
        return births, deaths


def fill_absent(values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(F, M, ...) values where rows that are not there have those of the nearest earlier frame, or else later one."""
    partial = np.flatnonzero(~present.all(0))
    if not len(partial):
        return values
    present = present[:, partial]
    frames = np.arange(len(present))[:, None]
    earlier = np.maximum.accumulate(np.where(present, frames, -1), axis=0)
    later = np.minimum.accumulate(np.where(present, frames, len(present))[::-1], axis=0)[::-1]
    source = np.where(earlier >= 0, earlier, np.minimum(later, len(present) - 1))
    filled = values.copy()
    filled[:, partial] = values[source, partial[None]]
    return filled


def quat_product(a: Floats, b: Floats) -> Floats:
    """Products of quaternions, w x y z in the last axis."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def _matrix(quat: Floats) -> Floats:
    """(3, 3) rotation of a unit quaternion."""
    return rotation_matrices(quat[None])[0]  # type: ignore[arg-type]


def _conjugate(q: Floats) -> Floats:
    return q * np.array([1.0, -1.0, -1.0, -1.0])


@dataclass
class Nodes:
    """Rigid motions that many Gaussians share.

    Attributes:
        assignment: (M,) int32, 0 = none, k + 1 = node k.
        pivots: (K, 3) int64. turns: (K, 4, F) int64 in 1/65536. shifts: (K, 3, F) int64. As in `MotionParameters`.
        step: world units of pivots and shifts, a float32 value.
    """

    assignment: npt.NDArray[np.int32]
    pivots: npt.NDArray[np.int64]
    turns: npt.NDArray[np.int64]
    shifts: npt.NDArray[np.int64]
    step: float

    @classmethod
    def none(cls, count: int, num_frames: int, step: float = 1.0) -> Nodes:
        """No nodes for `count` rows."""
        return cls(
            np.zeros(count, np.int32), np.zeros((0, 3), np.int64), np.zeros((0, 4, num_frames), np.int64),
            np.zeros((0, 3, num_frames), np.int64), float(np.float32(step)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.pivots)

    def quats(self, node: int) -> Floats:
        """(F, 4) unit quaternions of node k."""
        q = self.turns[node].T.astype(np.float64)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    def unmove(self, node: int, frame: int, points: Floats) -> Floats:
        """Where points of a frame were before the node moved them."""
        matrix = _matrix(self.quats(node)[frame])
        pivot = self.pivots[node] * self.step
        return (points - pivot - self.shifts[node, :, frame] * self.step) @ matrix + pivot


def _rigid(source: Floats, target: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Rotation R and shift t with target = R source + t in weighted least squares (Kabsch 1976)."""
    total = max(float(weights.sum()), 1e-300)
    a, b = (weights @ source) / total, (weights @ target) / total
    u, _, vt = np.linalg.svd(((source - a) * weights[:, None]).T @ (target - b))
    flip = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(vt.T @ u.T)) or 1.0)])
    rotation = vt.T @ flip @ u.T
    return rotation, b - rotation @ a


def _quat_of(matrix: Floats) -> Floats:
    """The unit quaternion of a rotation matrix (Shepperd 1978), w x y z."""
    trace = np.trace(matrix)
    diagonal = np.array([trace, *np.diag(matrix)])
    k = int(diagonal.argmax())
    q = np.empty(4)
    if k == 0:
        q[:] = (
            1.0 + trace, matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]
        )  # fmt: skip
    else:
        i = k - 1
        j, m = (i + 1) % 3, (i + 2) % 3
        q[0] = matrix[m, j] - matrix[j, m]
        q[1 + i] = 1.0 + matrix[i, i] - matrix[j, j] - matrix[m, m]
        q[1 + j] = matrix[j, i] + matrix[i, j]
        q[1 + m] = matrix[m, i] + matrix[i, m]
    return q / np.linalg.norm(q)


def find_nodes(
    block: Block,
    reference: npt.NDArray[np.float32],
    moves: npt.NDArray[np.bool_],
    fixed: npt.NDArray[np.bool_],
    most: int = 16,
    seed: int = 0,
) -> Nodes:
    """Rigid motions in a block, largest first, each with the rows that follow it.

    Patches of moving neighbours propose motions; one that many others follow too, within the noise of their own paths,
    is refined on all of them and becomes a node.

    Args:
        reference: (M, 3) where each row is before nodes move it.
        moves: (M,) which rows move at all.
        fixed: (M,) for which rows `reference` holds; of others it is a guess while they are not there.
        most: nodes at most.
    """
    frames, count = block.num_frames, len(block)
    sizes = np.exp(np.minimum(block.scales.mean((0, 2)), 80.0).astype(np.float64))
    step = float(np.float32(np.maximum(np.quantile(sizes, 0.1) if count else 1.0, 1e-12) * _NODE_STEP))
    nodes = Nodes.none(count, frames, step)
    pool = np.flatnonzero(moves)
    least = max(24, count // 200)
    if len(pool) < least or frames < 2:
        return nodes
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    samples = np.unique(np.linspace(0, frames - 1, min(frames, _SAMPLES)).round().astype(int))
    paths = fill_absent(block.means, block.present)
    source = reference.astype(np.float64)
    tolerance = _noise_of(paths, sizes)
    pivots: list[npt.NDArray[np.int64]] = []
    turns: list[npt.NDArray[np.int64]] = []
    shifts: list[npt.NDArray[np.int64]] = []
    failures = 0
    tree = cKDTree(source[pool])
    alive = np.ones(len(pool), bool)  # not yet in a node
    free, rests, sampled, shown = pool, source[pool], paths[np.ix_(samples, pool)], block.present[np.ix_(samples, pool)]
    while alive.sum() >= least and len(pivots) < most and failures < 24:
        start = int(rng.choice(np.flatnonzero(alive)))
        near = tree.query(source[pool[start]], k=min(48, len(pool)))[1]
        patch = pool[near[alive[near]]]
        if len(patch) < 8:
            failures += 1
            continue
        members = patch
        for _ in range(_REFINEMENTS):
            weights = block.present[:, members] / tolerance[members] ** 2
            motions = {
                int(f): _rigid(source[members], paths[f, members].astype(np.float64), weights[f]) for f in samples
            }
            error = np.zeros(len(free))
            for k, (rotation, shift) in enumerate(motions.values()):
                away = rests @ rotation.T + shift - sampled[k]
                error += np.where(shown[k], np.einsum("nk,nk->n", away, away), 0.0)
            seen = shown.sum(0)
            close = np.sqrt(error / np.maximum(seen, 1)) < _FOLLOWS * tolerance[free]
            followers = free[close & (seen > 0)]
            settled = len(followers) < 8 or np.array_equal(followers, members)
            members = followers
            if settled:
                break
        if len(members) < least:
            failures += 1
            continue
        failures = 0
        weights = block.present[:, members] / tolerance[members] ** 2
        pivot: npt.NDArray[np.int64] = np.rint(source[members].mean(0) / step).astype(np.int64)
        turn, moves_by = np.zeros((4, frames), np.int64), np.zeros((3, frames), np.int64)
        last = np.array([1.0, 0.0, 0.0, 0.0])
        for f in range(frames):
            rotation, moved = _rigid(source[members], paths[f, members].astype(np.float64), weights[f])
            quat = _quat_of(rotation)
            quat = quat if quat @ last >= 0 else -quat
            last = quat
            turn[:, f] = np.rint(quat * 65536)
            exact = _matrix(quat)
            moves_by[:, f] = np.rint((exact @ (pivot * step) + moved - pivot * step) / step).astype(np.int64)
        nodes.assignment[members] = len(pivots) + 1
        pivots.append(pivot)
        turns.append(turn)
        shifts.append(moves_by)
        stays = ~np.isin(free, members)
        alive[np.isin(pool, members)] = False
        free, rests, sampled, shown = free[stays], rests[stays], sampled[:, stays], shown[:, stays]
    if pivots and max(int(np.abs(part).max()) for part in (*pivots, *shifts)) < 1 << 28:
        nodes.pivots, nodes.turns, nodes.shifts = np.array(pivots), np.array(turns), np.array(shifts)
        _adopt(nodes, block, source, fixed, paths, tolerance)
    else:
        nodes.assignment[:] = 0
    return nodes


def _adopt(
    nodes: Nodes,
    block: Block,
    reference: Floats,
    fixed: npt.NDArray[np.bool_],
    paths: npt.NDArray[np.float32],
    tolerance: Floats,
) -> None:
    """Choose nodes anew for rows that are not there in all frames: the one in whose own frame they rest."""
    rows = np.flatnonzero(~block.present.all(0))
    if not len(rows):
        return
    seen = block.present[:, rows]
    total = seen.sum(0)
    best = np.full(len(rows), _FOLLOWS)
    still = np.where(fixed[rows, None], reference[rows], _weighted(paths[:, rows].astype(np.float64), seen, total))
    nodes.assignment[rows] = 0
    rests = np.sqrt((((paths[:, rows] - still) ** 2).sum(2) * seen).sum(0) / total) / tolerance[rows]
    best = np.minimum(best, rests)  # what rests without a node needs none
    for node in range(len(nodes)):
        back = np.stack([nodes.unmove(node, f, paths[f, rows].astype(np.float64)) for f in range(block.num_frames)])
        still = np.where(fixed[rows, None], reference[rows], _weighted(back, seen, total))
        away = np.sqrt((((back - still) ** 2).sum(2) * seen).sum(0) / total) / tolerance[rows]
        better = away < best
        nodes.assignment[rows[better]] = node + 1
        best[better] = away[better]


def _weighted(values: Floats, seen: npt.NDArray[np.bool_], total: npt.NDArray[np.int64]) -> Floats:
    """(m, 3) means of (F, m, 3) values over the frames that rows are seen in."""
    return (values * seen[..., None]).sum(0) / total[:, None]


def _noise_of(paths: npt.NDArray[np.float32], sizes: Floats) -> Floats:
    """(M,) how far a path is from a smooth one, and at least a share of the Gaussian's size."""
    if len(paths) < 4:
        return 0.05 * sizes
    # The third difference of a smooth path is small; of noise it has 20 times the variance.
    third = np.diff(paths.astype(np.float32), n=3, axis=0)
    noise = np.sqrt((third * third).sum(2).mean(0, dtype=np.float64) / 20.0)
    return np.maximum(noise, 0.05 * sizes)


@dataclass
class Fit:
    """A block as a still scene and what each frame adds to it, in the still scene's own pose.

    Attributes:
        ids: (M,) who each row is.
        still: (M) Gaussians, unit quaternions.
        births, deaths: (M,) int32.
        nodes: which rows move rigidly.
        offsets: (F, M, 3) float32 positions less the still ones, before nodes.
        turns: (F, M, 3) float32 tangents of half angles from the still orientation, before nodes.
        growth: (F, M, 3) float32 log scales less the still ones, by the still scene's axes.
        alphas: (F, M) float32 opacities after the sigmoid.
        sh0, shN: (F, M, ...) float32, before nodes.
        present: (F, M) bool.
        jumps: of opacity, colour and SH (M,) int32: the frame from which on a row has another value for good; 0 = none.
    """

    ids: npt.NDArray[np.int64]
    still: Gaussians
    births: npt.NDArray[np.int32]
    deaths: npt.NDArray[np.int32]
    nodes: Nodes
    offsets: npt.NDArray[np.float32]
    turns: npt.NDArray[np.float32]
    growth: npt.NDArray[np.float32]
    alphas: npt.NDArray[np.float32]
    sh0: npt.NDArray[np.float32]
    shN: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_] = field(repr=False, default_factory=lambda: np.zeros((0, 0), bool))
    jumps: tuple[npt.NDArray[np.int32], ...] = ()


def _mean(values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(M, ...) means over the frames that rows are there in."""
    weights = present.reshape(present.shape + (1,) * (values.ndim - 2))
    total = np.maximum(present.sum(0), 1).reshape(present.shape[1:] + (1,) * (values.ndim - 2))
    return ((values * weights).sum(0, dtype=np.float64) / total).astype(np.float32)


def _jumps(values: npt.NDArray[np.float32], always: npt.NDArray[np.bool_], least: float) -> npt.NDArray[np.int32]:
    """(M,) the frame at which (F, M, C) values change for good, 0 where they do not, or not so much as `least`.

    Two constants must explain nearly all of the variance: of a ramp they explain three quarters, of noise little.
    """
    frames, count, width = values.shape
    found = np.zeros(count, np.int32)
    if frames < 2 or not width or not count:
        return found
    spread = np.ptp(values, axis=0)
    rows = np.flatnonzero(always & (np.sqrt((spread * spread).sum(1)) > least))
    if not len(rows):
        return found
    chosen = values[:, rows].astype(np.float64)
    chosen -= chosen.mean(0)
    before = np.cumsum(chosen, axis=0)[:-1]  # sums of frames below t = 1 .. F - 1; all together are 0
    t = np.arange(1, frames)[:, None]
    gain = (before * before).sum(2) * frames / (t * (frames - t))
    best = gain.argmax(0)
    most = gain[best, np.arange(len(rows))]
    total = (chosen * chosen).sum((0, 2))
    size = np.sqrt(most * frames / ((best + 1) * (frames - best - 1)))
    jumped = (most > _JUMP_SHARE * total) & (size > least)
    found[rows[jumped]] = best[jumped] + 1
    return found


def _before_jumps(
    still: Gaussians,
    jumps: tuple[npt.NDArray[np.int32], ...],
    alphas: npt.NDArray[np.float32],
    sh0: npt.NDArray[np.float32],
    shN: npt.NDArray[np.float32],
) -> Gaussians:
    """`still` with what rows that jump look like until then."""
    opacities, first, rest = still.opacities.copy(), still.sh0.copy(), still.shN.copy()
    for row in np.flatnonzero(jumps[0]):
        alpha = float(np.clip(alphas[: jumps[0][row], row].mean(), 1e-6, 1 - 1e-6))
        opacities[row] = np.log(alpha / (1.0 - alpha))
    for row in np.flatnonzero(jumps[1]):
        first[row, 0] = sh0[: jumps[1][row], row].mean(0)
    for row in np.flatnonzero(jumps[2]):
        rest[row] = shN[: jumps[2][row], row].mean(0)
    return still.replaced(opacities=opacities, sh0=first, shN=rest)


def fit_block(block: Block, nodes: Nodes, still: Gaussians | None = None) -> Fit:
    """The still scene of a block, or what its frames add to one that is given.

    Args:
        nodes: of the block. still: (M) a scene for the same rows; None takes the mean over the frames.
    """
    means, quats, shN = block.means.copy(), block.quats.copy(), block.shN
    if len(nodes) and shN.shape[2]:
        shN = shN.copy()
    for node in range(len(nodes)):
        rows = np.flatnonzero(nodes.assignment == node + 1)
        back = _conjugate(nodes.quats(node))
        for f in range(block.num_frames):
            means[f, rows] = nodes.unmove(node, f, means[f, rows].astype(np.float64))
            quats[f, rows] = quat_product(back[f], quats[f, rows].astype(np.float64))
            if shN.shape[2]:
                shN[f, rows] = turned_sh(shN[f, rows], _matrix(back[f]))
    # Only in a node's own frame what is not there stays where it was.
    means, quats, shN, scales, sh0 = (
        fill_absent(values, block.present) for values in (means, quats, shN, block.scales, block.sh0)
    )
    with np.errstate(over="ignore"):
        alphas = (1.0 / (1.0 + np.exp(-fill_absent(block.opacities, block.present).astype(np.float64)))).astype(
            np.float32
        )
    middle = quats[block.num_frames // 2]
    quats = quats * np.where((quats * middle).sum(2, keepdims=True) < 0, np.float32(-1.0), np.float32(1.0))
    always = np.asarray(block.present.all(0))
    jumps = tuple(
        _jumps(values.reshape(*values.shape[:2], math.prod(values.shape[2:])), always, least)
        for values, least in zip((alphas, sh0, shN), _LEAST_JUMPS)
    )
    if still is None:
        # The opacity that most frames have: fading in or out shall not make the still scene fainter.
        opacity = np.clip(np.nanmedian(np.where(block.present, alphas, np.nan), axis=0), 1e-6, 1 - 1e-6)
        still = Gaussians(
            _mean(means, block.present), unit_quats(_mean(quats, block.present)), _mean(scales, block.present),
            np.log(opacity / (1.0 - opacity)), _mean(sh0, block.present)[:, None], _mean(shN, block.present),
        )  # fmt: skip
        still = _before_jumps(still, jumps, alphas, sh0, shN)
    change = quat_product(quats.astype(np.float64), _conjugate(still.quats.astype(np.float64))[None])
    change *= np.where(change[..., :1] < 0, -1.0, 1.0)
    turns = (change[..., 1:] / np.maximum(change[..., :1], 1e-3)).astype(np.float32)
    births, deaths = block.lives()
    return Fit(
        block.ids, still, births, deaths, nodes, means - still.means, turns, scales - still.scales, alphas, sh0, shN,
        block.present, jumps,
    )  # fmt: skip
