"""Edit steps: functions from Gaussians to Gaussians, each usable alone, in programs and in commands.

Side arrays and metadata come along. Rows that a step does not touch keep every bit and their order. Nothing here
renders; `decimate` takes importances from whoever can measure them.

>>> from splatcodec.sample import sample_scene
>>> scene = crop_sphere(sample_scene(1000), (0.0, -0.75, 0.0), 1.5)
>>> scene = scale(translate(scene, (0.0, 1.0, 0.0)), 2.0)
>>> decimate(scene, 100).num_gaussians
100
"""

from __future__ import annotations

from ..frames import convert_frame, with_frame
from .decimate import decimate
from .floaters import remove_floaters
from .merging import merge
from .place import quat_of_rotation, rotate, rotation_axis_angle, rotation_xyz, scale, translate
from .select import crop_box, crop_sphere, drop_sh_bands, filter_opacity, filter_size

__all__ = [
    "convert_frame",
    "crop_box",
    "crop_sphere",
    "decimate",
    "drop_sh_bands",
    "filter_opacity",
    "filter_size",
    "merge",
    "quat_of_rotation",
    "remove_floaters",
    "rotate",
    "rotation_axis_angle",
    "rotation_xyz",
    "scale",
    "translate",
    "with_frame",
]
