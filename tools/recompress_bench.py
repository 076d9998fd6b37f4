#!/usr/bin/env python3
"""How small lossless recompression makes files that people have, and that every value comes back.

    python tools/recompress_bench.py FILE... [--json OUT.json] [--markdown OUT.md] [--written-from SCENE...]

Each file is compressed in its own order and with --reorder, given back, and compared: content by checksum, Gaussians to
the bit. --written-from also measures files that this package writes of a scene in every format that is recompressed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from splatcodec import api
from splatcodec.errors import SplatCodecError, SplatCodecWarning
from splatcodec.formats import WriteOptions, detect, formats, write
from splatcodec.formats._native import by_name
from splatcodec.version import __version__

__all__ = ["geometric_mean", "main", "markdown", "measure"]

_ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.iterdir() if p.is_file()) if path.is_dir() else path.stat().st_size


def measure(path: Path, name: str, writer: str) -> dict[str, Any]:
    """One row of the table.

    Raises:
        AssertionError: something did not come back.
    """
    fmt = detect(path)
    size = _size(path)
    row: dict[str, Any] = {"file": name, "format": fmt.name, "writer": writer, "size_bytes": size}
    original = api.read(path)
    row["num_gaussians"], row["sh_degree"] = original.num_gaussians, original.sh_degree
    with tempfile.TemporaryDirectory() as folder:
        packed, back = Path(folder) / "scene.splc", Path(folder) / f"back{fmt.suffixes[0]}"
        for way, reorder in (("keep", False), ("reorder", True)):
            started = time.perf_counter()
            report = api.compress_file(path, packed, lossless=True, reorder=reorder, overwrite=True)
            row[f"{way}_seconds"] = round(time.perf_counter() - started, 2)
            row[f"{way}_bytes"], row[f"{way}_ratio"] = report.size_bytes, round(report.size_bytes / size, 4)
            with api.open(packed) as scene:
                row["native"] = scene.container.has_feature("native-1")
                row["stored"] = scene.container.has_feature("stored-1")
            if reorder:
                continue
            row["notes"] = report.notes
            started = time.perf_counter()
            decoded = api.read(packed)
            row["decode_seconds"] = round(time.perf_counter() - started, 2)
            same = all(getattr(original, a).tobytes() == getattr(decoded, a).tobytes() for a in _ARRAYS)
            assert same, f"{name}: other Gaussians"
            if row["native"] or row["stored"]:
                facts = api.decompress_file(packed, back, format=fmt.name, overwrite=True)
                assert facts["identical_content"] is not False, f"{name}: another content"
                row["identical"], row["identical_content"] = facts["identical"], facts["identical_content"]
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and means of each format."""
    lines = ["| format | files | keeping the order | with `--reorder` |", "|---|---|---|---|"]
    for name in sorted({row["format"] for row in rows}):
        for writer in ("", *sorted({row["writer"] for row in rows})):
            chosen = [row for row in rows if row["format"] == name and (not writer or row["writer"] == writer)]
            if chosen:
                means = [geometric_mean([row[f"{way}_ratio"] for row in chosen]) for way in ("keep", "reorder")]
                label = f"**{name}**" if not writer else f"{name}, {writer}"
                lines.append(f"| {label} | {len(chosen)} | {means[0]:.3f} | {means[1]:.3f} |")
    lines += [
        "",
        "| file | written by | Gaussians | SH | bytes | keeping the order | with `--reorder` | file identical |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["format"], row["writer"], row["file"])):
        told = {True: "yes", False: "content only", None: "content only"}[row.get("identical")]
        told = "yes, kept as it is" if row.get("stored") else told if row["native"] else "as floats"
        lines.append(
            f"| {row['file']} | {row['writer']} | {row['num_gaussians']} | {row['sh_degree']} | {row['size_bytes']} "
            f"| {row['keep_ratio']:.3f} | {row['reorder_ratio']:.3f} | {told} |"
        )
    return "\n".join(lines) + "\n"


def _facts_of(path: Path) -> dict[str, Any]:
    """What tools/peers.py noted beside a file that it keeps; empty for other files."""
    stem = path.name.removesuffix(".compressed.ply").removesuffix(path.suffix)
    facts = path.with_name(f"{stem}.json")
    return dict(json.loads(facts.read_text())) if facts.is_file() else {}


def _name_of(path: Path) -> str:
    facts = _facts_of(path)
    return f"{facts['input_name']}: {path.name}" if "input_name" in facts else path.name


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--written-from", nargs="*", type=Path, default=[], metavar="SCENE", help="scenes to write")
    parser.add_argument("--formats", nargs="*", default=None, help="which of them to write (default: all)")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="replace what is between the marks in this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", SplatCodecWarning)
    rows = []
    for path in arguments.files:
        rows.append(measure(path, _name_of(path), str(_facts_of(path).get("tool", "others"))))
        print(json.dumps(rows[-1]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for scene in arguments.written_from:
            gaussians = api.read(scene)
            for name, fmt in formats().items():
                if by_name(name) is None or (arguments.formats is not None and name not in arguments.formats):
                    continue
                for version in fmt.versions or (None,):
                    path = Path(folder) / f"{scene.stem}{fmt.suffixes[0]}"
                    said = scene.name if version is None else f"{scene.name}, version {version}"
                    try:
                        write(gaussians, path, format=name, overwrite=True, options=WriteOptions(version=version))
                    except SplatCodecError as error:
                        print(f"{scene}: {error}", file=sys.stderr)
                        continue
                    rows.append(measure(path, f"{said}: {path.name}", "splatcodec"))
                    print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        facts = {"splatcodec": __version__, "cores": os.cpu_count(), "rows": rows}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    table = markdown(rows)
    if arguments.markdown:
        text = arguments.markdown.read_text()
        start, end = "<!-- table -->\n", "<!-- end -->"
        before, after = text.split(start)[0], text.split(end)[1]
        arguments.markdown.write_text(before + start + table + end + after)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
