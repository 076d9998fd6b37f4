"""Say what is in a file.

Of a .splc file, without decoding it: version, features, chunks, counts, bytes by chunk type, levels and where in the
file each is complete, metadata; with --verbose every chunk. Of any other format: its name, Gaussians, SH degree, side
arrays, bounds and counts of values that cannot be drawn.
With edit steps it says that, also of a .splc file, of the scene that they would leave; nothing is written.

examples:
  splatcodec info scene.splc
  splatcodec info scene.ply --json
  splatcodec info scene.ply --crop-sphere 0,0,0,2 --min-opacity 0.1
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from .. import moving
from ..arguments import add_json, human_bytes
from ..console import Console
from ..edit_options import add_edit_options, apply_edits, has_edits, no_edits_of_moving, read_scene
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...gaussians import Gaussians


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE", help="a .splc file or a scene in any format that can be read")
    add_edit_options(parser)
    add_json(parser, "everything")


def run(args: argparse.Namespace, console: Console) -> int:
    """Describe `args.input`."""
    from ... import api

    if api.is_moving(args.input):
        no_edits_of_moving(args)
        facts, lines = moving.describe(args.input, console.verbose)
    elif not has_edits(args) and not os.path.isdir(args.input) and api.is_splc(args.input):
        facts = describe_splc(args.input, with_chunks=console.verbose)
        lines = _splc_lines(facts)
    else:
        edited, steps = apply_edits(read_scene(args.input, args, console), args, console)
        facts = describe_scene(args.input, edited)
        if steps:
            facts["edits"] = steps
        lines = _scene_lines(facts)
    if args.json:
        console.json(facts)
    else:
        console.result("\n".join(lines))
    return ExitCode.OK


def describe_splc(path: str, with_chunks: bool = False) -> dict[str, Any]:
    """Facts from header, table of contents and metadata."""
    from ... import api
    from ...bitstream.container import Container
    from ...bitstream.metadata import read_metadata

    with Container.open(path) as container:
        types: dict[str, dict[str, int]] = {}
        for entry in container.chunks:
            of_type = types.setdefault(entry.type, {"chunks": 0, "count": 0, "bytes": 0})
            of_type["chunks"] += 1
            of_type["count"] += entry.count
            of_type["bytes"] += entry.length
        count = container.num_gaussians
        facts: dict[str, Any] = {
            "file": path,
            "format": "splc",
            "version": f"{container.version[0]}.{container.version[1]}",
            "size_bytes": container.length,
            "num_gaussians": count,
            "bits_per_gaussian": 8 * container.length / count if count else 0.0,
            "lossless": container.has_feature("lossless-1"),
            "features": [{"name": f.name, "required": f.required} for f in container.features],
            "num_chunks": len(container.chunks),
            "chunk_types": types,
            "metadata": read_metadata(container),
        }
        if not facts["lossless"]:
            facts["levels"] = api.Scene(container).levels()
        if with_chunks:
            facts["chunks"] = [
                {
                    "type": entry.type,
                    "critical": entry.critical,
                    "level": entry.level,
                    "tile": entry.tile,
                    "count": entry.count,
                    "offset": entry.offset,
                    "bytes": entry.length,
                    "crc32": f"{entry.crc32:08x}",
                }
                for entry in container.chunks
            ]
        return facts


def describe_scene(path: str, gaussians: Gaussians) -> dict[str, Any]:
    """Facts from the values that were read of a file, or are left of them."""
    from ... import api
    from ...formats import detect

    is_splc = path.lower().endswith(api.SUFFIX) or (os.path.isfile(path) and api.is_splc(path))
    fmt = None if is_splc else detect(path)
    files = [path] if os.path.isfile(path) else [entry.path for entry in os.scandir(path) if entry.is_file()]
    return {
        "file": path,
        "format": fmt.name if fmt else "splc",
        "title": fmt.title if fmt else "",
        "size_bytes": sum(os.path.getsize(file) for file in files),
        "num_gaussians": gaussians.num_gaussians,
        "sh_degree": gaussians.sh_degree,
        "extras": {name: f"{array.dtype}{list(array.shape[1:]) or ''}" for name, array in gaussians.extras.items()},
        **_statistics(gaussians),
        "metadata": dict(gaussians.metadata),
    }


def _statistics(gaussians: Gaussians) -> dict[str, Any]:
    """Bounds and counts of values that a renderer cannot use or has to repair."""
    import numpy as np

    arrays = {name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "sh0", "shN")}
    finite = np.isfinite(gaussians.means).all(axis=1)
    means = gaussians.means[finite]
    cleaned, report = gaussians.cleaned()
    return {
        "bounds": {"min": means.min(axis=0), "max": means.max(axis=0)} if len(means) else None,
        "non_finite": {name: int(array.size - np.isfinite(array).sum()) for name, array in arrays.items()},
        "undrawable": report.dropped,
        "zero_quaternions": int((gaussians.quats == 0).all(axis=1).sum()),
        "nearly_transparent": int((cleaned.alphas() < 1 / 255).sum()),
    }


def _splc_lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['file']}: .splc version {facts['version']}, {'lossless' if facts['lossless'] else 'lossy'}",
        f"  {human_bytes(facts['size_bytes'])}, {facts['num_gaussians']:,} Gaussians, "
        f"{facts['bits_per_gaussian']:.1f} bits per Gaussian",
        "  features: " + (", ".join(f["name"] for f in facts["features"]) or "none"),
        f"  {facts['num_chunks']} chunks:",
    ]
    for name, of_type in facts["chunk_types"].items():
        share = 100 * of_type["bytes"] / facts["size_bytes"]
        lines.append(f"    {of_type['chunks']:5} {name}  {human_bytes(of_type['bytes']):>10}  {share:5.1f} %")
    for level in facts.get("levels", ()):
        name = f"level {level['level']}" if level["level"] else "thumbnail"
        lines.append(
            f"  {name}: {level['num_gaussians']:,} Gaussians in {level['tiles']} tiles, "
            f"{human_bytes(level['size_bytes'])}, complete after {100 * level['end'] / facts['size_bytes']:.1f} %"
        )
    for chunk in facts.get("chunks", ()):
        lines.append(
            f"    {chunk['type']}[{chunk['level']}/{chunk['tile']}] at byte {chunk['offset']}: {chunk['bytes']} bytes, "
            f"{chunk['count']} rows"
        )
    return lines + _metadata_lines(facts["metadata"])


def _scene_lines(facts: dict[str, Any]) -> list[str]:
    then = "after the edit steps " if facts.get("edits") else ""
    lines = [
        f"{facts['file']}: {facts['title'] or '.splc'}",
        f"  {human_bytes(facts['size_bytes'])}, {then}{facts['num_gaussians']:,} Gaussians, "
        f"SH degree {facts['sh_degree']}",
    ]
    if facts["extras"]:
        lines.append("  side arrays: " + ", ".join(f"{name} ({kind})" for name, kind in facts["extras"].items()))
    if facts["bounds"]:
        low, high = (" ".join(f"{value:.5g}" for value in facts["bounds"][end]) for end in ("min", "max"))
        lines.append(f"  bounds: {low} to {high}")
    bad = ", ".join(f"{count} in {name}" for name, count in facts["non_finite"].items() if count)
    lines.append(f"  non-finite values: {bad or 'none'}")
    lines.append(
        f"  cannot be drawn: {facts['undrawable']}, zero quaternions: {facts['zero_quaternions']}, "
        f"nearly transparent (alpha below 1/255): {facts['nearly_transparent']}"
    )
    return lines + _metadata_lines(facts["metadata"])


def _metadata_lines(metadata: dict[str, Any]) -> list[str]:
    return ["  metadata:", *(f"    {name}: {value}" for name, value in metadata.items())] if metadata else []
