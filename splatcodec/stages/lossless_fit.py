"""The encoder's choices for lossless columns: what is constant, copied or listed, predictors, tables.

Everything is fitted to at most `SAMPLE_BLOCKS` blocks, so that the time does not grow with the scene. Nothing here is
needed to decode.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..entropy.tables import ALPHABET, build_tables, cluster_contexts, quantize_weights
from .lossless_blocks import (
    Keys,
    ModelledBlock,
    block_keys,
    file_links,
    finite_positions,
    in_parallel,
    model_block,
    spatial_links,
    spatial_order,
)
from .lossless_boxes import Boxes
from .lossless_kernels import (
    ACTIVITY_LIMIT,
    CLASSES,
    ESCAPE,
    RESIDUAL_LIMIT,
    find_previous,
    near_means,
    vote_twins,
)
from .lossless_plan import (
    CONSTANT,
    COPY,
    DICTIONARY,
    MAX_DICTIONARY,
    MAX_EXPONENT,
    MAX_FAMILIES,
    MAX_KEPT,
    MAX_MIXED_WIDTH,
    MAX_WEIGHT,
    MEAN,
    PLAIN,
    SCALE_BITS,
    VALUE,
    WEIGHT_BITS,
    ColumnPlan,
    ColumnSpec,
    Feature,
    Plan,
)

__all__ = ["Fit", "fit_plan"]

SAMPLE_BLOCKS = 2
SAMPLE_ROWS = 8192  # for questions that need no neighbours
FIT_ROWS = 16384
FEATURES = 16  # most terms of a predictor
FEATURE_BITS = 30  # what a term must save
REWEIGHTINGS = 2
CLIP = 8.0  # in mean absolute deviations, of values when predictors are fitted
FINEST = 30  # bits: residuals are not expected to be smaller, against the values
TWIN_SHARE = 0.002  # of a column's values that occurred before, for it to vote for twins
POSITION_NAMES = ("x", "y", "z")

Values = npt.NDArray[np.float32]


@dataclass
class Fit:
    """The encoder's choices.

    Attributes:
        plan: what the decoder is told.
        weights: (T, ALPHABET) stored weights of the tables.
        allowed: (cells, ALPHABET) bool, tokens that have a probability.
        find_twins: chooses a block's twins, if it has any.
        sample: blocks already turned into tokens, by number.
    """

    plan: Plan
    weights: npt.NDArray[np.int64]
    allowed: npt.NDArray[np.bool_]
    find_twins: TwinFinder | None
    sample: dict[int, ModelledBlock]


def fit_plan(
    specs: tuple[ColumnSpec, ...],
    arrays: Sequence[npt.NDArray[Any]],
    counts: Sequence[int],
    threads: int | None = 1,
    mixing: bool = False,
    boxes: Boxes | None = None,
) -> Fit:
    """Choose how to code columns.

    Args:
        specs: the columns.
        arrays: (n,) values of each.
        counts: rows of each block.
        threads: sampled blocks coded at a time.
        mixing: code integers by context mixing.
        boxes: of all rows.
    """
    num_rows = sum(counts)
    spatial = all(any(s.name == name for s in specs) for name in POSITION_NAMES)
    order = _coding_order(specs, spatial)
    unlisted = set() if boxes is None else {spec.name for spec in specs if boxes.has(spec.name)}
    columns, dictionaries = _choose_modes(specs, arrays, order, num_rows, mixing, unlisted)
    if mixing:
        columns = _as_mixed(specs, columns, 3 if spatial else 0)
    plan = Plan(specs, spatial, False, tuple(columns), tuple(dictionaries))
    chosen = _sample_blocks(counts)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    blocks = {k: [array[first[k] : first[k + 1]] for array in arrays] for k in chosen}
    inside = {k: None if boxes is None else boxes.rows(int(first[k]), int(first[k + 1])) for k in chosen}
    for start, stop in ((0, plan.num_positions), (plan.num_positions, len(columns))):
        if num_rows and stop > start:
            middle = chosen[len(chosen) // 2]
            plan = _fit_group(plan, start, stop, blocks[middle], inside[middle], num_rows)
    find_twins = _plan_twins(plan, blocks)
    plan = replace(plan, twins=find_twins is not None, columns=_with_families(plan.columns))
    everything = np.ones((plan.num_families * CLASSES, ALPHABET), np.bool_)
    modelled = in_parallel(
        lambda at: model_block(plan, blocks[chosen[at]], everything, find_twins, inside[chosen[at]]),
        len(chosen),
        threads,
    )
    sample = dict(zip(chosen, modelled))
    return _fit_tables(plan, sample, find_twins, complete=len(chosen) == len(counts))


def _sample_blocks(counts: Sequence[int]) -> list[int]:
    if len(counts) <= SAMPLE_BLOCKS:
        return list(range(len(counts)))
    return [(2 * k + 1) * len(counts) // (2 * SAMPLE_BLOCKS) for k in range(SAMPLE_BLOCKS)]


# ---- Order and modes -----------------------------------------------------------------------------------------------


def _coding_order(specs: Sequence[ColumnSpec], spatial: bool) -> list[int]:
    """Positions first; then what 3DGS has, so that the columns of a colour channel follow each other; then others."""
    num_rest = sum(spec.name.startswith("f_rest_") for spec in specs)

    def rank(source: int) -> tuple[int, ...]:
        name = specs[source].name
        if spatial and name in POSITION_NAMES:
            return 0, POSITION_NAMES.index(name)
        match = re.fullmatch(r"(opacity|scale|rot|f_dc|f_rest)(?:_(\d+))?", name)
        if not match:
            return 3, source
        kind, number = match[1], int(match[2] or 0)
        if kind == "f_dc":
            return 2, number, -1
        if kind == "f_rest":
            return 2, number // max(num_rest // 3, 1), number
        return 1, ("opacity", "scale", "rot").index(kind), number

    return sorted(range(len(specs)), key=lambda source: (rank(source), source))


def _choose_modes(
    specs: Sequence[ColumnSpec],
    arrays: Sequence[npt.NDArray[Any]],
    order: Sequence[int],
    num_rows: int,
    mixing: bool,
    unlisted: Set[str],
) -> tuple[list[ColumnPlan], list[Keys]]:
    """How each column is coded; those in `unlisted` get no dictionary, integers to be mixed only one that has gaps."""
    columns: list[ColumnPlan] = []
    dictionaries: list[tuple[ColumnSpec, Keys]] = []
    samples: list[Keys] = []
    stride = max(num_rows // SAMPLE_ROWS, 1)
    for source in order:
        spec, array = specs[source], arrays[source]
        sample = spec.to_keys(array[::stride])
        samples.append(sample)
        lists = spec.name not in unlisted and not (mixing and not spec.is_float and _is_dense(sample))
        columns.append(
            _as_constant(source, spec, array, sample)
            or _as_copy(source, specs, arrays, columns, samples)
            or (_as_dictionary(source, spec, array, sample, dictionaries) if lists else None)
            or _as_plain(source, spec, array, sample)
        )
    for index, column in enumerate(columns):
        if column.mode == DICTIONARY:
            spec, known = specs[column.source], dictionaries[column.value][1]
            places = np.searchsorted(known, spec.to_sorted(samples[index]))
            columns[index] = replace(column, special=int(np.bincount(places).argmax()))
    return columns, [spec.from_sorted(keys) for spec, keys in dictionaries]


def _is_dense(keys: Keys) -> bool:
    """Whether most numbers between the ends of these keys (n,) are among them."""
    return len(keys) > 0 and 2 * len(np.unique(keys)) > int(keys.max()) - int(keys.min())


def _as_constant(source: int, spec: ColumnSpec, array: npt.NDArray[Any], sample: Keys) -> ColumnPlan | None:
    value = sample[0] if len(sample) else np.uint64(0)
    if (sample != value).any() or (spec.to_keys(array) != value).any():
        return None
    return ColumnPlan(source, CONSTANT, int(value))


def _as_copy(
    source: int,
    specs: Sequence[ColumnSpec],
    arrays: Sequence[npt.NDArray[Any]],
    columns: Sequence[ColumnPlan],
    samples: Sequence[Keys],
) -> ColumnPlan | None:
    spec = specs[source]
    for index, other in enumerate(columns):
        if (
            other.is_modelled
            and specs[other.source].dtype == spec.dtype
            and np.array_equal(samples[index], samples[-1])
            and np.array_equal(spec.to_keys(arrays[other.source]), spec.to_keys(arrays[source]))
        ):
            return ColumnPlan(source, COPY, index)
    return None


def _as_dictionary(
    source: int,
    spec: ColumnSpec,
    array: npt.NDArray[Any],
    sample: Keys,
    dictionaries: list[tuple[ColumnSpec, Keys]],
) -> ColumnPlan | None:
    """A column of few distinct values becomes indices into a list, which columns of the same dtype may share."""
    if len(np.unique(sample)) > min(len(sample) // 2, 1 << (spec.width - 2)):
        return None
    keys, counts = np.unique(spec.to_sorted(spec.to_keys(array)), return_counts=True)
    if len(keys) > min(MAX_DICTIONARY, 1 << (spec.width - 2)):
        return None
    total, top = counts.sum(), counts.max()
    listed = len(keys) * (spec.width - 4) + (counts * np.log2(total / counts)).sum()
    plain = top * np.log2(total / top) + (total - top) * 0.8 * spec.width
    if listed >= plain:
        return None
    for number, (other, known) in enumerate(dictionaries):
        both = np.union1d(known, keys)
        if other.dtype.newbyteorder("=") == spec.dtype.newbyteorder("=") and len(both) <= MAX_DICTIONARY:
            added = len(both) - len(known)
            if added <= len(keys) // 4:
                dictionaries[number] = (other, both)
                return ColumnPlan(source, DICTIONARY, number)
    dictionaries.append((spec, keys))
    return ColumnPlan(source, DICTIONARY, len(dictionaries) - 1)


def _as_plain(source: int, spec: ColumnSpec, array: npt.NDArray[Any], sample: Keys) -> ColumnPlan:
    shift = 0
    if spec.is_float:
        used = int(np.bitwise_or.reduce(sample))
        if not used & 1:
            used = int(np.bitwise_or.reduce(spec.to_keys(array)))
            mantissa = 23 if spec.width == 32 else 52
            shift = min((used & -used).bit_length() - 1, mantissa - 1) if used else 0
    keys, counts = np.unique(sample, return_counts=True)
    return ColumnPlan(source, PLAIN, shift=shift, special=int(keys[np.argmax(counts)]) >> shift)


def _as_mixed(specs: Sequence[ColumnSpec], columns: Sequence[ColumnPlan], num_positions: int) -> list[ColumnPlan]:
    """Mix the columns that can be; the partner of a colour is the channel before, else the column before."""
    out: list[ColumnPlan] = []
    num_rest = sum(spec.name.startswith("f_rest_") for spec in specs)
    found: dict[str, int] = {}
    for index, column in enumerate(columns):
        spec = specs[column.source]
        if column.is_modelled and not spec.is_float and spec.width <= MAX_MIXED_WIDTH:
            match = re.fullmatch(r"(f_dc|f_rest)_(\d+)", spec.name)
            step = 1 if match is None or match[1] == "f_dc" else max(num_rest // 3, 1)
            name = f"{match[1]}_{int(match[2]) - step}" if match else ""
            lowest = num_positions if index >= num_positions else 0
            partner = found.get(name, max((k for k in range(lowest, index - 1) if out[k].mixed), default=-1))
            column = replace(column, mixed=True, partner=partner)
            found[spec.name] = index
        out.append(column)
    return out


def _with_families(columns: Sequence[ColumnPlan]) -> tuple[ColumnPlan, ...]:
    """Give every modelled column a family of context cells; neighbours share one if there are many."""
    modelled = [index for index, column in enumerate(columns) if column.uses_tables]
    groups = min(len(modelled), MAX_FAMILIES)
    family = {index: at * groups // len(modelled) for at, index in enumerate(modelled)}
    return tuple(replace(column, family=family.get(index, 0)) for index, column in enumerate(columns))


# ---- Predictors ----------------------------------------------------------------------------------------------------


class _Sample:
    """Modelled columns of one group in one block, as predictions see them.

    Attributes:
        indices: positions of the columns in coding order.
        slots: (C, n + 1) float32, `ColumnRows.values` of each.
        means: (C, n) float32, `ColumnRows.means` of each.
        centres, spreads: of each column.
        thin: slice of at most about FIT_ROWS rows, for what needs no neighbours.
    """

    def __init__(
        self, plan: Plan, indices: Sequence[int], block: Sequence[npt.NDArray[Any]], boxes: Boxes | None
    ) -> None:
        self.indices = list(indices)
        rows = len(block[0])
        order: npt.NDArray[np.int64] | slice = slice(None)
        self._links = file_links(rows)
        if plan.spatial and self.indices[0] >= plan.num_positions:
            xyz = [block[c.source] for c in plan.columns[:3]]
            if boxes is not None:
                xyz = [boxes.position(plan.spec_of(c).name, a) for c, a in zip(plan.columns[:3], xyz)]
            order = spatial_order(*xyz)
            self._links = spatial_links(finite_positions(xyz)[:, order])
        self.thin = slice(None, None, max(rows // FIT_ROWS, 1))
        self.slots = np.zeros((len(self.indices), rows + 1), np.float32)
        self.centres: list[float] = []
        self.spreads: list[int] = []
        for at, index in enumerate(self.indices):
            column = plan.columns[index]
            values = _seen_values(plan, column, block[column.source])
            name = plan.spec_of(column).name
            if boxes is not None and column.mixed and column.mode != DICTIONARY and boxes.has(name):
                values = boxes.placed(name, values)
            values = values[order]
            centre, deviation = _centre(values[self.thin])
            self.centres.append(centre)
            self.spreads.append(_exponent(deviation))
            self.slots[at, 1:] = values - centre
        self.means = np.stack([self.near_means(slots) for slots in self.slots])

    @property
    def values(self) -> Values:
        """(C, n) float32, values from the centre."""
        return self.slots[:, 1:]

    def near_means(self, slots: Values) -> Values:
        """(n,) weighted means of the near rows' values, for (n + 1,) slots."""
        means = np.empty(len(slots) - 1, np.float32)
        near_means(slots, self._links, means)
        return means

    def nearest(self, at: int, rows: slice = slice(None)) -> Values:
        """The nearest row's value in a column, for some rows."""
        return self.slots[at][self._links.near[rows, 0]]


def _centre(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """(centre, mean deviation from it); 0 unless the values are far from 0 and close together."""
    centre = float(np.float32(np.median(values)))
    deviation = float(np.mean(np.abs(values - centre)))
    if abs(centre) < 4 * deviation:
        return 0.0, float(np.mean(np.abs(values)))
    return centre, deviation


def _seen_values(plan: Plan, column: ColumnPlan, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values as the kernels' `_value` gives them."""
    spec = plan.spec_of(column)
    if column.mode == PLAIN and spec.is_float:
        return finite_positions([values])[0]
    return block_keys(plan, column, values).astype(np.int64).astype(np.float64)


def _exponent(size: float) -> int:
    return int(np.clip(np.round(np.log2(max(size, 1e-60))), -MAX_EXPONENT, MAX_EXPONENT))


def _fit_group(
    plan: Plan, start: int, stop: int, block: Sequence[npt.NDArray[Any]], boxes: Boxes | None, num_rows: int
) -> Plan:
    """Fit the columns from `start` to `stop` in coding order, which share a row order."""
    columns = list(plan.columns)
    indices = [index for index in range(start, stop) if columns[index].is_modelled]
    if not indices:
        return plan
    sample = _Sample(plan, indices, block, boxes)
    regression = _Regression(sample, num_rows)
    activity = np.ones(sample.values.shape[1])
    for at, index in enumerate(indices):
        column = replace(columns[index], centre=sample.centres[at], spread=sample.spreads[at])
        sphere = _find_sphere(plan, sample, at)
        if sphere is not None:
            unit, others = sphere
            columns[index] = replace(column, sphere=tuple(indices[k] for k in others), unit=unit, spread=0)
            regression.usable[[at, regression.count + at]] = False
            continue
        column, predicted = regression.fit(at, column)
        residual = np.abs(sample.values[at] - predicted)
        if column.mode == DICTIONARY or not plan.spec_of(column).is_float:
            column, residual = _try_previous(sample, at, column, residual)
        thin = residual[sample.thin]
        unit = _exponent(float(np.minimum(thin, 8 * np.median(thin)).mean()))
        unit = max(unit, column.spread - FINEST)
        if column.mixed:  # differences are whole numbers
            unit = _exponent(max(float(thin.mean()), 0.1))
        residual = np.minimum(residual * 2.0**-unit, RESIDUAL_LIMIT)
        columns[index] = replace(column, unit=unit, scale=_fit_scale(sample, residual, activity))
        activity += (np.minimum(residual, ACTIVITY_LIMIT) - activity) * 0.125
    return replace(plan, columns=tuple(columns))


def _try_previous(
    sample: _Sample, at: int, column: ColumnPlan, residual: npt.NDArray[np.float64]
) -> tuple[ColumnPlan, npt.NDArray[np.float64]]:
    """Predict the nearest row's value if that is better: counters need an exact weight of 1."""
    simple = np.abs(sample.values[at] - sample.nearest(at).astype(np.float64))
    if column.mixed:
        bits = [_length_cost(r[sample.thin]) for r in (residual, simple)]
    else:
        bits = [np.log2(r[sample.thin] + 0.5).mean() for r in (residual, simple)]
    if bits[0] <= bits[1]:
        return column, residual
    return replace(column, bias=0, mean_weight=0, near_weight=1 << WEIGHT_BITS, features=()), simple


def _length_cost(residual: npt.NDArray[np.float64]) -> float:
    """Bits a value of differences (n,) coded by their bit length, but for the sign."""
    lengths = np.frexp(np.rint(residual))[1]
    counts = np.bincount(lengths)
    shares = counts[counts > 0] / len(residual)
    return float(np.maximum(lengths - 1, 0).mean() - (shares * np.log2(shares)).sum())


class _Regression:
    """Least squares over one matrix of products, shared by all columns of a group."""

    def __init__(self, sample: _Sample, num_rows: int) -> None:
        self.sample = sample
        self.num_rows = num_rows
        self.count = len(sample.indices)
        nearest = np.stack([sample.nearest(at, sample.thin) for at in range(self.count)])
        terms = np.concatenate([sample.values[:, sample.thin], sample.means[:, sample.thin], nearest])
        terms = (terms * np.exp2(-np.tile(np.array(sample.spreads, np.float64), 3))[:, None]).astype(np.float32)
        limit = CLIP * np.mean(np.abs(terms), axis=1, keepdims=True)
        np.clip(terms, -limit, limit, out=terms)
        # Rows: values, near means and nearest values of all columns, then 1.
        self.terms = np.concatenate([terms, np.ones((1, terms.shape[1]), np.float32)])
        self.products = (self.terms @ self.terms.T).astype(np.float64)
        # Other columns that may predict one: values and means of the first MAX_KEPT.
        self.usable = np.zeros(3 * self.count + 1, np.bool_)
        self.usable[: min(self.count, MAX_KEPT)] = True
        self.usable[self.count : self.count + min(self.count, MAX_KEPT)] = True

    def fit(self, at: int, column: ColumnPlan) -> tuple[ColumnPlan, npt.NDArray[np.float64]]:
        """The column with its predictor, and its predictions from the centre (n,)."""
        count, sample = self.count, self.sample
        usable = self.usable.copy()
        usable[at:count] = usable[count + at : 2 * count] = False
        usable[[count + at, 2 * count + at, 3 * count]] = True
        chosen, weights = self._choose(at, usable)
        weights = self._reweight(at, chosen, weights)
        rounded = np.clip(np.rint(weights * (1 << WEIGHT_BITS)), -MAX_WEIGHT, MAX_WEIGHT).astype(int).tolist()
        predicted = np.zeros(sample.values.shape[1])
        features = []
        for term, weight in zip(chosen, rounded):
            kind, other = divmod(term, count)
            real = weight / (1 << WEIGHT_BITS) * 2.0 ** sample.spreads[at]
            if term == 3 * count:
                column = replace(column, bias=weight)
                predicted += real
                continue
            real *= 2.0 ** -sample.spreads[other]
            if other != at:
                source = sample.values[other] if kind == 0 else sample.means[other]
                features.append(Feature(VALUE if kind == 0 else MEAN, sample.indices[other], weight))
            elif kind == 1:
                source = sample.means[other]
                column = replace(column, mean_weight=weight)
            else:
                source = sample.nearest(other)
                column = replace(column, near_weight=weight)
            predicted += np.multiply(source, real, dtype=np.float64)
        return replace(column, features=tuple(features)), predicted

    def _choose(self, at: int, usable: npt.NDArray[np.bool_]) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Orthogonal matching pursuit: add the term that explains most until it saves less than it costs."""
        products, target = self.products, self.products[at]
        energy = products[at, at]
        chosen: list[int] = []
        weights = np.zeros(0)
        left = target.copy()
        while len(chosen) < FEATURES and energy > 0:
            gain = np.where(usable, left**2 / np.maximum(np.diag(products), 1e-30), 0.0)
            gain[chosen] = 0.0
            best = int(np.argmax(gain))
            trial = [*chosen, best]
            square = products[np.ix_(trial, trial)]
            solution = np.linalg.solve(square + 1e-6 * np.diag(np.diag(square) + 1e-30), target[trial])
            remaining = energy_of = products[at, at] - target[trial] @ solution
            if remaining <= 0:
                remaining = 1e-9 * energy
            if 0.5 * self.num_rows * np.log2(energy / remaining) < FEATURE_BITS:
                break
            chosen, weights, energy = trial, solution, energy_of
            left = target - products[:, chosen] @ weights
        return chosen, weights

    def _reweight(self, at: int, chosen: list[int], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Go from squares towards absolute values, which is closer to the number of bits."""
        terms, target = self.terms[chosen], self.terms[at]
        for _ in range(REWEIGHTINGS if chosen else 0):
            residual = np.abs(target - weights.astype(np.float32) @ terms)
            weighted = terms / (residual + 0.3 * np.median(residual) + 1e-6)
            square = (weighted @ terms.T).astype(np.float64)
            weights = np.linalg.solve(square + 1e-6 * np.diag(np.diag(square) + 1e-30), weighted @ target)
        return weights


def _fit_scale(
    sample: _Sample, residual: npt.NDArray[np.float64], activity: npt.NDArray[np.float64]
) -> tuple[int, int, int]:
    """Non-negative weights of near residuals, activity and 1 in the expected residual."""
    near = sample.near_means(np.concatenate([np.zeros(1), residual]).astype(np.float32))[sample.thin].astype(np.float64)
    residual, activity = residual[sample.thin], activity[sample.thin]
    weight = 1.0 / (near + activity + 0.1)
    terms = np.stack([near, activity, np.ones(len(near))]) * weight
    target = np.minimum(residual, 10.0) * weight
    products, sums = terms @ terms.T, terms @ target
    active = [0, 1, 2]
    while True:
        square = products[np.ix_(active, active)]
        solution = np.linalg.solve(square + 1e-9 * np.diag(np.diag(square)) + 1e-12 * np.eye(len(active)), sums[active])
        if (solution >= 0).all() or len(active) == 1:
            break
        active = [term for term, weight_of in zip(active, solution) if weight_of > 0] or [2]
    scale = [0, 0, 0]
    for term, value in zip(active, solution):
        scale[term] = int(np.clip(np.rint(value * (1 << SCALE_BITS)), 0, 1 << 15))
    return scale[0], scale[1], max(scale[2], 1 << (SCALE_BITS - 6))


def _find_sphere(plan: Plan, sample: _Sample, at: int) -> tuple[int, list[int]] | None:
    """(unit, other columns) if a column completes a unit quaternion or a unit normal."""
    names = [plan.spec_of(plan.columns[index]).name for index in sample.indices]
    for group in (("rot_0", "rot_1", "rot_2", "rot_3"), ("nx", "ny", "nz")):
        if names[at] not in group or not set(group) <= set(names[: at + 1]):
            continue
        members = [names.index(name) for name in group]
        plain = all(
            plan.columns[sample.indices[k]].mode == PLAIN
            and plan.spec_of(plan.columns[sample.indices[k]]).dtype.itemsize == 4
            and plan.spec_of(plan.columns[sample.indices[k]]).is_float
            and sample.centres[k] == 0.0
            for k in members
        )
        off = float(
            np.median(np.abs(np.sum(sample.values[members][:, sample.thin].astype(np.float64) ** 2, axis=0) - 1.0))
        )
        if plain and off < 1e-3:
            return max(_exponent(off / 2), -26), [k for k in members if k != at]
    return None


# ---- Twins and tables ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwinFinder:
    """Finds for each row an earlier one that it shares several values with.

    Attributes:
        columns: which of the modelled columns after the positions to look at.
        specials: (C,) keys of those columns that do not count.
    """

    columns: tuple[int, ...]
    specials: tuple[np.uint64, ...]

    def __call__(self, keys: Sequence[Keys]) -> npt.NDArray[np.int32]:
        """(n,) int32 twin of each row, or -1."""
        rows = len(keys[0])
        twin, votes = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
        table, previous = _hash_table(rows), np.empty(rows, np.int32)
        for column, special in zip(self.columns, self.specials):
            find_previous(keys[column], special, table, previous)
            vote_twins(previous, twin, votes)
        has = np.flatnonzero(twin >= 0)
        shared = np.zeros(len(has), np.int64)
        for column, special in zip(self.columns, self.specials):
            values = keys[column][has]
            shared += (values == keys[column][twin[has]]) & (values != special)
        twin[has[shared < 2]] = -1
        return twin


def _hash_table(rows: int) -> npt.NDArray[np.int32]:
    return np.empty(1 << (2 * rows).bit_length(), np.int32)


def _plan_twins(plan: Plan, blocks: dict[int, list[npt.NDArray[Any]]]) -> TwinFinder | None:
    """Twins are worth looking for if several columns repeat earlier values that are not their most common one."""
    later = [column for column in plan.columns[plan.num_positions :] if column.is_modelled]
    if not blocks:
        return None
    block = next(iter(blocks.values()))
    rows = len(block[0])
    table, previous = _hash_table(rows), np.empty(rows, np.int32)
    voters = []
    for at, column in enumerate(later):
        if column.mode != PLAIN or plan.spec_of(column).width < 32:
            continue
        find_previous(block_keys(plan, column, block[column.source]), np.uint64(column.special), table, previous)
        if np.count_nonzero(previous >= 0) > TWIN_SHARE * rows:
            voters.append(at)
    if len(voters) < 3:
        return None
    return TwinFinder(tuple(voters), tuple(np.uint64(later[at].special) for at in voters))


def _fit_tables(plan: Plan, sample: dict[int, ModelledBlock], find_twins: TwinFinder | None, complete: bool) -> Fit:
    """Tables from the tokens of the sampled blocks; where there are others, every table can at least escape."""
    cells = plan.num_families * CLASSES
    histograms = np.zeros(cells * ALPHABET, np.int64)
    for block in sample.values():
        for tokens, where in zip(block.tokens, block.cells):
            histograms += np.bincount(where.astype(np.int64) * ALPHABET + tokens, minlength=len(histograms))
    if not cells:
        return Fit(plan, np.zeros((0, ALPHABET), np.int64), np.zeros((0, ALPHABET), np.bool_), find_twins, sample)
    context_map, counts = cluster_contexts(histograms.reshape(cells, ALPHABET))
    if not complete:
        counts[:, ESCAPE] += 1
    weights = np.stack([quantize_weights(row.astype(np.float64)) for row in counts])
    tables = build_tables(weights)
    plan = replace(plan, context_map=context_map, tables=tables)
    return Fit(plan, weights, tables.freq[context_map] > 0, find_twins, sample)
