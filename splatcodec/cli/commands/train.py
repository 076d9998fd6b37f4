"""Train a scene from photographs with camera poses.

DATA is the folder of a data set: COLMAP (sparse/0 and images), Blender / NeRF-synthetic or D-NeRF
(transforms_train.json), instant-ngp or nerfstudio (transforms.json). OUT is a .splc or .ply file. The state of the run
is kept beside OUT; after a kill --resume goes on from there, with the same result. Needs torch (extra `train`).
Started by torchrun, several processes share the work.

examples:
  splatcodec train lego scene.splc --minutes 15
  splatcodec train desk desk.ply --iterations 7000 --downscale 2 --max-gaussians 100000 --report desk.html
  splatcodec train lego scene.splc --minutes 15 --resume
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ..arguments import (
    add_json,
    add_overwrite,
    add_threads,
    colour,
    human_bytes,
    nonnegative_int,
    positive_int,
)
from ..console import Console
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...training.trainer import Progress

_TOLD_EVERY_S = 30.0
_CHECKPOINT_SUFFIX = ".checkpoint"
# Options that are fields of `TrainSettings` under the same name.
_SETTINGS = (
    "iterations", "minutes", "max_gaussians", "seed", "method", "strategy", "sh_degree", "mask_weight", "lmbda",
    "prune", "smoothness", "shape", "antialiased", "backend", "threads",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments; those of `TrainSettings` have its field names."""
    parser.add_argument("data", metavar="DATA", help="folder of a data set")
    parser.add_argument("output", metavar="OUT", help="scene to write: .splc, .ply or another format")
    parser.add_argument("--iterations", type=positive_int, metavar="N", help="steps (7000, unless --minutes is given)")
    parser.add_argument("--minutes", type=float, metavar="M", help="train for so long; with --iterations: at most")
    parser.add_argument(
        "--max-gaussians", type=positive_int, metavar="N", help="most Gaussians (default: 0.6 a pixel of one picture)"
    )
    parser.add_argument("--seed", type=nonnegative_int, metavar="S", help="of everything random (0)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--downscale", type=float, metavar="F", help="shrink pictures by this factor")
    size.add_argument("--size", type=positive_int, metavar="PX", help="shrink pictures to this larger side")
    parser.add_argument("--images", metavar="NAME", help="folder of the pictures, such as images_4 (COLMAP)")
    parser.add_argument(
        "--test-every",
        type=nonnegative_int,
        metavar="N",
        help="every Nth view is for testing, 0 none (default: what the data set says, else 8)",
    )
    parser.add_argument(
        "--background",
        type=colour,
        metavar="R,G,B",
        help="behind transparent pixels (white for Blender sets, else black)",
    )
    parser.add_argument("--sh-degree", type=int, choices=range(4), metavar="D", help="highest SH degree (3)")
    parser.add_argument("--method", metavar="NAME", help="way of training (plain); docs/training.md lists them")
    parser.add_argument(
        "--mask-weight", type=float, metavar="W", help="how hard --method masked presses Gaussians out (0.0005)"
    )
    parser.add_argument(
        "--lmbda", type=float, metavar="L", help="what a bit costs --method rd: larger is smaller and worse (0.0003)"
    )
    parser.add_argument(
        "--own-colours",
        action=argparse.BooleanOptionalAction,
        help="--method compact3dgs: a base colour for every Gaussian beside the field's (default: do)",
    )
    parser.add_argument(
        "--prune",
        type=float,
        metavar="SHARE",
        help="how many Gaussians --method lightgaussian drops, 0 to 1 (0.2)",
    )
    parser.add_argument(
        "--smoothness", type=float, metavar="W", help="how much neighbours in the grid of --method selforg count (1)"
    )
    parser.add_argument("--strategy", metavar="NAME", help="where Gaussians are added: errors (default), adc or mcmc")
    parser.add_argument(
        "--shape",
        action="store_const",
        const=True,
        help="learn a generalised-exponential shape, folded into the scales",
    )
    parser.add_argument(
        "--antialiased", action="store_const", const=True, help="opacities make up for the low-pass blur; OUT says so"
    )
    parser.add_argument("--backend", choices=("auto", "cpu", "cuda"), help="rasterizer (auto: a GPU if it works)")
    parser.add_argument("--quality", type=float, metavar="Q", help="of OUT.splc, 0 to 100 (60), as for compress")
    parser.add_argument("--report", metavar="OUT.html", help="write a page with pictures and curves")
    parser.add_argument("--checkpoint", metavar="FILE", help="state of the run (OUT.checkpoint); removed at the end")
    parser.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between two writings of it (60)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    add_threads(parser)
    add_overwrite(parser)
    add_json(parser, "all figures")


def run(args: argparse.Namespace, console: Console) -> int:
    """Train `args.data` into `args.output`."""
    from ...errors import BackendUnavailableError, ParameterError

    checkpoint = args.checkpoint or args.output + _CHECKPOINT_SUFFIX
    try:
        import torch  # noqa: F401
    except ImportError:
        raise BackendUnavailableError("training needs torch", hint="pip install 'splatcodec[train]'") from None
    _check_outputs(args, checkpoint)
    if not args.checkpoint_every > 0:
        raise ParameterError(f"--checkpoint-every {args.checkpoint_every:g}", hint="more than 0 seconds")
    from ...training.datasets import ReadOptions, read_dataset
    from ...training.ranks import Ranks
    from ...training.settings import TrainSettings
    from ...training.trainer import Interrupted, Trainer

    settings = TrainSettings(**{name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None})
    ranks = Ranks()
    if not ranks.first:
        console.verbosity = -1
    options = ReadOptions(
        downscale=1.0 if args.downscale is None else args.downscale,
        size_px=args.size,
        images=args.images,
        test_every=args.test_every,
        background=args.background,
        seed=settings.seed,
    )
    dataset = read_dataset(args.data, options)
    for note in dataset.notes:
        console.note(note)
    first = dataset.train[0].camera
    console.note(
        f"{dataset.kind}: {len(dataset.train)} train and {len(dataset.test)} test views of {first.width} x "
        f"{first.height} pixels, {len(dataset.points.means):,} points"
    )
    resume = args.resume and os.path.isfile(checkpoint)
    if args.resume and not resume:
        console.note("there is no checkpoint yet: the run starts from the beginning")
    with ranks:
        trainer = Trainer(
            dataset,
            settings,
            checkpoint=checkpoint,
            checkpoint_every_s=args.checkpoint_every,
            resume=resume,
            progress=_Teller(console),
            say=console.note,
            ranks=ranks,
        )
        try:
            result = trainer.run()
        except Interrupted as stopped:
            if ranks.first:
                console.error(str(stopped))
            return ExitCode.INTERRUPTED if stopped.signum == 2 else ExitCode.TERMINATED
    if not ranks.first:
        return ExitCode.OK
    return _finish(args, console, dataset, settings, result, checkpoint, trainer)


class _Teller:
    """Tells how far a run is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.told_at = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        text = (
            f"step {progress.iteration:,}, {progress.psnr_db:.2f} dB on train pictures, "
            f"{progress.num_gaussians:,} Gaussians, {_duration(progress.eta_s)} left"
        )
        if self.terminal:
            self.console.progress(text, progress.share)
        elif time.monotonic() - self.told_at > _TOLD_EVERY_S:
            self.told_at = time.monotonic()
            self.console.note(f"{100 * progress.share:.0f} %: {text}")


def _duration(seconds: float) -> str:
    """A time for people.

    >>> _duration(42), _duration(600), _duration(float("inf"))
    ('42 s', '10 min', 'unknown time')
    """
    if not seconds < 1e7:
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _check_outputs(args: argparse.Namespace, checkpoint: str) -> None:
    """What can be wrong with the outputs is said before an hour is spent."""
    from ...api import SUFFIX
    from ...errors import ParameterError
    from ...formats import format_of_target, formats
    from ...training.methods import method_named

    name = format_of_target(args.output)
    if not args.output.lower().endswith(SUFFIX) and (name is None or not formats()[name].can_write):
        raise ParameterError("no format that can be written has this suffix", file=args.output, hint=".splc or .ply")
    if args.quality is not None and not 0 <= args.quality <= 100:
        raise ParameterError(f"--quality {args.quality:g}", hint="0 to 100")
    if args.quality is not None and not args.output.lower().endswith(SUFFIX):
        raise ParameterError("--quality is of .splc files", file=args.output)
    if args.quality is not None and args.method and method_named(args.method).makes_file:
        raise ParameterError(f"--method {args.method} decides the quality of the file itself")
    for path in (args.output, args.report, checkpoint):
        if path is None:
            continue
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise ParameterError("there is no such folder to write to", file=folder)
        if not os.access(folder, os.W_OK):
            raise ParameterError("this folder may not be written to", file=folder)
    for path in (args.output, args.report):
        if path and os.path.lexists(path) and not args.overwrite:
            raise ParameterError("the file exists", file=path, hint="--overwrite replaces it")
    if os.path.lexists(checkpoint) and not args.resume and not args.overwrite:
        raise ParameterError(
            "there is a checkpoint of an earlier run", file=checkpoint, hint="--resume goes on, --overwrite starts anew"
        )


def _finish(
    args: argparse.Namespace,
    console: Console,
    dataset: Any,
    settings: Any,
    result: Any,
    checkpoint: str,
    trainer: Any,
) -> int:
    """Write the scene and the report, and say what came out."""
    from ... import api
    from ...files import atomic_write
    from ...training.evaluation import evaluate
    from ...training.report import html_report, report_facts

    of_file = None
    if args.output.lower().endswith(api.SUFFIX):
        quality = {} if args.quality is None else {"quality": args.quality}
        options = {"threads": args.threads, "progress": console.progress}
        payload = trainer.method.compressed(result.gaussians, **options)
        if payload is None:
            payload = api.compress(result.gaussians, **options, **quality)
        with atomic_write(args.output, args.overwrite) as file:
            file.write(payload)
        of_file = evaluate(
            api.read(args.output), dataset, dataset.test, device=trainer.device, num_threads=args.threads
        )
    else:
        for loss in api.write(result.gaussians, args.output, overwrite=args.overwrite):
            console.note(f"warning: {loss}")
    if args.report:
        page = html_report(result, dataset, settings, of_file, num_threads=args.threads)
        with atomic_write(args.report, args.overwrite) as file:
            file.write(page.encode())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(checkpoint)
    size_bytes = os.path.getsize(args.output)
    if args.json:
        facts = report_facts(result, dataset, settings, of_file)
        console.json({"file": args.output, "size_bytes": size_bytes, **facts})
        return ExitCode.OK
    lines = [f"{args.output}: {human_bytes(size_bytes)}, {len(result.gaussians):,} Gaussians"]
    lines.append(
        f"  {result.iterations:,} steps in {result.seconds:.0f} s, {result.cpu_seconds:.0f} s of processor time"
    )
    if result.evaluation is not None:
        found = result.evaluation
        line = f"  test views: {found.psnr_db:.2f} dB, SSIM {found.ssim:.4f}"
        lines.append(line if of_file is None else f"{line}; as compressed {of_file.psnr_db:.2f} dB, {of_file.ssim:.4f}")
    if args.report:
        lines.append(f"  report: {args.report}")
    console.summary("\n".join(lines))
    return ExitCode.OK
