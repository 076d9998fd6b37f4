"""What the tiles of a lossy scene share: steps, colour bases, predictors, contexts, tables (SPEC.md, section 3.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..entropy.integers import IntegerReader, IntegerWriter
from ..entropy.tables import TableSet, build_tables, decode_tables, encode_tables
from ..errors import FormatError, TruncatedError
from ..gaussians import num_sh_coefficients
from .streams import BIAS, COEFFICIENT_BITS, CONTEXT_CELLS, FEATURE_DEPTH, MAX_CLASS, Predictor, RowModel

__all__ = [
    "COLOR_CLASS",
    "COLOR_FIRST",
    "GEOMETRY_CLASS",
    "GROUPS",
    "OPACITY",
    "SHAPE_FIRST",
    "SH_FIRST",
    "SH_LAYERS",
    "SIZE_FIRST",
    "TRELLISES",
    "SceneParameters",
    "StreamModel",
    "num_streams",
    "stream_group",
]

# Streams in coding order. SH coefficient k of colour component c is stream SH_FIRST + 3 * k + c.
GEOMETRY_CLASS, COLOR_CLASS, SIZE_FIRST, SHAPE_FIRST, OPACITY, COLOR_FIRST, SH_FIRST = 0, 1, 2, 5, 8, 9, 12
# First and last stream (exclusive) of the SH layers.
SH_LAYERS = ((12, 21), (21, 36), (36, 57))
GROUPS = (GEOMETRY_CLASS, COLOR_CLASS, SIZE_FIRST, SHAPE_FIRST, OPACITY, COLOR_FIRST, *(a for a, _ in SH_LAYERS))
MATRIX_SCALE = 2048
# Feedback and taps of state machines for dependent quantization, by number of states: Ungerboeck's codes for one
# dimension ("Channel coding with multilevel/phase signals", 1982), parity checks h0 and h1 without their lowest bit.
TRELLISES = {1: (0, 0), 4: (2, 1), 8: (5, 2), 16: (9, 2), 32: (18, 4)}
_FIXED = struct.Struct("<BBBBHHifff")
_MAX_TABLES = 256
_MAX_FEATURES = 16
# Kinds of integers in the parameter stream.
_K_MATRIX, _K_COUNT, _K_FEATURE, _K_COEFFICIENT, _K_BIAS, _K_MODE, _K_MAP, _K_SCALE = range(8)


def num_streams(sh_degree: int) -> int:
    """Streams of a Gaussian."""
    return SH_FIRST + 3 * (num_sh_coefficients(sh_degree) - 1)


def stream_group(stream: int) -> int:
    """First stream of the group whose residuals are a stream's own context."""
    return max(first for first in GROUPS if first <= stream)


@dataclass
class StreamModel:
    """How one stream is predicted and which tables it uses.

    Attributes:
        predictor: integer predictor.
        mode: context mode, 0..3.
        scale: expected 4 * |residual| in base units (mode 3).
        context_map: (cells,) uint8, index into all tables of the scene. Streams with equal maps share one array.
    """

    predictor: Predictor = field(default_factory=Predictor)
    mode: int = 0
    scale: int = 0
    context_map: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(CONTEXT_CELLS[0], np.uint8))


@dataclass
class SceneParameters:
    """Everything a tile needs beside its own bytes.

    Attributes:
        sh_degree: 0..3.
        size_step, opacity_step: 1/1024 octaves a base unit, of sqrt(D) and of alpha.
        precision: position step in 1/1024 octaves relative to sqrt(D).
        shape_step: whitened units a base unit.
        color_step, sh_step: SH coefficient units a base unit, in the orthonormal bases.
        color_basis: (3, 3) int, columns are components, in 1/2048 (sh0).
        sh_color_basis, sh_band_basis: (3, 3) and (K-1, K-1) int, the same for shN.
        models: one StreamModel a stream.
        weights: (T, ALPHABET) table weights.
        trellis: feedback and taps of the quantizers' state machine, 0..255 each.
    """

    sh_degree: int
    size_step: int
    opacity_step: int
    precision: int
    shape_step: float
    color_step: float
    sh_step: float
    color_basis: npt.NDArray[np.int64]
    sh_color_basis: npt.NDArray[np.int64]
    sh_band_basis: npt.NDArray[np.int64]
    models: list[StreamModel]
    weights: npt.NDArray[np.int64]
    trellis: tuple[int, int] = TRELLISES[8]
    tables: TableSet | None = None
    _rows: dict[tuple[int, int], RowModel] = field(default_factory=dict)

    def table_set(self) -> TableSet:
        """The tables for the kernels, built once."""
        if self.tables is None:
            self.tables = build_tables(self.weights)
        return self.tables

    def trellis_of(self, stream: int) -> tuple[int, int]:
        """The trellis of a stream: none for the classes, which are coded as they are."""
        return self.trellis if stream > COLOR_CLASS else (0, 0)

    def row_model(self, first: int, last: int) -> RowModel:
        """Predictors and contexts of streams first .. last - 1 for the kernels, built once."""
        if (first, last) not in self._rows:
            models = self.models[first:last]
            predictors = [model.predictor for model in models]
            maps = np.zeros((len(models), max(CONTEXT_CELLS)), np.uint8)
            for row, model in zip(maps, models):
                row[: len(model.context_map)] = model.context_map
            weights = np.zeros((5, len(models), len(models)))
            for s, p in enumerate(predictors):
                weights[BIAS, 0, s] = p.bias + (1 << (COEFFICIENT_BITS - 1))
                for kind, source, coefficient in zip(p.kinds, p.sources, p.coefficients):
                    weights[kind, 0 if kind == FEATURE_DEPTH else source - first, s] += coefficient
            own_terms = [min(stream - stream_group(stream), 2) for stream in range(first, last)]
            self._rows[first, last] = RowModel(
                first,
                np.array([p.bias + (1 << (COEFFICIENT_BITS - 1)) for p in predictors], np.int64),
                np.cumsum([0] + [len(p.kinds) for p in predictors]).astype(np.int64),
                np.concatenate([p.kinds for p in predictors]).astype(np.int64),
                np.concatenate([p.sources for p in predictors]).astype(np.int64) - first,
                np.concatenate([p.coefficients for p in predictors]).astype(np.int64),
                weights,
                np.array([model.mode for model in models], np.int64),
                np.array([model.scale for model in models], np.int64),
                np.array(own_terms, np.int64),
                np.array([GROUPS.index(stream_group(stream)) for stream in range(first, last)], np.int64),
                maps,
            )
        return self._rows[first, last]

    def layers(self) -> tuple[tuple[int, int], ...]:
        """First and last stream (exclusive) of the SH layers that the scene's degree has."""
        return SH_LAYERS[: self.sh_degree]

    def to_bytes(self) -> bytes:
        """The PARM chunk."""
        out = IntegerWriter()
        out.add(_K_MATRIX, *self.color_basis.ravel())
        if self.sh_degree:
            out.add(_K_MATRIX, *self.sh_color_basis.ravel(), *self.sh_band_basis.ravel())
        out.add(_K_COUNT, len(self.weights))
        previous_map: npt.NDArray[np.uint8] | None = None
        for model in self.models:
            p = model.predictor
            out.add(_K_COUNT, len(p.kinds))
            out.add(_K_BIAS, p.bias)
            for kind, source, coefficient in zip(p.kinds, p.sources, p.coefficients):
                out.add(_K_FEATURE, int(kind) | int(source) << 2)
                out.add(_K_COEFFICIENT, coefficient)
            out.add(_K_MODE, model.mode)
            if model.mode == 3:
                out.add(_K_SCALE, model.scale)
            shared = previous_map is not None and np.array_equal(previous_map, model.context_map)
            out.add(_K_MODE, int(shared))
            if not shared:
                # Differences to the cell before; runs of equal cells cost next to nothing.
                steps = np.diff(model.context_map.astype(np.int64), prepend=0)
                out.add(_K_MAP, *steps)
            previous_map = model.context_map
        integers = out.finish()
        fixed = _FIXED.pack(
            self.sh_degree, *self.trellis, 0, self.size_step, self.opacity_step, self.precision,
            self.shape_step, self.color_step, self.sh_step,
        )  # fmt: skip
        return fixed + struct.pack("<I", len(integers)) + integers + encode_tables(self.weights)

    @classmethod
    def from_bytes(cls, buffer: bytes) -> SceneParameters:
        """Read a PARM chunk.

        Raises:
            FormatError: the bytes are damaged.
        """
        head = _FIXED.size + 4
        if len(buffer) < head:
            raise TruncatedError(f"{len(buffer)} bytes, at least {head} expected")
        sh_degree, feedback, taps, _, size_step, opacity_step, precision, *steps = _FIXED.unpack_from(buffer)
        shape_step, color_step, sh_step = steps
        (length,) = struct.unpack_from("<I", buffer, _FIXED.size)
        steps_ok = all(0 < step < 1e30 for step in steps)
        if sh_degree > 3 or not steps_ok or not 0 < size_step <= 4096 or not 0 < opacity_step <= 4096:
            raise FormatError("a step or the SH degree is out of range", offset=0)
        if abs(precision) > 1 << 20:
            raise FormatError("position precision is out of range", offset=8)
        if length > len(buffer) - head:
            raise TruncatedError("the parameters are cut off", offset=_FIXED.size)
        reader = IntegerReader(memoryview(buffer)[head : head + length])
        matrix = 4 * MATRIX_SCALE
        color_basis = reader.array(_K_MATRIX, 9, -matrix, matrix, "colour basis").reshape(3, 3)
        bands = num_sh_coefficients(sh_degree) - 1
        sh_color_basis = np.zeros((3, 3), np.int64)
        sh_band_basis = np.zeros((0, 0), np.int64)
        if sh_degree:
            sh_color_basis = reader.array(_K_MATRIX, 9, -matrix, matrix, "SH colour basis").reshape(3, 3)
            sh_band_basis = reader.array(_K_MATRIX, bands * bands, -matrix, matrix, "SH basis").reshape(bands, bands)
        num_tables = reader.get(_K_COUNT, 1, _MAX_TABLES, "number of tables")
        streams = num_streams(sh_degree)
        models: list[StreamModel] = []
        for stream in range(streams):
            count = reader.get(_K_COUNT, 0, _MAX_FEATURES, "number of features")
            bias = reader.get(_K_BIAS, what="predictor bias")
            kinds, sources, coefficients = (np.zeros(count, np.int64) for _ in range(3))
            for f in range(count):
                code = reader.get(_K_FEATURE, 0, 4 * streams - 1, "predictor feature")
                kinds[f], sources[f] = code & 3, code >> 2
                coefficients[f] = reader.get(_K_COEFFICIENT, -(1 << 20), 1 << 20, "predictor coefficient")
                # Only what is decoded by then may be read: neighbours' values of this stream, earlier streams.
                late = sources[f] > stream or (kinds[f] == 2 and sources[f] == stream)
                if late or (stream >= SH_FIRST and (sources[f] != stream or kinds[f] > 1)):
                    raise FormatError("a predictor reads a stream that is not decoded yet", field="predictor feature")
            mode = reader.get(_K_MODE, 0, 3, "context mode")
            scale = reader.get(_K_SCALE, 0, 1 << 28, "context scale") if mode == 3 else 0
            if reader.get(_K_MODE, 0, 1, "context map flag"):
                if not models or len(models[-1].context_map) != CONTEXT_CELLS[mode]:
                    raise FormatError("a context map refers to one of another size", field="context map flag")
                context_map = models[-1].context_map
            else:
                deltas = reader.array(_K_MAP, CONTEXT_CELLS[mode], -_MAX_TABLES, _MAX_TABLES, "context map")
                cells = np.cumsum(deltas)
                if cells.min() < 0 or cells.max() >= num_tables:
                    raise FormatError("a context map names a table that does not exist", field="context map")
                context_map = cells.astype(np.uint8)
            models.append(StreamModel(Predictor(bias, kinds, sources, coefficients), mode, scale, context_map))
        reader.finish()
        tables = decode_tables(memoryview(buffer)[head + length :], num_tables)
        return cls(
            sh_degree, size_step, opacity_step, precision, shape_step, color_step, sh_step,
            color_basis, sh_color_basis, sh_band_basis, models, np.zeros((0, 0), np.int64), (feedback, taps), tables,
        )  # fmt: skip


assert MAX_CLASS == 15
