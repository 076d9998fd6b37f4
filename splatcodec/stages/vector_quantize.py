"""Attributes by residual vector quantization: codebooks in stages, labels, and the chunk that holds them.

A value is the sum of one entry of each stage's codebook (SPEC.md, section 8.1). Entries are integers in steps; labels
are binary decisions with adaptive models.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import GAMMA_MODELS, decode_bit, decode_gamma, encode_bit, encode_gamma, new_models
from ..entropy.rans import rans_encode, start_decoding
from ..errors import FormatError, TruncatedError

__all__ = ["ATTRIBUTES", "MAX_ENTRIES", "MAX_STAGES", "VectorQuantized", "dimensions", "sums"]

#: Names of the attributes by their number in the file.
ATTRIBUTES = ("scales", "quats", "colours")
MAX_STAGES = 8
MAX_ENTRIES = 8192
_HEAD = struct.Struct("<BBHB3xf")
_STATES = 8
_MAX_NUMBER = 1 << 20
_FLAG_MODELS = 8


def dimensions(attribute: str, num_coefficients: int) -> int:
    """Numbers of an attribute in a scene of so many SH coefficients a channel, sh0 counted.

    >>> dimensions("scales", 16), dimensions("quats", 16), dimensions("colours", 9)
    (3, 4, 27)
    """
    return {"scales": 3, "quats": 4, "colours": 3 * num_coefficients}[attribute]


def sums(codebooks: npt.NDArray[np.int32], labels: npt.NDArray[np.int32], step: float) -> npt.NDArray[np.float64]:
    """(R, D) float64 values of labels (R, S) into codebooks (S, C, D) of integers in steps."""
    total = np.zeros((len(labels), codebooks.shape[2]), np.int64)
    for stage, entries in enumerate(codebooks):
        total += entries[labels[:, stage]]
    return total.astype(np.float64) * step


@dataclass(frozen=True, eq=False)
class VectorQuantized:
    """What a VECQ chunk holds.

    Attributes:
        attribute: one of `ATTRIBUTES`: log scales; quaternions (w, x, y, z), which decode to unit length; sh0 and shN,
            (K, 3) flattened.
        codebooks: (S, C, D) int32, in steps.
        step: float32 value above 0.
        labels: (R, S) int32, 0..C-1.
        rows: (N,) bool, which Gaussians are coded, R of them; None = all.
    """

    attribute: str
    codebooks: npt.NDArray[np.int32]
    step: float
    labels: npt.NDArray[np.int32]
    rows: npt.NDArray[np.bool_] | None = None

    def values(self) -> npt.NDArray[np.float32]:
        """(R, D) float32, as a decoder gives them."""
        found = sums(self.codebooks, self.labels, self.step)
        if self.attribute == "scales":
            found = np.clip(found, -100.0, 80.0)
        elif self.attribute == "quats":
            w, x, y, z = found.T
            length = np.sqrt(w * w + x * x + y * y + z * z)
            found = np.where(
                length[:, None] > 0, found / np.where(length > 0, length, 1.0)[:, None], [1.0, 0.0, 0.0, 0.0]
            )
        return found.astype(np.float32)

    def to_bytes(self) -> bytes:
        """The chunk."""
        stages, entries, width = self.codebooks.shape
        assert 1 <= stages <= MAX_STAGES
        assert 1 <= entries <= min(MAX_ENTRIES, len(self.labels))
        assert np.abs(self.codebooks.astype(np.int64)).max(initial=0) <= _MAX_NUMBER
        assert self.rows is None or int(self.rows.sum()) == len(self.labels)
        bits = int(entries - 1).bit_length()
        rows = np.zeros(0, np.bool_) if self.rows is None else np.ascontiguousarray(self.rows)
        room = len(rows) + 64 * self.codebooks.size + bits * self.labels.size + 1
        intervals = np.empty(room, np.uint32)
        count = _encode(
            new_models(_num_models(stages, width, bits)), rows, self.codebooks.reshape(-1, width),
            np.ascontiguousarray(self.labels), entries, bits, intervals,
        )  # fmt: skip
        number = ATTRIBUTES.index(self.attribute)
        head = _HEAD.pack(number, stages, entries, int(self.rows is not None), self.step)
        return head + rans_encode(intervals[:count], _STATES)

    @classmethod
    def from_bytes(cls, payload: bytes, count: int, num_gaussians: int, num_coefficients: int) -> VectorQuantized:
        """Read a chunk.

        Args:
            payload: the chunk.
            count: Gaussians that it says it has. num_gaussians: of the scene.
            num_coefficients: SH coefficients a channel, sh0 counted.

        Raises:
            FormatError: damaged; the offset is that in the chunk.
        """
        if len(payload) < _HEAD.size:
            raise TruncatedError("the head of a vector-quantized attribute is cut off", offset=len(payload))
        number, stages, entries, some, step = _HEAD.unpack_from(payload)
        if number >= len(ATTRIBUTES):
            raise FormatError(f"attribute {number} cannot be vector-quantized", offset=0)
        if not 1 <= stages <= MAX_STAGES:
            raise FormatError(f"{stages} stages", offset=1)
        if some > 1 or not 1 <= count <= num_gaussians or (not some and count != num_gaussians):
            raise FormatError(f"{count} vector-quantized Gaussians of {num_gaussians}", offset=4)
        if not 1 <= entries <= min(MAX_ENTRIES, count):
            raise FormatError(f"{entries} entries for {count} Gaussians", offset=2)
        if not 0.0 < step < 1e30:
            raise FormatError("the step is out of range", offset=8)
        width = dimensions(ATTRIBUTES[number], num_coefficients)
        bits = int(entries - 1).bit_length()
        rows = np.zeros(num_gaussians if some else 0, np.bool_)
        codebooks = np.zeros((stages * entries, width), np.int32)
        labels = np.zeros((count, stages), np.int32)
        try:
            state = start_decoding(memoryview(payload)[_HEAD.size :], _STATES)
            models = new_models(_num_models(stages, width, bits))
            wrong = _decode(
                models, rows, codebooks, labels, entries, bits, state.states, state.words, state.cursor
            )  # fmt: skip
            if wrong:
                what = ("the flags do not have that many ones", "an entry is out of range", "a label is out of range")
                raise FormatError(what[wrong - 1])
            state.finish()
        except FormatError as error:
            error.offset = _HEAD.size
            raise
        return cls(
            ATTRIBUTES[number], codebooks.reshape(stages, entries, width), step, labels, rows if some else None
        )  # fmt: skip


def _num_models(stages: int, width: int, bits: int) -> int:
    return _FLAG_MODELS + stages * (GAMMA_MODELS * width + (1 << bits))


@njit(cache=True)
def _encode(models, rows, codebooks, labels, entries, bits, intervals):
    count = 0
    context = 0
    for k in range(len(rows)):
        count = encode_bit(models, context, rows[k], intervals, count)
        context = (4 if rows[k] else 0) | (context >> 1)
    width = codebooks.shape[1]
    for k in range(len(codebooks)):
        stage = k // entries
        for d in range(width):
            v = np.int64(codebooks[k, d])
            zigzag = 2 * v if v >= 0 else -2 * v - 1
            count = encode_gamma(models, 8 + 64 * (width * stage + d), zigzag, intervals, count)
    for k in range(len(labels)):
        for stage in range(labels.shape[1]):
            base = 8 + 64 * width * labels.shape[1] + (stage << bits)
            node = 1
            for b in range(bits - 1, -1, -1):
                bit = (labels[k, stage] >> b) & 1
                count = encode_bit(models, base + node, bit, intervals, count)
                node = 2 * node + bit
    return count


@njit(cache=True)
def _decode(models, rows, codebooks, labels, entries, bits, states, words, cursor):
    """0, or what is wrong: 1 number of rows, 2 an entry, 3 a label."""
    context = 0
    ones = 0
    for k in range(len(rows)):
        flag = decode_bit(models, context, states, words, cursor)
        rows[k] = flag
        ones += flag
        context = (flag << 2) | (context >> 1)
    if len(rows) and ones != len(labels):
        return 1
    width = codebooks.shape[1]
    for k in range(len(codebooks)):
        stage = k // entries
        for d in range(width):
            zigzag = decode_gamma(models, 8 + 64 * (width * stage + d), states, words, cursor)
            v = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
            if zigzag < 0 or abs(v) > _MAX_NUMBER or cursor[2]:
                return 2
            codebooks[k, d] = v
    for k in range(len(labels)):
        for stage in range(labels.shape[1]):
            base = 8 + 64 * width * labels.shape[1] + (stage << bits)
            node = 1
            for _ in range(bits):
                node = 2 * node + decode_bit(models, base + node, states, words, cursor)
            label = node - (1 << bits)
            if label >= entries:
                return 3
            labels[k, stage] = label
    return 0
