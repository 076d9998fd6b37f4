"""Damaged files give Gaussians or one SplatCodecError, soon and in little memory; the engine is tools/fuzz.py."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest

from splatcodec import api
from splatcodec.bitstream.container import (
    HEADER_BYTES,
    KNOWN_CHUNKS,
    Chunk,
    ChunkEntry,
    Container,
    Feature,
    read_varint,
    write_container,
    write_varint,
)
from splatcodec.errors import (
    ChecksumError,
    FormatError,
    LimitExceededError,
    SplatCodecError,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.gaussians import Gaussians
from splatcodec.limits import Limits

NUM_MUTATIONS = 20_000
# All flips are shown to the checksums, about this many a file to the decoder, which costs far more.
NUM_DECODED_FLIPS = 300
MALFORMED = Path(__file__).resolve().parent.parent / "bitstreams" / "malformed"


@pytest.fixture(scope="module")
def mutator() -> fuzz.Mutator:
    return fuzz.Mutator(fuzz.good_files())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where that can be had: tens of thousands of files are written."""
    if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK):
        import tempfile

        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            yield Path(name)
    else:
        yield tmp_path_factory.mktemp("damaged")


def test_good_files_are_good(mutator, folder):
    for name, content in mutator.files.items():
        (folder / name).write_bytes(content)
        outcome = fuzz.read_damaged(folder / name)
        assert outcome.crash is None
        assert isinstance(outcome.result, Gaussians), (name, outcome.result)


def test_mutations(mutator, folder):
    crashes, outcomes = [], {"scene": 0, "checksum": 0, "other error": 0}
    for number in range(NUM_MUTATIONS):
        name = mutator.names[number % len(mutator.names)]
        path = folder / name
        path.write_bytes(mutator.case(name, number))
        outcome = fuzz.read_damaged(path)
        if outcome.crash:
            crashes.append(f"tools/fuzz.py --only {name} --first {number} --count 1\n{outcome.crash}")
            assert len(crashes) < 10, "\n".join(crashes)
        elif isinstance(outcome.result, Gaussians):
            outcomes["scene"] += 1
        else:
            outcomes["checksum" if isinstance(outcome.result, ChecksumError) else "other error"] += 1
    assert not crashes, "\n".join(crashes)
    # The engine reaches the decoders: neither do checksums stop most files, nor does damage go unnoticed.
    assert outcomes["checksum"] < NUM_MUTATIONS / 4
    assert min(outcomes.values()) > NUM_MUTATIONS / 100


def _splc_names() -> list[str]:
    golden = [path.parent.name for path in sorted(fuzz.GOLDEN.glob("*/stream.splc"))]
    return [*golden, "lossy-sh3.splc", "lossy-extras.splc", "lossless.splc", "lossless-extras.splc"]


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return fuzz.splc_files()


def _bytes_of(name: str, made: dict[str, bytes]) -> bytes:
    return made[name] if name in made else (fuzz.GOLDEN / name / "stream.splc").read_bytes()


@pytest.mark.parametrize("name", _splc_names())
def test_every_prefix_is_refused(name, made):
    content = _bytes_of(name, made)
    for size in range(len(content)):
        with pytest.raises(FormatError):
            api.decompress(content[:size])


def _check(content: bytes) -> None:
    """Every checksum of a file."""
    with api.open(content) as scene:
        for entry in scene.container.chunks:
            scene.container.check(entry)


@pytest.mark.parametrize("name", _splc_names())
def test_every_flipped_byte_is_refused(name, made):
    content = _bytes_of(name, made)
    damaged = bytearray(content)
    stride = max(1, len(content) // NUM_DECODED_FLIPS)
    for at in range(len(content)):
        damaged[at] ^= 1 << at % 8
        with pytest.raises(FormatError):
            _check(bytes(damaged))
        if at % stride == 0:
            with pytest.raises(FormatError):
                api.decompress(bytes(damaged))
        damaged[at] ^= 1 << at % 8 ^ 0xFF
        with pytest.raises(FormatError):
            _check(bytes(damaged))
        damaged[at] = content[at]


@pytest.mark.parametrize("name", ["lossy-sh3.splc", "lossless.splc"])
def test_verify_sees_every_flipped_byte(name, made, tmp_path):
    content = bytearray(made[name])
    path = tmp_path / name
    for at in range(0, len(content), 11):
        content[at] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(SplatCodecError):
            api.verify(path)
        content[at] ^= 0x10


def test_tail_is_refused(made):
    with pytest.raises(FormatError, match="after the end"):
        api.decompress(made["lossless.splc"] + b"\0")


def test_files_that_once_broke_a_reader():
    for path in sorted(MALFORMED.glob("*.*")):
        outcome = fuzz.read_damaged(path)
        assert outcome.crash is None, path.name
        assert isinstance(outcome.result, SplatCodecError), path.name


# --- the container, one rule a test ---


def _entries(content: bytes) -> tuple[Container, list[Chunk]]:
    container = Container(io.BytesIO(content))
    return container, [Chunk(e.type, container.read(e), e.critical, e.level, e.tile, e.count) for e in container.chunks]


def _written(chunks: list[Chunk], features: list[Feature], count: int) -> bytes:
    file = io.BytesIO()
    write_container(file, chunks, num_gaussians=count, features=features)
    return file.getvalue()


def _header_with(content: bytes, code: str, offset: int, value: int) -> bytes:
    out = bytearray(content)
    struct.pack_into(code, out, offset, value)
    struct.pack_into("<I", out, 36, zlib.crc32(out[:36]))
    return bytes(out)


def test_repair_makes_a_good_file_again(made):
    for content in made.values():
        assert fuzz.repaired(content) == content
        cut = bytearray(content)
        cut[8:40] = bytes(8) + content[16:32] + bytes(8)
        assert fuzz.repaired(bytes(cut)) == content


def test_header_rules(made):
    content = made["lossless.splc"]
    (toc_length,) = struct.unpack_from("<Q", content, 16)
    for code, offset, value, error in (
        ("<B", 4, 1, UnsupportedError),
        ("<B", 4, 255, UnsupportedError),
        ("<Q", 8, len(content) + 1, TruncatedError),
        ("<Q", 8, len(content) - 1, FormatError),
        ("<Q", 8, 2**64 - 1, TruncatedError),
        ("<Q", 16, 2**64 - 1, FormatError),
        ("<Q", 16, toc_length - 1, FormatError),
        ("<Q", 16, toc_length + 1, FormatError),
        ("<Q", 24, 2**64 - 1, SplatCodecError),
        ("<Q", 24, 61, FormatError),
        ("<Q", 24, 0, FormatError),
        ("<I", 32, 0, ChecksumError),
    ):
        with pytest.raises(error):
            api.decompress(_header_with(content, code, offset, value))
    # While the format is a draft only one minor version is read; the reserved field is no reason to refuse.
    with pytest.raises(UnsupportedError, match=r"0\.200"):
        api.decompress(_header_with(content, "<B", 5, 200))
    assert api.decompress(_header_with(content, "<H", 6, 0xFFFF)).num_gaussians == 60


def test_features_and_chunks_that_nobody_knows(made):
    container, chunks = _entries(made["lossy-sh3.splc"])
    features, count = list(container.features), container.num_gaussians
    with pytest.raises(UnsupportedError, match="holograms-1"):
        api.decompress(_written(chunks, [*features, Feature("holograms-1")], count))
    with pytest.raises(UnsupportedError, match="HOLO"):
        api.decompress(_written([*chunks, Chunk("HOLO", b"x")], features, count))
    optional = [*features, Feature("comfort-1", required=False)]
    plain = api.decompress(made["lossy-sh3.splc"])
    more = api.decompress(_written([Chunk("HOLO", b"x", critical=False), *chunks], optional, count))
    assert (more.means == plain.means).all()


def test_chunks_missing_doubled_or_in_another_place(made):
    for name in ("lossy-sh3.splc", "lossless.splc", "lossy-extras.splc"):
        container, chunks = _entries(made[name])
        features, count = list(container.features), container.num_gaussians
        for k, chunk in enumerate(chunks):
            without = _written(chunks[:k] + chunks[k + 1 :], features, count)
            # Boxes are a hint, absent SH components are zero; META only has to be there for side arrays.
            optional = chunk.type in ("TBOX", "SHC1", "SHC2", "SHC3") or (
                chunk.type == "META" and name != "lossy-extras.splc"
            )
            if optional:
                api.decompress(without)
            else:
                with pytest.raises(FormatError):
                    api.decompress(without)
            if chunk.type != "META":  # of two the first counts
                with pytest.raises(FormatError):
                    api.decompress(_written([*chunks, chunk], features, count))
        with pytest.raises(FormatError):
            api.decompress(_written(chunks, [], count))
        with pytest.raises(FormatError):
            api.decompress(_written([], features, count))


def test_metadata_rules(made):
    container, chunks = _entries(made["lossless.splc"])
    for text in (b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 50_000):
        meta = [Chunk("META", text, critical=False), *[c for c in chunks if c.type != "META"]]
        with pytest.raises(FormatError):
            api.decompress(_written(meta, list(container.features), container.num_gaussians))
    meta = [Chunk("META", b" " * 2000, critical=False), *chunks]
    with pytest.raises(LimitExceededError):
        api.decompress(_written(meta, list(container.features), 60), limits=Limits(max_json_bytes=1000))


def test_limits(made):
    for name in ("lossy-sh3.splc", "lossless.splc"):
        with pytest.raises(LimitExceededError):
            api.decompress(made[name], limits=Limits(max_gaussians=10))
        with pytest.raises(LimitExceededError):
            api.decompress(made[name], limits=Limits(max_array_bytes=100))


def test_varints():
    for value in (0, 1, 127, 128, 16383, 16384, 2**32, 2**63, 2**64 - 1):
        coded = write_varint(value)
        assert read_varint(coded, 0) == (value, len(coded))
        with pytest.raises(TruncatedError):
            read_varint(coded[:-1], 0)
    for wrong in (b"\x80\x00", b"\xff" * 10, b"\x80" * 9 + b"\x02", b"\x80" * 10 + b"\x01"):
        with pytest.raises(FormatError):
            read_varint(wrong, 0)


def test_chunk_types_are_documented():
    spec = (fuzz.ROOT / "bitstreams" / "SPEC.md").read_text()
    assert all(f"| `{kind}` |" in spec for kind in KNOWN_CHUNKS)
    assert f"header ({HEADER_BYTES} bytes)" in spec
    assert ChunkEntry("TILE", True, 0, 3, 1, 0, 1, 0).label == "TILE[0/3]"
