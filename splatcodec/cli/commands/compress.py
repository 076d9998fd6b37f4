"""Make a small .splc file of a scene.

How good: give one of --quality, --target-psnr, --target-size or --lossless; without any it is --quality 60.
The number after --quality aims at 25 + 0.3 Q dB of covered PSNR, on any scene (see docs/cli.md).

examples:
  splatcodec compress scene.ply scene.splc
  splatcodec compress scene.ply scene.splc --quality 80
  splatcodec compress scene.ply scene.splc --target-size 5M
  splatcodec compress scene.ply scene.splc --lossless
  splatcodec compress scene.ply scene.splc --refine 400
  splatcodec compress scene.ply scene.splc --method lightgaussian
  splatcodec compress frames/ moving.splc --fps 30
  splatcodec compress scene.ply part.splc --crop-box -1,-1,-1,1,1,1 --sh-degree 1
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from .. import moving
from ..arguments import add_json, add_overwrite, add_threads, human_bytes, positive_int, size_bytes
from ..console import Console
from ..edit_options import add_edit_options, apply_edits, has_edits, read_scene
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...api import CompressReport


_COMPACT_STEPS = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments; those of `LossyOptions` have its field names."""
    parser.add_argument("input", metavar="IN", help="scene in any format that can be read, or a folder of frames")
    parser.add_argument("output", metavar="OUT.splc", help="file to write")
    how_good = parser.add_mutually_exclusive_group()
    how_good.add_argument("--quality", type=float, metavar="Q", help="0 to 100 (default 60)")
    how_good.add_argument("--target-psnr", type=float, metavar="DB", help="aim at this covered PSNR")
    how_good.add_argument(
        "--target-size", type=size_bytes, metavar="BYTES", help="never exceed this size (suffixes k, M, G, Ki, Mi, Gi)"
    )
    how_good.add_argument("--lossless", action="store_true", help="keep every float to the bit")
    parser.add_argument(
        "--reorder", action="store_true", help="with --lossless: may change the order of the Gaussians, for fewer bytes"
    )
    parser.add_argument(
        "--effort", type=int, choices=range(1, 10), metavar="1..9", help="how hard to try, not for --lossless"
    )
    parser.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        help="leave out Gaussians that cost more than they show (default: do)",
    )
    parser.add_argument(
        "--drop-unseen", action="store_const", const=True, help="leave out Gaussians that no view of the encoder shows"
    )
    parser.add_argument(
        "--levels",
        action=argparse.BooleanOptionalAction,
        help="levels of detail and a thumbnail, for loading coarse to fine (default: do)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        metavar="N",
        help="fit the scene to its own pictures in N steps while it is encoded: smaller, slower (400 is a good number)",
    )
    parser.add_argument(
        "--compact",
        type=float,
        nargs="?",
        const=1.0,
        metavar="C",
        help="with fewer Gaussians, fitted to the original's pictures (600 steps, or those of --refine): what is"
        " dropped may show C times as much as what is dropped without (2, with harmonics 1.25)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="compress by a training method that learns from the scene's own pictures: lightgaussian, compact3dgs ...",
    )
    parser.add_argument(
        "--iterations", type=positive_int, metavar="N", help="steps of --method (600), one picture each"
    )
    parser.add_argument(
        "--lmbda", type=float, metavar="L", help="what a bit costs --method rd: larger is smaller and worse (0.0003)"
    )
    parser.add_argument("--drop-extras", action="store_true", help="leave out side arrays (normals, labels ...)")
    moving.add_compress_options(parser)
    add_edit_options(parser)
    add_threads(parser)
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="lossy: code tiles on the Dask cluster there, to the same bytes"
    )
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Compress `args.input` into `args.output`."""
    from ... import api
    from ...errors import ParameterError

    if moving.is_moving_input(args):
        return moving.compress(args, console)
    refinement = _refinement(args, console)
    _check_method(args)
    source: Any = args.input
    edits: list[dict[str, Any]] = []
    if has_edits(args):
        if not args.overwrite and os.path.lexists(args.output):  # said before the work
            raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
        source, edits = apply_edits(read_scene(args.input, args, console), args, console, threads=args.threads)
    if args.scheduler and args.lossless:
        raise ParameterError("--scheduler is for lossy files", field="--scheduler")
    if args.method:
        report = _by_method(source, args, console)
    else:
        cluster = api.on_cluster(args.scheduler) if args.scheduler else contextlib.nullcontext()
        with cluster:
            report = api.compress_file(
                source,
                args.output,
                overwrite=args.overwrite,
                lossless=args.lossless,
                reorder=args.reorder,
                extras=not args.drop_extras,
                threads=args.threads,
                progress=console.progress,
                refinement=refinement,
                **_lossy_options(args),
            )
    if args.lossless and has_edits(args):
        report.notes.append("the edited scene is kept exactly, not the file it was made from")
    for stage, seconds in report.seconds.items():
        console.detail(f"{stage}: {seconds:.2f} s")
    for purpose, bits in sorted(report.rate_bits.items(), key=lambda item: -item[1]):
        console.detail(f"{purpose}: {human_bytes(round(bits / 8))}")
    if args.json:
        console.json({**report.to_dict(), "edits": edits})
    else:
        console.summary(summary(args.output, report))
    return ExitCode.OK


def _refinement(args: argparse.Namespace, console: Console) -> Any:
    """What --refine and --compact ask for; None without them."""
    from ...errors import BackendUnavailableError, ParameterError

    if args.refine is None and args.compact is None:
        return None
    if args.lossless:
        raise ParameterError("--refine and --compact change values: not with --lossless")
    try:
        from ...training.refine import RefineOptions, Refiner
    except ImportError:
        raise BackendUnavailableError("refinement needs torch", hint="pip install 'splatcodec[train]'") from None
    steps = args.refine if args.refine is not None else _COMPACT_STEPS
    return Refiner(RefineOptions(steps, args.compact or 0.0), console.progress)


def _check_method(args: argparse.Namespace) -> None:
    """What --method excludes is said before the scene is read."""
    from ...errors import BackendUnavailableError, ParameterError

    if args.iterations is not None and not args.method:
        raise ParameterError("--iterations are those of --method")
    if args.lmbda is not None and args.method != "rd":
        raise ParameterError("--lmbda is of --method rd")
    if not args.method:
        return
    for name in ("lossless", "refine", "compact", "scheduler"):
        if getattr(args, name) not in (None, False):
            raise ParameterError(f"--{name} and --method exclude each other")
    try:
        from ...training.methods import method_named
    except ImportError:
        raise BackendUnavailableError("training methods need torch", hint="pip install 'splatcodec[train]'") from None
    if method_named(args.method).makes_file and _lossy_options(args):
        option = next(iter(_lossy_options(args))).replace("_", "-")
        raise ParameterError(f"--method {args.method} decides the quality of the file itself: no --{option}")
    if not args.overwrite and os.path.lexists(args.output):
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")


def _by_method(source: Any, args: argparse.Namespace, console: Console) -> CompressReport:
    """Train a small scene from the pictures of `source`, and write it."""
    from ... import api
    from ...files import atomic_write
    from ...training.from_scene import compress_by_method

    report = api.CompressReport()
    steps = {} if args.iterations is None else {"iterations": args.iterations}
    settings = {} if args.lmbda is None else {"lmbda": args.lmbda}
    payload = compress_by_method(
        source, args.method, threads=args.threads, progress=console.progress, report=report, settings=settings,
        **steps, **_lossy_options(args),
    )  # fmt: skip
    with atomic_write(args.output, args.overwrite) as file:
        file.write(payload)
    return report


def _lossy_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `LossyOptions` that were given."""
    from ...preprocess.plan import LossyOptions

    names = [field.name for field in dataclasses.fields(LossyOptions)]
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def summary(output: str, report: CompressReport) -> str:
    """What was done, for people."""
    ratio = f", {report.input_bytes / report.size_bytes:.1f} times smaller" if report.size_bytes else ""
    coded = f"{report.num_gaussians:,} Gaussians"
    if report.num_coded != report.num_gaussians:
        coded += f", {report.num_coded:,} of them coded"
    lines = [
        f"{os.fspath(output)}: {human_bytes(report.size_bytes)}{ratio} (from {human_bytes(report.input_bytes)})",
        f"  {coded}, {report.bits_per_gaussian:.1f} bits per Gaussian, {'lossless' if report.lossless else 'lossy'}",
        f"  {report.seconds.get('total', 0.0):.1f} s",
        *(f"  note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)
