"""Writers of foreign formats for tests: plain and slow, from the formats' descriptions, not from the readers."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

SPZ_STREAMS = ("positions", "alphas", "colors", "scales", "rotations", "sh")


def spz_stream_sizes(version: int, count: int, degree: int) -> dict[str, int]:
    sh = 3 * ((degree + 1) ** 2 - 1)
    sizes = [6 if version == 1 else 9, 1, 3, 3, 4 if version > 2 else 3, sh]
    return dict(zip(SPZ_STREAMS, [count * size for size in sizes]))


def random_spz_streams(rng: np.random.Generator, version: int, count: int, degree: int) -> dict[str, bytes]:
    return {name: rng.bytes(size) for name, size in spz_stream_sizes(version, count, degree).items()}


def spz_raw(
    version: int, count: int, degree: int, streams: dict[str, bytes], bits=12, flags=0, extensions=b""
) -> bytes:
    """Header and arrays of versions 1 to 3, before gzip."""
    header = struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, flags, 0)
    return header + b"".join(streams[name] for name in SPZ_STREAMS) + extensions


def spz_gzip(*args, **kwargs) -> bytes:
    return gzip.compress(spz_raw(*args, **kwargs), mtime=0)


def spz_4(count: int, degree: int, streams: dict[str, bytes], bits=12, flags=0, extensions=b"", frames=None) -> bytes:
    """A version 4 file; `frames` replaces the compressed form of some streams."""
    import zstandard

    named = {name: streams[name] for name in SPZ_STREAMS if streams[name]}
    packed = {name: zstandard.ZstdCompressor().compress(raw) for name, raw in named.items()} | (frames or {})
    header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, degree, bits, flags, len(named), 32 + len(extensions))
    toc = b"".join(struct.pack("<QQ", len(packed[name]), len(raw)) for name, raw in named.items())
    return header + extensions + toc + b"".join(packed[name] for name in named)


def spz_extension(kind: int, payload: bytes) -> bytes:
    return struct.pack("<II", kind, len(payload)) + payload


def webp(pixels: np.ndarray) -> bytes:
    """A lossless WebP image of (H, W, 4) bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8), "RGBA").save(out, "WEBP", lossless=True, exact=True)
    return out.getvalue()


def random_sog(
    rng: np.random.Generator, count: int, bands: int, version: int = 2, palette: int = 70
) -> dict[str, bytes]:
    """The files of a SOG folder with random contents (labels are valid)."""
    width = 4 * int(np.ceil(np.sqrt(count) / 4))
    height = max(1, -(-count // width))

    def texture() -> np.ndarray:
        return rng.integers(0, 256, (height, width, 4), np.uint8)

    means_l, means_u, quats, scales, sh0 = (texture() for _ in range(5))
    quats[..., 3] = rng.integers(250, 256, quats.shape[:2])
    images = {"means_l": means_l, "means_u": means_u, "quats": quats, "scales": scales, "sh0": sh0}
    meta: dict = {
        "means": {"mins": [-3.0, -1.5, 0.5], "maxs": [2.0, 4.0, 0.5], "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
        "scales": {"files": ["scales.webp"]},
        "sh0": {"files": ["sh0.webp"]},
    }
    if version == 2:
        meta |= {"version": 2, "count": count}
        meta["scales"]["codebook"] = np.linspace(-9, 1, 256).tolist()
        meta["sh0"]["codebook"] = np.linspace(-2, 2, 256).tolist()
    else:
        meta["means"]["shape"] = [count, 3]
        meta["scales"] |= {"mins": [-9.0, -8.0, -7.0], "maxs": [1.0, 2.0, 3.0]}
        meta["sh0"] |= {"mins": [-2.0, -1.0, -1.5, -6.0], "maxs": [2.0, 1.0, 1.5, 7.0]}
    if bands:
        coefficients = (bands + 1) ** 2 - 1
        rows = -(-palette // 64)
        images["shN_centroids"] = rng.integers(0, 256, (rows, 64 * coefficients, 4), np.uint8)
        labels = texture()
        codes = rng.integers(0, palette, (height, width))
        labels[..., 0], labels[..., 1] = codes & 255, codes >> 8
        images["shN_labels"] = labels
        meta["shN"] = {"files": ["shN_centroids.webp", "shN_labels.webp"]}
        if version == 2:
            meta["shN"] |= {"count": palette, "bands": bands, "codebook": np.linspace(-1, 1, 256).tolist()}
        else:
            meta["shN"] |= {"mins": -0.75, "maxs": 0.5}
    files = {f"{name}.webp": webp(pixels) for name, pixels in images.items()}
    return {"meta.json": json.dumps(meta).encode(), **files}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def ply_bytes(
    columns: dict[str, np.ndarray],
    format: str = "binary_little_endian",
    newline: str = "\n",
    comments: tuple[str, ...] = (),
    element: str = "vertex",
    more_header: tuple[str, ...] = (),
    tail: bytes = b"",
) -> bytes:
    """A PLY file of one element with `columns`, then whatever `more_header` declares and `tail` holds."""
    names = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint"}
    names |= {"f4": "float", "f8": "double"}
    count = len(next(iter(columns.values())))
    lines = ["ply", f"format {format} 1.0", *(f"comment {text}" for text in comments), f"element {element} {count}"]
    lines += [f"property {names[values.dtype.str[1:]]} {name}" for name, values in columns.items()]
    # `newline` may hold empty lines, but data begins after the first newline behind end_header.
    end = newline if newline.count("\n") < 2 else newline[newline.index("\n") + 1 :].lstrip(" ")
    header = (newline.join([*lines, *more_header, "end_header"]) + end).encode()
    if format == "ascii":
        rows = zip(*(values.astype(str) for values in columns.values()))
        return header + "".join(" ".join(row) + newline for row in rows).encode() + tail
    order = ">" if format == "binary_big_endian" else "<"
    table = np.empty(count, [(name, values.dtype.newbyteorder(order)) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return header + table.tobytes() + tail


def splat_columns(rng: np.random.Generator, count: int, rest: int = 0) -> dict[str, np.ndarray]:
    """Random float32 columns of a 3DGS PLY with `rest` f_rest properties, in the canonical order."""
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(rest)), "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return {name: rng.standard_normal(count).astype(np.float32) for name in names}


def compressed_ply_bytes(
    ranges: np.ndarray, words: np.ndarray, sh: np.ndarray | None = None, ranges_columns: int = 18
) -> bytes:
    """A compressed PLY of (C, 18) chunk ranges, (N, 4) packed words and (N, 3 K) SH bytes."""
    ends = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
    ends += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    ends += [f"{end}_{channel}" for end in ("min", "max") for channel in "rgb"]
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {len(ranges)}"]
    lines += [f"property float {name}" for name in ends[:ranges_columns]]
    lines += [f"element vertex {len(words)}"]
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    if sh is not None:
        lines += [f"element sh {len(sh)}", *(f"property uchar f_rest_{i}" for i in range(sh.shape[1]))]
    content = ranges[:, :ranges_columns].astype("<f4").tobytes() + words.astype("<u4").tobytes()
    content += b"" if sh is None else sh.astype("u1").tobytes()
    return "\n".join([*lines, "end_header", ""]).encode() + content


def ksplat_record(level: int, degree: int) -> np.dtype:
    real = "<f2" if level else "<f4"
    fields = [("mean", "<u2" if level else "<f4", 3), ("scale", real, 3), ("quat", real, 4), ("rgba", "u1", 4)]
    sh = 3 * ((degree + 1) ** 2 - 1)
    return np.dtype(fields + ([("sh", "u1" if level == 2 else real, sh)] if sh else []))


def ksplat_section(
    level: int, degree: int, records: np.ndarray, centers: np.ndarray, full: int, partial: list[int], bucket=256
) -> tuple[bytes, bytes]:
    """Header and content of one section, with blocks of 5 units."""
    header = bytearray(1024)
    struct.pack_into("<IIIIf", header, 0, len(records), len(records), bucket, len(centers), 5.0)
    struct.pack_into("<H", header, 20, 12 if level else 0)
    struct.pack_into("<I", header, 24, 32767 if level else 1)
    struct.pack_into("<II", header, 32, full, len(partial))
    struct.pack_into("<H", header, 40, degree)
    content = struct.pack(f"<{len(partial)}I", *partial) + centers.astype("<f4").tobytes() + records.tobytes()
    return bytes(header), content


def ksplat_bytes(level: int, sections: list[tuple[bytes, bytes]], count: int, sh_range=(0.0, 0.0), spare=0) -> bytes:
    """A file of `sections`, and room for `spare` more section headers."""
    header = bytearray(4096)
    struct.pack_into("<BB", header, 0, 0, 1)
    struct.pack_into("<IIII", header, 4, len(sections) + spare, len(sections), count, count)
    struct.pack_into("<H", header, 20, level)
    struct.pack_into("<2f", header, 36, *sh_range)
    heads = b"".join(head for head, _ in sections) + bytes(1024 * spare)
    return bytes(header) + heads + b"".join(content for _, content in sections)


def glb_bytes(root: dict, content: bytes = b"") -> bytes:
    """A GLB file of this JSON and binary chunk."""
    text = json.dumps(root).encode()
    text += b" " * (-len(text) % 4)
    content += bytes(-len(content) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if content:
        chunks += struct.pack("<I4s", len(content), b"BIN\0") + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def glb_scene(primitives: list[dict[str, np.ndarray]], nodes: list[dict] | None = None) -> tuple[dict, bytes]:
    """JSON and binary chunk of a scene: a mesh for each of `primitives`, attributes by name; ints are normalized."""
    prefix = "KHR_gaussian_splatting:"
    codes = {"f4": 5126, "i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123}
    kinds = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
    content, views, accessors, meshes = b"", [], [], []
    for attributes in primitives:
        named = {}
        for name, values in attributes.items():
            raw = values.tobytes()
            code = values.dtype.str[1:]
            views.append({"buffer": 0, "byteOffset": len(content), "byteLength": len(raw)})
            accessor = {"bufferView": len(views) - 1, "componentType": codes[code], "count": len(values)}
            accessor |= {"type": kinds[1 if values.ndim == 1 else values.shape[1]], "normalized": code != "f4"}
            accessors.append(accessor)
            named[name if name in ("POSITION", "COLOR_0") else prefix + name] = len(accessors) - 1
            content += raw + bytes(-len(raw) % 4)
        extension = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
        meshes.append(
            {"primitives": [{"attributes": named, "mode": 0, "extensions": {"KHR_gaussian_splatting": extension}}]}
        )
    root = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_gaussian_splatting"],
        "scene": 0,
        "scenes": [{"nodes": [0] if nodes else list(range(len(meshes)))}],
        "nodes": nodes or [{"mesh": i} for i in range(len(meshes))],
        "meshes": meshes,
        "buffers": [{"byteLength": len(content)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    return root, content
