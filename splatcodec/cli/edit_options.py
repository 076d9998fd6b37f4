"""The edit steps as options that several commands share: done one after the other, in the order they are given."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ParameterError
from .console import Console

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..formats import Blocks
    from ..gaussians import Gaussians

__all__ = [
    "EditStep",
    "add_edit_options",
    "apply_edits",
    "attach_numbers",
    "edit_blocks",
    "edits_by_row",
    "has_edits",
    "no_edits_of_moving",
    "read_scene",
    "stated",
]

# Views for what each Gaussian shows; many small ones beat few large ones. Of larger scenes fewer, for the same time.
_IMPORTANCE_VIEWS, _LEAST_VIEWS, _IMPORTANCE_PX = 96, 24, 160
_LARGE_SCENE = 150_000
_NUMBERS = re.compile(r"-(?:\d|\.\d|inf\b)[-+.,\deEinf]*")


@dataclass(frozen=True)
class EditStep:
    """One step as given.

    Attributes:
        option: its name without dashes. text: its value as given, "" without. value: its value.
    """

    option: str
    text: str
    value: Any


@dataclass(frozen=True)
class _Kind:
    """What an option is: how its value is read, and what it does."""

    metavar: str | None
    parse: Callable[[str], Any]
    run: Callable[[Gaussians, Any, Console, int | None], Gaussians]
    help: str


def attach_numbers(arguments: Sequence[str]) -> list[str]:
    """`--option -1,0,0` as `--option=-1,0,0`: else argparse takes what begins with a minus for an option.

    >>> attach_numbers(["convert", "a.ply", "--translate", "-1,0,.5", "--quiet", "b.ply"])
    ['convert', 'a.ply', '--translate=-1,0,.5', '--quiet', 'b.ply']
    """
    joined: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return joined + list(arguments[place:])
        if _NUMBERS.fullmatch(argument) and joined and re.fullmatch(r"--[a-z][a-z-]*", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _numbers(count: int, example: str) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count or any(math.isnan(value) for value in values):
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers such as {example}")
        return values

    return parse


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _degree(text: str) -> int:
    if text not in ("0", "1", "2", "3"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an SH degree, 0 to 3")
    return int(text)


def _count_or_share(text: str) -> int | float:
    """A whole number, or a share (float 0..1) where the text ends in %."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d*)?|\.\d+) ?%", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of Gaussians such as 50000, nor a share such as 10%"
        )
    if match[1]:
        return int(match[1])
    if float(match[2]) > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than all of them")
    return float(match[2]) / 100.0


def _decimate(scene: Gaussians, value: int | float, console: Console, threads: int | None) -> Gaussians:
    from ..edits import decimate

    count = value if isinstance(value, int) else round(value * scene.num_gaussians)
    if not 0 < count < scene.num_gaussians:
        return decimate(scene, count)
    return decimate(scene, count, importance=_importance(scene, console, threads))


def _importance(scene: Gaussians, console: Console, threads: int | None) -> npt.NDArray[np.float64]:
    """(N,) what each Gaussian shows in views of the whole scene, as `splatcodec.edits.decimate` wants it."""
    import numpy as np

    from ..render.camera import encoder_cameras
    from ..render.contribution import contributions

    share = min(1.0, _LARGE_SCENE / max(scene.num_gaussians, 1))
    views = max(_LEAST_VIEWS, round(_IMPORTANCE_VIEWS * share))
    cameras = encoder_cameras(scene, num_views=views, size_px=_IMPORTANCE_PX)
    measured = contributions(scene, cameras, equalize=True, num_threads=threads, progress=console.steps("importance"))
    importance: npt.NDArray[np.float64] = np.sqrt(measured.sum_weight2 * measured.removal_error)
    return importance


def _frame(scene: Gaussians, value: str, console: Console, threads: int | None) -> Gaussians:
    from ..frames import convert_frame

    if scene.metadata.get("frame") is None:
        raise ParameterError(
            "the scene does not say which frame it is in", field="frame", hint="state it with --from-frame"
        )
    return convert_frame(scene, value)


def _edit(name: str, call: Callable[[Any, Gaussians, Any], Gaussians]) -> Callable[..., Gaussians]:
    """A step that is one function of `splatcodec.edits`, which is loaded when the step is done."""

    def run(scene: Gaussians, value: Any, console: Console, threads: int | None) -> Gaussians:
        from .. import edits

        return call(getattr(edits, name), scene, value)

    return run


_POINT = _numbers(3, "0,1.5,-2")
# Steps that look at more than one Gaussian at a time, and those that leave Gaussians out.
_WHOLE = frozenset({"remove-floaters", "decimate"})
_FILTERS = frozenset({"crop-box", "crop-sphere", "min-opacity", "min-size", "max-size"})
_STEPS: dict[str, _Kind] = {
    "crop-box": _Kind(
        "X0,Y0,Z0,X1,Y1,Z1",
        _numbers(6, "-1,-1,-1,1,1,1"),
        _edit("crop_box", lambda step, scene, v: step(scene, v[:3], v[3:])),
        "keep centres inside a box, faces included",
    ),
    "crop-sphere": _Kind(
        "X,Y,Z,R",
        _numbers(4, "0,0,0,2.5"),
        _edit("crop_sphere", lambda step, scene, v: step(scene, v[:3], v[3])),
        "keep centres inside a sphere, surface included",
    ),
    "sh-degree": _Kind(
        "D",
        _degree,
        _edit("drop_sh_bands", lambda step, scene, v: step(scene, v)),
        "drop the SH bands above D",
    ),
    "min-opacity": _Kind(
        "A",
        _number,
        _edit("filter_opacity", lambda step, scene, v: step(scene, v)),
        "keep what is at least so opaque, 0 to 1",
    ),
    "min-size": _Kind(
        "S",
        _number,
        _edit("filter_size", lambda step, scene, v: step(scene, min_size=v)),
        "keep what is at least so large: standard deviation along the longest axis, world units",
    ),
    "max-size": _Kind(
        "S",
        _number,
        _edit("filter_size", lambda step, scene, v: step(scene, max_size=v)),
        "keep what is at most so large",
    ),
    "remove-floaters": _Kind(
        None,
        str,
        _edit("remove_floaters", lambda step, scene, v: step(scene)),
        "leave out what hangs in empty space",
    ),
    "translate": _Kind(
        "X,Y,Z",
        _POINT,
        _edit("translate", lambda step, scene, v: step(scene, v)),
        "move by so much, world units",
    ),
    "rotate-xyz": _Kind(
        "DEG,DEG,DEG",
        _POINT,
        _edit("rotate", lambda step, scene, v: step(scene, _rotation(v))),
        "turn around x, then y, then z (fixed axes through the origin), degrees",
    ),
    "scale": _Kind(
        "F",
        _number,
        _edit("scale", lambda step, scene, v: step(scene, v)),
        "make it F times as large, from the origin",
    ),
    "decimate": _Kind(
        "N|P%",
        _count_or_share,
        _decimate,
        "leave N Gaussians, or P %% of them, that look most like all",
    ),
    "frame": _Kind(
        "TO",
        str.upper,
        _frame,
        "change the coordinate frame, such as RUB (x right, y up, z back)",
    ),
}


def _rotation(degrees: tuple[float, ...]) -> npt.NDArray[np.float64]:
    from ..edits import rotation_xyz

    return rotation_xyz(degrees)


class _Append(argparse.Action):
    """Adds a step to the list that all edit options share, so that their order is kept."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        name = self.option_strings[0].removeprefix("--")
        text = values if isinstance(values, str) else ""
        try:
            value = _STEPS[name].parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.edits = [*(getattr(namespace, "edits", None) or []), EditStep(name, text, value)]


def add_edit_options(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Options for all edit steps, in a group of their own.

    Args:
        without: steps whose option the command has already, with a meaning that is close enough.
    """
    group = parser.add_argument_group("edit steps", "done in the order given, any of them more than once")
    for name, kind in _STEPS.items():
        if name in without:
            continue
        nargs = 0 if kind.metavar is None else None
        group.add_argument(f"--{name}", action=_Append, dest="edits", nargs=nargs, metavar=kind.metavar, help=kind.help)
    group.add_argument(
        "--from-frame", metavar="F", help="the coordinate frame that the input is in, whatever it states itself"
    )


def has_edits(args: argparse.Namespace) -> bool:
    """Whether anything is to be done to the scene."""
    return bool(args.edits or args.from_frame)


def no_edits_of_moving(args: argparse.Namespace) -> None:
    """Refuse edit steps for a moving scene.

    Raises:
        ParameterError: there are some.
    """
    if has_edits(args):
        raise ParameterError("edit steps are for still scenes", file=args.input)


def read_scene(path: str, args: argparse.Namespace, console: Console, *, format: str | None = None) -> Gaussians:
    """Read a scene and note the frame that `--from-frame` states."""
    from .. import api
    from ..frames import parse_frame

    if args.from_frame is not None:
        parse_frame(args.from_frame)  # a wrong one is told before a large file is read
    return stated(api.read(path, format=format), path, args, console)


def stated(scene: Gaussians, path: str, args: argparse.Namespace, console: Console) -> Gaussians:
    """The scene of a file with the frame that `--from-frame` states; as it is without."""
    from ..frames import with_frame

    if args.from_frame is None:
        return scene
    return with_frame(scene, _stated_frame(scene.metadata, path, args, console))


def _stated_frame(metadata: Mapping[str, Any], path: str, args: argparse.Namespace, console: Console) -> str:
    from ..frames import parse_frame

    frame, own = parse_frame(args.from_frame), metadata.get("frame")
    if own is not None and own != frame:
        console.note(f"warning: {path} states the frame {own}; it is taken to be in {frame}, as told")
    return frame


def apply_edits(
    scene: Gaussians, args: argparse.Namespace, console: Console, *, threads: int | None = None
) -> tuple[Gaussians, list[dict[str, Any]]]:
    """Do the steps that were asked for, one after the other, and say what each did.

    Pass the scene without keeping it, so that no step holds more than its input and its result.

    Returns:
        The scene, and for each step `step`, `value`, `num_gaussians_before`, `num_gaussians` and `seconds`.

    Raises:
        SplatCodecError: a step cannot be done; its option is named.
    """
    done: list[dict[str, Any]] = []
    for step in args.edits or []:
        before, clock = scene.num_gaussians, time.perf_counter()
        try:
            scene = _STEPS[step.option].run(scene, step.value, console, threads)
        except ParameterError as error:
            error.field = f"--{step.option}"
            raise
        seconds = time.perf_counter() - clock
        console.note(_told(step, before, scene.num_gaussians))
        done.append(
            {
                "step": step.option,
                "value": step.text or None,
                "num_gaussians_before": before,
                "num_gaussians": scene.num_gaussians,
                "seconds": seconds,
            }
        )
    if done and "source" in scene.metadata:  # it names the file that these values were, before the steps
        scene = scene.replaced(metadata={name: v for name, v in scene.metadata.items() if name != "source"})
    return scene, done


def edits_by_row(args: argparse.Namespace) -> bool:
    """Whether every step that was asked for can be done block by block."""
    return not any(step.option in _WHOLE for step in args.edits or [])


def edit_blocks(
    blocks: Blocks, path: str, args: argparse.Namespace, console: Console
) -> tuple[Blocks, list[dict[str, Any]]]:
    """`apply_edits` for a scene that is read in blocks, with what `read_scene` does of `--from-frame`.

    Steps that leave Gaussians out are done twice: writers have to know how many are left before they begin.

    Returns:
        The scene, and what `apply_edits` returns of each step; its `seconds` grow while the scene is read.
    """
    metadata = dict(blocks.metadata)
    if args.from_frame is not None:
        metadata["frame"] = _stated_frame(metadata, path, args, console)
    steps: list[EditStep] = args.edits or []
    if not steps:
        return replace(blocks, metadata=metadata), []
    done = [{"step": step.option, "value": step.text or None, "seconds": 0.0} for step in steps]
    counts = [[0, 0] for _ in steps]

    def run(scene: Gaussians) -> Gaussians:
        for step, facts, count in zip(steps, done, counts):
            clock, before = time.perf_counter(), len(scene)
            try:
                scene = _STEPS[step.option].run(scene, step.value, console, None)
            except ParameterError as error:
                error.field = f"--{step.option}"
                raise
            count[0], count[1] = count[0] + before, count[1] + len(scene)
            facts["seconds"] += time.perf_counter() - clock  # type: ignore[operator]
        return scene

    head = run(blocks.head().replaced(metadata=metadata))

    def rows() -> Iterator[Gaussians]:
        for block in blocks.rows():
            yield run(block.replaced(metadata=metadata)).replaced(metadata={})

    if any(step.option in _FILTERS for step in steps):
        for _ in rows():
            pass
    else:
        counts = [[blocks.num_gaussians] * 2 for _ in steps]
    for step, facts, (before, after) in zip(steps, done, counts):
        console.note(_told(step, before, after))
        facts |= {"num_gaussians_before": before, "num_gaussians": after}
    left = {name: value for name, value in head.metadata.items() if name != "source"}
    extras = {name: (values.dtype, values.shape[1:]) for name, values in head.extras.items()}
    counted = [list(count) for count in counts]
    return replace(
        blocks, num_gaussians=counted[-1][1], sh_degree=head.sh_degree, rows=rows, extras=extras, metadata=left
    ), done


def _told(step: EditStep, before: int, after: int) -> str:
    """What a step did, for people."""
    name = f"{step.option} {step.text}".strip()
    if before == after:
        return f"{name}: {after:,} Gaussians"
    return f"{name}: {after:,} of {before:,} Gaussians left{'' if after else ': the scene is empty'}"
