"""What the blocks of a lossless file share, and its bytes (chunk `COLD`, bitstreams/SPEC.md section 4.1).

A `Plan` is all a decoder needs beside a block: names and dtypes, the coding order, and for each column how it is
predicted and coded. The encoder's choices are in `lossless_fit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..bitstream.container import read_varint, write_varint
from ..entropy.bits import finish_bits, pack_fixed, read_fixed
from ..entropy.integers import IntegerReader, IntegerWriter
from ..entropy.tables import ALPHABET, TableSet, build_tables, decode_tables, encode_tables
from ..errors import FormatError, TruncatedError
from .lossless_kernels import CLASSES, ColumnModel

__all__ = [
    "CONSTANT",
    "COPY",
    "DICTIONARY",
    "MAX_COLUMNS",
    "MAX_DICTIONARY",
    "MAX_EXPONENT",
    "MAX_FAMILIES",
    "MAX_FEATURES",
    "MAX_KEPT",
    "MAX_MIXED_WIDTH",
    "MEAN",
    "PLAIN",
    "SCALE_BITS",
    "VALUE",
    "WEIGHT_BITS",
    "ColumnPlan",
    "ColumnSpec",
    "Feature",
    "Plan",
    "read_plan",
    "write_plan",
]

MAX_COLUMNS = 4096
MAX_NAME_BYTES = 1024
MAX_DICTIONARY = 1 << 16
MAX_KEPT = 128  # columns that others refer to: what a decoder keeps of a block beside its output
MAX_FAMILIES = 64
MAX_FEATURES = 32
MAX_EXPONENT = 150  # of spreads and units
WEIGHT_BITS = 9  # predictor weights are in 1/512
SCALE_BITS = 12  # weights of the expected residual are in 1/4096
MAX_WEIGHT = 1 << 14
MAX_SCALE = 1 << 16
MAX_CENTRE = 2.0**64

CONSTANT, COPY, PLAIN, DICTIONARY = 0, 1, 2, 3  # column modes
MIXED = 2  # added to PLAIN and DICTIONARY in the file, of mixed columns
MAX_MIXED_WIDTH = 32
VALUE, MEAN = 0, 1  # feature kinds: another column's value in the same row, its mean over the near rows

_SPATIAL, _TWINS = 1, 2
_DTYPES = tuple(
    np.dtype(order + code) for order in "<>" for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
)
# Kinds of integers in the description's integer stream.
_SOURCE, _MODE, _SMALL, _WIDE, _SPREAD, _UNIT, _OWN, _COUNT, _REFERENCE, _WEIGHT, _SCALE, _MAP = range(12)


@dataclass(frozen=True)
class ColumnSpec:
    """Name and dtype of one column (numpy's f4, f8, u1 to u8 or i1 to i8, of either byte order)."""

    name: str
    dtype: np.dtype

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    @property
    def width(self) -> int:
        """Bits of a value."""
        return 8 * self.dtype.itemsize

    def to_keys(self, values: npt.NDArray) -> npt.NDArray[np.uint64]:
        """Values as integers to code: float bits as they are, small signed integers offset to be unsigned."""
        native = np.ascontiguousarray(values).astype(self.dtype.newbyteorder("="), copy=False)
        bits = native.view(f"=u{self.dtype.itemsize}")
        if self.dtype.kind == "i" and self.width < 64:
            bits = bits ^ bits.dtype.type(1 << (self.width - 1))
        return bits.astype(np.uint64)

    def from_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray:
        """Inverse of `to_keys`; bits above the width are dropped."""
        bits = keys.astype(f"=u{self.dtype.itemsize}")
        if self.dtype.kind == "i" and self.width < 64:
            bits ^= bits.dtype.type(1 << (self.width - 1))
        return bits.view(self.dtype.newbyteorder("="))

    def to_sorted(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Keys in an order where larger values have larger integers (its own inverse is `from_sorted`)."""
        if not self.is_float:
            return keys
        sign = np.uint64(1 << (self.width - 1))
        return np.where(keys & sign, keys ^ np.uint64((1 << self.width) - 1), keys | sign)

    def from_sorted(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Inverse of `to_sorted`."""
        if not self.is_float:
            return keys
        sign = np.uint64(1 << (self.width - 1))
        return np.where(keys & sign, keys ^ sign, keys ^ np.uint64((1 << self.width) - 1))


@dataclass(frozen=True)
class Feature:
    """One term of a prediction: weight * 2**(own spread - other's spread) / 512 * (value or mean of `column`)."""

    kind: int
    column: int
    weight: int


@dataclass(frozen=True)
class ColumnPlan:
    """How one column is coded; references to columns are positions in coding order, to earlier ones only.

    Attributes:
        source: position of the column in the file.
        mode: CONSTANT, COPY, PLAIN or DICTIONARY.
        value: the constant's key, the column copied, or the number of the dictionary.
        shift: low bits of a float that are always 0 and left out.
        special: key (shifted; of a dictionary the index) with a token of its own.
        centre: float32 that values are measured from.
        spread: the column's values are about 2**spread from the centre.
        unit: residuals are about 2**unit.
        bias, mean_weight, near_weight: in 1/512, of 2**spread, of the near rows' mean and of the nearest row.
        features: terms from other columns.
        scale: weights in 1/4096 of near residuals, activity and 1 in the expected residual, in units.
        sphere: columns whose squares and this one's add up to 1; empty for an ordinary column.
        family: family of context cells.
        mixed: whether values are coded by context mixing.
        partner: of a mixed column, one whose differences are like its own, or -1.
    """

    source: int
    mode: int
    value: int = 0
    shift: int = 0
    special: int = 0
    centre: float = 0.0
    spread: int = 0
    unit: int = 0
    bias: int = 0
    mean_weight: int = 0
    near_weight: int = 0
    features: tuple[Feature, ...] = ()
    scale: tuple[int, int, int] = (0, 0, 0)
    sphere: tuple[int, ...] = ()
    family: int = 0
    mixed: bool = False
    partner: int = -1

    @property
    def is_modelled(self) -> bool:
        """Whether blocks hold anything of this column."""
        return self.mode in (PLAIN, DICTIONARY)

    @property
    def uses_tables(self) -> bool:
        """Whether values are tokens of tables."""
        return self.is_modelled and not self.mixed

    @property
    def references(self) -> set[int]:
        """Columns that predict this one."""
        return {feature.column for feature in self.features} | set(self.sphere)


@dataclass(frozen=True)
class Plan:
    """Everything the blocks share.

    Attributes:
        specs: columns in file order.
        spatial: the first three columns in coding order are positions, and order the rows of all others.
        twins: blocks say which rows have a twin.
        columns: in coding order.
        dictionaries: (D,) uint64 each, keys of the values, ascending in value.
        context_map: (families * CLASSES,) uint8, table of each context cell.
        tables: entropy tables.
    """

    specs: tuple[ColumnSpec, ...]
    spatial: bool
    twins: bool
    columns: tuple[ColumnPlan, ...]
    dictionaries: tuple[npt.NDArray[np.uint64], ...] = ()
    context_map: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    tables: TableSet = field(default_factory=lambda: build_tables(np.zeros((0, ALPHABET), np.int64)))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the decoded columns."""
        return sum(spec.dtype.itemsize for spec in self.specs)

    @property
    def num_positions(self) -> int:
        """Columns at the start of the coding order that are coded in file order."""
        return 3 if self.spatial else 0

    @property
    def num_families(self) -> int:
        """Families of context cells."""
        return 1 + max((column.family for column in self.columns if column.uses_tables), default=-1)

    def spec_of(self, column: ColumnPlan) -> ColumnSpec:
        """Name and dtype of a column."""
        return self.specs[column.source]

    def model_of(self, column: ColumnPlan) -> ColumnModel:
        """The numbers the kernels need."""
        spec = self.spec_of(column)
        is_float = column.mode == PLAIN and spec.is_float
        exponent_bits = (8 if spec.width == 32 else 11) if is_float else 1
        width = spec.width - column.shift
        if column.mode == DICTIONARY:
            width = max(len(self.dictionaries[column.value]) - 1, 1).bit_length()
        return ColumnModel(
            is_float=is_float,
            mantissa=width - 1 - exponent_bits,
            bias=(1 << (exponent_bits - 1)) - 1,
            width=width,
            special=np.uint64(column.special),
            centre=float(column.centre),
            unit=column.unit,
            mean_weight=column.mean_weight / (1 << WEIGHT_BITS),
            near_weight=column.near_weight / (1 << WEIGHT_BITS),
            scale_near=column.scale[0] / (1 << SCALE_BITS),
            scale_activity=column.scale[1] / (1 << SCALE_BITS),
            scale_const=column.scale[2] / (1 << SCALE_BITS),
            sphere=bool(column.sphere),
            first_cell=column.family * CLASSES,
        )


# ---- Writing -------------------------------------------------------------------------------------------------------


def _write_dictionary(spec: ColumnSpec, keys: npt.NDArray[np.uint64]) -> bytes:
    ordered = spec.to_sorted(keys)
    gaps = np.diff(ordered)
    width = max(int(gaps.max()).bit_length(), 1) if len(gaps) else 1
    head = write_varint(len(ordered)) + bytes([_dtype_code(spec.dtype), width]) + write_varint(int(ordered[0]))
    high = pack_fixed((gaps >> np.uint64(32)).astype(np.uint32), max(width - 32, 0))
    return head + high + pack_fixed((gaps & np.uint64(0xFFFFFFFF)).astype(np.uint32), min(width, 32))


def _dtype_code(dtype: np.dtype) -> int:
    return _DTYPES.index(dtype.newbyteorder("<") if dtype.byteorder in "|=" else dtype)


def _write_column(out: IntegerWriter, index: int, column: ColumnPlan) -> None:
    out.add(_SOURCE, column.source)
    out.add(_MODE, column.mode + MIXED * column.mixed)
    if column.mode == CONSTANT:
        _write_wide(out, column.value)
        return
    if column.mode == COPY:
        out.add(_REFERENCE, index - column.value)
        return
    if column.mode == DICTIONARY:
        out.add(_SMALL, column.value)
    out.add(_SMALL, column.shift, column.family, len(column.sphere))
    _write_wide(out, column.special)
    out.add(_UNIT, column.unit)
    _write_wide(out, int(np.float32(column.centre).view(np.uint32)))
    for other in column.sphere:
        out.add(_REFERENCE, index - other)
    if column.sphere:
        return
    out.add(_SPREAD, column.spread)
    out.add(_OWN, column.bias, column.mean_weight, column.near_weight)
    out.add(_SCALE, *column.scale)
    out.add(_COUNT, len(column.features))
    for feature in column.features:
        out.add(_REFERENCE, 2 * (index - feature.column) + feature.kind)
        out.add(_WEIGHT, feature.weight)
    if column.mixed:
        out.add(_REFERENCE, index - column.partner if column.partner >= 0 else 0)


def _write_wide(out: IntegerWriter, value: int) -> None:
    out.add(_WIDE, value >> 48, value >> 24 & 0xFFFFFF, value & 0xFFFFFF)


def write_plan(plan: Plan, weights: npt.NDArray[np.int64]) -> bytes:
    """The bytes of a plan whose tables are given by (T, ALPHABET) stored `weights`."""
    out = bytearray([_SPATIAL * plan.spatial | _TWINS * plan.twins])
    out += write_varint(len(plan.specs))
    for spec in plan.specs:
        name = spec.name.encode()
        out += write_varint(len(name)) + name + bytes([_dtype_code(spec.dtype)])
    out += write_varint(len(plan.dictionaries))
    for number, keys in enumerate(plan.dictionaries):
        users = (c for c in plan.columns if c.mode == DICTIONARY and c.value == number)
        out += _write_dictionary(plan.spec_of(next(users)), keys)
    integers = IntegerWriter()
    for index, column in enumerate(plan.columns):
        _write_column(integers, index, column)
    for cell, table in enumerate(plan.context_map.tolist()):
        integers.add(_MAP, table - (int(plan.context_map[cell - CLASSES]) if cell >= CLASSES else 0))
    section = integers.finish()
    out += write_varint(len(section)) + section
    return bytes(out + write_varint(len(weights)) + encode_tables(weights))


# ---- Reading -------------------------------------------------------------------------------------------------------


class _Reader:
    """A position in the description."""

    def __init__(self, buffer: bytes | memoryview) -> None:
        self.buffer = memoryview(buffer)
        self.position = 0

    def varint(self, what: str, limit: int) -> int:
        value, self.position = read_varint(self.buffer, self.position)
        if value > limit:
            raise FormatError(f"{what} is {value}, at most {limit} allowed", field=what)
        return value

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.buffer) - self.position:
            raise TruncatedError(f"{what} is cut off", offset=self.position, field=what)
        self.position += count
        return self.buffer[self.position - count : self.position]


def _read_specs(reader: _Reader) -> tuple[ColumnSpec, ...]:
    specs = []
    for _ in range(reader.varint("number of columns", MAX_COLUMNS)):
        name = bytes(reader.take(reader.varint("length of a name", MAX_NAME_BYTES), "column name"))
        code = reader.take(1, "column dtype")[0]
        if code >= len(_DTYPES):
            raise FormatError(f"unknown dtype {code}", field="column dtype")
        try:
            specs.append(ColumnSpec(name.decode(), _DTYPES[code]))
        except UnicodeDecodeError:
            raise FormatError("a column name is not UTF-8", field="column name") from None
    if len({spec.name for spec in specs}) != len(specs):
        raise FormatError("two columns have the same name", field="column name")
    return tuple(specs)


def _read_dictionary(reader: _Reader) -> tuple[np.dtype, npt.NDArray[np.uint64]]:
    count = reader.varint("size of a dictionary", MAX_DICTIONARY)
    code, width = reader.take(2, "dictionary")
    if count == 0 or code >= len(_DTYPES) or not 1 <= width <= 8 * _DTYPES[code].itemsize:
        raise FormatError("impossible dictionary", field="dictionary")
    spec = ColumnSpec("", _DTYPES[code])
    first = reader.varint("dictionary value", (1 << spec.width) - 1)
    gaps = np.zeros(count - 1, np.uint64)
    for bits in (max(width - 32, 0), min(width, 32)):
        raw = np.frombuffer(reader.take(((count - 1) * bits + 7) // 8, "dictionary"), np.uint8)
        finish_bits(raw, (count - 1) * bits)
        part = np.empty(count - 1, np.uint64)
        read_fixed(raw, bits, part)
        gaps = gaps << np.uint64(32) | part
    ordered = np.cumsum(np.concatenate([np.array([first], np.uint64), gaps]), dtype=np.uint64)
    top = np.uint64((1 << spec.width) - 1)
    if (ordered[1:] <= ordered[:-1]).any() or ordered[-1] > top:
        raise FormatError("dictionary values do not ascend", field="dictionary")
    return spec.dtype, spec.from_sorted(ordered)


def _read_wide(integers: IntegerReader) -> int:
    high = integers.get(_WIDE, 0, 0xFFFF, "wide value")
    middle = integers.get(_WIDE, 0, 0xFFFFFF, "wide value")
    return high << 48 | middle << 24 | integers.get(_WIDE, 0, 0xFFFFFF, "wide value")


class _ColumnReader:
    """Reads the columns of a plan in coding order and checks each against those before it."""

    def __init__(
        self,
        integers: IntegerReader,
        specs: Sequence[ColumnSpec],
        dictionaries: Sequence[tuple[np.dtype, npt.NDArray[np.uint64]]],
        num_positions: int,
    ) -> None:
        self.integers = integers
        self.specs = specs
        self.dictionaries = dictionaries
        self.num_positions = num_positions
        self.columns: list[ColumnPlan] = []
        self.kept: set[int] = set()

    def _reference(self, index: int, what: str, distance: int) -> int:
        """An earlier modelled column that is coded in the same row order."""
        other = index - distance
        if not self._lowest(index) <= other < index or not self.columns[other].is_modelled:
            raise FormatError(f"{what} refers to a column that cannot predict", field=what)
        self.kept.add(other)
        if len(self.kept) > MAX_KEPT:
            raise FormatError(f"more than {MAX_KEPT} columns predict others", field=what)
        return other

    def read(self) -> ColumnPlan:
        """The next column."""
        get = self.integers.get
        index = len(self.columns)
        source = get(_SOURCE, 0, len(self.specs) - 1, "column number")
        spec = self.specs[source]
        mode = get(_MODE, CONSTANT, DICTIONARY + MIXED, "column mode")
        mixed = mode > DICTIONARY
        if mixed:
            mode -= MIXED
            if mode == PLAIN and (spec.is_float or spec.width > MAX_MIXED_WIDTH):
                raise FormatError("a column that cannot be mixed", field="column mode")
        if mode == CONSTANT:
            column = ColumnPlan(source, mode, _read_wide(self.integers))
        elif mode == COPY:
            other = index - get(_REFERENCE, 1, index, "copied column")
            if self.specs[self.columns[other].source].dtype.itemsize != spec.dtype.itemsize:
                raise FormatError("a column copies one of another size", field="copied column")
            column = ColumnPlan(source, mode, other)
        else:
            column = self._read_model(index, source, mode, spec)
            if mixed:
                column = self._read_mixed(index, column)
        self.columns.append(column)
        return column

    def _read_mixed(self, index: int, column: ColumnPlan) -> ColumnPlan:
        """What a mixed column has beside its model."""
        if column.sphere:
            raise FormatError("a mixed column cannot complete a sphere", field="sphere")
        distance = self.integers.get(_REFERENCE, 0, index, "partner")
        if not distance:
            return replace(column, mixed=True)
        partner = index - distance
        if not self._lowest(index) <= partner or not self.columns[partner].mixed:
            raise FormatError("the partner of a column is not mixed", field="partner")
        return replace(column, mixed=True, partner=partner)

    def _lowest(self, index: int) -> int:
        """First column that is coded in the same row order."""
        return self.num_positions if index >= self.num_positions else 0

    def _read_model(self, index: int, source: int, mode: int, spec: ColumnSpec) -> ColumnPlan:
        get = self.integers.get
        number = 0
        if mode == DICTIONARY:
            number = get(_SMALL, 0, len(self.dictionaries) - 1, "dictionary number")
            if self.dictionaries[number][0].newbyteorder("<") != spec.dtype.newbyteorder("<"):
                raise FormatError("a dictionary has another dtype than its column", field="dictionary number")
        is_float = mode == PLAIN and spec.is_float
        shift = get(_SMALL, 0, (22 if spec.width == 32 else 51) if is_float else 0, "shift")
        family = get(_SMALL, 0, MAX_FAMILIES - 1, "family")
        num_sphere = get(_SMALL, 0, 7, "sphere")
        special = _read_wide(self.integers)
        unit = get(_UNIT, -MAX_EXPONENT, MAX_EXPONENT, "unit")
        with np.errstate(invalid="ignore"):
            centre = float(np.array(_read_wide(self.integers) & 0xFFFFFFFF, np.uint32).view(np.float32))
        if not abs(centre) <= MAX_CENTRE:
            raise FormatError("impossible centre", field="centre")
        sphere = tuple(self._reference(index, "sphere", get(_REFERENCE, 1, index, "sphere")) for _ in range(num_sphere))
        if sphere:
            if not is_float or any(self.columns[j].centre or self.columns[j].mode != PLAIN for j in sphere):
                raise FormatError("a sphere of columns that are not plain floats", field="sphere")
            return ColumnPlan(source, mode, number, shift, special, centre, unit=unit, sphere=sphere, family=family)
        spread = get(_SPREAD, -MAX_EXPONENT, MAX_EXPONENT, "spread")
        bias, mean_weight, near_weight = (get(_OWN, -MAX_WEIGHT, MAX_WEIGHT, "weight") for _ in range(3))
        scale = tuple(get(_SCALE, 0, MAX_SCALE, "scale") for _ in range(3))
        features = []
        for _ in range(get(_COUNT, 0, MAX_FEATURES, "number of features")):
            reference = get(_REFERENCE, 2, 2 * index + 1, "feature")
            other = self._reference(index, "feature", reference >> 1)
            features.append(Feature(reference & 1, other, get(_WEIGHT, -MAX_WEIGHT, MAX_WEIGHT, "weight")))
        return ColumnPlan(
            source,
            mode,
            number,
            shift,
            special,
            centre,
            spread,
            unit,
            bias,
            mean_weight,
            near_weight,
            tuple(features),
            (scale[0], scale[1], scale[2]),
            (),
            family,
        )


def read_plan(description: bytes | memoryview) -> Plan:
    """Read the bytes written by `write_plan`.

    Raises:
        FormatError: the bytes are damaged or ask for something impossible.
    """
    reader = _Reader(description)
    flags = reader.take(1, "flags")[0]
    if flags & ~(_SPATIAL | _TWINS):
        raise FormatError(f"unknown flags {flags}", field="flags")
    specs = _read_specs(reader)
    dictionaries = [_read_dictionary(reader) for _ in range(reader.varint("number of dictionaries", len(specs)))]
    spatial = bool(flags & _SPATIAL)
    if spatial and len(specs) < 3:
        raise FormatError("no columns for positions", field="flags")
    integers = IntegerReader(reader.take(reader.varint("length of integers", len(description)), "integers"))
    columns = _ColumnReader(integers, specs, dictionaries, 3 if spatial else 0)
    for _ in specs:
        columns.read()
    if len({column.source for column in columns.columns}) != len(specs):
        raise FormatError("a column is coded twice", field="column number")
    plan = Plan(
        specs,
        spatial,
        bool(flags & _TWINS),
        tuple(columns.columns),
        tuple(keys for _, keys in dictionaries),
    )
    context_map = np.zeros(plan.num_families * CLASSES, np.int64)
    for cell in range(len(context_map)):
        above = int(context_map[cell - CLASSES]) if cell >= CLASSES else 0
        context_map[cell] = above + integers.get(_MAP, -above, 255 - above, "context map")
    integers.finish()
    num_tables = reader.varint("number of tables", 256)
    if len(context_map) and context_map.max() >= num_tables:
        raise FormatError("the context map names a missing table", field="context map")
    tables = decode_tables(reader.take(len(description) - reader.position, "tables"), num_tables)
    return replace(plan, context_map=context_map.astype(np.uint8), tables=tables)
