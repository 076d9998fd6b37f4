"""Learned parts of a still scene: attributes by vector quantization, colours by a field (SPEC.md, section 8).

Gaussians of the tiles -> VECQ replaces attributes -> NCOL adds to the colours -> Gaussians
`learned_encoder.py` is the way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..bitstream.container import Chunk, ChunkEntry, Container, Feature
from ..errors import FormatError, SplatCodecError
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.neural_color import ColourField
from ..stages.vector_quantize import ATTRIBUTES, VectorQuantized, dimensions

__all__ = ["FEATURES", "LearnedParts", "has_learned_parts", "read_parts", "restored"]

VECTOR_FEATURE, NEURAL_FEATURE = "vector-1", "neural-1"
FEATURES = (VECTOR_FEATURE, NEURAL_FEATURE)


@dataclass(frozen=True, eq=False)
class LearnedParts:
    """The parts of one scene.

    Attributes:
        vectors: in the order of the file. field: None without one.
    """

    vectors: Sequence[VectorQuantized] = ()
    field: ColourField | None = None

    def applied(self, scene: Gaussians, rows: npt.NDArray[np.int64] | None = None) -> Gaussians:
        """The scene with what the parts say.

        Args:
            scene: as the tiles give it.
            rows: (n,) its rows in the whole scene; None: it is the whole scene.
        """
        changed: dict[str, npt.NDArray[np.float32]] = {}
        for part in self.vectors:
            inside, values = _of_rows(part, rows, len(scene))
            for name, array in _as_arrays(part.attribute, values, scene.shN.shape[1]).items():
                changed[name] = changed.get(name, getattr(scene, name)).copy()
                changed[name][inside] = array
        if self.field is not None:
            found = self.field.colours(scene.means)
            sh0, shN = changed.get("sh0", scene.sh0), changed.get("shN", scene.shN)
            changed["sh0"] = (sh0.astype(np.float64) + found[:, :1]).astype(np.float32)
            changed["shN"] = (shN.astype(np.float64) + found[:, 1:]).astype(np.float32)
        return scene.replaced(**changed) if changed else scene

    def selected(self, order: npt.NDArray[np.int64]) -> LearnedParts:
        """The parts of the Gaussians at `order` (integers), in that order; a part of none of them is left out."""
        vectors = []
        for part in self.vectors:
            rows = None if part.rows is None else part.rows[order]
            place = order if part.rows is None else (np.cumsum(part.rows) - 1)[order[rows]]
            if not len(place):
                continue
            labels, codebooks = part.labels[place], part.codebooks
            if codebooks.shape[1] > len(place):  # then each label that is used gets an entry of its own
                used = [np.unique(column, return_inverse=True) for column in labels.T]
                most = max(len(found) for found, _ in used)
                books = np.zeros((len(codebooks), most, codebooks.shape[2]), np.int32)
                for stage, (found, _) in enumerate(used):
                    books[stage, : len(found)] = codebooks[stage, found]
                codebooks, labels = books, np.stack([at for _, at in used], 1).astype(np.int32)
            vectors.append(replace(part, codebooks=codebooks, labels=labels, rows=rows))
        return LearnedParts(vectors, self.field)

    def chunks(self) -> list[Chunk]:
        """VECQ and NCOL chunks."""
        found = [Chunk("VECQ", part.to_bytes(), count=len(part.labels)) for part in self.vectors]
        return found if self.field is None else [*found, Chunk("NCOL", self.field.to_bytes())]

    def features(self) -> list[Feature]:
        """What a reader needs."""
        names = [VECTOR_FEATURE] * bool(self.vectors) + [NEURAL_FEATURE] * (self.field is not None)
        return [Feature(name) for name in names]


def _of_rows(
    part: VectorQuantized, rows: npt.NDArray[np.int64] | None, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Which of the `count` Gaussians at hand the part is about, and its values for them."""
    values = part.values()
    if part.rows is None:
        return np.arange(count), values if rows is None else values[rows]
    place = np.cumsum(part.rows) - 1
    flags = part.rows if rows is None else part.rows[rows]
    inside = np.flatnonzero(flags)
    return inside, values[place[inside if rows is None else rows[inside]]]


def _as_arrays(attribute: str, values: npt.NDArray[np.float32], rest: int) -> dict[str, npt.NDArray[np.float32]]:
    if attribute != "colours":
        return {attribute: values}
    values = values.reshape(len(values), 1 + rest, 3)
    return {"sh0": values[:, :1], "shN": values[:, 1:]}


def has_learned_parts(container: Container) -> bool:
    """Whether the scene is more than its tiles."""
    return any(container.has_feature(name) for name in FEATURES)


def read_parts(container: Container, sh_degree: int, limits: Limits = DEFAULT_LIMITS) -> LearnedParts:
    """All learned parts of an open file.

    Raises:
        FormatError: damaged, or not what the features say; names chunk and byte.
    """
    num_gaussians, coefficients = container.num_gaussians, (sh_degree + 1) ** 2
    for entry in container.of_type("TILE"):
        if entry.level != 1:
            raise FormatError(
                "a scene with learned parts has one level", file=container.name, chunk=entry.label, offset=entry.offset
            )
    vectors: list[VectorQuantized] = []
    entries = container.of_type("VECQ")
    if bool(entries) != container.has_feature(VECTOR_FEATURE) or len(entries) > len(ATTRIBUTES):
        raise FormatError(f"{len(entries)} VECQ chunks", file=container.name, chunk="VECQ")
    widest = dimensions("colours", coefficients)
    limits.check_bytes(12 * num_gaussians * widest * max(len(entries), 1), "learned parts", file=container.name)
    field = None
    for entry in entries:
        try:
            part = VectorQuantized.from_bytes(container.read(entry), entry.count, num_gaussians, coefficients)
            if any(other.attribute == part.attribute for other in vectors):
                raise FormatError(f"two chunks for the {part.attribute}", offset=0)
        except SplatCodecError as error:
            raise _located(error, container, entry) from None
        vectors.append(part)
    if container.has_feature(NEURAL_FEATURE):
        entry = container.one("NCOL")
        try:
            field = ColourField.from_bytes(container.read(entry), coefficients)
        except SplatCodecError as error:
            raise _located(error, container, entry) from None
    elif container.of_type("NCOL"):
        raise FormatError("a colour field without its feature", file=container.name, chunk="NCOL")
    return LearnedParts(vectors, field)


def _located(error: SplatCodecError, container: Container, entry: ChunkEntry) -> SplatCodecError:
    if error.chunk is None:
        error.offset = entry.offset + (error.offset or 0)
    return error.locate(file=container.name, chunk=entry.label)


def restored(
    container: Container, scene: Gaussians, rows: npt.NDArray[np.int64], limits: Limits = DEFAULT_LIMITS
) -> Gaussians:
    """What `decode_lossy` gave, with the learned parts of the file.

    Args:
        rows: of each Gaussian in the whole scene.

    Raises:
        FormatError: a part is damaged; names chunk and byte.
    """
    return read_parts(container, scene.sh_degree, limits).applied(scene, rows)
