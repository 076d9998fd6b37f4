"""The Python codec API: read, write, compress, decompress, open, verify.

Arrays in, bytes out, and back. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .bitstream.container import MAGIC, Chunk, Container, Feature, write_container
from .bitstream.metadata import metadata_chunk, read_metadata
from .errors import FormatError, ParameterError, SplatCodecError
from .files import PathLike, atomic_write, open_for_reading
from .gaussians import Gaussians
from .limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from .formats import Blocks
    from .preprocess.plan import LossyOptions
    from .sequence.scene import MovingScene, SequenceReport
    from .static.encoder import EncodedTiles, Refinement

__all__ = [
    "CompressReport",
    "Scene",
    "compress",
    "compress_file",
    "compress_sequence",
    "decompress",
    "decompress_file",
    "on_cluster",
    "open",
    "open_blocks",
    "pack_tiles",
    "read",
    "verify",
    "write",
]

Progress = Callable[[str, float], None]
SUFFIX = ".splc"


@dataclass
class CompressReport:
    """What `compress` did.

    Attributes:
        num_gaussians: in the input. num_coded: in the file.
        input_bytes: of the input file, or of the float arrays. size_bytes: of the file written.
        rate_bits: bits by purpose, such as "octree", "size", "sh", "tables".
        seconds: by stage.
        notes: what was changed, dropped or assumed, for people.
        lossless: whether every value comes back.
    """

    num_gaussians: int = 0
    num_coded: int = 0
    input_bytes: int = 0
    size_bytes: int = 0
    lossless: bool = False
    rate_bits: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bits_per_gaussian(self) -> float:
        """Bits of the file per original Gaussian; 0 for an empty scene."""
        return 8.0 * self.size_bytes / self.num_gaussians if self.num_gaussians else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_gaussians": self.num_gaussians,
            "num_coded": self.num_coded,
            "input_bytes": self.input_bytes,
            "size_bytes": self.size_bytes,
            "bits_per_gaussian": self.bits_per_gaussian,
            "lossless": self.lossless,
            "rate_bits": dict(self.rate_bits),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }


def is_splc(path: PathLike) -> bool:
    """Whether the file begins with the magic of `.splc`; a suffix proves nothing."""
    with open_for_reading(path) as file:
        return file.read(4) == MAGIC


def read(path: PathLike, *, format: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a scene in any known format, `.splc` included.

    Args:
        path: a file (or a SOG folder).
        format: name of the format, "splc" or one of `splatcodec.formats.formats()`; None finds out.

    Raises:
        SplatCodecError: one error that names file, chunk and byte.
    """
    from . import formats

    folder = os.path.isdir(path)
    if format == "splc" or (format is None and not folder and is_splc(path)):
        with _open_still(path, limits) as scene:
            return scene.read()
    if format is None and not folder and os.fspath(path).lower().endswith(SUFFIX):
        raise FormatError("not a .splc file (bad magic)", file=os.fspath(path), offset=0)
    return formats.read(path, format=format, limits=limits)


@contextlib.contextmanager
def open_blocks(
    path: PathLike, *, format: str | None = None, limits: Limits = DEFAULT_LIMITS, threads: int | None = None
) -> Iterator[Blocks | None]:
    """A scene in any known format to be read a block of rows at a time, for `formats.write_blocks`.

    Args:
        format: as for `read`. threads: chunks of a `.splc` file decoded at once.

    Yields:
        The scene, readable while the context lasts; None where it has to be read whole.

    Raises:
        SplatCodecError: one error that names file, chunk and byte; also while blocks are read.
    """
    from . import formats

    if format == "splc" or (format is None and not os.path.isdir(path) and is_splc(path)):
        with _open_still(path, limits) as scene:
            yield scene.blocks(threads=threads)
        return
    if format is None and os.fspath(path).lower().endswith(SUFFIX):
        raise FormatError("not a .splc file (bad magic)", file=os.fspath(path), offset=0)
    with formats.open_blocks(path, format=format, limits=limits) as blocks:
        yield blocks


def write(
    gaussians: Gaussians, path: PathLike, *, format: str | None = None, overwrite: bool = False, **options: Any
) -> list[str]:
    """Write a scene in the format that the suffix or `format` names.

    Args:
        options: for `.splc`, those of `compress`; else those of `splatcodec.formats.WriteOptions`.

    Returns:
        What the file does not hold of the scene, a sentence each; other formats than `.splc` warn of each, too.

    Raises:
        ParameterError: an option that the format does not have.
        SplatCodecError: the format cannot be written, the file exists, the disk is full.
    """
    from . import formats

    if format == "splc" or (format is None and os.fspath(path).lower().endswith(SUFFIX)):
        report = options.setdefault("report", CompressReport())
        payload = compress(gaussians, **options)
        with atomic_write(path, overwrite) as file:
            file.write(payload)
        return list(report.notes)
    try:
        chosen = formats.WriteOptions(**options)
    except TypeError:
        known = sorted(formats.WriteOptions.__dataclass_fields__)
        unknown = [name for name in options if name not in known]
        raise ParameterError(f"options {', '.join(unknown)} are for .splc files only") from None
    return formats.write(gaussians, path, format=format, overwrite=overwrite, options=chosen)


def on_cluster(address: str) -> AbstractContextManager[Any]:
    """A context in which lossy scenes have their tiles coded by a Dask cluster; the bytes are the same.

    Args:
        address: of its scheduler, such as "tcp://10.0.0.5:8786".

    Raises:
        BackendUnavailableError: Dask is not installed, nothing answers, or the workers' splatcodec is another one.
    """
    from .static import cluster

    return cluster.on_cluster(address)


def compress(
    source: Gaussians | PathLike,
    *,
    lossless: bool = False,
    reorder: bool = False,
    extras: bool = True,
    options: LossyOptions | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
    report: CompressReport | None = None,
    refinement: Refinement | None = None,
    **lossy: Any,
) -> bytes:
    """Compress a scene to the bytes of a `.splc` file.

    Args:
        source: Gaussians, or a path to read. Only a path keeps what a file has beside its Gaussians: a PLY's header and
            column order, the integers of other formats.
        lossless: every float bit-identical. Otherwise `lossy` says how good.
        reorder: lossless only: let the Gaussians come back in another order, for fewer bytes.
        extras: keep side arrays (lossless in both modes).
        options: lossy settings as an object, instead of `lossy`.
        threads: worker threads (default: one a core); the bytes do not depend on it.
        progress: called with (stage, share done 0..1).
        report: filled in if given.
        refinement: lossy only: what fits the scene while it is encoded; `splatcodec.training.refine` has one.
        lossy: fields of `LossyOptions`: quality, target_psnr, target_size, effort ...

    Returns:
        The file's bytes.

    Raises:
        ParameterError: options contradict each other.
        SplatCodecError: the source cannot be read.
    """
    report = report if report is not None else CompressReport()
    started = time.perf_counter()
    if lossless:
        if lossy or options is not None or refinement is not None:
            raise ParameterError(f"lossless takes no {', '.join(lossy) or 'lossy options'}")
        chunks, features, count = _compress_lossless(source, reorder, extras, threads, limits, report, progress)
    else:
        if reorder:
            raise ParameterError("reorder is for lossless; lossy files never keep the order")
        from .preprocess.plan import LossyOptions

        if options is None:
            try:
                options = LossyOptions(**lossy)
            except TypeError:
                known = sorted(LossyOptions.__dataclass_fields__)
                unknown = [name for name in lossy if name not in known]
                raise ParameterError(
                    f"unknown option {', '.join(unknown)}", hint="known: " + ", ".join(known)
                ) from None
        elif lossy:
            raise ParameterError("pass either options or their fields, not both")
        gaussians = _source_gaussians(source, limits, report)
        chunks, features, count = _compress_lossy(gaussians, options, extras, threads, report, progress, refinement)
    file = io.BytesIO()
    report.size_bytes = write_container(file, chunks, num_gaussians=count, features=features)
    report.seconds["total"] = time.perf_counter() - started
    return file.getvalue()


def _source_gaussians(source: Gaussians | PathLike, limits: Limits, report: CompressReport) -> Gaussians:
    if isinstance(source, Gaussians):
        report.input_bytes = source.array_bytes
        return source
    gaussians = read(source, limits=limits)
    path = Path(source)
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    report.input_bytes = sum(p.stat().st_size for p in files)
    return gaussians


def _compress_lossy(
    gaussians: Gaussians,
    options: LossyOptions,
    extras: bool,
    threads: int | None,
    report: CompressReport,
    progress: Progress | None,
    refinement: Refinement | None,
) -> tuple[list[Chunk], list[Feature], int]:
    from .static.encoder import encode_lossy

    report.num_gaussians = gaussians.num_gaussians
    cleaned, cleaning = gaussians.cleaned()
    if cleaning:
        report.notes.append(str(cleaning))
    side = cleaned.extras if extras else {}
    # What a target size leaves for the tiles: side arrays are coded once in the scene's own order to learn their size.
    overhead = 0
    if options.target_size is not None:
        probe = [metadata_chunk(gaussians.metadata), *_side_chunks(side, threads)]
        overhead = write_container(io.BytesIO(), probe, num_gaussians=0, features=[Feature("lossy-1")])
        overhead += overhead // 32 + 64 + 96 * len(side)
    encoded = encode_lossy(
        cleaned, options, overhead_bytes=overhead, threads=threads, progress=progress, refinement=refinement
    )
    report.num_coded = len(encoded.order)
    report.rate_bits.update(encoded.rate_bits)
    report.seconds.update(encoded.seconds)
    report.notes.extend(encoded.notes)
    metadata = dict(gaussians.metadata)
    features = [Feature("lossy-1")]
    if encoded.mixing:
        features.append(Feature("mixing-1"))
    side = {name: values[encoded.order] for name, values in side.items()}
    if side:
        from .static.lossless import extras_layout

        metadata["extras"] = extras_layout(side)
        features.append(Feature("extras-1"))
    elif gaussians.extras:
        report.notes.append(f"side arrays dropped: {', '.join(gaussians.extras)}")
    side_chunks = _side_chunks(side, threads)
    chunks = [metadata_chunk(metadata), *encoded.chunks, *side_chunks]
    return chunks, features, len(encoded.order)


def pack_tiles(encoded: EncodedTiles, metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a `.splc` file of tiles that `static.encoder.encode_tiles` made, without side arrays."""
    features = [Feature("lossy-1"), *([Feature("mixing-1")] if encoded.mixing else [])]
    file = io.BytesIO()
    chunks = [metadata_chunk(metadata), *encoded.chunks]
    write_container(file, chunks, num_gaussians=len(encoded.order), features=features)
    return file.getvalue()


def _side_chunks(extras: Any, threads: int | None) -> list[Chunk]:
    if not extras:
        return []
    from .static.lossless import encode_extras

    return encode_extras(extras, threads)


def _compress_lossless(
    source: Gaussians | PathLike,
    reorder: bool,
    extras: bool,
    threads: int | None,
    limits: Limits,
    report: CompressReport,
    progress: Progress | None,
) -> tuple[list[Chunk], list[Feature], int]:
    from .static import stored
    from .static.lossless import encode_table, table_of_source
    from .static.native import FEATURE, take_apart

    notes: list[str] = []
    native = None if isinstance(source, Gaussians) else take_apart(source, limits, notes)
    if native is not None:
        assert not isinstance(source, Gaussians)
        count, source_bytes = len(native.scene), native.size_bytes
        if reorder:
            native.reorder()
        columns = native.chunks(threads, progress)
        features = [Feature("lossless-1"), Feature(FEATURE)]
        if stored.is_smaller(source_bytes, columns):
            columns, features[1] = [stored.file_chunk(source, native.native)], Feature(stored.FEATURE)
            notes.append("kept as it is: its numbers, coded by us, would take more bytes")
            reorder = False
        else:
            notes += native.notes
    else:
        table, source_bytes, more = table_of_source(source, extras, limits)
        count = len(next(iter(table.columns.values()))) if table.columns else 0
        notes += more
    report.num_gaussians = report.num_coded = count
    report.input_bytes = source_bytes
    report.lossless = True
    report.notes.extend(notes)
    metadata: dict[str, Any] = dict(source.metadata) if isinstance(source, Gaussians) else {}
    if not isinstance(source, Gaussians) and not reorder and Path(source).is_file():
        with open_for_reading(source) as file:
            metadata["source"] = {
                "name": Path(source).name,
                "size_bytes": source_bytes,
                "sha256": _sha256(file),
            }
    if native is not None:
        if native.content_sha256 is not None and features[1].name == FEATURE:
            facts = metadata.setdefault("source", {"name": Path(source).name})  # type: ignore[arg-type]
            facts["content_sha256"] = native.content_sha256
        return [metadata_chunk(metadata), *columns], features, count
    chunks = encode_table(table, reorder=reorder, threads=threads, progress=progress)
    return [metadata_chunk(metadata), *chunks], [Feature("lossless-1")], count


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def compress_file(source: PathLike, path: PathLike, *, overwrite: bool = False, **arguments: Any) -> CompressReport:
    """`compress` a file into another; the file appears whole or not at all.

    Args:
        arguments: those of `compress`.
    """
    if not overwrite and os.path.lexists(path):
        raise ParameterError("the file exists", file=os.fspath(path), hint="--overwrite replaces it")
    report = arguments.pop("report", None) or CompressReport()
    payload = compress(source, report=report, **arguments)
    with atomic_write(path, overwrite) as file:
        file.write(payload)
    return report


class Scene:
    """An open `.splc` file; chunks are read when asked for.

    Attributes:
        container: the open container.
        num_gaussians, metadata, lossless: known without decoding.
    """

    def __init__(self, container: Container, limits: Limits = DEFAULT_LIMITS) -> None:
        self.container = container
        self.limits = limits
        self.num_gaussians = container.num_gaussians
        self.metadata = read_metadata(container, limits)
        self.lossless = container.has_feature("lossless-1")

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def levels(self) -> list[dict[str, int]]:
        """What the levels of a lossy scene hold, level 0 (the thumbnail, where there is one) first.

        Each is a dict of `level`, `num_gaussians` (its own), `tiles`, `size_bytes`, and `end` (the file position at
        which a sequential reader has it).
        """
        found: dict[int, dict[str, int]] = {}
        for entry in self.container.chunks:
            if entry.type == "TILE" or entry.type.startswith("SHC"):
                facts = found.setdefault(
                    entry.level, {"level": entry.level, "num_gaussians": 0, "tiles": 0, "size_bytes": 0, "end": 0}
                )
                if entry.type == "TILE":
                    facts["num_gaussians"] += entry.count
                    facts["tiles"] += 1
                facts["size_bytes"] += entry.length
                facts["end"] = max(facts["end"], entry.offset + entry.length)
        return [found[level] for level in sorted(found)]

    def read(
        self,
        *,
        level: int | None = None,
        tile: int | Sequence[int] | None = None,
        region: tuple[Sequence[float], Sequence[float]] | None = None,
        max_gaussians: int | None = None,
        sh_degree: int | None = None,
        sh_layers: int | None = None,
        keep_going: bool = False,
        damage: list[str] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Gaussians:
        """Decode the scene, or a part of it, with side arrays and metadata.

        What is given in several ways must hold in all of them. A lossless file is read whole or not at all.

        Args:
            level: levels 1 to this one, below them the thumbnail until all are there; 0 = the thumbnail; None = all.
            tile: number of a tile, or several.
            region: lowest and highest corner of a box, world units: the Gaussians whose means are in it.
            max_gaussians: as much of the beginning of the file as has no more Gaussians than this.
            sh_degree: bands above it are left out.
            sh_layers: how many layers of SH components to read, 0..3; each is a part of all bands.
            keep_going: leave out damaged chunks instead of failing; `damage` gets a line for each.
            threads: chunks decoded at once; the result does not depend on it.
            progress: called with (stage, share done).

        Raises:
            SplatCodecError: the file is damaged; names file, chunk and byte.
            ParameterError: what is asked for is not in the file.
        """
        from .static.decoder import Selection, decode_lossy

        if sh_degree is not None and sh_degree < 0:
            raise ParameterError(f"SH degree {sh_degree}, expected 0 or more", field="sh_degree")
        tiles = None if tile is None else (tile,) if isinstance(tile, int) else tuple(tile)
        selection = Selection(level, tiles, region, max_gaussians, 0 if sh_degree == 0 else sh_layers, keep_going)
        extras = {}
        if self.lossless:
            if not selection.everything or keep_going or sh_layers is not None:
                raise ParameterError("a lossless file has no levels or tiles to choose from", file=self.container.name)
            from .static import lossless, native, stored

            if self.container.has_feature(stored.FEATURE):
                gaussians = stored.decode_gaussians(self.container, self.metadata, self.limits)
            else:
                coder = native if self.container.has_feature(native.FEATURE) else lossless
                gaussians = coder.decode_gaussians(self.container, self.metadata, self.limits, threads, progress)
        else:
            if not self.container.has_feature("lossy-1"):
                raise FormatError("the file holds no scene", file=self.container.name)
            gaussians, rows = decode_lossy(
                self.container, selection, limits=self.limits, threads=threads, progress=progress, damage=damage
            )
            if self.container.has_feature("extras-1") and (rows >= 0).all():  # merged Gaussians have none
                from .static import lossless

                extras = lossless.decode_extras(self.container, self.metadata, self.limits, threads)
                if len(rows) < self.num_gaussians:
                    extras = {name: values[rows] for name, values in extras.items()}
            from .static import learned

            if learned.has_learned_parts(self.container):
                gaussians = learned.restored(self.container, gaussians, rows, self.limits)
            facts = {name: value for name, value in self.metadata.items() if name != "extras"}
            gaussians = gaussians.replaced(extras=extras, metadata=facts)
        return gaussians if sh_degree is None else gaussians.with_sh_degree(min(sh_degree, gaussians.sh_degree))

    def blocks(self, *, threads: int | None = None, progress: Progress | None = None, **part: Any) -> Blocks | None:
        """The scene, or a part of it, decoded chunk by chunk: what `read` gives, without holding it.

        Args:
            part: as for `read`: level, tile, max_gaussians, sh_degree, sh_layers.

        Returns:
            The scene, readable while the file is open; None where it has to be read whole: a lossless file, one with
            side arrays or learned parts, a region, or with keep_going.

        Raises:
            SplatCodecError: as `read`; also while blocks are read.
        """
        from .formats import Blocks
        from .static.decoder import Selection, lossy_blocks
        from .static.learned import has_learned_parts

        wanted: dict[str, Any] = {name: value for name, value in part.items() if value is not None}
        sh_degree, tile = wanted.pop("sh_degree", None), wanted.pop("tile", None)
        wanted.pop("damage", None)
        if self.lossless or not self.container.has_feature("lossy-1") or self.container.has_feature("extras-1"):
            return None
        if has_learned_parts(self.container):
            return None
        if sh_degree is not None and sh_degree < 0:
            raise ParameterError(f"SH degree {sh_degree}, expected 0 or more", field="sh_degree")
        if tile is not None:
            wanted["tiles"] = (tile,) if isinstance(tile, int) else tuple(tile)
        if sh_degree == 0:
            wanted["sh_layers"] = 0
        found = lossy_blocks(
            self.container, Selection(**wanted), limits=self.limits, threads=threads, progress=progress
        )
        if found is None:
            return None
        degree = found.sh_degree if sh_degree is None else min(sh_degree, found.sh_degree)

        def rows() -> Iterator[Gaussians]:
            return (block.with_sh_degree(degree) for block in found.rows())

        return Blocks(found.num_gaussians, degree, rows, metadata=self.metadata)


def open(source: PathLike | bytes, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Open a `.splc` file or its bytes; reads the table of contents and the metadata only.

    Returns:
        A `Scene`, or for a moving scene a `splatcodec.sequence.scene.MovingScene`, which yields frames.

    Raises:
        SplatCodecError: not a .splc file, or damaged.
    """
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray) else open_for_reading(source)
    name = "<bytes>" if isinstance(source, bytes | bytearray) else os.fspath(source)
    container = Container(file, name)
    try:
        if container.of_type("SEQH"):
            from .sequence.scene import open_sequence

            return open_sequence(file, name, limits)
        return Scene(container, limits)
    except BaseException:
        container.close()
        raise


def _open_still(source: PathLike | bytes, limits: Limits) -> Scene:
    """`open` a file that must hold a still scene."""
    scene = open(source, limits=limits)
    if not isinstance(scene, Scene):
        name = scene.sequence.name
        scene.close()
        raise ParameterError(
            "a moving scene, not a still one", file=name, hint="`open` it and take a frame, or decompress to a folder"
        )
    return scene


def open_moving(source: PathLike | bytes, *, limits: Limits = DEFAULT_LIMITS) -> MovingScene:
    """`open` a file that must hold a moving scene.

    Raises:
        ParameterError: it holds a still one.
        SplatCodecError: not a .splc file, or damaged.
    """
    scene = open(source, limits=limits)
    if isinstance(scene, Scene):
        scene.close()
        raise ParameterError("a still scene, not a moving one", file=scene.container.name)
    return scene  # type: ignore[no-any-return]


def is_moving(path: PathLike) -> bool:
    """Whether a file is a moving scene; False for what is no `.splc` file."""
    if os.path.isdir(path) or not is_splc(path):
        return False
    with Container.open(path) as container:
        return bool(container.of_type("SEQH"))


def compress_sequence(source: Any, path: PathLike, **arguments: Any) -> SequenceReport:
    """Write a moving scene: `splatcodec.sequence.scene.compress_sequence`.

    Args:
        source: an iterator of Gaussians, a folder of scenes, an .npz of trajectories.
        arguments: fps, overwrite, append, threads, progress, and the fields of `MotionOptions`.
    """
    from .sequence.scene import compress_sequence as work

    return work(source, path, **arguments)


def decompress(
    source: PathLike | bytes,
    *,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
    **part: Any,
) -> Gaussians:
    """Decode a `.splc` file, or its bytes, to Gaussians.

    Args:
        part: what of it, as for `Scene.read`: level, tile, region, max_gaussians, sh_degree, sh_layers ...

    Raises:
        SplatCodecError: damaged, too new or too large; names file, chunk and byte.
    """
    with _open_still(source, limits) as scene:
        return scene.read(threads=threads, progress=progress, **part)


def decompress_file(
    source: PathLike,
    path: PathLike,
    *,
    overwrite: bool = False,
    format: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
    **part: Any,
) -> dict[str, Any]:
    """Decode a `.splc` file into a file of another format, usually PLY.

    A lossless file made from a PLY gives that PLY back, header and column order included; one made from a file that was
    recompressed in its own integers (SPZ, .splat ...) gives that file back, if the same format is asked for.

    Args:
        part: what of it, as for `Scene.read`.

    Returns:
        Facts: num_gaussians (written), size_bytes, lossless; for the format of a lossless file's source `identical`
        (the same sha256, or None where the source's is not known) and `differs`, a list of what does, and but for PLY
        `identical_content` (the same once uncompressed); for other formats `losses` (see `write`).
    """
    if not overwrite and os.path.lexists(path):
        raise ParameterError("the file exists", file=os.fspath(path), hint="--overwrite replaces it")
    facts: dict[str, Any] = {}
    with _open_still(source, limits) as scene:
        facts["num_gaussians"] = scene.num_gaussians
        facts["lossless"] = scene.lossless
        original = _original_writer(scene, path, format)
        if original is not None and not any(part.values()):
            facts.update(original(scene.container, scene.metadata, path, overwrite, limits, threads, progress))
        else:
            facts["num_gaussians"], facts["losses"] = _write_decoded(
                scene, path, format, overwrite, threads, progress, part
            )
    facts["size_bytes"] = os.path.getsize(path) if os.path.isfile(path) else 0
    return facts


def _write_decoded(
    scene: Scene,
    path: PathLike,
    format: str | None,
    overwrite: bool,
    threads: int | None,
    progress: Progress | None,
    part: dict[str, Any],
) -> tuple[int, list[str]]:
    """Write (a part of) a scene in another format, tile by tile where that format allows it; count and losses."""
    from . import formats

    if format != "splc" and not os.fspath(path).lower().endswith(SUFFIX) and formats.writes_blocks(path, format=format):
        blocks = scene.blocks(threads=threads, progress=progress, **part)
        if blocks is not None:
            return blocks.num_gaussians, formats.write_blocks(blocks, path, format=format, overwrite=overwrite)
    gaussians = scene.read(threads=threads, progress=progress, **part)
    return gaussians.num_gaussians, write(gaussians, path, format=format, overwrite=overwrite)


def _original_writer(scene: Scene, path: PathLike, format: str | None) -> Callable[..., dict[str, Any]] | None:
    """What writes the file that a lossless scene was made from, if that is what `path` and `format` ask for."""
    from .formats import format_of_target
    from .static import lossless, native, stored

    if not scene.lossless:
        return None
    wanted = format or format_of_target(path)
    if scene.container.has_feature(stored.FEATURE):
        same = stored.format_name(scene.container) == wanted and not os.path.isdir(path)
        return (
            (lambda container, metadata, path, overwrite, *_: stored.write_file(container, metadata, path, overwrite))
            if same
            else None
        )
    if scene.container.has_feature(native.FEATURE):
        return native.write_file if native.format_name(scene.container) == wanted else None
    return lossless.write_ply if wanted == "ply" else None


def verify(
    source: PathLike, *, limits: Limits = DEFAULT_LIMITS, full: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Check a `.splc` file: header, table of contents, every checksum, counts and parameters, without decoding tiles.

    Args:
        full: decode everything as well.

    Returns:
        Facts: version, features, num_gaussians, chunks checked, bytes.

    Raises:
        SplatCodecError: the first thing that is wrong.
    """
    from .static import learned, stored
    from .static.decoder import check_counts, read_parameters, read_units, tile_boxes

    opened = open(source, limits=limits)
    if not isinstance(opened, Scene):
        with opened as moving:
            facts = moving.verify(full, progress)
            container = moving.container
            return {
                "file": container.name,
                "version": f"{container.version[0]}.{container.version[1]}",
                "features": [feature.name for feature in container.features],
                "num_gaussians": 0,
                "size_bytes": moving.sequence.size_bytes,
                "decoded": full,
                **facts,
            }
    with opened as scene:
        container = scene.container
        for k, entry in enumerate(container.chunks):
            container.check(entry)
            if progress:
                progress("check", (k + 1) / len(container.chunks))
        if container.has_feature("stored-1"):
            stored.format_name(container)
        elif scene.lossless:
            check_counts(container, [entry for entry in container.of_type("COLS") if entry.level == 0], limits)
        elif container.has_feature("lossy-1"):
            parameters = read_parameters(container)
            read_units(container, limits)
            tile_boxes(container)
            if learned.has_learned_parts(container):
                learned.read_parts(container, parameters.sh_degree, limits)
        else:
            raise SplatCodecError("the file holds no scene", file=container.name)
        if full:
            scene.read(progress=progress)
        return {
            "file": container.name,
            "version": f"{container.version[0]}.{container.version[1]}",
            "features": [feature.name for feature in container.features],
            "num_gaussians": container.num_gaussians,
            "num_chunks": len(container.chunks),
            "size_bytes": container.length,
            "decoded": full,
        }
