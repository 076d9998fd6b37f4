"""Gaussians in a two-dimensional grid whose neighbours are alike, for coders that think in pictures.

The order of Gaussians is free, so they may be placed as pixels of one grid shared by all attributes, chosen such that
the planes of attributes are smooth. The sort is the parallel one of Morgenstern et al., "Compact 3D Scene
Representation via Self-Organizing Gaussian Grids" (ECCV 2024, arXiv:2312.13299), written from its description: the
grid is blurred with a radius that shrinks from half the grid to one cell; for each radius random groups of four cells
of a block exchange what they hold so that it is nearest to the blurred grid. What is other here: the blur is a box
(theirs is a Gaussian as wide as its window, nearly the same), windows end at the border of the grid, and the last row
may be short, so that nothing is dropped or invented to fill a square.

An ellipsoid has 48 descriptions as quaternion and scales (6 orders of its axes, 4 proper flips, 2 signs of the
quaternion). `smooth_covariances` takes those that make the grid smoothest, `nearest_covariances` those that follow
another frame.

    features -> sort_into_grid -> Grid -> gaussians.selected(grid.order) -> smooth_covariances
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailableError, ParameterError
from ..gaussians import Gaussians, unit_quats
from ..render.kernel import default_num_threads, kernel, run_threaded

__all__ = [
    "DEFAULT_WEIGHTS",
    "Grid",
    "curve_grid",
    "grid_features",
    "grid_width",
    "nearest_covariances",
    "neighbor_distance",
    "smooth_covariances",
    "sort_into_grid",
]

#: What the sort looks at, and how much: Morgenstern et al. weigh positions, base colours and scales alike.
DEFAULT_WEIGHTS: Mapping[str, float] = {"means": 1.0, "sh0": 1.0, "scales": 1.0}
_ATTRIBUTES = ("means", "sh0", "scales", "quats", "opacities", "shN")
_RADIUS_DECAY = 0.95
_LEAST_BLOCK = 16
_LEAST_SHIFTS = 4  # random placements of the blocks tried for each radius, at least
_CHUNK = 2048  # groups of cells a task works on; sums are made in chunks, so threads do not change them
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Grid:
    """Which Gaussian lies where.

    Attributes:
        order: (N,) int64, `order[k]` is the Gaussian of cell k; cells count row by row.
        width: cells of a row; the last row may be short.
    """

    order: npt.NDArray[np.int64]
    width: int

    @property
    def height(self) -> int:
        """Number of rows, with the short one."""
        return -(-len(self.order) // self.width)


def grid_width(count: int, multiple: int = 1) -> int:
    """Width of a nearly square grid of `count` cells, a multiple of `multiple`.

    >>> grid_width(65536), grid_width(45624, 16), grid_width(0)
    (256, 208, 1)
    """
    if count < 0 or multiple < 1:
        raise ParameterError(f"a grid of {count} cells, width a multiple of {multiple}")
    if multiple == 1:
        return math.isqrt(max(count - 1, 0)) + 1
    return max(1, round(math.sqrt(count) / multiple)) * multiple


def grid_features(gaussians: Gaussians, weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> Floats:
    """What `sort_into_grid` compares: each attribute less its mean, over its standard deviation, times its weight.

    Mean and deviation are those of all components of an attribute together, so the proportions of space and colour
    stay. Scales are taken as they are stored (logarithms), opacities after the sigmoid, quaternions normalised.

    Args:
        gaussians: any scene of finite values.
        weights: by name of attribute: means, sh0, scales, quats, opacities, shN. Those not named do not count.

    Returns:
        (N, D) float32.

    Raises:
        ParameterError: an unknown name, a weight below 0, no weight above 0, or a value that is not finite.
    """
    unknown = sorted(set(weights) - set(_ATTRIBUTES))
    if unknown:
        raise ParameterError(f"no attribute {unknown[0]!r} to weigh", hint="known: " + ", ".join(_ATTRIBUTES))
    if any(not (math.isfinite(w) and w >= 0) for w in weights.values()) or not any(weights.values()):
        raise ParameterError("weights must be 0 or more, and one of them above 0", field="weights")
    parts = []
    for name in _ATTRIBUTES:
        if not weights.get(name):
            continue
        if name == "quats":
            values = gaussians.normalized_quats()
        elif name == "opacities":
            values = gaussians.alphas()
        else:
            values = getattr(gaussians, name)
        wide = values.reshape(len(gaussians), math.prod(values.shape[1:])).astype(np.float64)
        if not np.isfinite(wide).all():
            raise ParameterError("the grid sort needs finite values", field=name, hint="use Gaussians.cleaned()")
        if wide.size:
            wide -= wide.mean()
            wide *= weights[name] / (wide.std() or 1.0)
        parts.append(wide)
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)


class _Random:
    """Splitmix64 (Steele et al., 2014): the same numbers for ever, which numpy does not promise."""

    def __init__(self, seed: int) -> None:
        self.state = (seed * 0xD1342543DE82EF95 + 1) & _MASK64

    def below(self, bound: int) -> int:
        """An integer of 0..bound - 1."""
        self.state = (self.state + _GOLDEN) & _MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        return ((z ^ (z >> 31)) * bound) >> 64

    def shuffled(self, count: int) -> npt.NDArray[np.int32]:
        """0..count - 1 in random order."""
        items = np.arange(count, dtype=np.int32)
        _shuffle(items, np.uint64(self.below(1 << 63)))
        return items


@kernel
def _shuffle(items, seed):
    state = seed
    for i in range(len(items) - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        z = state
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
        j = np.int64((z * np.uint64(i + 1)) >> np.uint64(32))
        items[i], items[j] = items[j], items[i]


@kernel
def _blur_rows(start, stop, values, width, radius, sums):
    """Sums of `values` (N, D) over up to 2 radius + 1 cells of a row, for rows start..stop - 1.

    `sums` (rows * width, D) also has the sums around the cells that the last row lacks.
    """
    count, dims = values.shape
    for y in range(start, stop):
        first = y * width
        length = min(width, count - first)
        for d in range(dims):
            total = 0.0
            for x in range(min(radius, length)):
                total += values[first + x, d]
            for x in range(width):
                if x + radius < length:
                    total += values[first + x + radius, d]
                if 0 <= x - radius - 1 < length:
                    total -= values[first + x - radius - 1, d]
                sums[first + x, d] = total


@kernel
def _blur_columns(start, stop, sums, width, radius, target):
    """Means over windows from the sums of `_blur_rows`, for columns start..stop - 1; windows end at the border."""
    count, dims = target.shape
    height = (count + width - 1) // width
    tail = count - (height - 1) * width  # cells of the last row
    total = np.empty(dims)
    for x in range(start, stop):
        left, right = max(x - radius, 0), min(x + radius, width - 1)
        across = right - left + 1
        across_tail = max(min(right, tail - 1) - left + 1, 0)
        total[:] = 0.0
        for y in range(min(radius, height)):
            for d in range(dims):
                total[d] += sums[y * width + x, d]
        for y in range(height if x < tail else height - 1):
            low, high = max(y - radius, 0), min(y + radius, height - 1)
            cells = (high - low + 1) * across
            if high == height - 1:
                cells += across_tail - across
            if y + radius < height:
                for d in range(dims):
                    total[d] += sums[(y + radius) * width + x, d]
            if y > radius:
                for d in range(dims):
                    total[d] -= sums[(y - radius - 1) * width + x, d]
            for d in range(dims):
                target[y * width + x, d] = total[d] / cells


def _blurred(values: Floats, width: int, radius: int, num_threads: int) -> Floats:
    """(N, D) float32 means over windows of 2 radius + 1 cells, as far as the grid has them."""
    height = -(-len(values) // width)
    sums = np.empty((height * width, values.shape[1]), np.float64)
    target = np.empty_like(values)
    rows = [(at, min(at + 32, height), values, width, radius, sums) for at in range(0, height, 32)]
    run_threaded(_blur_rows, rows, num_threads)
    columns = [(at, min(at + 32, width), sums, width, radius, target) for at in range(0, width, 32)]
    run_threaded(_blur_columns, columns, num_threads)
    return target


@kernel
def _exchange(start, stop, task, grid, target, index, shuffled, factor, offset, shape, gains):
    """Let groups start..stop - 1 of four cells exchange what they hold.

    Groups count block by block. The cells of a block's group k are shuffled[(factor (4k + j) + offset) mod M].

    Args:
        grid, target: (N, D) float32. index: (N,) int64.
        shape: width, number of cells N, block width, block height, shift x, shift y, blocks across, grid height.
        gains: (tasks, 2) float64 out: sums of grid . target before and after.
    """
    width, count, across, down = shape[0], shape[1], shape[2], shape[3]
    dims = grid.shape[1]
    size = across * down
    groups = size // 4
    cells = np.empty(4, np.int64)
    best_from = np.empty(4, np.int64)
    held = np.empty((4, dims), np.float32)
    held_index = np.empty(4, np.int64)
    c = np.empty((4, 4), np.float32)
    before = after = 0.0
    for g in range(start, stop):
        block = g // groups
        first = 4 * (g - block * groups)
        left = (block % shape[6]) * across + shape[4]
        top = (block // shape[6]) * down + shape[5]
        inside = True
        for j in range(4):
            at = shuffled[(factor * (first + j) + offset) % size]
            y = top + at // across
            x = left + at % across
            if y >= shape[7]:
                y -= shape[7]
            if x >= width:
                x -= width
            cells[j] = y * width + x
            inside = inside and cells[j] < count
        if not inside:  # a cell behind the end of the last row
            continue
        for i in range(4):
            a0 = a1 = a2 = a3 = np.float32(0.0)
            for d in range(dims):
                v = grid[cells[i], d]
                a0 += v * target[cells[0], d]
                a1 += v * target[cells[1], d]
                a2 += v * target[cells[2], d]
                a3 += v * target[cells[3], d]
            c[i, 0], c[i, 1], c[i, 2], c[i, 3] = a0, a1, a2, a3
        here = c[0, 0] + c[1, 1] + c[2, 2] + c[3, 3]
        best = here
        changed = False
        # Two of the four go to cells 0 and 1, the others to cells 2 and 3, each pair the better way round.
        for pair in range(6):
            if pair < 3:
                i, k = 0, pair + 1
            elif pair < 5:
                i, k = 1, pair - 1
            else:
                i, k = 2, 3
            m = -1
            n = -1
            for other in range(4):
                if other != i and other != k:
                    if m < 0:
                        m = other
                    else:
                        n = other
            straight, crossed = c[i, 0] + c[k, 1], c[k, 0] + c[i, 1]
            straight2, crossed2 = c[m, 2] + c[n, 3], c[n, 2] + c[m, 3]
            total = max(straight, crossed) + max(straight2, crossed2)
            if total > best:
                best = total
                changed = True
                best_from[0], best_from[1] = (i, k) if straight >= crossed else (k, i)
                best_from[2], best_from[3] = (m, n) if straight2 >= crossed2 else (n, m)
        before += here
        after += best
        if changed:
            for j in range(4):
                held_index[j] = index[cells[j]]
                for d in range(dims):
                    held[j, d] = grid[cells[j], d]
            for j in range(4):
                index[cells[j]] = held_index[best_from[j]]
                for d in range(dims):
                    grid[cells[j], d] = held[best_from[j], d]
    gains[task, 0] = before
    gains[task, 1] = after


def _radii(width: int, height: int, start_radius: int | None) -> list[int]:
    """Blur radii, largest first; small ones come several times, each time with a target of its own."""
    radius = float(max(width, height) / 2 - 1 if start_radius is None else start_radius)
    radii = []
    while radius >= 1:
        radii.append(int(radius))
        radius *= _RADIUS_DECAY
    return radii or [1]


def sort_into_grid(
    features: npt.ArrayLike,
    *,
    width: int | None = None,
    start: npt.ArrayLike | None = None,
    start_radius: int | None = None,
    improvement_break: float = 1e-4,
    seed: int = 0,
    num_threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Grid:
    """Place N items in a grid so that neighbours are alike.

    Args:
        features: (N, D) finite numbers; items are alike where their distance is small. See `grid_features`.
        width: cells of a row; a nearly square grid if None.
        start: (N,) order to begin with, such as that of the group of frames before; random if None.
        start_radius: largest blur radius; half the grid if None. A small one keeps most of `start`.
        improvement_break: exchanges go on while one pass lowers the squared error by more than this share. Smaller is
            slower and better.
        seed: of the random numbers. The same seed gives the same order for any number of threads.
        num_threads: threads to use (all cores if None).
        device: a torch device such as "cuda": the same exchanges in batches there (needs torch). Rounding tips some
            choices, so the grid is another one of the same quality. None is the CPU, without torch.
        progress: called as progress(radii done, radii in all).

    Returns:
        A Grid of all N items.

    Raises:
        ParameterError: features that are not (N, D) finite numbers, a `start` that is not an order, a bad width.
        BackendUnavailableError: `device` is given and torch is not there.
    """
    values = np.ascontiguousarray(features, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ParameterError(f"features have shape {values.shape}, expected (N, D) finite numbers", field="features")
    count = len(values)
    if width is None:
        width = grid_width(count)
    if width < 1 or (start_radius is not None and start_radius < 1) or not improvement_break > 0:
        raise ParameterError("width, start_radius and improvement_break must be positive")
    width = min(width, max(count, 1))
    random = _Random(seed)
    if start is None:
        index = random.shuffled(count).astype(np.int64)
    else:
        index = np.array(start, np.int64)
        if index.shape != (count,) or not np.array_equal(np.sort(index), np.arange(count)):
            raise ParameterError(f"start is not an order of {count} items", field="start")
    if count < 4 or values.shape[1] == 0:
        return Grid(index, width)
    # Squared distances do not change when all items move together; small numbers keep float32 exact enough.
    grid = np.ascontiguousarray((values - values.mean(0, dtype=np.float64))[index], np.float32)
    radii = _radii(width, -(-count // width), start_radius)
    threads = default_num_threads() if num_threads is None else num_threads
    passes: _Passes = (
        _Passes(grid, index, width, threads) if device is None else _TorchPasses(grid, index, width, device)
    )
    for done, radius in enumerate(radii):
        _organize(passes, radius, improvement_break, random)
        if progress is not None:
            progress(done + 1, len(radii))
    return Grid(passes.order(), width)


def _organize(passes: _Passes, radius: int, improvement_break: float, random: _Random) -> None:
    """All exchanges of one radius."""
    width, height = passes.width, passes.height
    window = 2 * radius + 1
    across, down = (min(max(min(window + 1, side) // 2 * 2, _LEAST_BLOCK), side) for side in (width, height))
    size = across * down
    passes.begin(radius, random.shuffled(size))
    # Blocks do not cover all cells: what they gain is judged by their share of the error.
    least = improvement_break * (width // across * across) * (height // down * down) / (width * height)
    shifts = 0
    while True:
        shift_x, shift_y = random.below(width), random.below(height)
        improved = False
        while True:
            factor = random.below(size) | 1
            while math.gcd(factor, size) != 1:
                factor += 2
            error_before, error_after = passes.exchange(across, down, shift_x, shift_y, factor, random.below(size))
            if error_before - error_after <= least * error_before:
                break
            improved = True
        shifts += 1
        if not improved and shifts >= _LEAST_SHIFTS:
            return


class _Passes:
    """The grid while it is sorted, on the CPU."""

    def __init__(self, grid: Floats, index: npt.NDArray[np.int64], width: int, num_threads: int) -> None:
        self.grid, self.index, self.width, self.num_threads = grid, index, width, num_threads
        self.height = -(-len(index) // width)

    def begin(self, radius: int, shuffled: npt.NDArray[np.int32]) -> None:
        """Take the blurred grid as what to be near to."""
        self.shuffled = shuffled
        self.target = _blurred(self.grid, self.width, radius, self.num_threads)
        # The error over all cells: |grid|^2 + |target|^2 - 2 grid . target, of which exchanges change the last only.
        self.error = float(np.sum(np.square(self.grid - self.target), dtype=np.float64))

    def exchange(
        self, across: int, down: int, shift_x: int, shift_y: int, factor: int, offset: int
    ) -> tuple[float, float]:
        """One exchange in every group of every block; the squared error before and after."""
        blocks_across, blocks_down = self.width // across, self.height // down
        groups = blocks_across * blocks_down * (across * down // 4)
        shape = np.array(
            [self.width, len(self.index), across, down, shift_x, shift_y, blocks_across, self.height], np.int64
        )
        tasks = -(-groups // _CHUNK)
        gains = np.zeros((tasks, 2))
        arguments = [
            (
                task * _CHUNK,
                min((task + 1) * _CHUNK, groups),
                task,
                self.grid,
                self.target,
                self.index,
                self.shuffled,
                factor,
                offset,
                shape,
                gains,
            )
            for task in range(tasks)
        ]
        run_threaded(_exchange, arguments, self.num_threads)
        before = self.error
        self.error = max(before - 2.0 * float(np.sum(gains[:, 1] - gains[:, 0])), 0.0)
        return before, self.error

    def order(self) -> npt.NDArray[np.int64]:
        """The Gaussian of every cell."""
        return self.index


class _TorchPasses(_Passes):
    """The same exchanges as batches of tensors; only rounding differs, which may tip a choice."""

    def __init__(self, grid: Floats, index: npt.NDArray[np.int64], width: int, device: str) -> None:
        super().__init__(grid, index, width, 1)
        try:
            import torch
        except ImportError:
            raise BackendUnavailableError(
                "sorting on a torch device needs torch", hint="pip install 'splatcodec[train]', or leave device out"
            ) from None
        self.torch = torch
        try:
            self.cells: Any = torch.from_numpy(grid).to(device)
        except (RuntimeError, AssertionError) as error:
            raise BackendUnavailableError(f"torch device {device!r}: {error}") from None
        self.held: Any = torch.from_numpy(index).to(device)
        self.inside: Any = torch.arange(self.height * width, device=device).reshape(self.height, width) < len(index)
        orders = [p for p in np.ndindex(4, 4, 4, 4) if len(set(p)) == 4]
        self.orders: Any = torch.tensor(orders, device=device)

    def _window_sums(self, planes: Any, radius: int) -> Any:
        for axis in (0, 1):
            sums = self.torch.cumsum(planes, axis)
            sums = self.torch.cat([self.torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
            at = self.torch.arange(planes.shape[axis], device=planes.device)
            high = (at + radius + 1).clamp(max=planes.shape[axis])
            planes = sums.index_select(axis, high) - sums.index_select(axis, (at - radius).clamp(min=0))
        return planes

    def begin(self, radius: int, shuffled: npt.NDArray[np.int32]) -> None:
        torch = self.torch
        self.places: Any = torch.from_numpy(shuffled.astype(np.int64)).to(self.cells.device)
        planes = torch.zeros((*self.inside.shape, self.cells.shape[1]), dtype=torch.float64, device=self.cells.device)
        planes[self.inside] = self.cells.double()
        number = self._window_sums(self.inside.double()[..., None], radius)
        self.near = (self._window_sums(planes, radius) / number)[self.inside].float()
        self.error = float((self.cells - self.near).double().square().sum())

    def exchange(
        self, across: int, down: int, shift_x: int, shift_y: int, factor: int, offset: int
    ) -> tuple[float, float]:
        torch, size, device = self.torch, across * down, self.cells.device
        at = self.places[(factor * torch.arange(size // 4 * 4, device=device) + offset) % size].reshape(-1, 4)
        blocks = torch.arange((self.width // across) * (self.height // down), device=device)[:, None, None]
        x = (blocks % (self.width // across) * across + shift_x + at % across) % self.width
        y = (blocks // (self.width // across) * down + shift_y + at // across) % self.height
        cells = (y * self.width + x).reshape(-1, 4)
        cells = cells[(cells < len(self.index)).all(1)]
        items = self.cells[cells]
        dots = torch.einsum("gid,gjd->gij", items, self.near[cells])
        totals = sum(dots[:, self.orders[:, j], j] for j in range(4))
        best = totals.argmax(1)
        here = dots.diagonal(dim1=1, dim2=2).sum(1)
        gain = totals.gather(1, best[:, None])[:, 0] - here
        moves = torch.where((gain > 0)[:, None], self.orders[best], torch.arange(4, device=device))
        self.cells[cells] = items.gather(1, moves[..., None].expand_as(items))
        self.held[cells] = self.held[cells].gather(1, moves)
        before = self.error
        self.error = max(before - 2.0 * float(gain.double().clamp(min=0).sum()), 0.0)
        return before, self.error

    def order(self) -> npt.NDArray[np.int64]:
        order: npt.NDArray[np.int64] = self.held.cpu().numpy()
        return order


def neighbor_distance(features: npt.ArrayLike, grid: Grid) -> float:
    """Mean distance of cells that touch at an edge: what the sort makes small.

    Args:
        features: (N, D), as given to `sort_into_grid`.
    """
    placed = np.asarray(features, np.float64)[grid.order]
    count, width = len(placed), grid.width
    # Row by row, so that a large grid needs no second and third copy.
    total, pairs = 0.0, 0
    for first in range(0, count, width):
        row = placed[first : first + width]
        below = placed[first + width : first + 2 * width]
        total += float(np.sqrt(np.square(np.diff(row, axis=0)).sum(1)).sum())
        total += float(np.sqrt(np.square(below - row[: len(below)]).sum(1)).sum())
        pairs += len(row) - 1 + len(below)
    return total / pairs if pairs else 0.0


def curve_grid(means: npt.ArrayLike, *, width: int | None = None) -> Grid:
    """A grid without a sort: the Gaussians along a curve through space, laid along a curve through the grid.

    Much faster than `sort_into_grid` and less smooth. Both curves are Morton's (bits interleaved).

    Args:
        means: (N, 3) finite positions.
        width: as for `sort_into_grid`.
    """
    points = np.asarray(means, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ParameterError(f"means have shape {points.shape}, expected (N, 3) finite numbers", field="means")
    count = len(points)
    width = min(grid_width(count) if width is None else width, max(count, 1))
    low = points.min(0, initial=np.inf)
    extent = float((points.max(0, initial=-np.inf) - low).max()) if count else 0.0
    cells = ((points - low) * ((2**16 - 1) / extent if extent > 0 else 0.0)).astype(np.uint64)
    along = np.argsort(_interleaved(cells, 16), kind="stable")
    at = np.arange(count)
    places = np.argsort(_interleaved(np.stack([at % width, at // width], 1).astype(np.uint64), 30), kind="stable")
    order = np.empty(count, np.int64)
    order[places] = along
    return Grid(order, width)


def _interleaved(cells: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """Morton codes of (N, K) cell coordinates of `bits` bits."""
    codes = np.zeros(len(cells), np.uint64)
    for bit in range(bits):
        for axis in range(cells.shape[1]):
            codes |= (cells[:, axis] >> np.uint64(bit) & np.uint64(1)) << np.uint64(bit * cells.shape[1] + axis)
    return codes


def _forms() -> tuple[Floats, npt.NDArray[np.int64]]:
    """The 24 turns that put the axes of an ellipsoid on one another.

    Returns:
        (24, 4) unit quaternions p: q p describes the same ellipsoid as q; and (24, 3) which scale each axis then has.
    """
    half, root = 0.5, math.sqrt(0.5)
    turns = list(np.eye(4))
    turns += [np.array([half, x, y, z]) for x in (half, -half) for y in (half, -half) for z in (half, -half)]
    for i in range(4):
        for j in range(i + 1, 4):
            for sign in (root, -root):
                turn = np.zeros(4)
                turn[i], turn[j] = root, sign
                turns.append(turn)
    axes = []
    for w, x, y, z in turns:
        matrix = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        axes.append(np.abs(matrix).argmax(axis=0))
    return np.array(turns, np.float32), np.array(axes, np.int64)


_TURNS, _AXES = _forms()


@kernel
def _choose_forms(start, stop, quats, scales, near_quats, near_scales, scale_weight, turns, axes, changed):
    """Give rows start..stop - 1 the form nearest to `near_quats`, `near_scales`; counts those that change.

    Unit quaternions (N, 4) and log scales (N, 3) are replaced in place.
    """
    count = 0
    for i in range(start, stop):
        w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        nw, nx, ny, nz = near_quats[i, 0], near_quats[i, 1], near_quats[i, 2], near_quats[i, 3]
        best, best_cost, best_sign = 0, np.float32(np.inf), np.float32(1.0)
        for form in range(24):
            a, b, c, d = turns[form, 0], turns[form, 1], turns[form, 2], turns[form, 3]
            dot = (w * a - x * b - y * c - z * d) * nw
            dot += (w * b + x * a + y * d - z * c) * nx
            dot += (w * c - x * d + y * a + z * b) * ny
            dot += (w * d + x * c - y * b + z * a) * nz
            cost = np.float32(0.0)
            for k in range(3):
                off = scales[i, axes[form, k]] - near_scales[i, k]
                cost += off * off
            cost = scale_weight * cost - np.float32(2.0) * abs(dot)
            # What is there stays unless another is clearly nearer, so that ties do not wander from pass to pass.
            if cost < best_cost - np.float32(1e-6):
                best, best_cost = form, cost
                best_sign = np.float32(1.0) if dot >= 0 else np.float32(-1.0)
        if best == 0 and best_sign > 0:
            continue
        count += 1
        a, b, c, d = turns[best, 0], turns[best, 1], turns[best, 2], turns[best, 3]
        quats[i, 0] = best_sign * (w * a - x * b - y * c - z * d)
        quats[i, 1] = best_sign * (w * b + x * a + y * d - z * c)
        quats[i, 2] = best_sign * (w * c - x * d + y * a + z * b)
        quats[i, 3] = best_sign * (w * d + x * c - y * b + z * a)
        s0, s1, s2 = scales[i, axes[best, 0]], scales[i, axes[best, 1]], scales[i, axes[best, 2]]
        scales[i, 0], scales[i, 1], scales[i, 2] = s0, s1, s2
    changed[start // 4096] = count


def _choose(quats: Floats, scales: Floats, near: Floats, scale_weight: float, num_threads: int) -> int:
    """`_choose_forms` of all rows; `near` (N, 7) is quaternions and scales. Returns how many changed."""
    changed = np.zeros(-(-len(quats) // 4096), np.int64)
    near_quats, near_scales = np.ascontiguousarray(near[:, :4]), np.ascontiguousarray(near[:, 4:])
    weight = np.float32(scale_weight)
    arguments = [
        (at, min(at + 4096, len(quats)), quats, scales, near_quats, near_scales, weight, _TURNS, _AXES, changed)
        for at in range(0, len(quats), 4096)
    ]
    run_threaded(_choose_forms, arguments, num_threads)
    return int(changed.sum())


def nearest_covariances(
    gaussians: Gaussians,
    quats: npt.ArrayLike,
    scales: npt.ArrayLike,
    *,
    scale_weight: float = 0.3,
    num_threads: int | None = None,
) -> Gaussians:
    """Describe every ellipsoid such that quaternion and scales are nearest to given ones, such as the frame before.

    Nothing but the description changes: pictures stay the same. Quaternions come out normalised.

    Args:
        gaussians: the scene.
        quats: (N, 4), of norm one or less.
        scales: (N, 3) natural logs.
        scale_weight: squared difference of logs that counts as much as one squared quaternion unit.

    Raises:
        ParameterError: shapes differ.
    """
    near = np.concatenate([np.asarray(quats, np.float32), np.asarray(scales, np.float32)], axis=-1)
    if near.shape != (len(gaussians), 7):
        raise ParameterError(f"{len(gaussians)} Gaussians, and what to be near to has the shape {near.shape}")
    own_quats, own_scales = unit_quats(gaussians.quats), gaussians.scales.copy()
    _choose(own_quats, own_scales, near, scale_weight, default_num_threads() if num_threads is None else num_threads)
    return gaussians.replaced(quats=own_quats, scales=own_scales)


def smooth_covariances(
    gaussians: Gaussians, grid: Grid, *, scale_weight: float = 0.3, num_threads: int | None = None
) -> Gaussians:
    """Describe every ellipsoid such that planes of quaternions and scales are smooth.

    The blurred planes say what to be near to, with a radius that shrinks as in the sort (in the spirit of KISS-GS,
    arXiv:2608.26948). Nothing but the description changes: pictures stay the same.

    Args:
        gaussians: the scene, in the order that `grid` speaks of; it is returned in that order.
        grid: from `sort_into_grid`.
        scale_weight: squared difference of log scales that counts as much as one squared quaternion unit.

    Raises:
        ParameterError: the grid has another number of cells than the scene has Gaussians.
    """
    if len(grid.order) != len(gaussians):
        raise ParameterError(f"{len(gaussians)} Gaussians and a grid of {len(grid.order)} cells")
    threads = default_num_threads() if num_threads is None else num_threads
    quats, scales = unit_quats(gaussians.quats)[grid.order], gaussians.scales[grid.order]
    # Start from largest axis first and w > 0: one form of 48 for all.
    near = np.zeros((len(quats), 7), np.float32)
    near[:, 0] = 1.0
    near[:, 4:] = np.sort(scales, axis=1)[:, ::-1]
    if len(quats):
        _choose(quats, scales, near, 100.0, threads)
        radius = float(max(grid.width, grid.height) / 8)
        while True:
            for _ in range(4):
                near = _blurred(np.concatenate([quats, scales], axis=1), grid.width, max(int(radius), 1), threads)
                if not _choose(quats, scales, near, scale_weight, threads):
                    break
            if radius <= 1:
                break
            radius *= 0.6
    back = np.argsort(grid.order)
    return gaussians.replaced(quats=quats[back], scales=scales[back])
