"""Compare what one sees of two scenes.

Both are rendered from the same views, which are chosen from the first scene, the original. The figure to quote is
the mean PSNR over covered pixels; the worst view stands beside it. Ends with exit code 7 if the mean is below
--min-psnr. Edit steps are done to both scenes first, such as a crop to the part that matters.

examples:
  splatcodec compare scene.ply scene.splc
  splatcodec compare scene.ply scene.spz --report report.html
  splatcodec compare frames/ moving.splc --frames 0:30
  splatcodec compare scene.ply scene.splc --min-psnr 40 --json
  splatcodec compare scene.ply scene.splc --crop-sphere 0,1,0,2
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .. import moving
from ..arguments import add_json, add_overwrite, add_threads, nonnegative_int, positive_int
from ..console import Console
from ..edit_options import add_edit_options, apply_edits, has_edits, read_scene
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...metrics.compare import Comparison
    from ..report import Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("reference", metavar="A", help="the original scene, in any format that can be read")
    parser.add_argument("decoded", metavar="B", help="its copy, in any format that can be read")
    parser.add_argument("--views", type=positive_int, metavar="N", help="how many views (24; 4 of each frame)")
    parser.add_argument("--size", type=positive_int, metavar="PX", default=512, help="width and height of them (512)")
    parser.add_argument("--seed", type=nonnegative_int, metavar="S", default=0, help="another seed, other views (0)")
    parser.add_argument("--min-psnr", type=float, metavar="DB", help="fail if the mean covered PSNR is below this")
    parser.add_argument("--report", metavar="OUT.html", help="write a page with the worst and some other views")
    parser.add_argument(
        "--frames", type=moving.frame_range, metavar="A:B", help="of moving scenes frames A to B - 1, also A:B:STEP"
    )
    add_threads(parser)
    add_edit_options(parser)
    add_overwrite(parser)
    add_json(parser, "all figures")


def run(args: argparse.Namespace, console: Console) -> int:
    """Compare `args.decoded` with `args.reference`."""
    from ...errors import ParameterError
    from ...files import atomic_write
    from ...metrics.compare import compare
    from ..report import Side, html_report

    if moving.is_moving(args.reference) or moving.is_moving(args.decoded):
        if has_edits(args):
            raise ParameterError("edit steps are for still scenes", file=args.reference)
        return moving.compare(args, console)
    if args.frames:
        raise ParameterError("--frames is for moving scenes", file=args.reference)
    if args.report and not args.overwrite and os.path.lexists(args.report):
        raise ParameterError("the file exists", file=args.report, hint="--overwrite replaces it")
    paths = (args.reference, args.decoded)
    (reference, edits), (decoded, _) = (
        apply_edits(read_scene(path, args, console), args, console, threads=args.threads) for path in paths
    )
    sides = [
        Side(path, scene.num_gaussians, _size_of(path)) for path, scene in zip(paths, (reference, decoded), strict=True)
    ]
    comparison = compare(
        reference,
        decoded,
        num_views=args.views or 24,
        size_px=args.size,
        seed=args.seed,
        num_threads=args.threads,
        progress=console.steps("rendering"),
    )
    for name, count in zip(paths, comparison.dropped, strict=True):
        if count:
            console.note(f"warning: {name}: {count} Gaussians cannot be drawn and were left out")
    if comparison.up_guessed:
        console.detail("the scene does not say which way is up; -y is taken")
    passed = args.min_psnr is None or comparison.psnr_db >= args.min_psnr
    if args.report:
        page = html_report(comparison, reference, decoded, *sides, num_threads=args.threads)
        with atomic_write(args.report, args.overwrite) as file:
            file.write(page.encode())
    if args.json:
        facts = {"reference": sides[0].to_dict(), "decoded": sides[1].to_dict(), **comparison.to_dict()}
        if edits:
            facts["edits"] = edits
        if args.min_psnr is not None:
            facts |= {"min_psnr_db": args.min_psnr, "passed": passed}
        console.json(facts)
    else:
        console.result("\n".join(_table(comparison, sides)))
        if args.report:
            console.result(f"report: {args.report}")
    if not passed:
        console.error(
            f"error: {args.decoded}: covered PSNR {comparison.psnr_db:.2f} dB is below --min-psnr {args.min_psnr:g}"
        )
        return ExitCode.CHECK_FAILED
    return ExitCode.OK


def _size_of(path: str) -> int:
    files = [path] if os.path.isfile(path) else [entry.path for entry in os.scandir(path) if entry.is_file()]
    return sum(os.path.getsize(file) for file in files)


def _table(comparison: Comparison, sides: list[Side]) -> list[str]:
    lines = [f"{name}: {side}" for name, side in zip("AB", sides, strict=True)]
    lines.append("view   PSNR dB  full dB    SSIM")
    for k, view in enumerate(comparison.views):
        mark = "  worst" if k == comparison.worst_view else ""
        lines.append(f"{k:4}  {view['psnr_db']:8.2f} {view['full_psnr_db']:8.2f} {view['ssim']:7.4f}{mark}")
    lines.append(f"mean  {comparison.psnr_db:8.2f} {comparison.full_psnr_db:8.2f} {comparison.ssim:7.4f}")
    lines.append("PSNR is over covered pixels; full is over whole pictures. 100 dB means equal.")
    return lines
