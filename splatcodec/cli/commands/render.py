"""Draw a picture of a scene.

The views are those that `compare` uses: --view K is number K of its 24, chosen from the scene itself.
--orbit-view K/N stands at step K of N around the scene instead, slightly above it, for turntables.

examples:
  splatcodec render scene.splc view.png
  splatcodec render scene.splc copy.png --view 5 --views-of scene.ply
  splatcodec render scene.ply turn.png --orbit-view 3/36 --size 800 --background 1,1,1
  splatcodec render moving.splc orbit.mp4 --orbit
  splatcodec render moving.splc view.png --at 12
  splatcodec render scene.ply part.png --crop-sphere 0,0,0,1.5 --views-of scene.ply
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .. import moving
from ..arguments import add_overwrite, add_threads, colour, fraction_of, nonnegative_int, positive_int
from ..console import Console
from ..edit_options import add_edit_options, apply_edits, read_scene
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...gaussians import Gaussians
    from ...render.camera import Camera

_NUM_VIEWS = 24
# The distance from which a sphere around the scene fills a picture of 50 degrees, in radii: 1 / sin(25 degrees).
_ORBIT_RADII = 2.3662
_ORBIT_RISE = 0.35


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE", help="scene in any format that can be read")
    parser.add_argument("output", metavar="OUT", help="picture (.png) to write, or video (.mp4) for --orbit")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--view", type=nonnegative_int, metavar="K", default=0, help="evaluation view 0 to 23")
    where.add_argument("--orbit-view", type=fraction_of, metavar="K/N", help="step K of N around the scene")
    where.add_argument(
        "--orbit",
        type=float,
        nargs="?",
        const=1.0,
        metavar="TURNS",
        help="a video, the camera going around",
    )
    parser.add_argument("--at", type=nonnegative_int, metavar="N", help="frame N of a moving scene (0)")
    parser.add_argument("--views-of", metavar="SCENE", help="choose the view from this scene, such as FILE's original")
    parser.add_argument("--size", type=positive_int, metavar="PX", default=512, help="width and height (512)")
    parser.add_argument(
        "--background",
        type=colour,
        metavar="R,G,B",
        default=(0.0, 0.0, 0.0),
        help="colour behind it, each 0..1 (black)",
    )
    add_edit_options(parser)
    add_threads(parser)
    add_overwrite(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Draw `args.input` into `args.output`."""
    from ... import api
    from ...errors import ParameterError
    from ...files import atomic_write
    from ...render.camera import evaluation_cameras
    from ...render.cpu import render
    from ..pictures import png_bytes

    if args.orbit is not None:
        return moving.render_video(args, console)
    if not args.output.lower().endswith(".png"):
        raise ParameterError("only PNG pictures can be written", file=args.output, hint="let the name end in .png")
    if not args.overwrite and os.path.lexists(args.output):
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
    if args.view >= _NUM_VIEWS:
        raise ParameterError(f"there is no view {args.view}", hint=f"0 to {_NUM_VIEWS - 1}")
    if api.is_moving(args.input):
        with api.open_moving(args.input) as scene:
            still: Gaussians = scene.frame(args.at or 0)
    elif args.at is not None:
        raise ParameterError("--at is for moving scenes", file=args.input)
    else:
        still = read_scene(args.input, args, console)
    gaussians, _ = apply_edits(still, args, console, threads=args.threads)
    chosen_from = api.read(args.views_of) if args.views_of else gaussians
    if args.orbit_view:
        camera = orbit_camera(chosen_from, *args.orbit_view, size_px=args.size)
    else:
        camera = evaluation_cameras(chosen_from, num_views=_NUM_VIEWS, size_px=args.size)[args.view]
    picture = render(gaussians, camera, background=args.background, num_threads=args.threads)
    with atomic_write(args.output, args.overwrite) as file:
        file.write(png_bytes(picture.rgb))
    console.summary(f"{args.output}: {args.size} x {args.size} pixels")
    return ExitCode.OK


def orbit_camera(gaussians: Gaussians, step: int, steps: int, *, size_px: int) -> Camera:
    """The camera at `step` of `steps` on a circle around the scene, from slightly above."""
    import numpy as np

    from ...render.camera import look_at, scene_extent, world_up

    extent, (up, _) = scene_extent(gaussians), world_up(gaussians)
    east = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    turn = 2 * np.pi * step / steps
    offset = np.sqrt(1 - _ORBIT_RISE**2) * (np.cos(turn) * east + np.sin(turn) * north) + _ORBIT_RISE * up
    position = extent.center + _ORBIT_RADII * extent.radius * offset
    return look_at(position, extent.center, up, width=size_px, height=size_px, near=0.01 * extent.radius)
