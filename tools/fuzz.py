#!/usr/bin/env python3
"""Damaged files for every reader: each must give Gaussians or a SplatCodecError, soon and in little memory.

    python tools/fuzz.py --count 2000000 --processes 2       # the long run; what breaks a reader is kept in .cache/fuzz
    python tools/fuzz.py --only lossy-sh3.splc --first 4711 --count 1

Files are mutated from small good ones (tests/data, bitstreams/golden, and some made here): bytes and bits
flipped, blocks cut, inserted, repeated or taken from another file, integers set to extremes. Most damage to a .splc
file would stop at a checksum, so a third of its mutations have all checksums repaired, and half change chunks, counts
and the table of contents through a writer; gzip and zip files are likewise damaged inside. A case is named by its seed
and number and always comes out the same; tests/test_malformed.py runs some thousands.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from splatcodec import api
from splatcodec.bitstream.container import (
    HEADER_BYTES,
    MAGIC,
    Chunk,
    Container,
    Feature,
    read_varint,
    write_container,
)
from splatcodec.errors import SplatCodecError, SplatCodecWarning
from splatcodec.formats import WriteOptions, formats
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene

__all__ = ["Mutator", "Outcome", "good_files", "read_damaged", "repaired", "splc_files", "written_files"]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "bitstreams" / "golden"
KEEP = ROOT / ".cache" / "fuzz"
READABLE = (".ply", ".splat", ".spz", ".sog", ".splc")
# A case may take this long and this much address space; good files of this size take milliseconds and megabytes.
MAX_SECONDS = 10.0
MAX_GROWTH_BYTES = 1 << 30

_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40)
_EXTREMES_64 = (*_EXTREMES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


# --- good files ---


def splc_files() -> dict[str, bytes]:
    """Small `.splc` files of every kind, by name."""
    scene = sample_scene(60)
    flat = scene.replaced(shN=None)
    labelled = flat.replaced(extras={"label": (scene.means[:, 0] * 8).astype("i4"), "normal": scene.means})
    return {
        "lossy-sh0.splc": api.compress(flat, effort=1),
        "lossy-sh3.splc": api.compress(scene, effort=1),
        "lossy-mixing.splc": api.compress(scene.selected(slice(0, 30)), effort=9),
        "lossy-extras.splc": api.compress(labelled, effort=1),
        "lossless.splc": api.compress(scene, lossless=True),
        "lossless-extras.splc": api.compress(labelled, lossless=True, reorder=True),
        "lossless-ply.splc": api.compress(DATA / "t5.ply", lossless=True),
    }


def good_files() -> dict[str, bytes]:
    """Files to mutate, by name; the suffix is that of the format."""
    found = {path.name: path.read_bytes() for path in sorted(DATA.iterdir()) if path.name.endswith(READABLE)}
    for path in sorted(GOLDEN.glob("*/stream.splc")):
        if path.stat().st_size < 2_000:  # the smaller the file, the more of it is damaged a second
            found[f"{path.parent.name}.splc"] = path.read_bytes()
    return found | splc_files() | written_files()


def written_files() -> dict[str, bytes]:
    """Files of formats that tests/data has none of, from our own writers."""
    scene = sample_scene(7).with_sh_degree(1)
    found = {}
    for fmt in formats().values():
        if fmt.write is None or fmt.suffixes[0] in READABLE or fmt.suffixes[0].endswith(".ply"):
            continue
        for version in fmt.versions or (None,):
            file = io.BytesIO()
            fmt.write(scene, file, WriteOptions(version=version, threads=1))
            found[f"written-{version}{fmt.suffixes[0]}"] = file.getvalue()
    return found


# --- mutations of plain bytes ---


def _place(data: bytearray, rng: random.Random) -> int:
    """A position, more often near the beginning, where headers are."""
    return rng.randrange(min(len(data), 64) if rng.random() < 0.3 else len(data))


def _flip_byte(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[_place(data, rng)] ^= rng.randrange(1, 256)


def _flip_bit(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random, other: bytes) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 64))]


def _insert(data: bytearray, rng: random.Random, other: bytes) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))


def _repeat(data: bytearray, rng: random.Random, other: bytes) -> None:
    at, length = _place(data, rng), rng.randrange(1, 65)
    to = _place(data, rng)
    data[to:to] = data[at : at + length]


def _splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    if other:
        at, start = _place(data, rng), rng.randrange(len(other))
        length = rng.randrange(1, 257)
        data[at : at + length] = other[start : start + length]


def _fill(data: bytearray, rng: random.Random, other: bytes) -> None:
    at, length = _place(data, rng), rng.randrange(1, 65)
    data[at : at + length] = bytes([rng.choice((0, 0xFF, 0x80, 0x7F))]) * min(length, len(data) - at)


def _extreme(data: bytearray, rng: random.Random, other: bytes) -> None:
    code, most = rng.choice((("B", 8), ("H", 16), ("I", 32), ("Q", 64)))
    value = rng.choice([value for value in _EXTREMES_64 if value < 1 << most])
    order = ">" if rng.random() < 0.1 else "<"
    packed = struct.pack(order + code, value)
    at = _place(data, rng)
    data[at : at + len(packed)] = packed


def _digits(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A number written as text (PLY headers, JSON) becomes another one."""
    digits = [k for k, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if digits:
        at = end = rng.choice(digits)
        while end < len(data) and 48 <= data[end] <= 57:
            end += 1
        data[at:end] = str(rng.choice((*_EXTREMES_64, -1, "1e99", "")))[:20].encode()


_PLAIN: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    _flip_byte, _flip_byte, _flip_bit, _flip_bit, _truncate, _remove, _insert, _repeat, _splice, _fill, _extreme,
    _extreme, _digits,
)  # fmt: skip


def damaged(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """`data` with one to four mutations; `other` lends bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if out:
            rng.choice(_PLAIN)(out, rng, other)
    return bytes(out)


# --- mutations that get past checksums ---


def repaired(data: bytes) -> bytes:
    """A damaged `.splc` file with its length and all checksums made right, as far as its tables can be followed."""
    out = bytearray(data)
    if len(out) < HEADER_BYTES or out[:4] != MAGIC:
        return data
    struct.pack_into("<Q", out, 8, len(out))
    (toc_length,) = struct.unpack_from("<Q", out, 16)
    toc_end = HEADER_BYTES + min(toc_length, len(out) - HEADER_BYTES)
    offset = toc_end
    for at, length in _checksum_fields(out[HEADER_BYTES:toc_end]):
        struct.pack_into("<I", out, HEADER_BYTES + at, zlib.crc32(out[offset : offset + length]))
        offset += length
    struct.pack_into("<I", out, 32, zlib.crc32(out[HEADER_BYTES:toc_end]))
    struct.pack_into("<I", out, 36, zlib.crc32(out[:36]))
    return bytes(out)


def _checksum_fields(toc: bytes) -> list[tuple[int, int]]:
    """(position of the checksum, length of the chunk) for each readable entry of a table of contents."""
    fields: list[tuple[int, int]] = []
    try:
        count, at = read_varint(toc, 0)
        for _ in range(min(count, 256)):
            size, start = read_varint(toc, at + 1)
            at = start + size
        count, at = read_varint(toc, at)
        for _ in range(min(count, 1024)):
            at += 5
            length = 0
            for _ in range(4):
                length, at = read_varint(toc, at)
            if at + 4 > len(toc):
                break
            fields.append((at, length))
            at += 4
    except SplatCodecError:
        pass
    return fields


def _rewritten_splc(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A `.splc` file written anew from damaged parts: payloads, counts, order, features."""
    container = Container(io.BytesIO(data))
    chunks = [Chunk(e.type, container.read(e), e.critical, e.level, e.tile, e.count) for e in container.chunks]
    features, count = list(container.features), container.num_gaussians
    for _ in range(rng.choice((1, 1, 2, 3))):
        k = rng.randrange(len(chunks)) if chunks else 0
        kind = rng.random()
        if kind < 0.6 and chunks:
            chunks[k] = dataclasses.replace(chunks[k], payload=damaged(chunks[k].payload, rng, other))
        elif kind < 0.75 and chunks:
            name = rng.choice(("level", "tile", "count", "count"))
            value = rng.choice(_EXTREMES_64) if rng.random() < 0.5 else max(0, chunks[k].count + rng.randrange(-2, 3))
            chunks[k] = dataclasses.replace(chunks[k], **{name: value})
        elif kind < 0.8 and chunks:
            new_type = rng.choice(("META", "PARM", "TILE", "COLD", "COLS", "ABCD"))
            chunks[k] = dataclasses.replace(chunks[k], type=new_type, critical=rng.random() < 0.5)
        elif kind < 0.85 and chunks:
            del chunks[k]
        elif kind < 0.9 and chunks:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[k])
        elif kind < 0.95:
            count = rng.choice(_EXTREMES_64) if rng.random() < 0.5 else max(0, count + rng.randrange(-2, 3))
        else:
            rng.shuffle(features)
            features = features[1:] if rng.random() < 0.5 else [*features, Feature("extras-1")]
    file = io.BytesIO()
    write_container(file, chunks, num_gaussians=count % (1 << 64), features=features)
    return file.getvalue()


def _inside_gzip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return gzip.compress(damaged(gzip.decompress(data), rng, other), compresslevel=1, mtime=0)


def _inside_zip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        victim = "meta.json" if "meta.json" in names and rng.random() < 0.5 else rng.choice(names)
        for name in names:
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), damaged(content, rng, other) if name == victim else content)
    return out.getvalue()


class Mutator:
    """Numbered damaged files; the same number always gives the same file.

    Args:
        files: good files by name.
        seed: another seed, other files.
        only: name of the one file to mutate; the others still lend bytes.
    """

    def __init__(self, files: Mapping[str, bytes], seed: int = 0, only: str | None = None) -> None:
        self.files = dict(files)
        self.names = [only] if only else sorted(files)
        self.seed = seed

    def case(self, name: str, number: int) -> bytes:
        """Damaged file `number` made from `name`."""
        rng = random.Random(f"{self.seed}/{name}/{number}")
        data = self.files[name]
        suffix = name[name.rindex(".") :]
        relatives = sorted(other for other in self.files if other.endswith(suffix))
        other = self.files[rng.choice(relatives)]
        kind = rng.random()
        if data[:4] == MAGIC:
            if kind < 0.15:
                return damaged(data, rng, other)
            if kind < 0.5:
                return repaired(damaged(data, rng, other))
            return _rewritten_splc(data, rng, other)
        if data[:2] == b"\x1f\x8b" and kind < 0.7:
            return _inside_gzip(data, rng, other)
        if data[:2] == b"PK" and kind < 0.7:
            return _inside_zip(data, rng, other)
        return damaged(data, rng, other)


# --- reading them ---


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a damaged file.

    Attributes:
        result: the scene or the error, None after a crash.
        crash: traceback of an exception that no reader may raise, or what else was wrong.
        seconds: how long it took.
    """

    result: Gaussians | SplatCodecError | None
    crash: str | None
    seconds: float


def _address_space_peak_bytes() -> int:
    """Largest address space so far; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmPeak")), 0)
    except OSError:
        return 0


def read_damaged(path: Path) -> Outcome:
    """Read a file that may be damaged in any way; warnings other than splatcodec's own count as crashes."""
    started, peak = time.perf_counter(), _address_space_peak_bytes()
    result: Gaussians | SplatCodecError | None = None
    crash = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", SplatCodecWarning)
        try:
            result = _read(path)
        except SplatCodecError as error:
            result = error
            if not str(error).startswith(str(path)):
                crash = f"the message does not name the file: {error}"
        except Exception:
            crash = traceback.format_exc()
    seconds = time.perf_counter() - started
    if crash is None and seconds > MAX_SECONDS:
        crash = f"took {seconds:.1f} s"
    growth = _address_space_peak_bytes() - peak
    if crash is None and growth > MAX_GROWTH_BYTES:
        crash = f"took {growth >> 20} MiB more address space than anything before"
    return Outcome(result, crash, seconds)


def _read(path: Path) -> Gaussians:
    scene = api.read(path)
    if path.suffix == api.SUFFIX and isinstance(scene, Gaussians):
        with api.open(path) as opened:
            lossless = opened.lossless
        if lossless:  # the way back to the very same PLY is another decoder
            api.decompress_file(path, path.with_suffix(".ply"), overwrite=True)
    return scene


# --- the long run ---


def _work(arguments: argparse.Namespace, files: dict[str, bytes], share: int, progress: object, folder: str) -> None:
    """Run every `processes`-th case from `first`; `progress` [case, crashes] tells the parent where it is."""
    mutator = Mutator(files, arguments.seed, arguments.only)
    for name, data in files.items():  # compiles and loads everything, so that cases can be timed
        read_damaged(_written(folder, share, name, data))
    for case in range(arguments.first + share, arguments.first + arguments.count, arguments.processes):
        if case < progress[0]:  # type: ignore[index]
            continue
        progress[0] = case  # type: ignore[index]
        name, data = _numbered(mutator, case)
        outcome = read_damaged(_written(folder, share, name, data))
        if outcome.crash:
            progress[1] += 1  # type: ignore[index]
            _keep(arguments.keep, name, case, data, outcome.crash)
    progress[0] = arguments.first + arguments.count  # type: ignore[index]


def _written(folder: str, share: int, name: str, data: bytes) -> Path:
    path = Path(folder) / f"{share}-{name}"
    path.write_bytes(data)
    return path


def _numbered(mutator: Mutator, case: int) -> tuple[str, bytes]:
    name = mutator.names[case % len(mutator.names)]
    return name, mutator.case(name, case)


def _keep(folder: Path, name: str, case: int, data: bytes, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case}-{name}").write_bytes(data)
    (folder / f"{case}-{name}.txt").write_text(why)
    print(f"case {case} ({name}): {why.strip().splitlines()[-1]}", flush=True)


def run(arguments: argparse.Namespace, files: dict[str, bytes]) -> int:
    """Run all cases in child processes; a child that dies or hangs is replaced. Returns the number of crashes."""
    context = multiprocessing.get_context("spawn")
    end = arguments.first + arguments.count
    mutator = Mutator(files, arguments.seed, arguments.only)
    crashes = 0
    started = reported = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        progress = [context.Array("q", [0, 0]) for _ in range(arguments.processes)]

        def start(share: int) -> multiprocessing.process.BaseProcess:
            child = context.Process(target=_work, args=(arguments, files, share, progress[share], folder))
            child.start()
            return child

        children = [start(share) for share in range(arguments.processes)]
        seen = [(-1, time.monotonic())] * arguments.processes
        while any(child.is_alive() or progress[k][0] < end for k, child in enumerate(children)):
            time.sleep(0.2)
            now = time.monotonic()
            for k, child in enumerate(children):
                case = progress[k][0]
                if case != seen[k][0]:
                    seen[k] = (case, now)
                hung = child.is_alive() and case < end and now - seen[k][1] > arguments.timeout
                if hung:
                    child.kill()
                    child.join()
                if hung or (not child.is_alive() and progress[k][0] < end):
                    crashes += 1
                    why = f"no end after {arguments.timeout:.0f} s" if hung else f"process ended with {child.exitcode}"
                    name, data = _numbered(mutator, case)
                    _keep(arguments.keep, name, case, data, why)
                    progress[k][0] = case + arguments.processes
                    if progress[k][0] < end:
                        children[k] = start(k)
                    seen[k] = (-1, now)
            if now - reported > 60:
                reported = now
                done = min(p[0] for p in progress) - arguments.first
                print(f"{done} of {arguments.count} cases, {done / (now - started):.0f} a second", flush=True)
        crashes += sum(p[1] for p in progress)
    print(f"{arguments.count} cases in {time.monotonic() - started:.0f} s, {crashes} crashes")
    return crashes


def main() -> int:
    """Run from the command line; exit code 1 if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="cases to run")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", metavar="NAME", help="mutate this file only")
    parser.add_argument("--keep", type=Path, default=KEEP, metavar="FOLDER", help="where crashers go")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds after which a case counts as hung")
    arguments = parser.parse_args()
    files = good_files()
    if arguments.only and arguments.only not in files:
        parser.error(f"no file {arguments.only}; known: {', '.join(files)}")
    return 1 if run(arguments, files) else 0


if __name__ == "__main__":
    sys.exit(main())
