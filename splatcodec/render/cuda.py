"""The CUDA rasterizer: torch tensors in and out, our own kernels (cuda_ext) between them.

The kernels are one shared library with C functions that take addresses, called with ctypes: it is built without torch
and fits every version of it. It is looked for when first used: the file that SPLATCODEC_CUDA_LIBRARY names, the
installed package `splatcodec_cuda`, and in a checkout the sources themselves, compiled once for the device at hand.

The same functions exist for an emulated device (cuda_ext/csrc/emulate.h), with which the tests run everything here,
kernels included, on a CPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BackendUnavailableError, LimitExceededError, ParameterError
from ..gaussians import Gaussians
from .camera import Camera
from .constants import LOW_PASS_PX2, TILE_PX
from .contribution import BACKGROUND, Contributions
from .projection import frustum_limits
from .rasterize import Rasterized

__all__ = ["STATISTICS", "KernelLibrary", "contributions_cuda", "is_available", "load_library", "rasterize_cuda"]

#: Columns of blending statistics: sum of w = alpha T, of w^2, the largest w, pixels drawn on, then with the squared
#: change g of a pixel (RGB) if the Gaussian were taken out, sum g, sum g m, sum g m^2; the last is not used.
STATISTICS = 8

_ABI_VERSION = 1
_RECORD = 12
_SCREEN_SUMS = 12
_POSE_SUMS = 12
# Of a record: the inverse covariance's factor, and the depth.
_L11, _L21, _L22, _Z = 2, 3, 4, 7
_COVERED_ALPHA = 0.05  # as in render.contribution
_LEAST_COVERED = 0.02

# Arguments of the C functions: n int64, i int, p address; all return an int, 0 if all is well.
_SIGNATURES = {
    "project": "nippppppp" + "iii" + "pppp",
    "order": "npppp" + "ppp",
    "bin": "nnpp" + "ii" + "pppp" + "ppp",
    "rasterize": "ii" + "ppp" + "pppp" + "pp" + "p",
    "rasterize_backward": "ii" + "ppp" + "ppp" + "ppp" + "pp",
    "project_backward": "nippppppp" + "iii" + "pp" + "ppppppppp" + "p",
}
_TYPES = {"n": ctypes.c_int64, "i": ctypes.c_int, "p": ctypes.c_void_p}


class KernelLibrary:
    """The compiled kernels.

    Args:
        path: the shared library.
        suffix: "f32", or "f64" of the emulated device.
        device_type: "cuda", or "cpu" for the emulated device.

    Raises:
        BackendUnavailableError: the file cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path | str, *, suffix: str = "f32", device_type: str = "cuda") -> None:
        self.path = Path(path)
        self.device_type = device_type
        self.dtype = {"f32": torch.float32, "f64": torch.float64}[suffix]
        try:
            self._library = ctypes.CDLL(str(path))
            version = int(self._library.sc_abi_version())
        except (OSError, AttributeError) as error:
            raise BackendUnavailableError(
                f"the CUDA kernels cannot be loaded: {error}", file=str(path), hint="build cuda_ext again"
            ) from None
        if version != _ABI_VERSION:
            raise BackendUnavailableError(
                f"the CUDA kernels are of version {version}, expected {_ABI_VERSION}",
                file=str(path),
                hint="build cuda_ext again",
            )
        self._library.sc_error_text.restype = ctypes.c_char_p
        self.project_threads = int(self._library.sc_project_threads())
        self._functions = {}
        for name, signature in _SIGNATURES.items():
            function = getattr(self._library, f"sc_{name}_{suffix}")
            function.argtypes = [_TYPES[letter] for letter in signature]
            self._functions[name] = function

    def constants(self) -> list[float]:
        """ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN, LOW_PASS_PX2, LOG_SCALE_MAX, COLOUR_MAX, TILE_PX as compiled."""
        numbers = (ctypes.c_double * 7)()
        self._library.sc_constants(numbers)
        return list(numbers)

    def call(self, name: str, *arguments: int | torch.Tensor | ctypes.Array[Any] | None) -> None:
        """Call a C function; tensors are passed as their addresses.

        Raises:
            BackendUnavailableError: the device or its driver refused.
        """
        values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
        error = self._functions[name](*values)
        if error:
            text = self._library.sc_error_text(error).decode(errors="replace")
            raise BackendUnavailableError(f"CUDA kernel {name} failed with error {error}: {text}")

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make `device` the current one, for torch and for the kernels."""
        if self.device_type != "cuda":
            return nullcontext()
        index = torch.cuda.current_device() if device.index is None else device.index
        error = int(self._library.sc_set_device(index))
        if error:
            text = self._library.sc_error_text(error).decode(errors="replace")
            raise BackendUnavailableError(f"CUDA device {index} cannot be used: error {error}: {text}")
        return torch.cuda.device(device)

    def stream(self, device: torch.device) -> int | None:
        """The stream on which torch works at the moment."""
        return int(torch.cuda.current_stream(device).cuda_stream) if self.device_type == "cuda" else None


_lock = threading.Lock()
_loaded: KernelLibrary | None = None


def load_library() -> KernelLibrary:
    """The kernels, found or compiled at the first call (which may take a minute).

    Raises:
        BackendUnavailableError: no CUDA device, or no library and no way to make one; the hint says how.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            if not torch.cuda.is_available():
                raise BackendUnavailableError(
                    "the CUDA rasterizer needs a CUDA device and a torch built for it",
                    hint='use backend="cpu", or see docs/gpu.md',
                )
            _loaded = KernelLibrary(_find_library())
        return _loaded


def is_available() -> bool:
    """Whether `load_library` works here: asks it, so the kernels may be compiled."""
    try:
        load_library()
    except BackendUnavailableError:
        return False
    return True


def _find_library() -> Path:
    if named := os.environ.get("SPLATCODEC_CUDA_LIBRARY"):
        return Path(named)
    if importlib.util.find_spec("splatcodec_cuda") is not None:
        import splatcodec_cuda

        return Path(splatcodec_cuda.library_path())
    checkout = Path(__file__).resolve().parents[2] / "cuda_ext"
    if (checkout / "csrc").is_dir():
        return _compiled(checkout, _capability())
    raise BackendUnavailableError(
        "the CUDA kernels are not installed",
        hint="pip install ./cuda_ext in a checkout of splatcodec, with nvcc of CUDA 12 or later",
    )


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _compiled(checkout: Path, capability: int) -> Path:
    """The library for one kind of device, compiled from a checkout and kept in the user's cache."""
    spec = importlib.util.spec_from_file_location("_splatcodec_cuda_building", checkout / "splatcodec_cuda/building.py")
    assert spec is not None
    assert spec.loader is not None
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    nvcc = building.find_nvcc()
    if nvcc is None:
        raise BackendUnavailableError(
            "the CUDA kernels are not built and there is no nvcc to build them",
            hint="install the CUDA toolkit (12 or later) or set CUDA_HOME, then pip install ./cuda_ext",
        )
    known = building.nvcc_architectures(nvcc)
    # Of a device newer than the compiler the driver makes the code, from PTX.
    usable = [number for number in known if number <= capability]
    if not usable:
        raise BackendUnavailableError(f"{nvcc} compiles for no device as old as compute capability {capability / 10}")
    digest = hashlib.sha256(f"{nvcc} {Path(nvcc).resolve()} {max(usable)}".encode())
    for path in sorted([*(checkout / "csrc").iterdir(), checkout / "splatcodec_cuda" / "building.py"]):
        digest.update(path.name.encode() + path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    output = cache / "splatcodec" / f"cuda-{digest.hexdigest()[:16]}" / building.LIBRARY_NAME
    if not output.is_file():
        print(f"splatcodec: compiling the CUDA kernels to {output}", file=sys.stderr)
        try:
            building.compile_library(checkout / "csrc", output, nvcc=nvcc, architectures=[max(usable)])
        except (RuntimeError, OSError) as error:
            raise BackendUnavailableError(f"the CUDA kernels could not be compiled: {error}") from None
    return output


@dataclass
class _View:
    """A camera as the kernels take it."""

    width: int
    height: int
    antialiased: bool
    numbers: ctypes.Array[Any]

    @classmethod
    def of(cls, camera: Camera, antialiased: bool, pose: np.ndarray[Any, Any] | None = None) -> _View:
        if max(camera.width, camera.height) > 1 << 16:
            raise ParameterError(f"picture of {camera.width} x {camera.height} pixels, at most 65536 are supported")
        viewmat = camera.viewmat if pose is None else pose
        # A pose that is being optimised is a rotation but for rounding; the definition takes its transpose.
        center = camera.center if pose is None else -viewmat[:3, :3].T @ viewmat[:3, 3]
        values = [
            *viewmat[:3, :3].reshape(-1),
            *center,
            *camera.focal_px,
            *camera.principal_point_px,
            *frustum_limits(camera),
            camera.near,
        ]
        numbers = (ctypes.c_double * len(values))(*(float(value) for value in values))
        return cls(camera.width, camera.height, antialiased, numbers)

    @property
    def tiles(self) -> int:
        return -(-self.width // TILE_PX) * -(-self.height // TILE_PX)


@dataclass
class _Lists:
    """The projected Gaussians and what each tile draws."""

    splats: torch.Tensor  # (N, 12)
    tile_counts: torch.Tensor  # (N,) int32
    entries: torch.Tensor  # (E,) int32
    starts: torch.Tensor  # (tiles + 1,) int64


def _listed(library: KernelLibrary, attributes: Sequence[torch.Tensor], view: _View) -> _Lists:
    means, quats, log_scales, logits, sh0, shN = attributes
    n, device = len(means), means.device
    if n >= 1 << 31:
        raise LimitExceededError(f"{n} Gaussians, the CUDA rasterizer draws fewer than 2^31")
    stream = library.stream(device)

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    splats = empty(n, _RECORD, dtype=library.dtype)
    depth_keys, tile_counts = empty(n, dtype=torch.int32), empty(n, dtype=torch.int32)
    picture = (view.numbers, view.width, view.height)
    library.call(
        "project", n, 1 + shN.shape[1], means, quats, log_scales, logits, sh0, shN, *picture, view.antialiased, splats,
        depth_keys, tile_counts, stream,
    )  # fmt: skip
    order, ends = empty(n, dtype=torch.int32), empty(n, dtype=torch.int64)
    num_bytes = ctypes.c_uint64(0)
    needed = ctypes.byref(num_bytes)
    arguments = (n, depth_keys, tile_counts, order, ends)
    library.call("order", *arguments, None, needed, stream)  # type: ignore[arg-type]
    workspace = empty(max(1, num_bytes.value), dtype=torch.uint8)
    library.call("order", *arguments, workspace, needed, stream)  # type: ignore[arg-type]

    # The one place where the CPU waits for the device: lists are as long as the picture asks for.
    num_entries = int(ends[-1]) if n else 0
    starts = empty(view.tiles + 1, dtype=torch.int64)
    try:
        entries = empty(num_entries, dtype=torch.int32)
        outputs = (splats, *picture, order, ends, entries, starts)
        library.call("bin", n, num_entries, *outputs, None, needed, stream)  # type: ignore[arg-type]
        workspace = empty(max(1, num_bytes.value), dtype=torch.uint8)
    except (torch.OutOfMemoryError, MemoryError):
        raise LimitExceededError(
            f"this view needs {num_entries} (tile, Gaussian) entries, "
            f"{(4 * num_entries + num_bytes.value) / 2**30:.1f} GiB, more than the device has left",
            hint="draw a smaller picture, or a scene with fewer or smaller Gaussians",
        ) from None
    library.call("bin", n, num_entries, *outputs, workspace, needed, stream)  # type: ignore[arg-type]
    return _Lists(splats, tile_counts, entries, starts)


@dataclass
class _Settings:
    library: KernelLibrary
    view: _View
    pose: np.ndarray[Any, Any] | None
    with_depth: bool
    screen_gradients: torch.Tensor | None
    screen_gradients_signed: torch.Tensor | None
    statistics: torch.Tensor | None


class _CudaRasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, background: torch.Tensor, viewmat: torch.Tensor | None, *given: torch.Tensor
    ) -> Any:
        library, view = settings.library, settings.view
        device = given[0].device
        with library.on(device):
            attributes = [_plain(tensor, library) for tensor in given]
            behind = _plain(background, library)
            lists = _listed(library, attributes, view)
            size = (view.height, view.width)
            rgb = torch.empty((*size, 3), dtype=library.dtype, device=device)
            transmittance = torch.empty(size, dtype=library.dtype, device=device)
            depth = torch.empty_like(transmittance) if settings.with_depth else None
            library.call(
                "rasterize", view.width, view.height, lists.entries, lists.starts, lists.splats, behind, rgb,
                transmittance, depth, settings.statistics, None, library.stream(device),
            )  # fmt: skip
            visible = lists.tile_counts > 0
            alpha = 1 - transmittance
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(visible)
        saved = (lists.splats, lists.tile_counts, lists.entries, lists.starts, rgb, transmittance, depth)
        ctx.save_for_backward(*attributes, *saved)
        return rgb, alpha, depth, visible

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *by_outputs: torch.Tensor | None) -> Any:
        settings: _Settings = ctx.settings
        library, view = settings.library, settings.view
        by_rgb, by_alpha, by_depth, _ = by_outputs
        if by_rgb is None and by_alpha is None and by_depth is None:
            return (None,) * 9
        attributes = ctx.saved_tensors[:6]
        splats, tile_counts, entries, starts, rgb, transmittance, depth = ctx.saved_tensors[6:]
        means, device = attributes[0], attributes[0].device
        n = len(means)
        with library.on(device):
            stream = library.stream(device)
            by_rgb = torch.zeros_like(rgb) if by_rgb is None else _plain(by_rgb, library)
            by_alpha = None if by_alpha is None else _plain(by_alpha, library)
            by_depth = None if by_depth is None else _plain(by_depth, library)
            sums = torch.zeros((n, _SCREEN_SUMS), dtype=library.dtype, device=device)
            library.call(
                "rasterize_backward", view.width, view.height, entries, starts, splats, rgb, transmittance, depth,
                by_rgb, by_alpha, by_depth, sums, stream,
            )  # fmt: skip
            gradients = [torch.zeros_like(tensor) for tensor in attributes]
            pose = None
            if settings.pose is not None:
                blocks = -(-n // library.project_threads)
                pose = torch.zeros((blocks, _POSE_SUMS), dtype=library.dtype, device=device)
            library.call(
                "project_backward", n, 1 + attributes[5].shape[1], *attributes, view.numbers, view.width, view.height,
                view.antialiased, tile_counts, sums, *gradients, settings.screen_gradients_signed,
                settings.screen_gradients, pose, stream,
            )  # fmt: skip
            by_background = (by_rgb * transmittance[..., None]).sum((0, 1)) if ctx.needs_input_grad[1] else None
            by_viewmat = None
            if pose is not None and settings.pose is not None:
                by_viewmat = _pose_gradient(pose.double().sum(0), settings.pose)
        return None, by_background, by_viewmat, *gradients


def _pose_gradient(sums: torch.Tensor, pose: np.ndarray[Any, Any]) -> torch.Tensor:
    """(4, 4) by the view matrix, from sums by the rotation at a fixed centre (9) and by the offsets from it (3)."""
    rotation, translation = torch.from_numpy(pose[:3, :3]).to(sums), torch.from_numpy(pose[:3, 3]).to(sums)
    by_center = -sums[9:]
    result = torch.zeros((4, 4), dtype=sums.dtype, device=sums.device)
    # The centre is -R^T t.
    result[:3, :3] = sums[:9].reshape(3, 3) - torch.outer(translation, by_center)
    result[:3, 3] = -rotation @ by_center
    return result


def _plain(tensor: torch.Tensor, library: KernelLibrary) -> torch.Tensor:
    return tensor.detach().to(library.dtype).contiguous()


def rasterize_cuda(
    means: torch.Tensor,
    quats: torch.Tensor,
    log_scales: torch.Tensor,
    opacity_logits: torch.Tensor,
    sh0: torch.Tensor,
    shN: torch.Tensor,
    camera: Camera,
    *,
    background: torch.Tensor | None = None,
    antialiased: bool = False,
    with_depth: bool = False,
    screen_gradients: torch.Tensor | None = None,
    screen_gradients_signed: torch.Tensor | None = None,
    viewmat: torch.Tensor | None = None,
    statistics: torch.Tensor | None = None,
    library: KernelLibrary | None = None,
) -> Rasterized:
    """Draw with the CUDA kernels; arguments and result are those of `render.rasterize.rasterize`, and these:

    Args:
        statistics: (N, 8) float32; the same pass adds blending statistics of this view (see `STATISTICS`): the first
            four columns; the rest needs the finished picture, see `contributions_cuda`.
        library: other kernels than those that `load_library` finds.

    The picture is the same from run to run; gradients are summed by atomic additions of warps in no fixed order and
    differ in their last digits.

    Raises:
        BackendUnavailableError: there is no device, or there are no kernels.
        LimitExceededError: the view's tile lists do not fit the device's memory.
        ParameterError: tensors are on different devices, or accumulators do not fit.
    """
    library = load_library() if library is None else library
    given = (means, quats, log_scales, opacity_logits, sh0, shN)
    if background is None:
        background = torch.zeros(3, dtype=library.dtype, device=means.device)
    if means.device.type != library.device_type or any(
        tensor.device != means.device for tensor in (*given, background)
    ):
        devices = ", ".join(str(tensor.device) for tensor in (*given, background))
        raise ParameterError(f"expected all tensors on one {library.device_type} device, not {devices}")
    n = len(means)
    accumulators = (
        ("screen_gradients", screen_gradients, 2),
        ("screen_gradients_signed", screen_gradients_signed, 2),
        ("statistics", statistics, STATISTICS),
    )
    for name, tensor, columns in accumulators:
        if tensor is not None and not (
            tuple(tensor.shape) == (n, columns)
            and tensor.dtype == library.dtype
            and tensor.device == means.device
            and tensor.is_contiguous()
            and not tensor.requires_grad
        ):
            raise ParameterError(
                f"expected ({n}, {columns}) {library.dtype}, contiguous, on {means.device}, no gradient", field=name
            )
    pose = None
    if viewmat is not None:
        if tuple(viewmat.shape) != (4, 4):
            raise ParameterError(f"expected (4, 4), not {tuple(viewmat.shape)}", field="viewmat")
        pose = viewmat.detach().double().cpu().numpy()
        if not np.isfinite(pose).all():
            raise ParameterError("must be finite", field="viewmat")
    settings = _Settings(
        library,
        _View.of(camera, antialiased, pose),
        pose,
        with_depth,
        screen_gradients,
        screen_gradients_signed,
        statistics,
    )
    rgb, alpha, depth, visible = _CudaRasterize.apply(settings, background, viewmat, *given)  # type: ignore[no-untyped-call]
    return Rasterized(rgb, alpha, depth, visible)


def contributions_cuda(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    *,
    antialiased: bool | None = None,
    equalize: bool = False,
    device: str | torch.device | None = None,
    library: KernelLibrary | None = None,
) -> Contributions:
    """Measure the contributions of every Gaussian on the device, with two passes of the kernels over each view.

    Args:
        gaussians: any scene; rows that cannot be drawn contribute nothing.
        cameras: the views.
        antialiased: as for `render.cpu.render`.
        equalize: as for `render.contribution.contributions`.
        device: where to work; the current CUDA device if None.
        library: other kernels than those that `load_library` finds.

    Returns:
        Contributions as `render.contribution.contributions` gives them, equal within float32 sums.

    Raises:
        BackendUnavailableError: there is no device, or there are no kernels.
        LimitExceededError: a view's tile lists do not fit the device's memory.
    """
    library = load_library() if library is None else library
    if antialiased is None:
        antialiased = bool(gaussians.metadata.get("antialiased", False))
    place = torch.device(library.device_type if device is None else device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    n = len(gaussians)
    arrays = (
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.sh0,
        gaussians.shN,
    )
    attributes = [torch.from_numpy(np.array(array)).to(place, library.dtype).contiguous() for array in arrays]
    totals = torch.zeros((n, 6), dtype=torch.float64, device=place)
    hits = torch.zeros(n, dtype=torch.int64, device=place)
    pixel_sizes = torch.full((n,), float("inf"), dtype=torch.float64, device=place)
    grey = torch.full((3,), BACKGROUND, dtype=library.dtype, device=place)
    with library.on(place), torch.no_grad():
        stream = library.stream(place)
        for camera in cameras:
            view = _View.of(camera, antialiased)
            lists = _listed(library, attributes, view)
            rgb = torch.empty((view.height, view.width, 3), dtype=library.dtype, device=place)
            transmittance = torch.empty((view.height, view.width), dtype=library.dtype, device=place)
            start = (view.width, view.height, lists.entries, lists.starts, lists.splats, grey)
            library.call("rasterize", *start, rgb, transmittance, None, None, None, stream)
            share = 1.0
            if equalize:
                covered = int((transmittance < 1 - _COVERED_ALPHA).sum())
                share = max(covered / (view.width * view.height), _LEAST_COVERED)
            sums = torch.zeros((n, STATISTICS), dtype=library.dtype, device=place)
            again = torch.empty_like(rgb)
            library.call("rasterize", *start, again, transmittance, None, sums, rgb, stream)
            _add_view(sums.double(), lists.splats, share, max(camera.focal_px), totals, hits, pixel_sizes)
    columns = np.ascontiguousarray(totals.T.cpu().numpy())
    return Contributions(
        max_weight=columns[0],
        sum_weight=columns[1],
        sum_weight2=columns[2],
        hits=hits.cpu().numpy(),
        s_logalpha=columns[3],
        s_position=columns[4],
        s_cov=columns[5],
        pixel_size=pixel_sizes.cpu().numpy(),
        num_views=len(cameras),
    )


def _add_view(
    sums: torch.Tensor,
    splats: torch.Tensor,
    share: float,
    focal_px: float,
    totals: torch.Tensor,
    hits: torch.Tensor,
    pixel_sizes: torch.Tensor,
) -> None:
    """Add one view's statistics (N, 8) float64 to the scene's, in place; rows that were not drawn hold no record."""
    drawn = torch.nonzero(sums[:, 3] > 0)[:, 0]
    sums, records = sums[drawn], splats[drawn].double()
    # The share of the covariance that is not low-pass, by the trace of the inverse covariance.
    inverse = records[:, _L11].square() + records[:, _L21].square() + records[:, _L22].square()
    rho = (1 - 0.5 * LOW_PASS_PX2 * inverse).clamp(0, 1)
    totals[drawn, 0] = torch.maximum(totals[drawn, 0], sums[:, 2])
    added = [sums[:, 0], sums[:, 1], sums[:, 4], sums[:, 5] * rho, sums[:, 6] * rho.square() / 4]
    for column, values in enumerate(added, start=1):
        totals[drawn, column] += values / share
    hits[drawn] += sums[:, 3].round().long()
    pixel_sizes[drawn] = torch.minimum(pixel_sizes[drawn], records[:, _Z] / focal_px)
