"""The stages of tools/gpu_check.sh. Each is a process of its own with a time limit; the JSON is written after each.

Exit code: 0 if all stages ran and passed, 1 if one failed, 3 if some could not be run (the JSON says why).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TOTAL_S = 470.0
NO_DEVICE = "not run: no CUDA device"
# Seconds that a stage may take; all of them together stay below TOTAL_S whatever happens.
LIMITS_S = {"build": 120, "tests": 90, "memcheck": 60, "racecheck": 60, "timings": 120, "training": 100}
STAGES = ("environment", *LIMITS_S)
SIZES = (100_000, 1_000_000, 5_000_000)
_RESULT = "result of the worker: "
_SAID_CHARACTERS = 6000  # of what a stage said, its end is kept


def run(command: Sequence[str], limit_s: float, **environment: str) -> dict[str, Any]:
    """Run a command; returns its exit code (None: out of time), the seconds it took, and all that it said."""
    start = time.monotonic()
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return {"exit_code": 127, "seconds": 0.0, "said": str(error)}
    code: int | None
    try:
        said, _ = process.communicate(timeout=max(1.0, limit_s))
        code = process.returncode
    except subprocess.TimeoutExpired:
        # With its children: compute-sanitizer's program would go on, and keep the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        code = None
    return {"exit_code": code, "seconds": round(time.monotonic() - start, 1), "said": said}


def worker(name: str, limit_s: float, *options: str, prefix: Sequence[str] = (), **environment: str) -> dict[str, Any]:
    """Run one of the WORKERS below in its own process; its result is a line of JSON."""
    outcome = run([*prefix, sys.executable, str(Path(__file__)), "--worker", name, *options], limit_s, **environment)
    lines = outcome["said"].splitlines()
    # Others may have their say after it: compute-sanitizer does.
    found = [line for line in lines if line.startswith(_RESULT)]
    if found:
        outcome["result"] = json.loads(found[-1][len(_RESULT) :])
        outcome["said"] = "\n".join(line for line in lines if not line.startswith(_RESULT))
    return outcome


# Stages: each returns a dict with "status": "passed", "failed: why" or "not run: why".


def environment(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """What this machine is."""
    facts: dict[str, Any] = {"status": "passed", "python": platform.python_version(), "machine": platform.machine()}
    commit = run(["git", "rev-parse", "--short", "HEAD"], 10)
    facts["commit"] = commit["said"].strip() if commit["exit_code"] == 0 else None
    nvcc = building().find_nvcc()
    if nvcc is not None:
        facts["nvcc"] = run([nvcc, "--version"], 20)["said"].strip().splitlines()[-1]
    try:
        import torch
    except ImportError as error:
        facts["torch"] = f"missing: {error}"
        return facts
    facts["torch"] = torch.__version__
    facts["torch_cuda"] = torch.version.cuda
    context["device"] = facts["cuda_device"] = torch.cuda.is_available()
    if context["device"]:
        properties = torch.cuda.get_device_properties(0)
        context["capability"] = 10 * properties.major + properties.minor
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
        smi = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 20)
        facts["driver"] = smi["said"].strip() if smi["exit_code"] == 0 else None
    return facts


def build(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """`pip install ./cuda_ext` into a folder of its own, for this device (sm_90 where there is none)."""
    if building().find_nvcc() is None:
        return {"status": "not run: no nvcc"}
    target = Path(context["folder"]) / "site"
    # A copy, so that building leaves nothing behind in the checkout.
    sources = Path(context["folder"]) / "cuda_ext"
    shutil.copytree(ROOT / "cuda_ext", sources, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    architecture = str(context.get("capability", 90))
    outcome = run([*pip, "--target", str(target), str(sources)], limit_s, SPLATCODEC_CUDA_ARCHS=architecture)
    outcome["architectures"] = [architecture]
    library = target / "splatcodec_cuda" / building().LIBRARY_NAME
    outcome["status"] = "passed" if outcome["exit_code"] == 0 and library.is_file() else "failed: not built"
    if outcome["status"] != "passed":
        # The kernels can be checked all the same if it is only pip that does not work here.
        library = Path(context["folder"]) / building().LIBRARY_NAME
        nvcc = building().find_nvcc()
        building().compile_library(ROOT / "cuda_ext" / "csrc", library, nvcc=nvcc, architectures=[int(architecture)])
        context["library"] = str(library)
    else:
        context["library"] = str(library)
        outcome["library_bytes"] = library.stat().st_size
    return outcome


def tests(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """The parity tests, on the device."""
    # Warnings of other versions of numba and torch than the pinned ones are not what is tested here.
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-m", "gpu", "-q", "-W", "default"]
    outcome = run([*command, "-p", "no:cacheprovider"], limit_s, SPLATCODEC_CUDA_LIBRARY=context["library"])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", outcome["said"])}
    outcome["counts"] = counts
    good = outcome["exit_code"] == 0 and counts.get("passed", 0) > 0 and not counts.get("skipped")
    outcome["status"] = "passed" if good else "failed: see what pytest said"
    return outcome


def sanitizer(tool: str) -> Callable[[dict[str, Any], float], dict[str, Any]]:
    """A stage that draws a small scene under compute-sanitizer."""

    def stage(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
        found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(found).is_file():
            return {"status": "not run: no compute-sanitizer"}
        prefix = [found, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20"]
        outcome = worker(
            "small",
            limit_s,
            prefix=prefix,
            SPLATCODEC_CUDA_LIBRARY=context["library"],
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # every tensor with borders of its own
        )
        # It refuses some virtual machines: that says nothing about the kernels.
        if "Device not supported" in outcome["said"]:
            outcome["status"] = "not run: compute-sanitizer does not support this device"
        else:
            outcome["status"] = "passed" if outcome["exit_code"] == 0 else f"failed: {tool} found something"
        return outcome

    return stage


def timings(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Forward, and forward with backward, of synthetic scenes at 1080p; gsplat on the same scenes where it imports."""
    outcome = worker("timings", limit_s, SPLATCODEC_CUDA_LIBRARY=context["library"])
    outcome["status"] = "passed" if outcome["exit_code"] == 0 and "result" in outcome else "failed: no timings"
    return outcome


def training(context: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """`splatcodec train` on pictures of the synthetic scene, or on the data set given by --data."""
    known = run([sys.executable, "-m", "splatcodec", "train", "--help"], 60)
    if known["exit_code"] != 0:
        return {"status": "not run: this version has no train command", "said": known["said"]}
    folder = Path(context["folder"])
    data = context["data"]
    if data is None:
        data = str(folder / "data")
        made = worker("pictures", 60, "--data", data, SPLATCODEC_CUDA_LIBRARY=context["library"])
        if made["exit_code"] != 0:
            return {**made, "status": "failed: no pictures to train on"}
    minutes = max(0.2, (limit_s - 45) / 60)
    command = [sys.executable, "-m", "splatcodec", "train", data, str(folder / "trained.ply"), "--backend", "cuda"]
    command += ["--iterations", "3000", "--minutes", f"{min(minutes, context['minutes']):.2f}", "--json"]
    outcome = run(command, limit_s, SPLATCODEC_CUDA_LIBRARY=context["library"])
    start = outcome["said"].find("\n{")
    try:
        outcome["result"] = json.loads(outcome["said"][max(start, 0) :])
    except ValueError:
        outcome["result"] = None
    outcome["status"] = "passed" if outcome["exit_code"] == 0 else "failed: see what it said"
    return outcome


STAGE_FUNCTIONS: dict[str, Callable[[dict[str, Any], float], dict[str, Any]]] = {
    "environment": environment,
    "build": build,
    "tests": tests,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "timings": timings,
    "training": training,
}


def building() -> Any:
    """The module that compiles the kernels."""
    spec = importlib.util.spec_from_file_location("building", ROOT / "cuda_ext" / "splatcodec_cuda" / "building.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Workers: what they return is printed as one line of JSON.


def synthetic(count: int, device: str, seed: int = 1) -> list[Any]:
    """Attributes of a cloud that fills the picture as trained scenes do: the more Gaussians, the smaller each."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    means = 0.6 * normal(count, 3)
    log_scales = math.log(0.35 * count ** (-1 / 3)) + 0.6 * normal(count, 3)
    rest = 0.1 * normal(count, 15, 3)
    attributes = [means, normal(count, 4), log_scales, 1.5 * normal(count), normal(count, 1, 3), rest]
    return [tensor.to(device).requires_grad_() for tensor in attributes]


def median_ms(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of `work` in milliseconds, by the device's own clock where it has one."""
    import torch

    times = []
    for k in range(repeats + max(1, repeats // 4)):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            spent = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            work()
            spent = 1e3 * (time.perf_counter() - start)
        if k >= max(1, repeats // 4):
            times.append(spent)
    return sorted(times)[len(times) // 2]


def draw_timings(
    draw: Callable[[], Any], attributes: Sequence[Any], device: str, repeats: int
) -> dict[str, float | None]:
    """Forward without gradients, and forward with backward of a mean of the picture."""
    import torch

    def forward() -> None:
        with torch.no_grad():
            draw()

    def both() -> None:
        for tensor in attributes:
            tensor.grad = None
        draw().square().mean().backward()

    return {
        "forward_ms": round(median_ms(forward, device, repeats), 3),
        "forward_backward_ms": round(median_ms(both, device, repeats), 3),
    }


def kernel_shares(work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of each CUDA kernel of one call of `work`, the longest first."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
    rows = {
        event.key[:100]: getattr(event, "device_time_total", 0.0) / 3e3
        for event in profile.key_averages()
        if getattr(event, "device_time_total", 0.0) > 0
    }
    return {name: round(spent, 4) for name, spent in sorted(rows.items(), key=lambda row: -row[1])[:12]}


def time_scenes(
    sizes: Sequence[int], width: int, height: int, device: str, repeats: int, library: Any = None
) -> dict[str, Any]:
    """Ours and gsplat on the same synthetic scenes and view."""
    import torch

    from splatcodec.render.camera import look_at
    from splatcodec.render.cuda import rasterize_cuda

    camera = look_at((0.4, -0.5, -2.2), (0.0, 0.0, 0.0), width=width, height=height)
    results: dict[str, Any] = {"width": width, "height": height, "scenes": []}
    try:
        gsplat: Any = importlib.import_module("gsplat") if device == "cuda" else None
        results["gsplat"] = gsplat.__version__ if gsplat else "not compared: no CUDA device"
    except Exception as error:  # whatever is wrong with its installation, ours is timed
        gsplat, results["gsplat"] = None, f"not compared: {type(error).__name__}: {error}"
    for count in sizes:
        attributes = synthetic(count, device)

        def ours(attributes: Sequence[Any] = attributes) -> Any:
            return rasterize_cuda(*attributes, camera, library=library).rgb

        row: dict[str, Any] = {"gaussians": count}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row["ours"] = draw_timings(ours, attributes, device, repeats)
        with torch.no_grad():
            result = rasterize_cuda(*attributes, camera, library=library)
        row["visible"] = int(result.visible.sum())
        row["mean_alpha"] = round(float(result.alpha.mean()), 4)
        if device == "cuda":
            row["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
            row["kernels_ms"] = kernel_shares(lambda draw=ours: draw().square().mean().backward())
        if gsplat is not None:
            try:
                row |= compare_gsplat(gsplat, attributes, camera, ours, repeats)
            except Exception as error:  # out of memory, another version's arguments
                row["gsplat"] = f"failed: {type(error).__name__}: {error}"
        results["scenes"].append(row)
        print(json.dumps(row), file=sys.stderr)
        del attributes, ours, result
    return results


def compare_gsplat(
    gsplat: Any, attributes: Sequence[Any], camera: Any, ours: Callable[[], Any], repeats: int
) -> dict[str, Any]:
    """gsplat's times on the same scene, the ratio of ours to them, and how far the pictures are apart."""
    import torch

    means, quats, log_scales, logits, sh0, shN = attributes
    viewmat = torch.tensor(camera.viewmat.tolist(), device=means.device)[None]
    intrinsics = torch.tensor(camera.K.tolist(), device=means.device)[None]

    def theirs() -> Any:
        rendered, _, _ = gsplat.rasterization(
            means,
            quats,
            log_scales.exp(),
            logits.sigmoid(),
            torch.cat([sh0, shN], 1),
            viewmat,
            intrinsics,
            camera.width,
            camera.height,
            sh_degree=3,
            near_plane=camera.near,
            packed=False,
        )
        return rendered[0]

    with torch.no_grad():
        apart = float((theirs() - ours()).abs().mean())
    times = draw_timings(theirs, attributes, "cuda", repeats)
    own = draw_timings(ours, attributes, "cuda", repeats)  # again, so that both ran at the same clocks
    ratios = {name: round(own[name] / times[name], 3) for name in times}
    return {"gsplat": times, "ours_again": own, "ours_over_gsplat": ratios, "mean_difference": round(apart, 6)}


def work_timings(options: argparse.Namespace) -> dict[str, Any]:
    """Worker: all sizes at 1080p on the device."""
    return time_scenes(SIZES, 1920, 1080, "cuda", 20)


def work_small(options: argparse.Namespace) -> dict[str, Any]:
    """Worker: every kernel once on a small scene, and the gradients are finite."""
    import numpy as np
    import torch

    from splatcodec.gaussians import Gaussians
    from splatcodec.render.camera import look_at
    from splatcodec.render.cuda import STATISTICS, contributions_cuda, rasterize_cuda

    camera = look_at((0.4, -0.5, -2.2), (0.0, 0.0, 0.0), width=150, height=97)
    attributes = synthetic(1500, "cuda")
    with torch.no_grad():
        attributes[2][:40] += 3.0  # some over many tiles
    viewmat = torch.tensor(camera.viewmat.tolist(), device="cuda", requires_grad=True)
    screen, signed = (torch.zeros((1500, 2), device="cuda") for _ in range(2))
    statistics = torch.zeros((1500, STATISTICS), device="cuda")
    for antialiased in (False, True):
        result = rasterize_cuda(
            *attributes,
            camera,
            antialiased=antialiased,
            with_depth=True,
            viewmat=viewmat,
            screen_gradients=screen,
            screen_gradients_signed=signed,
            statistics=statistics,
        )
        assert result.depth is not None
        (result.rgb.square().mean() + result.alpha.mean() + result.depth.mean()).backward()
    scene = Gaussians(*(np.asarray(tensor.detach().cpu()) for tensor in attributes))
    total = float(contributions_cuda(scene, [camera]).sum_weight.sum())
    finite = all(bool(torch.isfinite(tensor.grad).all()) for tensor in [*attributes, viewmat])
    torch.cuda.synchronize()
    if not (finite and total > 0):
        raise SystemExit("gradients are not finite, or nothing was drawn")
    return {"gaussians": 1500, "visible": int(result.visible.sum()), "sum_weight": round(total, 1)}


def work_pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Worker: a data set in Blender's layout, drawn from the synthetic scene of `splatcodec sample`."""
    return write_data_set(Path(options.data), 60_000, 100, 400, "cuda")


def write_data_set(folder: Path, count: int, num_views: int, size_px: int, device: str, library: Any = None) -> Any:
    """Pictures on white with poses, every 8th view for testing."""
    import numpy as np
    import torch
    from PIL import Image

    from splatcodec.render.camera import encoder_cameras
    from splatcodec.render.cuda import rasterize_cuda
    from splatcodec.sample import sample_scene

    scene = sample_scene(count)
    arrays = (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh0, scene.shN)
    attributes = [torch.from_numpy(np.array(array)).to(device) for array in arrays]
    white = torch.ones(3, device=device)
    cameras = encoder_cameras(scene, num_views=num_views, size_px=size_px)
    # Blender sets start from points in the cube of +-1.3.
    reach = 1.3 / max(1e-6, float(np.quantile(np.abs(scene.means), 0.99)))
    frames: dict[str, list[Any]] = {"train": [], "test": []}
    for index, camera in enumerate(cameras):
        split = "test" if index % 8 == 0 else "train"
        name = f"{split}/r_{index}"
        with torch.no_grad():
            rgb = rasterize_cuda(*attributes, camera, background=white, library=library).rgb
        (folder / split).mkdir(parents=True, exist_ok=True)
        pixels = (255 * rgb.clamp(0, 1) + 0.5).byte().cpu().numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png")
        pose = np.linalg.inv(camera.viewmat)
        pose[:3, 1:3] *= -1  # OpenGL's axes
        pose[:3, 3] *= reach
        frames[split].append({"file_path": f"./{name}", "transform_matrix": pose.tolist()})
    angle = 2 * math.atan(0.5 * size_px / cameras[0].focal_px[0])
    for split, listed in frames.items():
        text = json.dumps({"camera_angle_x": angle, "frames": listed})
        (folder / f"transforms_{split}.json").write_text(text)
    return {"views": len(cameras), "size_px": size_px, "gaussians": count}


WORKERS = {"small": work_small, "timings": work_timings, "pictures": work_pictures}


def check(context: dict[str, Any], stages: Sequence[str], output: Path) -> dict[str, Any]:
    """Run the stages in order; `output` holds all results so far whenever this is stopped."""
    start = time.monotonic()
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stages": {}}
    for name in STAGES:
        left = TOTAL_S - (time.monotonic() - start)
        if name not in stages:
            outcome: dict[str, Any] = {"status": "not run: not asked for"}
        elif name not in ("environment", "build") and not context.get("device"):
            outcome = {"status": NO_DEVICE}
        elif name not in ("environment", "build") and "library" not in context:
            outcome = {"status": "not run: the kernels were not built"}
        elif left < 15:
            outcome = {"status": "not run: out of time"}
        else:
            try:
                outcome = STAGE_FUNCTIONS[name](context, min(left, LIMITS_S.get(name, 60)))
            except Exception as error:  # one stage must not cost the others
                outcome = {"status": f"failed: {type(error).__name__}: {error}"}
            if outcome.get("exit_code", 0) is None:
                outcome["status"] = "failed: out of time"
        if "said" in outcome:
            outcome["said"] = outcome["said"][-_SAID_CHARACTERS:]
        report["stages"][name] = outcome
        report["seconds"] = round(time.monotonic() - start, 1)
        partial = output.with_name(output.name + ".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(partial, output)
        print(f"{name}: {outcome['status']}" + (f" ({outcome['seconds']} s)" if "seconds" in outcome else ""))
        if outcome["status"].startswith("failed") and outcome.get("said"):
            print(outcome["said"][-2000:])
        sys.stdout.flush()
    return report


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="gpu_check.json", type=Path, metavar="OUT.json")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="only these")
    parser.add_argument("--data", help="data set of the training run (default: pictures of a synthetic scene)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the training run (1)")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        result = WORKERS[options.worker](options)
        print(_RESULT + json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        context = {"folder": folder, "data": options.data, "minutes": options.minutes}
        report = check(context, options.stages, options.output)
    statuses = [stage["status"] for name, stage in report["stages"].items() if name in options.stages]
    print(f"{options.output}: {report['seconds']} s")
    if any(status.startswith("failed") for status in statuses):
        return 1
    return 0 if all(status == "passed" for status in statuses) else 3


if __name__ == "__main__":
    raise SystemExit(main())
