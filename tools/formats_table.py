#!/usr/bin/env python3
"""The tables of docs/formats.md: what each format holds, and what a scene is like that went through it.

    python tools/formats_table.py               # print both tables
    python tools/formats_table.py --write       # put them into docs/formats.md
    python tools/formats_table.py --holds       # only the first, which takes a second
    python tools/formats_table.py --only sog    # measure the round trips of some, take the others' from the page

Everything is measured: the formats are those registered, with every version they write. What a format holds is found by
writing a scene that has all of it; how exact it is, by the bounds that the format states for the sample scene. The
round trips are those of the sample scene and, where ../shared/data/static is, of two real ones.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splatcodec import formats
from splatcodec.errors import SplatCodecError, SplatCodecWarning
from splatcodec.formats import ErrorBounds, Format, WriteOptions
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare
from splatcodec.sample import sample_scene

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "formats.md"
STATIC = ROOT.parent / "shared" / "data" / "static"
SCENES = ("donut.ply", "banana.ply")
SAMPLE_GAUSSIANS = 20_000
VIEWS, SIZE_PX = 12, 256
QUALITY = 60.0
FACTS = {
    "frame": "RDF",
    "antialiased": True,
    "up": [0.0, -1.0, 0.0],
    "background": [0.25, 0.5, 0.75],
    "camera": {"position": [1.0, 2.0, 3.0]},
    "unit_m": 0.5,
    "colour_space": "srgb",
    "comments": ["made by hand"],
}


def written() -> Iterator[tuple[Format, int | None]]:
    """Every format that can be written, with each of its versions, oldest first."""
    for fmt in formats.formats().values():
        if fmt.can_write:
            for version in sorted(fmt.versions) or [None]:
                yield fmt, version


def label(fmt: Format, version: int | None) -> str:
    """Name of a row."""
    default = fmt.versions[0] if len(fmt.versions) > 1 else None
    number = "" if version is None else f", {version}"
    return f"{fmt.title}{number}{' (default)' if version is not None and version == default else ''}"


@dataclass(frozen=True)
class Trip:
    """A scene that was written and read again, and the bytes that took."""

    scene: Gaussians
    size_bytes: int


def round_trip(scene: Gaussians, fmt: Format, options: WriteOptions) -> Trip:
    """Write and read; what is lost is not said, as the tables are about that."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        path = Path(folder, "scene", str(fmt.index_name)) if fmt.write is None else Path(folder, "scene")
        formats.write(scene, path, format=fmt.name, options=options)
        again = formats.read(path, format=fmt.name)
        size_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return Trip(again, size_bytes)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the first are centred on nothing."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _figure(value: float) -> str:
    return "exact" if value < 5e-6 else f"{value:.2g}"


def holds() -> str:
    """What each format holds: suffixes, versions, bounds of errors, side arrays, metadata."""
    full = sample_scene(2000).replaced(extras={"label": np.arange(2000, dtype=np.int32)}, metadata=FACTS)
    rows = []
    for fmt in formats.formats().values():
        names = ", ".join(f"`{suffix}`" for suffix in (*fmt.suffixes, *([fmt.index_name] if fmt.index_name else ())))
        if not fmt.can_write:
            rows.append([fmt.title, names, "read", *["-"] * 9])
    for fmt, version in written():
        names = ", ".join(f"`{suffix}`" for suffix in (*fmt.suffixes, *([fmt.index_name] if fmt.index_name else ())))
        options = WriteOptions(version=version)
        bounds = fmt.error_bounds(full, options) if fmt.error_bounds else ErrorBounds()
        again = round_trip(full, fmt, options).scene
        kept = [name for name, value in FACTS.items() if name in again.metadata and _same(again.metadata[name], value)]
        facts = "all" if len(kept) == len(FACTS) else ", ".join(f"`{name}`" for name in kept) or "-"
        errors = (bounds.means, bounds.scales, bounds.quats, bounds.alphas, bounds.colours)
        sh = f"{bounds.max_sh_degree}, {_figure(bounds.shN)}" if bounds.max_sh_degree else "0"
        side = "yes" if "label" in again.extras else "-"
        quality = "yes" if fmt.takes_quality else "-"
        rows.append([label(fmt, version), names, "read, write", *map(_figure, errors), sh, side, facts, quality])
    head = ["format, version", "suffix", "can", "positions", "log scales", "quaternions", "opacities", "colours"]
    return table([*head, "harmonics", "side arrays", "metadata", "quality"], rows)


def _same(have: object, stated: object) -> bool:
    # Other formats may add a comment of their own.
    return have == stated or (isinstance(stated, list) and isinstance(have, list) and have[: len(stated)] == stated)


def scenes() -> dict[str, Gaussians]:
    """The sample scene and the real ones that are there."""
    found = {"sample": sample_scene(SAMPLE_GAUSSIANS)}
    for name in SCENES:
        if (STATIC / name).is_file():
            found[name.partition(".")[0]] = formats.read(STATIC / name).cleaned()[0]
        else:
            print(f"{name} is not there, so the table lacks it", file=sys.stderr)
    return found


def round_trips(only: Sequence[str] = ()) -> str:
    """Bytes a Gaussian and covered PSNR of every format, plain and at one quality."""
    found = scenes()
    rows = []
    for fmt, version in written():
        for quality in (None, QUALITY) if fmt.takes_quality else (None,):
            row = [label(fmt, version), "-" if quality is None else f"{quality:g}"]
            before = _measured(row) if only and fmt.name not in only else None
            if before is not None:
                rows.append(before)
                continue
            for name, scene in found.items():
                print(f"{label(fmt, version)}, quality {quality}, {name}", file=sys.stderr)
                try:
                    trip = round_trip(scene, fmt, WriteOptions(version=version, quality=quality))
                    result = compare(scene, trip.scene, num_views=VIEWS, size_px=SIZE_PX)
                except SplatCodecError as error:
                    row.append(f"{type(error).__name__}")
                    continue
                row.append(f"{trip.size_bytes / len(scene):.1f} B, {result.psnr_db:.1f} dB")
            rows.append(row)
    head = [f"{name} ({len(scene):,}, degree {scene.sh_degree})" for name, scene in found.items()]
    return table(["format, version", "quality", *head], rows)


def _measured(row: list[str]) -> list[str] | None:
    """The row of the page that begins like `row`."""
    match = re.search(f"^\\| {re.escape(' | '.join(row))} \\| (.*) \\|$", PAGE.read_text(), re.MULTILINE)
    return [*row, *match[1].split(" | ")] if match else None


def replaced(page: str, name: str, content: str) -> str:
    """`page` with what is between the markers of a table exchanged."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    assert begin in page, begin
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", page, flags=re.DOTALL)


def main() -> int:
    """Command line; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/formats.md")
    parser.add_argument("--holds", action="store_true", help="only what each format holds")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", default=[], help="measure these formats' round trips alone"
    )
    args = parser.parse_args()
    tables = {"holds": holds()} | ({} if args.holds else {"round trips": round_trips(args.only)})
    for name, content in tables.items():
        print(f"{content}\n")
        if args.write:
            PAGE.write_text(replaced(PAGE.read_text(), name, content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
