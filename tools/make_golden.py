#!/usr/bin/env python3
"""Golden files: bitstreams/golden/<case>/{stream.splc, expected.npz, case.json} (bitstreams/README.md).

    python tools/make_golden.py                  # what today's encoder would write, and how it differs from the files
    python tools/make_golden.py --write          # write cases that are missing or differ
    python tools/make_golden.py lossy-sh3 moving/motion        # some cases only

tests/test_golden.py holds the decoder to the files; only this program writes them, and only when told. A case of a
released version is never changed: it gets a new neighbour.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from splatcodec import api
from splatcodec.bitstream.container import MAJOR, MINOR
from splatcodec.errors import SplatCodecError, SplatCodecWarning
from splatcodec.formats import WriteOptions, formats
from splatcodec.gaussians import Gaussians, unit_quats
from splatcodec.preprocess.codebooks import fit_codebooks, residual_labels
from splatcodec.preprocess.plan import LossyOptions
from splatcodec.sample import sample_scene
from splatcodec.sequence.fit import quat_product
from splatcodec.sh_rotation import turned_sh
from splatcodec.stages.neural_color import ColourField, GridShape
from splatcodec.stages.transform import rotation_matrices
from splatcodec.stages.vector_quantize import VectorQuantized
from splatcodec.static import encoder, stored
from splatcodec.static.learned import LearnedParts
from splatcodec.static.learned_encoder import encode_learned

__all__ = [
    "ARRAYS", "CASES", "GOLDEN", "MOVING", "Case", "MovingCase", "arrays_of", "arrays_of_moving", "encode",
    "encode_moving", "moving_structure", "structure",
]  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "bitstreams" / "golden"
ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")
_SEED = 1


@dataclass(frozen=True)
class Case:
    """One golden file.

    Attributes:
        exercises: what it is for.
        source: makes the scene, or the bytes of a file.
        options: arguments of `api.compress`.
        max_tile: Gaussians a tile, where smaller than the encoder's own choice, so that a small file has several.
        shares: of the levels, and thumbnail: number of merged Gaussians, where not the encoder's own choice.
        suffix: of a file.
        stored: whether a file may be kept as it is, if that is smaller.
        parts: learned parts of the scene, in place of what they stand for.
    """

    exercises: str
    source: Callable[[], Gaussians | bytes]
    options: dict[str, Any] = field(default_factory=dict)
    max_tile: int | None = None
    shares: tuple[float, ...] | None = None
    thumbnail: int = 0
    suffix: str = ".ply"
    stored: bool = False
    parts: Callable[[Gaussians], LearnedParts] | None = None


@dataclass(frozen=True)
class MovingCase:
    """One golden file of a moving scene, in the folder `moving`.

    Attributes:
        exercises: what it is for.
        source: makes the frames.
        options: arguments of `api.compress_sequence`.
        frames: of which `expected.npz` has the arrays, as `frame_NUMBER_NAME`.
    """

    exercises: str
    source: Callable[[], list[Gaussians]]
    options: dict[str, Any]
    frames: tuple[int, ...]


# --- scenes -----------------------------------------------------------------------------------------------------------


def _scene(count: int, sh_degree: int = 3) -> Gaussians:
    scene = sample_scene(count, _SEED)
    return scene.replaced(shN=scene.shN[:, : (sh_degree + 1) ** 2 - 1])


def _far_and_tiny() -> Gaussians:
    """A millimetre scene far from the origin, as photogrammetry in map coordinates gives: positions collide."""
    scene = _scene(120, 1)
    return scene.replaced(means=scene.means * 0.001 + [1e5, -2e5, 50.0], scales=scene.scales + np.log(0.001))


def _same_place() -> Gaussians:
    scene = _scene(150, 0)
    means = scene.means.copy()
    means[:100] = means[0]
    return scene.replaced(means=means)


def _extreme_shapes() -> Gaussians:
    """Discs with an infinitely thin axis, needles, giants, points; alpha 0 and 1; quaternions of length 0."""
    scene = _scene(140, 0)
    scales, opacities, quats = scene.scales.copy(), scene.opacities.copy(), scene.quats.copy()
    scales[0:40, 2] = -np.inf
    scales[40:60] += [6.0, -4.0, -4.0]
    scales[60:70] = 8.0
    scales[70:80] = -30.0
    opacities[80:90], opacities[90:100] = np.inf, -np.inf
    quats[100:110] = 0.0
    return scene.replaced(scales=scales, opacities=opacities, quats=quats)


def _extras(count: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(_SEED)
    return {
        "normal": rng.normal(size=(count, 3)).astype(np.float32),
        "label": rng.integers(-5, 5, count).astype(np.int16),
        "id": np.arange(count, dtype=np.uint32),
        "time": rng.normal(size=count),
        "mask": rng.integers(0, 2, count).astype(np.uint8),
    }


def _vectors(attribute: str, values: npt.NDArray[Any], stages: int, rows: Any = None) -> VectorQuantized:
    chosen = np.asarray(values if rows is None else values[rows], np.float32).reshape(-1, values[0].size)
    integers = np.rint(fit_codebooks(chosen, stages, 8) * 64).astype(np.int32)
    return VectorQuantized(
        attribute, integers, 1 / 64, residual_labels(chosen, (integers / 64).astype(np.float32)), rows
    )


def _field(sh_degree: int, hidden: int) -> ColourField:
    """A field of random integers, on dense and hashed levels."""
    rng = np.random.default_rng(_SEED)
    shape = GridShape(3, 2, 6, 2, 1.75, (0.5, 0.0, -0.25), 12.0)
    sizes = [6, *[8] * hidden, 3 * (sh_degree + 1) ** 2]
    weights = [rng.integers(-9, 10, (b, a)).astype(np.int32) for a, b in itertools.pairwise(sizes)]
    biases = [rng.integers(-9, 10, b).astype(np.int32) for b in sizes[1:]]
    table = rng.integers(-9, 10, (sum(shape.entries()), 2)).astype(np.int32)
    steps = np.full(3, 0.125, np.float32), np.full(hidden + 1, 0.03125, np.float32)
    return ColourField(shape, table, steps[0], weights, biases, steps[1])


def _geometry_and_field(scene: Gaussians) -> LearnedParts:
    vectors = [_vectors("scales", scene.scales, 3), _vectors("quats", scene.normalized_quats(), 2)]
    return LearnedParts(vectors, _field(scene.sh_degree, 1))


def _colours(scene: Gaussians) -> LearnedParts:
    rows = np.arange(len(scene)) % 5 > 1
    return LearnedParts([_vectors("colours", np.concatenate([scene.sh0, scene.shN], 1), 1, rows)])


def _with_extras() -> Gaussians:
    return _scene(80, 1).replaced(extras=_extras(80))


def _with_columns() -> Gaussians:
    """Side arrays of one column each: those of several come back from a lossless file column by column."""
    extras = _extras(60)
    return _scene(60, 1).replaced(extras={name: array for name, array in extras.items() if array.ndim == 1})


def _all_bit_patterns() -> Gaussians:
    """NaN with payloads, infinities, both zeros, denormals and the largest numbers in every array."""
    scene = _scene(60, 1)
    bits = [0x7FC00000, 0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x80000001, 0x7F7FFFFF]
    special = np.array(bits, np.uint32).view(np.float32)
    changed = {}
    for k, name in enumerate(ARRAYS):
        flat = getattr(scene, name).copy().reshape(-1)
        flat[k * 7 : k * 7 + len(special)] = special
        changed[name] = flat.reshape(getattr(scene, name).shape)
    return scene.replaced(**changed)


def _ply(order: str) -> bytes:
    """A PLY with comments, columns in an unusual order, a second element and a trailing byte."""
    scene = _scene(40, 1)
    columns: list[tuple[str, str, npt.NDArray[Any]]] = [
        ("uchar", "flag", np.arange(40) % 3),
        *(("float", f"rot_{k}", scene.quats[:, k]) for k in range(4)),
        ("double", "time", np.linspace(0.0, 1.0, 40)),
        *(("float", name, scene.means[:, k]) for k, name in enumerate("xyz")),
        ("float", "opacity", scene.opacities),
        *(("float", f"scale_{k}", scene.scales[:, k]) for k in range(3)),
        *(("float", f"f_dc_{k}", scene.sh0[:, 0, k]) for k in range(3)),
        *(("float", f"f_rest_{k}", scene.shN[:, k % 3, k // 3]) for k in range(9)),
    ]
    codes = {"uchar": "u1", "float": "f4", "double": "f8"}
    sign = {"binary_little_endian": "<", "binary_big_endian": ">"}[order]
    rows = np.empty(40, [(name, sign + codes[kind]) for kind, name, _ in columns])
    for _, name, values in columns:
        rows[name] = values
    lines = ["ply", f"format {order} 1.0", "comment made by make_golden.py", "element vertex 40"]
    lines += [f"property {kind} {name}" for kind, name, _ in columns]
    lines += ["element extra 1", "property int n", "end_header", ""]
    return "\n".join(lines).encode() + rows.tobytes() + b"\x01\x02\x03\x04"


def _written(name: str, sh_degree: int, version: int | None = None) -> bytes:
    """A file of another format, as this package writes it."""
    fmt = formats()[name]
    assert fmt.write is not None
    file = io.BytesIO()
    fmt.write(_scene(30, sh_degree), file, WriteOptions(version=version, threads=1))
    return file.getvalue()


def _nearly_sorted() -> bytes:
    """A `.splat` file whose rows are up to a few places away from where our writer puts them."""
    rows = np.frombuffer(_written("splat", 0), "V32")
    return rows[np.argsort(np.arange(len(rows)) + 5 * np.sin(np.arange(len(rows))), kind="stable")].tobytes()


def _recompressed(name: str, sh_degree: int, version: int | None = None, **options: Any) -> Case:
    said = f"{formats()[name].title}{'' if version is None else f', version {version}'}"
    return Case(
        f"{said}, SH degree {sh_degree}, in its own integers",
        functools.partial(_written, name, sh_degree, version),
        {"lossless": True, **options},
        suffix=formats()[name].suffixes[0],
    )


CASES: dict[str, Case] = {
    "lossy-empty": Case("no Gaussians, SH degree 0", lambda: Gaussians.empty(0)),
    "lossy-one": Case("one Gaussian, SH degree 3", lambda: _scene(1), {"prune": False}),
    "lossy-sh0": Case("SH degree 0", lambda: _scene(150, 0)),
    "lossy-sh1": Case("SH degree 1", lambda: _scene(150, 1)),
    "lossy-sh2": Case("SH degree 2", lambda: _scene(120, 2)),
    "lossy-sh3": Case("SH degree 3, default quality", lambda: _scene(150)),
    "lossy-coarse": Case("large steps, most Gaussians pruned", lambda: _scene(200), {"quality": 5}),
    "lossy-fine": Case("small steps, nothing pruned", lambda: _scene(80), {"quality": 100, "prune": False}),
    "lossy-tiles": Case("several tiles that share parameters", lambda: _scene(150, 1), {"prune": False}, max_tile=40),
    "lossy-levels-sh0": Case(
        "levels and a thumbnail, one tile",
        lambda: _scene(150, 0),
        {"prune": False},
        shares=(0.2, 0.5, 1.0),
        thumbnail=12,
    ),
    "lossy-levels-sh3": Case(
        "levels, thumbnails and layers of SH components in several tiles",
        lambda: _scene(200),
        {"prune": False},
        max_tile=70,
        shares=(0.15, 1.0),
        thumbnail=16,
    ),
    "lossy-levels-mixing": Case(
        "levels coded by context mixing", lambda: _scene(120, 2), {"effort": 9}, shares=(0.3, 1.0), thumbnail=8
    ),
    "lossy-far": Case("large coordinates, small scene, duplicate positions", _far_and_tiny, {"prune": False}),
    "lossy-same-place": Case("many Gaussians in one place", _same_place, {"prune": False}),
    "lossy-shapes": Case("flat, thin, huge and vanishing Gaussians", _extreme_shapes, {"prune": False}),
    "lossy-mixing": Case("context mixing, refitted colours", lambda: _scene(120), {"effort": 9}),
    "lossy-extras": Case("side arrays of all kinds beside a lossy scene", _with_extras),
    "learned-geometry": Case(
        "log scales and quaternions by residual vector quantization, colours by a hash grid and a network",
        lambda: _scene(120, 2),
        parts=_geometry_and_field,
    ),
    "learned-colours": Case("colours of some Gaussians by vector quantization", lambda: _scene(60, 1), parts=_colours),
    "learned-field": Case(
        "a colour field alone, without hidden layers",
        lambda: _scene(40, 0),
        parts=lambda scene: LearnedParts([], _field(0, 0)),
    ),
    "lossless-empty": Case("no Gaussians", lambda: Gaussians.empty(0), {"lossless": True}),
    "lossless-one": Case("one Gaussian", lambda: _scene(1), {"lossless": True}),
    "lossless-sh0": Case("SH degree 0", lambda: _scene(80, 0), {"lossless": True}),
    "lossless-sh3": Case("SH degree 3", lambda: _scene(60), {"lossless": True}),
    "lossless-reordered": Case("rows in another order", lambda: _scene(80, 1), {"lossless": True, "reorder": True}),
    "lossless-extras": Case("side arrays of all kinds", _with_columns, {"lossless": True}),
    "lossless-bits": Case("NaN, infinities, zeros, denormals to the bit", _all_bit_patterns, {"lossless": True}),
    "lossless-ply": Case(
        "a PLY with its header, column order and further elements",
        functools.partial(_ply, "binary_little_endian"),
        {"lossless": True},
    ),
    "lossless-ply-big-endian": Case(
        "a big-endian PLY", functools.partial(_ply, "binary_big_endian"), {"lossless": True}
    ),
    "lossless-native-splat": _recompressed("splat", 0),
    "lossless-native-splat-order": dataclasses.replace(
        _recompressed("splat", 0),
        exercises=".splat not quite in its usual order, in its own integers",
        source=_nearly_sorted,
    ),
    "lossless-native-spz2": _recompressed("spz", 1, 2),
    "lossless-native-spz3": _recompressed("spz", 3, 3),
    "lossless-native-spz4": _recompressed("spz", 0, 4),
    "lossless-native-compressed-ply": _recompressed("compressed-ply", 1),
    "lossless-native-ksplat": _recompressed("ksplat", 1, 1),
    "lossless-native-sog": _recompressed("sog", 1),
    "lossless-stored-splat": dataclasses.replace(
        _recompressed("splat", 0), exercises=".splat (antimatter15), kept as it is", stored=True
    ),
}


def _moving(count: int, sh_degree: int, num_frames: int, constant: bool = False) -> list[Gaussians]:
    """Two thirds turn as one body, others bend away, rest, appear, vanish, or change colour at once."""
    scene = _scene(count, sh_degree)
    scene = scene.replaced(quats=unit_quats(scene.quats), opacities=np.maximum(scene.opacities, 0.0))
    body = np.arange(count) < 2 * count // 3
    bends, jumps = ~body & (np.arange(count) % 3 == 0), ~body & (np.arange(count) % 3 == 1)
    frames = []
    for f in range(num_frames):
        turn = np.array([np.cos(0.1 * f), 0.0, 0.0, np.sin(0.1 * f)])
        matrix = rotation_matrices(turn[None])[0]
        means, quats, opacities = scene.means.astype(np.float64), scene.quats.copy(), scene.opacities.copy()
        sh0, shN = scene.sh0.copy(), scene.shN.copy()
        means[body] = means[body] @ matrix.T + [0.02 * f, 0.0, 0.01 * f]
        quats[body] = quat_product(turn[None], quats[body].astype(np.float64)).astype(np.float32)
        if sh_degree:
            shN[body] = turned_sh(shN[body], matrix)
        means[bends] += np.outer(means[bends, 0], [0.0, 0.01, 0.0]) * f * f
        sh0[jumps] += 0.5 * (f >= num_frames // 4)
        if not constant:
            opacities[-3:] = 2.0 if f > 0 else -14.0
            opacities[-6:-3] = 2.0 if f < num_frames - 2 else -14.0
        frames.append(
            scene.replaced(means=means.astype(np.float32), quats=quats, opacities=opacities, sh0=sh0, shN=shN)
        )
    return frames


MOVING: dict[str, MovingCase] = {
    "motion": MovingCase(
        "groups with motion, the later ones on the first one's scene: a rigid node, tracks, lives, an event",
        lambda: _moving(48, 1, 8),
        {"fps": 24, "group": 4, "effort": 1, "prune": False, "profile": "motion", "quality": 70},
        (1, 6),
    ),
    "video": MovingCase(
        "groups of planes for video decoders, H.264",
        lambda: _moving(40, 0, 4, constant=True),
        {"fps": "30000/1001", "group": 3, "effort": 1, "prune": False, "profile": "video", "quality": 60},
        (1, 3),
    ),
    "still": MovingCase(
        "one frame with motion, and nothing that moves",
        lambda: _moving(8, 0, 1, constant=True),
        {"prune": False, "effort": 1},
        (0,),
    ),
}


# --- making one -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _layout_of(case: Case) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # Files this small are smaller as they are; what is golden is how columns are decoded.
        if not case.stored:
            stack.enter_context(mock.patch.object(stored, "is_smaller", return_value=False))
        if case.max_tile is not None:
            cut = functools.partial(encoder.cut_tiles, max_tile=case.max_tile)
            stack.enter_context(mock.patch.object(encoder, "cut_tiles", cut))
        if case.shares is not None:
            stack.enter_context(mock.patch.object(encoder, "level_shares", return_value=case.shares))
            stack.enter_context(mock.patch.object(encoder, "thumbnail_count", return_value=case.thumbnail))
        yield


@contextlib.contextmanager
def _as_source(source: Gaussians | bytes, suffix: str) -> Iterator[Gaussians | Path]:
    """Gaussians as they are, bytes as a file."""
    if isinstance(source, Gaussians):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scene{suffix}"
        path.write_bytes(source)
        yield path


def encode(case: Case, threads: int | None = None) -> bytes:
    """The file that today's encoder makes of a case."""
    if case.parts is not None:
        scene = case.source()
        assert isinstance(scene, Gaussians)
        parts = case.parts(scene)
        dark = {} if parts.field is None else {"sh0": 0 * scene.sh0, "shN": 0 * scene.shN}
        looks = parts.applied(scene.replaced(**dark))
        return encode_learned(looks, parts, wanted_psnr_db=40.0, threads=threads)
    with _layout_of(case), _as_source(case.source(), case.suffix) as source:
        return api.compress(source, threads=threads, **case.options)


def encode_moving(case: MovingCase, threads: int | None = None) -> bytes:
    """The file that today's encoder makes of a case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moving.splc"
        api.compress_sequence(iter(case.source()), path, threads=threads, **case.options)
        return path.read_bytes()


def arrays_of_moving(case: MovingCase, stream: bytes) -> dict[str, npt.NDArray[Any]]:
    """Everything of some frames that a decoder must give, by name."""
    with api.open_moving(stream) as scene:
        return {f"frame_{k}_{name}": getattr(scene.frame(k), name) for k in case.frames for name in ARRAYS}


def moving_structure(stream: bytes) -> list[list[tuple[str, int]]]:
    """Type and count of every chunk of every group."""
    with api.open_moving(stream) as scene:
        groups = [scene.sequence.read_group(entry)[0] for entry in scene.groups]
        return [[(entry.type, entry.count) for entry in group.chunks] for group in groups]


def arrays_of(scene: Gaussians) -> dict[str, npt.NDArray[Any]]:
    """Everything of a scene that a decoder must give, by name."""
    arrays = {name: getattr(scene, name) for name in ARRAYS}
    return arrays | {f"extra_{name}": array for name, array in scene.extras.items()}


def structure(stream: bytes) -> list[tuple[str, int]]:
    """Type and count of every chunk."""
    with api.open(stream) as scene:
        return [(entry.type, entry.count) for entry in scene.container.chunks]


def max_error(case: Case, decoded: Gaussians) -> dict[str, float] | None:
    """Largest differences between the source and what is decoded; None where rows cannot be paired."""
    source = case.source()
    if not isinstance(source, Gaussians):
        with _as_source(source, case.suffix) as path, warnings.catch_warnings():
            warnings.simplefilter("ignore", SplatCodecWarning)  # the further elements of the PLY
            source = api.read(path)  # type: ignore[arg-type]
    if case.options.get("lossless"):
        if case.options.get("reorder"):
            return None
        same = all(
            np.array_equal(a.view(np.uint8), b.view(np.uint8))
            for a, b in zip(arrays_of(source).values(), arrays_of(decoded).values(), strict=True)
        )
        assert same, "lossless is not"
        return dict.fromkeys(ARRAYS, 0.0)
    if case.parts is not None:
        return None
    cleaned, _ = source.cleaned()
    with _layout_of(case):
        order = encoder.encode_lossy(cleaned, LossyOptions(**case.options)).order
    paired = cleaned.selected(order)
    if not len(paired):
        return None
    errors = {name: np.abs(getattr(paired, name) - getattr(decoded, name)) for name in ("means", "sh0", "shN")}
    errors["alphas"] = np.abs(paired.alphas() - decoded.alphas())
    return {name: float(f"{array.max():.3g}") for name, array in errors.items() if array.size}


def describe(case: Case, stream: bytes, decoded: Gaussians) -> dict[str, Any]:
    """The content of case.json."""
    source = case.source()
    facts = {
        "exercises": case.exercises,
        "spec": f"{MAJOR}.{MINOR}",
        "sha256": hashlib.sha256(stream).hexdigest(),
        "size_bytes": len(stream),
        "generator": "splatcodec.sample.sample_scene, changed as tools/make_golden.py says",
        "seed": _SEED,
        "num_gaussians": source.num_gaussians if isinstance(source, Gaussians) else decoded.num_gaussians,
        "num_decoded": decoded.num_gaussians,
        "options": case.options,
        "producible": case.max_tile is None and case.shares is None,
        "structure": [list(chunk) for chunk in structure(stream)],
        "max_error": max_error(case, decoded),
    }
    return {name: value for name, value in facts.items() if value is not None}


def describe_moving(case: MovingCase, stream: bytes) -> dict[str, Any]:
    """The content of case.json."""
    frames = case.source()
    with api.open_moving(stream) as scene:
        return {
            "exercises": case.exercises,
            "spec": f"{MAJOR}.{MINOR}",
            "sha256": hashlib.sha256(stream).hexdigest(),
            "size_bytes": len(stream),
            "generator": "splatcodec.sample.sample_scene, moved as tools/make_golden.py says",
            "seed": _SEED,
            "num_gaussians": frames[0].num_gaussians,
            "num_frames": scene.num_frames,
            "fps": scene.fps,
            "options": case.options,
            "producible": True,
            "structure": [[list(chunk) for chunk in group] for group in moving_structure(stream)],
        }


def _npz(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def difference(
    name: str,
    stream: bytes,
    decoded: dict[str, npt.NDArray[Any]],
    structure: Callable[[bytes], Any] = structure,
) -> list[str]:
    """How a new stream differs from the one that is there; empty if it does not."""
    folder = GOLDEN / name
    if not all((folder / file).is_file() for file in ("stream.splc", "expected.npz", "case.json")):
        return ["missing"]
    old = (folder / "stream.splc").read_bytes()
    lines = []
    if old != stream:
        lines.append(f"stream: {len(old)} -> {len(stream)} bytes")
        try:
            before, after = structure(old), structure(stream)
            if before != after:
                lines.append(f"chunks: {before} -> {after}")
        except SplatCodecError as error:
            lines.append(f"the old stream can no longer be read: {error}")
    with np.load(folder / "expected.npz") as expected:
        for key, array in decoded.items():
            if key not in expected:
                lines.append(f"{key}: new")
            elif expected[key].shape != array.shape:
                lines.append(f"{key}: shape {expected[key].shape} -> {array.shape}")
            elif expected[key].tobytes() != array.tobytes():
                with np.errstate(invalid="ignore"):
                    far = np.nanmax(np.abs(expected[key].astype(np.float64) - array))
                lines.append(f"{key}: differs by up to {far:.3g}")
    return lines


def main() -> int:
    """Run from the command line; exit code 1 if something differs and is not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases (default: all)")
    parser.add_argument("--write", action="store_true", help="write what is missing or differs")
    arguments = parser.parse_args()
    known = [*CASES, *(f"moving/{name}" for name in MOVING)]
    unknown = set(arguments.cases) - set(known)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    total = differing = 0
    for name in arguments.cases or known:
        if name in CASES:
            stream = encode(CASES[name])
            scene = api.decompress(stream)
            arrays = arrays_of(scene)
            lines = difference(name, stream, arrays)
            facts = functools.partial(describe, CASES[name], stream, scene)
        else:
            case = MOVING[name.removeprefix("moving/")]
            stream = encode_moving(case)
            arrays = arrays_of_moving(case, stream)
            lines = difference(name, stream, arrays, moving_structure)
            facts = functools.partial(describe_moving, case, stream)
        total += len(stream)
        differing += bool(lines)
        print(f"{name}: {len(stream)} bytes, {'; '.join(lines) or 'unchanged'}")
        if lines and arguments.write:
            folder = GOLDEN / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "stream.splc").write_bytes(stream)
            (folder / "expected.npz").write_bytes(_npz(arrays))
            (folder / "case.json").write_text(json.dumps(facts(), indent=2) + "\n")
    written = "written" if arguments.write else "not written; --write does"
    print(
        f"{total} bytes of streams; {differing} cases differ ({written})" if differing else f"{total} bytes, unchanged"
    )
    return 1 if differing and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
