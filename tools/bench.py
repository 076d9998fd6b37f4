#!/usr/bin/env python3
"""The benchmark of still scenes: our rate-distortion curve beside other codecs' files, by one definition.

    python tools/peers.py --install && python tools/peers.py --scenes      # once: rivals and scenes, into .cache/
    python tools/bench.py donut banana leica --out .cache/bench            # curves, peers, times, memory
    python tools/bench.py donut --out .cache/bench --quality-scale         # and quality 0, 10, ..., 100
    python tools/bench.py donut --out .cache/bench --ablation              # and what each technique gives
    python tools/bench.py --write-docs .cache/bench                        # docs/benchmarks.md, .json and plots

A scene is a 3DGS PLY: a path, or the name of one in `.cache/scenes`. `OUT/results.json` grows by scenes: those of
earlier runs stay, every record says at which commit it was measured. One shape for us and for rivals (`Record`).

- **Pictures**: `metrics.compare`'s figures over the evaluation views (24 at 512 px), the original rendered once.
- **Ours**: the real `splatcodec.compress` at default settings, timed. Its importance pass, the expensive part, is
  remembered; further points are `compress` again, begun at other slopes K and allowed one trial. That this route gives
  the bytes of the plain call is checked on every scene; where it does not, the points are made by
  `compress(target_psnr=...)` with nothing but the importance pass remembered, and the results say so.
- **Rivals**: files of tools/peers.py, one setting each, decoded by our readers. Absent ones are said and skipped.
- **Ratio**: our bytes at the rival's own covered PSNR, log bytes interpolated over dB, over the rival's bytes.
- **Times**: ours in process after a warm-up (median of `--repeats`), and the whole cold process; rivals' encoders only
  as a whole cold process, recorded when the file was made, perhaps under other load: a hint, not a race.
- **Memory**: peak resident growth of a fresh process over itself with the package imported: reading the PLY,
  compressing; or decoding. It includes loading compiled kernels (`kernels` in the results: what a tiny scene takes).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # bench_report and peers lie beside this file

import bench_report
import peers

import splatcodec
from splatcodec.errors import BackendUnavailableError, ParameterError, SplatCodecError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare_renderings
from splatcodec.preprocess.plan import LossyOptions, Plan, Tuning
from splatcodec.render.camera import evaluation_cameras, world_up
from splatcodec.render.contribution import Contributions, contributions
from splatcodec.render.cpu import render
from splatcodec.render.images import save_png, side_by_side
from splatcodec.render.kernel import default_num_threads
from splatcodec.sample import sample_scene
from splatcodec.static import encoder, quantization

__all__ = ["ABLATIONS", "Ablation", "Encoder", "Judge", "Record", "bench_scene", "main"]

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PEERS = "spz-v3,spz-v4,sog,compressed-ply"
DEFAULT_QUALITIES = "30,45,60,75,90,100"
ABLATION_TARGETS_DB = (38.0, 42.0, 46.0, 50.0)
SLOW_SOG_GAUSSIANS = 50_000  # above it, SOG with higher harmonics takes hours without a GPU
_NEAR_DB = 1.0  # a rival's PSNR within this of a point of ours needs no point of its own
_MISS_DB = 1.5  # further from the PSNR wanted, a point is tried again
_LOWEST_DB, _HIGHEST_DB = 20.0, 78.0  # rivals outside are listed, but nothing is measured at their PSNR

Log = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- pictures ---------------------------------------------------------------------------------------------------------


class Judge:
    """`metrics.compare` with the original's pictures kept.

    Args:
        reference: the original.
        num_views, size_px: of the evaluation views.
    """

    def __init__(self, reference: Gaussians, num_views: int = 24, size_px: int = 512) -> None:
        self.cameras = evaluation_cameras(reference, num_views=num_views, size_px=size_px)
        if not self.cameras:
            raise ParameterError("nothing to compare: no views", field="num_views")
        self.antialiased = bool(reference.metadata.get("antialiased", False))
        self.up_guessed = world_up(reference, None)[1]
        cleaned, _ = reference.cleaned()
        self.references = [render(cleaned, camera, antialiased=self.antialiased) for camera in self.cameras]

    def __call__(self, decoded: Gaussians) -> dict[str, Any]:
        """psnr_db, worst_psnr_db, full_psnr_db, ssim, worst_ssim, worst_view."""
        decoded, _ = decoded.cleaned()
        views = [
            compare_renderings(reference, render(decoded, camera, antialiased=self.antialiased))
            for reference, camera in zip(self.references, self.cameras, strict=True)
        ]
        psnrs = [view["psnr_db"] for view in views]
        return {
            "psnr_db": float(np.mean(psnrs)),
            "worst_psnr_db": min(psnrs),
            "full_psnr_db": float(np.mean([view["full_psnr_db"] for view in views])),
            "ssim": float(np.mean([view["ssim"] for view in views])),
            "worst_ssim": min(view["ssim"] for view in views),
            "worst_view": int(np.argmin(psnrs)),
        }

    def save_worst_view(self, path: Path, decoded: Gaussians, view: int) -> None:
        """Original, decoded and difference of one view as a PNG. Of third-party scenes: not for the repository."""
        decoded, _ = decoded.cleaned()
        picture = render(decoded, self.cameras[view], antialiased=self.antialiased)
        save_png(path, side_by_side(self.references[view], picture))


@dataclass
class Record:
    """One file of one codec, ours or a rival's. What was not measured is None.

    Attributes:
        codec, version: "splatcodec" or a peer, and the exact version of what wrote it.
        scene: name of the input.
        label: "default" (plain `compress`), "curve", "quality q", or "peer".
        num_gaussians, num_coded: in the original, in the file.
        psnr_db ... worst_view: see measuring: covered PSNR mean and worst view, whole-picture PSNR mean, SSIM.
        encode_s, decode_s: in process, after warm-up; decode always by our readers.
        encode_process_s, decode_process_s: the whole cold process.
        peak_memory_bytes, decode_peak_memory_bytes: growth over the idle process.
        effort, wanted_psnr_db: ours only.
        rate_bits: bits by purpose, ours only.
    """

    codec: str
    version: str
    scene: str
    label: str
    num_gaussians: int
    num_coded: int
    size_bytes: int
    bits_per_gaussian: float
    psnr_db: float
    worst_psnr_db: float
    full_psnr_db: float
    ssim: float
    worst_ssim: float
    worst_view: int
    encode_s: float | None = None
    encode_process_s: float | None = None
    decode_s: float | None = None
    decode_process_s: float | None = None
    peak_memory_bytes: int | None = None
    decode_peak_memory_bytes: int | None = None
    effort: int | None = None
    wanted_psnr_db: float | None = None
    rate_bits: dict[str, float] = field(default_factory=dict)
    commit: str = ""
    date: str = ""
    cores: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, numbers rounded to what they mean."""
        row = dataclasses.asdict(self)
        row["rate_bits"] = {name: round(bits) for name, bits in self.rate_bits.items()}
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}


# --- our encoder ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a module or class for a while.

    Raises:
        AttributeError: one of them is not there (any more).
    """
    names = vars(target)
    missing = [name for name in attributes if name not in names]
    if missing:
        raise AttributeError(f"{getattr(target, '__name__', target)} has no {', '.join(missing)}")
    kept = {name: names[name] for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(target, name, value)


@dataclass(frozen=True)
class Ablation:
    """The codec with one technique switched off or replaced.

    Args:
        name: short.
        what: what is done instead.
        options, tuning: fields of LossyOptions and Tuning.
        plan: changes the plan. plan_fields: fields of Plan.
        measured: changes what the importance pass found. contributions: arguments of that pass.
        replaced: (module or class, attribute, replacement made from the original).
        effort: another effort.
        slow: only with --slow.
    """

    name: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    plan: Callable[[Plan], Plan] | None = None
    plan_fields: Mapping[str, Any] = field(default_factory=dict)
    measured: Callable[[Contributions], Contributions] | None = None
    contributions: Mapping[str, Any] = field(default_factory=dict)
    replaced: Sequence[tuple[Any, str, Callable[[Any], Any]]] = ()
    effort: int | None = None
    slow: bool = False

    def why_not(self) -> str | None:
        """Say what the encoder lacks for this; None when it can be done."""
        for cls, fields in ((LossyOptions, self.options), (Tuning, self.tuning), (Plan, self.plan_fields)):
            unknown = [name for name in fields if name not in cls.__dataclass_fields__]
            if unknown:
                return f"no hook: {cls.__name__} has no {', '.join(unknown)}"
        unknown = [name for name in self.contributions if name not in inspect.signature(contributions).parameters]
        if unknown:
            return f"no hook: contributions has no {', '.join(unknown)}"
        gone = [name for target, name, _ in self.replaced if name not in vars(target)]
        return f"no hook: {', '.join(gone)} is gone" if gone else None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the encoder's functions for a while."""
        with contextlib.ExitStack() as stack:
            for target, name, make in self.replaced:
                stack.enter_context(_replaced(target, **{name: make(getattr(target, name))}))
            yield


def _one_class(plan: Plan) -> Plan:
    return dataclasses.replace(plan, classes=np.broadcast_to(np.rint(plan.classes.mean(0)), plan.classes.shape)
                               .astype(plan.classes.dtype))  # fmt: skip


def _like(values: np.ndarray, model: np.ndarray) -> np.ndarray:
    """`values` scaled to the geometric mean of `model`, over rows where both are positive."""
    both = (values > 0) & (model > 0)
    return values * np.exp(np.mean(np.log(model[both] / values[both]))) if both.any() else values


def _weight_sensitivity(c: Contributions) -> Contributions:
    return dataclasses.replace(c, s_cov=_like(c.sum_weight2, c.s_cov))


def _weight_pruning(c: Contributions) -> Contributions:
    return dataclasses.replace(c, s_logalpha=_like(c.sum_weight2, c.s_logalpha))


def _plain_bases(fit: Any) -> Any:
    """Luma and chroma, orthonormal, the same for every scene; harmonics as they come."""
    color = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float64)
    color = np.rint((color / np.linalg.norm(color, axis=1, keepdims=True)).T * quantization.MATRIX_SCALE)

    def plain(*args: Any, **kwargs: Any) -> quantization.ColorBases:
        fitted = fit(*args, **kwargs)
        bands = (np.eye(len(fitted.sh_band)) * quantization.MATRIX_SCALE).astype(np.int64)
        sh_color = color if len(bands) else np.zeros((3, 3))
        return quantization.ColorBases(color.astype(np.int64), sh_color.astype(np.int64), bands)

    return plain


def _own_features(features_of: Any) -> Any:
    """No features of neighbouring Gaussians."""
    neighbors = (quantization.FEATURE_MEAN, quantization.FEATURE_NEAREST)
    return lambda stream: [f for f in features_of(stream) if f[0] not in neighbors]


def _with_effort(**fields: Any) -> Callable[[Any], Any]:
    """All efforts with some settings of another."""
    return lambda efforts: {level: dataclasses.replace(effort, **fields) for level, effort in efforts.items()}


ABLATIONS: tuple[Ablation, ...] = (
    Ablation("one class", "all Gaussians of a scene equally precise", plan=_one_class),
    Ablation("weight for geometry", "geometry classes from blending weight, not from sensitivity",
             measured=_weight_sensitivity),
    Ablation("no pruning", "every Gaussian is kept", options={"prune": False}),
    Ablation("pruning by weight", "pruned by summed squared blending weight, not by removal error",
             measured=_weight_pruning),
    Ablation("pruning as for one", "the removal error allowed does not fall with what is gone around a Gaussian",
             tuning={"prune_weight": 1e9}),
    Ablation("nothing comes back", "what left-out Gaussians would mend together is not looked at",
             replaced=[(encoder, "_ROUNDS", lambda original: ())], tuning={"prune_checked": Tuning.prune}),
    Ablation("views all alike", "bad views count as much as others, whatever the worst is",
             replaced=[(encoder, "_BALANCES", lambda original: ((0.0, 1.0),))]),
    Ablation("unseen dropped", "Gaussians that no view saw are left out", options={"drop_unseen": True}),
    Ablation("no blur", "covariances are not blurred before they are factored", tuning={"blur_px": 0.0}),
    Ablation("no prediction", "a stream's mean instead of a prediction",
             replaced=[(quantization, "_features_of", lambda original: lambda stream: [])]),
    Ablation("own attributes only", "prediction from the same Gaussian, not from neighbours",
             replaced=[(quantization, "_features_of", _own_features)]),
    Ablation("no KLT", "fixed luma and chroma, harmonics untransformed",
             replaced=[(quantization.ColorBases, "fit", _plain_bases)]),
    Ablation("one table a stream", "no contexts; harmonics share one table",
             replaced=[(quantization, "cluster_contexts", lambda original: lambda h, n: original(h, 1))]),
    Ablation("no SH feedback", "harmonics rounded one by one, later ones do not make up for earlier ones",
             plan_fields={"view_weights": None}),
    Ablation("views not equalized", "every pixel of importance counts the same, however little of a view is covered",
             contributions={"equalize": False}),
    Ablation("effort 1", "24 views of importance, no trials", effort=1),
    Ablation("with refit", "colours fitted again to the decoded geometry (efforts 7 to 9)",
             replaced=[(encoder, "_EFFORTS", _with_effort(refit_views=32))], slow=True),
    Ablation("with context mixing", "bits mixed from several contexts instead of tables (effort 9)",
             replaced=[(encoder, "_EFFORTS", _with_effort(mixing=True))], slow=True),
    Ablation("effort 9", "320 views of importance, refit, context mixing", effort=9, slow=True),
)  # fmt: skip


def _recorded(hook: Callable[..., Any], name: str, told: list[tuple[str, tuple[Any, ...]]]) -> Callable[..., Any]:
    def record(*args: Any) -> Any:
        told.append((name, tuple(arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args)))
        return hook(*args)

    return record


class Encoder:
    """`splatcodec.compress` on one scene, many times; the importance pass runs once.

    Args:
        gaussians: the scene.
        effort: 1..9.
        ablation: a change to the codec.

    Attributes:
        direct: whether one encoding at a given slope gives the bytes that `compress` found by trials.
        why_not_direct: what went wrong otherwise.
    """

    def __init__(self, gaussians: Gaussians, effort: int, ablation: Ablation | None = None) -> None:
        self.gaussians = gaussians
        self.effort = effort
        self.ablation = ablation or Ablation("full", "")
        self.direct = False
        self.why_not_direct = "not tried"
        self.slope = 0.0
        self._slopes: list[float] = []  # K of every plan made
        self._measured: dict[tuple[int, ...], Contributions] = {}
        self._told: dict[tuple[int, ...], list[tuple[str, tuple[Any, ...]]]] = {}  # what on_... callbacks were told
        self._known: list[tuple[float, float]] = []  # (log2 K, PSNR)
        self._prior: list[tuple[float, float]] = []  # the same of a similar encoder

    def changed(self, ablation: Ablation) -> Encoder:
        """The same encoder with a change; knows what this one has measured, unless the change is another effort."""
        other = Encoder(self.gaussians, ablation.effort or self.effort, ablation)
        other._measured, other._told = self._measured, self._told
        if ablation.effort:
            other.prove(other.compress()[0])
        else:
            other.direct, other.why_not_direct = self.direct, self.why_not_direct
        other._prior = list(self._known)
        if not other._prior and other.slope > 0:  # about what its own first file was made for
            other._prior.append((float(np.log2(other.slope)), LossyOptions().wanted_psnr_db))
        return other

    def compress(self, **lossy: Any) -> tuple[bytes, splatcodec.CompressReport]:
        """The real thing; the importance pass is remembered from the first call.

        Raises:
            AttributeError: the encoder is built otherwise than this tool knows.
        """
        make_plan, contributions, encode_lossy = (
            getattr(encoder, name) for name in ("make_plan", "contributions", "encode_lossy")
        )
        calls = []

        def planned(*args: Any, **kwargs: Any) -> Plan:
            arguments = inspect.signature(make_plan).bind(*args, **kwargs).arguments
            self._slopes.append(float(arguments["slope"]))
            if self.ablation.measured:
                arguments["contributions"] = self.ablation.measured(arguments["contributions"])
            plan = dataclasses.replace(make_plan(**arguments), **self.ablation.plan_fields)
            return self.ablation.plan(plan) if self.ablation.plan else plan

        def measured(scene: Gaussians, cameras: Sequence[Any], **kwargs: Any) -> Contributions:
            kwargs.update(self.ablation.contributions)
            arrays = [scene.means, scene.quats, scene.scales, scene.opacities, scene.sh0, scene.shN]
            arrays += [np.array([camera.viewmat for camera in cameras]), np.array([camera.K for camera in cameras])]
            settings = repr(sorted((name, value) for name, value in kwargs.items() if not callable(value)))
            parts = [np.ascontiguousarray(array).tobytes() for array in arrays]
            key = tuple(zlib.crc32(part) for part in (*parts, settings.encode()))
            hooks = {name: hook for name, hook in kwargs.items() if name.startswith("on_") and hook is not None}
            if key in self._measured:
                for name, told in self._told[key]:
                    hooks[name](*told)
            else:
                self._told[key] = []
                kwargs.update({name: _recorded(hook, name, self._told[key]) for name, hook in hooks.items()})
                self._measured[key] = contributions(scene, cameras, **kwargs)
            return self._measured[key]

        def tuned(*args: Any, **kwargs: Any) -> Any:
            calls.append("encode_lossy")
            return encode_lossy(*args, tuning=Tuning(**self.ablation.tuning), **kwargs)

        options = LossyOptions(effort=self.effort, **{**lossy, **self.ablation.options})
        report = splatcodec.CompressReport()
        names = {"make_plan": planned, "contributions": measured, "encode_lossy": tuned}
        with self.ablation.applied(), _replaced(encoder, **names):
            payload = splatcodec.compress(self.gaussians, options=options, report=report)
        if len(calls) != 1:
            raise AttributeError("compress does not call encoder.encode_lossy once")
        return payload, report

    def at_slope(self, slope: float) -> tuple[bytes, splatcodec.CompressReport]:
        """A file made with slope K: the real encoder, told where to begin and allowed one trial.

        Raises:
            AttributeError: the encoder did something else.
        """
        efforts = vars(encoder).get("_EFFORTS", {})
        once = {**efforts, self.effort: dataclasses.replace(efforts[self.effort], trials=1)}
        before = len(self._slopes)
        with _replaced(encoder, _EFFORTS=once, _first_slope=lambda *args, **kwargs: slope):
            payload, report = self.compress()
        made = self._slopes[before:]
        if len(made) != 1 or not np.isclose(made[0], slope, rtol=1e-12):
            raise AttributeError(f"asked for one plan at K = {slope:g}, saw {made}")
        return payload, report

    def prove(self, payload: bytes) -> None:
        """Find the slope that gives `payload`, the result of `compress`; sets `direct` and `slope`."""
        slopes = list(dict.fromkeys(reversed(self._slopes)))
        try:
            for slope in slopes:
                if self.at_slope(slope)[0] == payload:
                    self.direct, self.why_not_direct, self.slope = True, "", slope
                    return
            self.why_not_direct = f"none of {len(slopes)} slopes gave the bytes of compress"
        except (AttributeError, KeyError, TypeError) as error:
            self.why_not_direct = f"the encoder is built otherwise now: {error!r}"

    def learn(self, slope: float, psnr_db: float) -> None:
        """Remember which PSNR a slope gave."""
        if slope > 0:
            self._known.append((float(np.log2(slope)), psnr_db))

    def near(self, target_db: float) -> tuple[bytes, splatcodec.CompressReport, float]:
        """A file of about the PSNR wanted, with its report and slope (0 if not known)."""
        if not self.direct:
            payload, report = self.compress(target_psnr=min(max(target_db, 10.0), 80.0))
            return payload, report, 0.0
        slope = self._slope_for(target_db)
        payload, report = self.at_slope(slope)
        return payload, report, slope

    def _slope_for(self, target_db: float) -> float:
        """K guessed from the points known: between the two around the target, or on from the two nearest."""
        # Another encoder's points only start the search.
        known = sorted(self._known or self._prior, key=lambda point: abs(point[1] - target_db))
        around = [[point for point in known if (point[1] > target_db) == over][:1] for over in (True, False)]
        pair = around[0] + around[1] if all(around) else known[:2]
        gradient = -5.5  # dB an octave
        if len(pair) == 2 and abs(pair[0][0] - pair[1][0]) > 1e-3:
            gradient = float(np.clip((pair[1][1] - pair[0][1]) / (pair[1][0] - pair[0][0]), -15.0, -2.0))
        nearest = min(pair, key=lambda point: abs(point[1] - target_db))
        return float(2.0 ** (nearest[0] + np.clip((target_db - nearest[1]) / gradient, -3.0, 3.0)))


# --- one scene --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What to measure (the command line)."""

    effort: int = 5
    num_views: int = 24
    size_px: int = 512
    qualities: tuple[float, ...] = (30.0, 45.0, 60.0, 75.0, 90.0, 100.0)
    peers: tuple[str, ...] = ()
    repeats: int = 1
    curve: bool = True
    quality_scale: bool = False
    ablation: bool = False
    memory: bool = True
    slow: bool = False
    pictures: bool = False


class _Bench:
    """Measurements of one scene."""

    def __init__(self, ply: Path, settings: Settings, out: Path, log: Log) -> None:
        self.ply, self.settings, self.out, self.log = ply, settings, out, log
        self.scene = ply.stem
        self.gaussians = splatcodec.read(ply)
        self.judge = Judge(self.gaussians, settings.num_views, settings.size_px)
        self.records: list[Record] = []
        self.skipped: list[dict[str, str]] = []
        self.facts = {"commit": _commit(), "date": _today(), "cores": default_num_threads()}

    def record(
        self,
        payload: bytes,
        label: str,
        *,
        rate_bits: Mapping[str, float] | None = None,
        repeats: int = 1,
        **facts: Any,
    ) -> Record:
        """Decode and judge a file of ours."""
        seconds, decoded = _timed(lambda: splatcodec.decompress(payload), repeats)
        result = Record(
            codec="splatcodec",
            version=splatcodec.__version__,
            scene=self.scene,
            label=label,
            num_gaussians=self.gaussians.num_gaussians,
            num_coded=decoded.num_gaussians,
            size_bytes=len(payload),
            bits_per_gaussian=8.0 * len(payload) / max(self.gaussians.num_gaussians, 1),
            decode_s=seconds,
            effort=self.settings.effort,
            rate_bits=dict(rate_bits or {}),
            **self.judge(decoded),
            **self.facts,
            **facts,
        )
        if self.settings.pictures and label == "default":
            folder = self.out / "pictures"
            folder.mkdir(exist_ok=True)
            self.judge.save_worst_view(folder / f"{self.scene}-worst.png", decoded, result.worst_view)
        return result

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.log(
            f"{record.scene} {record.codec} {record.label}: {record.size_bytes:,} bytes, "
            f"{record.bits_per_gaussian:.1f} bits/Gaussian, {record.psnr_db:.2f} dB, "
            f"worst {record.worst_psnr_db:.2f} dB, SSIM {record.ssim:.4f}"
        )

    def peer(self, name: str) -> Record | None:
        """A rival's file, or None (and a line in `skipped`) where there is none."""
        try:
            made = peers.cached(name, self.ply)
            heavy = name == "sog" and self.gaussians.sh_degree and self.gaussians.num_gaussians > SLOW_SOG_GAUSSIANS
            if made is None and heavy and not self.settings.slow:
                raise BackendUnavailableError("hours without a GPU, and not in the cache: --slow encodes it")
            made = made or peers.encode(name, self.ply)
            seconds, decoded = _timed(lambda: splatcodec.read(made), 5)
        except SplatCodecError as error:
            self.skipped.append({"scene": self.scene, "codec": name, "why": str(error)})
            self.log(f"{self.scene} {name}: skipped, {error}")
            return None
        spec = peers.PEERS[name]
        entry = json.loads(made.with_name(f"{name}-{spec.version}.json").read_text())
        return Record(
            codec=name,
            version=f"{spec.tool} {spec.version}",
            scene=self.scene,
            label="peer",
            num_gaussians=self.gaussians.num_gaussians,
            num_coded=decoded.num_gaussians,
            size_bytes=made.stat().st_size,
            bits_per_gaussian=8.0 * made.stat().st_size / max(self.gaussians.num_gaussians, 1),
            encode_process_s=entry["wall_s"],
            decode_s=seconds,
            **self.judge(decoded),
            **self.facts,
        )

    def run(self) -> dict[str, Any]:
        """Measure everything asked for."""
        settings = self.settings
        ours = Encoder(self.gaussians, settings.effort)
        started = time.perf_counter()
        payload, report = ours.compress()
        default_payload = payload
        seconds = [time.perf_counter() - started]
        for _ in range(settings.repeats - 1):
            seconds.append(_timed(lambda: splatcodec.compress(self.gaussians, effort=settings.effort), 1)[0])
        ours.prove(payload)
        if not ours.direct:
            self.log(f"{self.scene}: points by compress itself, {ours.why_not_direct}")
        default = self.record(
            payload,
            "default",
            rate_bits=report.rate_bits,
            repeats=5,
            encode_s=statistics.median(seconds),
            wanted_psnr_db=LossyOptions().wanted_psnr_db,
        )
        stages = {name: round(value, 3) for name, value in report.seconds.items()}
        probes: dict[str, Any] = {}
        if settings.memory:
            probes = _probes(self.ply, settings.effort, payload)
            for name in ("encode_process_s", "decode_process_s", "peak_memory_bytes", "decode_peak_memory_bytes"):
                setattr(default, name, probes[name])
        self.add(default)
        ours.learn(ours.slope, default.psnr_db)
        rivals = [record for name in settings.peers if (record := self.peer(name))]
        for record in rivals:
            self.add(record)
        if settings.quality_scale:
            for quality in range(0, 101, 10):
                payload, report = ours.compress(quality=float(quality))
                if quality == LossyOptions().quality and payload != default_payload:
                    raise SplatCodecError("the default quality gave other bytes with the importance pass remembered")
                wanted = LossyOptions(quality=quality).wanted_psnr_db
                self.add(self.record(payload, f"quality {quality}", rate_bits=report.rate_bits, wanted_psnr_db=wanted))
        if settings.curve:
            self.curve(ours, [rival.psnr_db for rival in rivals])
        scene = {
            "num_gaussians": self.gaussians.num_gaussians,
            "sh_degree": self.gaussians.sh_degree,
            "array_bytes": self.gaussians.array_bytes,
            "num_views": settings.num_views,
            "size_px": settings.size_px,
            "effort": settings.effort,
            "up_guessed": self.judge.up_guessed,
            "encode_repeats": settings.repeats,
            "curve_by": "slopes" if ours.direct else "compress",
            "curve_note": ours.why_not_direct,
            "same_bytes_in_a_fresh_process": probes.get("same_bytes"),
            "stage_s": stages,
            "load_1min": round(os.getloadavg()[0], 2),
        }
        ablation = self.ablate(ours) if settings.ablation else []
        return {
            "scene": scene,
            "records": [record.to_dict() for record in self.records],
            "skipped": self.skipped,
            "ablation": ablation,
        }

    def curve(self, ours: Encoder, rivals_db: Sequence[float]) -> None:
        """Points at the qualities asked for, and near every rival; the curve reaches beyond all of them."""
        rivals_db = [db for db in rivals_db if _LOWEST_DB <= db <= _HIGHEST_DB]
        targets = sorted({25.0 + 0.3 * quality for quality in self.settings.qualities})
        for db in rivals_db:
            if all(abs(db - target) > _NEAR_DB for target in targets):
                targets.append(db)
        # From the point known outwards: each is guessed from those before.
        start = self.records[0].psnr_db
        for target in sorted(targets, key=lambda db: abs(db - start)):
            if abs(target - start) > 0.5:
                self.point(ours, target)
        for sign in (1.0, -1.0):
            wanted = max(sign * db for db in rivals_db) if rivals_db else -np.inf
            for attempt in range(4):
                reached = max(sign * r.psnr_db for r in self.records if r.codec == "splatcodec")
                if reached >= wanted:
                    break
                self.point(ours, sign * (wanted + 0.5 + attempt))

    def point(self, ours: Encoder, target_db: float) -> None:
        """A point of the curve; a second one where the first missed by far."""
        for _ in range(2):
            payload, report, slope = ours.near(target_db)
            record = self.record(payload, "curve", rate_bits=report.rate_bits, wanted_psnr_db=target_db)
            ours.learn(slope, record.psnr_db)
            self.add(record)
            if not ours.direct or abs(record.psnr_db - target_db) < _MISS_DB:
                break

    def ablate(self, full: Encoder) -> list[dict[str, Any]]:
        """A curve for the codec and for every ablation: name, what, why_not, points of (bytes, PSNR, worst PSNR)."""
        rows = []
        for ablation in (Ablation("full", "everything at default"), *ABLATIONS):
            problem = ablation.why_not()
            if ablation.slow and not self.settings.slow:
                problem = "only with --slow"
            points: list[dict[str, Any]] = []
            if not problem:
                try:
                    points = self.ablation_curve(full.changed(ablation))
                except (SplatCodecError, AttributeError, TypeError, ValueError) as error:
                    problem = f"failed: {error!r}"
            rows.append({"scene": self.scene, "name": ablation.name, "what": ablation.what, "why_not": problem,
                         "points": points, "commit": self.facts["commit"], "date": self.facts["date"]})  # fmt: skip
            figures = ", ".join(f"{p['size_bytes']:,} at {p['psnr_db']:.2f} dB" for p in points)
            self.log(f"{self.scene} ablation {ablation.name}: {problem or figures}")
        return rows

    def ablation_curve(self, changed: Encoder) -> list[dict[str, Any]]:
        """Points of one ablation at `ABLATION_TARGETS_DB`, about."""
        points = []
        for target in ABLATION_TARGETS_DB:
            for _ in range(3):
                payload, _, slope = changed.near(target)
                judged = self.judge(splatcodec.decompress(payload))
                changed.learn(slope, judged["psnr_db"])
                figures = {name: round(judged[name], 4) for name in ("psnr_db", "worst_psnr_db")}
                points.append({"size_bytes": len(payload), **figures})
                if not changed.direct or abs(judged["psnr_db"] - target) < _MISS_DB:
                    break
        return points


def bench_scene(ply: Path, settings: Settings, out: Path, log: Log = _say) -> dict[str, Any]:
    """Measure one scene.

    Args:
        ply: the scene, a 3DGS PLY (rivals read nothing else).
        settings: what to measure.
        out: existing folder for pictures.

    Returns:
        JSON-able: scene (facts), records, skipped, ablation.
    """
    return _Bench(ply, settings, out, log).run()


# --- times and memory -------------------------------------------------------------------------------------------------

# Run in a fresh process: python -c PROBE encode|decode SOURCE TARGET EFFORT
_PROBE = """
import json, resource, sys, time
import splatcodec.api, splatcodec.static.encoder, splatcodec.static.decoder

def memory(name):  # bytes; a child's ru_maxrss begins at its parent's, so the kernel's own figures where it has them
    try:
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

idle = memory("VmRSS:")
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak of importing
except OSError:
    pass
kind, source, target, effort = sys.argv[1:]
if kind == "encode":
    splatcodec.api.compress_file(source, target, effort=int(effort), overwrite=True)
else:
    splatcodec.api.decompress(source)
print(json.dumps(memory("VmHWM:") - idle))
"""


def _probes(ply: Path, effort: int, payload: bytes | None = None) -> dict[str, Any]:
    """Whole-process seconds and peak memory growth of compressing and decompressing in fresh processes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "out.splc"
        for kind, source in (("encode", ply), ("decode", made)):
            started = time.perf_counter()
            command = [sys.executable, "-c", _PROBE, kind, str(source), str(made), str(effort)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            prefix = "" if kind == "encode" else "decode_"
            found[f"{kind}_process_s"] = time.perf_counter() - started
            found[f"{prefix}peak_memory_bytes"] = int(done.stdout.split()[-1])
        found["same_bytes"] = made.read_bytes() == payload if payload is not None else None
    return found


def _kernels() -> dict[str, Any]:
    """The same for a tiny scene: what loading the compiled kernels costs a process."""
    with tempfile.TemporaryDirectory() as folder:
        ply = Path(folder) / "tiny.ply"
        splatcodec.write(sample_scene(300), ply)
        _probes(ply, 1)  # compile, where that is not done
        found = _probes(ply, 1)
    return {name: value for name, value in found.items() if name != "same_bytes"}


def _timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of some calls, and what the last returned."""
    seconds = []
    for _ in range(max(repeats, 1)):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def _warm_up() -> None:
    """Compile and load every kernel that is timed later."""
    for scene in (sample_scene(300), dataclasses.replace(sample_scene(300), shN=None)):
        decoded = splatcodec.decompress(splatcodec.compress(scene, effort=5))
        camera = evaluation_cameras(scene, num_views=1, size_px=32)[0]
        compare_renderings(render(scene, camera), render(decoded, camera))


def _commit() -> str:
    """Short hash of the commit, with a + when the package differs from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "splatcodec") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


# --- command line -----------------------------------------------------------------------------------------------------


def _scene_path(name: str) -> Path:
    """A path as given, or the benchmark scene of that name.

    Raises:
        ParameterError: neither.
    """
    for path in (Path(name), peers.SCENES / f"{name}.ply"):
        if path.is_file():
            return path
    raise ParameterError("no such scene", file=name, hint="python tools/peers.py --scenes makes the benchmark scenes")


def _merge(results: dict[str, Any], name: str, measured: Mapping[str, Any]) -> None:
    """Put one scene's measurements in the place of those it had."""
    results["scenes"][name] = measured["scene"]
    for part in ("records", "skipped", "ablation"):
        # A run without --ablation leaves the ablation of an earlier one in place.
        if measured[part] or part != "ablation":
            results[part] = [row for row in results[part] if row["scene"] != name] + list(measured[part])


def _load(path: Path) -> dict[str, Any]:
    if path.is_file():
        return json.loads(path.read_text())
    return {"schema": 1, "machine": {}, "kernels": {}, "scenes": {}, "records": [], "skipped": [], "ablation": []}


def _machine() -> dict[str, Any]:
    return {
        "cores": default_num_threads(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure our rate and distortion beside other codecs'.")
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help="PLY files, or names of scenes in .cache/scenes")
    parser.add_argument("--folder", type=Path, help="every PLY file in it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results.json, table and plots go there")
    parser.add_argument("--qualities", default=DEFAULT_QUALITIES, help=f"points of the curve ({DEFAULT_QUALITIES})")
    parser.add_argument("--no-curve", action="store_true", help="the file at default settings only")
    parser.add_argument("--peers", default=DEFAULT_PEERS, help=f"rivals, or none ({DEFAULT_PEERS})")
    parser.add_argument("--effort", type=int, default=5)
    parser.add_argument("--views", type=int, default=24, help="evaluation views; 24 for published figures")
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1, help="encodings timed at default settings; median")
    parser.add_argument("--no-memory", action="store_true", help="no fresh processes for memory and cold times")
    parser.add_argument("--quality-scale", action="store_true", help="quality 0, 10, ..., 100 against 25 + 0.3 q dB")
    parser.add_argument("--ablation", action="store_true", help="each technique switched off")
    parser.add_argument("--pictures", action="store_true", help="worst view of each default file, in OUT/pictures")
    parser.add_argument("--slow", action="store_true", help="also what takes hours: SOG of large scenes, effort 9")
    parser.add_argument("--write-docs", type=Path, metavar="DIR", help="docs/benchmarks.* from DIR/results.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 after an error."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.write_docs:
        bench_report.write_docs(_load(args.write_docs / "results.json"), ROOT / "docs")
        return 0
    if args.out is None or not (args.scenes or args.folder):
        parser.error("give scenes or --folder, and --out DIR; or --write-docs DIR")
    names = [] if args.peers in ("", "none") else args.peers.split(",")
    settings = Settings(
        effort=args.effort,
        num_views=args.views,
        size_px=args.size_px,
        qualities=tuple(float(quality) for quality in args.qualities.split(",")),
        peers=tuple(names),
        repeats=args.repeats,
        curve=not args.no_curve,
        quality_scale=args.quality_scale,
        ablation=args.ablation,
        memory=not args.no_memory,
        slow=args.slow,
        pictures=args.pictures,
    )
    try:
        unknown = [name for name in names if name not in peers.PEERS]
        if unknown:
            raise ParameterError(f"no such peer: {', '.join(unknown)}", hint="known: " + ", ".join(peers.PEERS))
        paths = [_scene_path(name) for name in args.scenes]
        paths += sorted(args.folder.glob("*.ply")) if args.folder else []
        args.out.mkdir(parents=True, exist_ok=True)
        results = _load(args.out / "results.json")
        results["machine"] = _machine()
        _warm_up()
        if settings.memory:
            results["kernels"] = _kernels()
        for path in paths:
            _merge(results, path.stem, bench_scene(path, settings, args.out))
            # After every scene: a run that is stopped leaves what it has.
            bench_report.write_results(results, args.out)
    except SplatCodecError as error:
        _say(f"error: {error}")
        return 1
    print(bench_report.summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
