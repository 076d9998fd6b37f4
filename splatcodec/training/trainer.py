"""The training loop: one picture after the other through the rasterizer, with a strategy, a method and checkpoints.

Everything random comes from one seeded generator, and sums are taken in a fixed order: a run on the CPU gives the same
scene again, for any number of threads, and also when it was interrupted and resumed.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, LimitExceededError, ParameterError, SplatCodecError
from ..files import PathLike
from ..gaussians import Gaussians
from ..metrics.psnr import psnr_db
from ..render.kernel import default_num_threads
from ..render.rasterize import Rasterized, rasterize
from .checkpoint import read_checkpoint, write_checkpoint
from .datasets import Dataset, View
from .densify import DensifyContext, strategy_named
from .densify.base import PixelErrors
from .evaluation import Evaluation, evaluate
from .losses import photo_loss
from .methods import method_named
from .ranks import Ranks
from .schedules import exponential, pace, resolution_factor, sh_degree_at, stride
from .settings import DEFAULT_ITERATIONS, TrainSettings
from .splats import RAW, Splats
from .start import start_splats

__all__ = ["Interrupted", "Progress", "TrainResult", "Trainer", "default_budget"]

_BUDGET_PER_PIXEL = 0.6
_BUDGET_RANGE = (2000, 3_000_000)
_SMOOTHING = 0.98
_CURVE_POINTS = 200
# After so many steps in a row in which nothing could be learned, going on makes no sense.
_MAX_BAD_STEPS = 20


class Interrupted(SplatCodecError):
    """The run was told to stop; its checkpoint is written."""

    def __init__(self, signum: int, path: str | None) -> None:
        where = f"the checkpoint is {path}" if path else "no checkpoint was asked for"
        super().__init__(f"training was interrupted; {where}", hint="--resume continues it" if path else None)
        self.signum = signum


@dataclass(frozen=True)
class Progress:
    """What is known in the middle of a run, for people.

    Attributes:
        iteration: steps done.
        share: 0..1.
        psnr_db: of train pictures, smoothed over about 50 of them.
        num_gaussians: now.
        eta_s: seconds left, if it goes on as before.
    """

    iteration: int
    share: float
    psnr_db: float
    num_gaussians: int
    eta_s: float


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a run gives.

    Attributes:
        gaussians: the scene.
        iterations: steps done, in all.
        seconds: wall clock, all parts of a resumed run.
        cpu_seconds: of this process, over all its threads, all parts.
        evaluation: on the test views; None without any.
        curve: points with `iteration`, `seconds`, `loss`, `psnr_db` (train, smoothed), `num_gaussians`, and now and
            then `test_psnr_db`.
        densified: counts by name, summed over the run.
        notes: what was noticed.
    """

    gaussians: Gaussians
    iterations: int
    seconds: float
    cpu_seconds: float
    evaluation: Evaluation | None
    curve: list[dict[str, float]]
    densified: dict[str, int]
    notes: list[str]


def default_budget(dataset: Dataset) -> int:
    """The number of Gaussians that pictures of this size can make use of: 0.6 a pixel of one picture."""
    pixels = float(np.median([view.camera.width * view.camera.height for view in dataset.train]))
    return int(min(max(_BUDGET_PER_PIXEL * pixels, _BUDGET_RANGE[0]), _BUDGET_RANGE[1]))


class _Stop:
    """Remembers SIGINT and SIGTERM until a step is done; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def remember(signum: int, _: Any) -> None:
            self.signum = signum
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in map(int, (signal.SIGINT, signal.SIGTERM)):
            before[number] = signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trainer:
    """One run.

    Args:
        dataset: what to learn from.
        settings: how.
        checkpoint: file that the state of the run is kept in; None: nowhere.
        checkpoint_every_s: seconds between two writings of it.
        resume: continue from `checkpoint`.
        evaluations: how often the test views are looked at during the run, besides the end.
        start: a scene to start from instead of the data set's points.
        progress: called after every step.
        say: called with sentences worth knowing.
        ranks: the processes of this run.

    Raises:
        ParameterError: settings contradict the data set, or the checkpoint is of another run.
        FormatError: the checkpoint is damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: TrainSettings,
        *,
        checkpoint: PathLike | None = None,
        checkpoint_every_s: float = 60.0,
        resume: bool = False,
        evaluations: int = 8,
        start: Splats | None = None,
        progress: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.dataset, self.settings = dataset, settings
        self.checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self.checkpoint_every_s = checkpoint_every_s
        self.evaluations = evaluations
        self._progress = progress or (lambda _: None)
        self._say = say or (lambda _: None)
        self.ranks = ranks or Ranks()
        if not dataset.train:
            raise ParameterError("there are no views to train on")
        self.device = self._device()
        # Ranks on one machine share its cores.
        local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
        self.threads = settings.threads or max(1, default_num_threads() // local)
        torch.set_num_threads(self.threads)
        self.max_gaussians = settings.max_gaussians or default_budget(dataset)
        self.method = method_named(settings.method)(settings)
        self.method.attach(dataset, self.threads, max_gaussians=self.max_gaussians, say=self._note)
        strategy = strategy_named(settings.strategy)
        self.random = np.random.default_rng([0x545241, settings.seed])
        self.iteration = 0
        self.share = 0.0
        self.seconds = self.cpu_seconds = 0.0
        self.order: list[int] = []
        self.smoothed = {"loss": 0.0, "mse": 0.0, "weight": 0.0}
        self.curve: list[dict[str, float]] = []
        self.densified: dict[str, int] = {}
        self.notes: list[str] = []
        self.refinements = 0
        self.bad_rows = self.bad_steps = self.bad_in_a_row = 0
        self.start_count = 0
        self._began = (time.monotonic(), time.process_time())
        if resume:
            self._restore()
        else:
            if start is None:
                start = start_splats(dataset, settings.sh_degree, self.device, self.max_gaussians, settings.seed)
            self.splats = start.to(self.device)
            self.splats = self.method.prepare(self.splats)
            self.start_count = len(self.splats)
        context = DensifyContext(
            dataset.extent, self.max_gaussians, self.start_count, self.random, self._look, self._expected_steps
        )
        self.strategy = strategy(context)
        self.background = torch.tensor(dataset.background, dtype=torch.float32, device=self.device)
        if dataset.moves:
            self._note("the scene moves: one still scene is fitted to all times")

    def _device(self) -> torch.device:
        wanted = self.settings.backend
        if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available() and _cuda_works()):
            return torch.device("cuda", self.ranks.local_rank)
        return torch.device("cpu")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._say(text)

    # --- the loop ---

    def run(self) -> TrainResult:
        """Train to the end.

        Raises:
            Interrupted: SIGINT or SIGTERM; the checkpoint is written first.
            LimitExceededError: out of memory.
            SplatCodecError: nothing can be learned any more, as gradients are not finite.
        """
        stop = _Stop()
        self._began = (time.monotonic() - self.seconds, time.process_time() - self.cpu_seconds)
        saved_at = time.monotonic()
        try:
            with stop.listening():
                while True:
                    self._tick()
                    due = time.monotonic() - saved_at >= self.checkpoint_every_s
                    share, halt, save = self.ranks.from_first([self._share(), float(stop.signum or 0), float(due)])
                    if halt:
                        self.save()
                        raise Interrupted(int(halt), self.checkpoint)
                    if share >= 1.0:
                        break
                    if save:
                        self.save()
                        saved_at = time.monotonic()
                    self.share = share
                    self._step(share)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise self._out_of_memory() from error
        except RuntimeError as error:
            if "memory" in str(error).lower() or "DefaultCPUAllocator" in str(error):
                raise self._out_of_memory() from error
            raise
        self._tick()
        self.save()  # if anything goes wrong from here on, nothing has to be trained again
        scene = self.gaussians()
        self._record(scene, last=True)
        evaluation = self._evaluate(scene)
        return TrainResult(
            scene, self.iteration, self.seconds, self.cpu_seconds, evaluation, self.curve, self.densified, self.notes
        )

    def _out_of_memory(self) -> LimitExceededError:
        return LimitExceededError(
            f"out of memory with {len(self.splats):,} Gaussians and a budget of {self.max_gaussians:,}",
            hint="fewer --max-gaussians, or smaller pictures (--downscale)",
        )

    def _tick(self) -> None:
        self.seconds = time.monotonic() - self._began[0]
        self.cpu_seconds = time.process_time() - self._began[1]

    def _share(self) -> float:
        """How much of the run is done, 0..1, by the nearer of the two limits."""
        settings = self.settings
        shares = [0.0]
        if settings.max_iterations is not None:
            shares.append(self.iteration / settings.max_iterations)
        if settings.minutes is not None:
            shares.append(self.seconds / (60.0 * settings.minutes))
        return min(1.0, max(shares))

    def _expected_steps(self) -> float:
        """Steps of the whole run: what was asked for, or as many as the time allows at the pace so far."""
        by_time = self.iteration / self.share if self.share > 0 else math.inf
        known = self.settings.max_iterations
        if self.settings.minutes is None:
            assert known is not None
            return known
        return by_time if known is None else min(known, by_time)

    def _next_view(self) -> View:
        """The next train view of this rank: all views once in random order, then again."""
        while len(self.order) < self.ranks.count:
            self.order += [int(k) for k in self.random.permutation(len(self.dataset.train))]
        mine = self.order[self.ranks.rank]
        self.order = self.order[self.ranks.count :]
        return self.dataset.train[mine]

    def draw(
        self,
        attributes: dict[str, torch.Tensor],
        camera: Any,
        share: float,
        **options: Any,
    ) -> Rasterized:
        """Rasterize attributes as this run does: with the bands that are in use by now."""
        degree = sh_degree_at(share, self.splats.sh_degree, self.settings.sh_warm_up)
        bands = (degree + 1) ** 2 - 1
        values = [attributes[name] for name in RAW]
        if bands < values[-1].shape[1]:
            values[-1] = values[-1][:, :bands]
        means, quats, log_scales, opacity_logits, sh0, shN = values
        return rasterize(
            means, quats, log_scales, opacity_logits, sh0, shN, camera,
            background=self.background,
            antialiased=self.settings.antialiased,
            backend=self.settings.backend,
            num_threads=self.threads,
            **options,
        )  # fmt: skip

    def _target(self, view: View, factor: float) -> torch.Tensor:
        pixels = torch.from_numpy(self.dataset.picture(view, factor).astype(np.float32) / np.float32(255.0))
        return pixels.to(self.device)

    def _step(self, share: float) -> None:
        settings, splats = self.settings, self.splats
        view = self._next_view()
        factor = resolution_factor(share, settings.coarse, settings.coarse_until)
        camera, target = self.method.example(view.resized(factor), self._target(view, factor), share)
        attributes = self.method.attributes(splats, share)
        absolute = torch.zeros((len(splats), 2), device=self.device) if self.strategy.wants_absolute else None
        signed = torch.zeros((len(splats), 2), device=self.device) if self.strategy.wants_signed else None
        drawn = self.draw(attributes, camera, share, screen_gradients=absolute, screen_gradients_signed=signed)
        terms = photo_loss(drawn.rgb, target, settings.dssim_weight, num_threads=self.threads)
        penalties = self.strategy.penalties(attributes) | dict(self.method.penalties(splats, attributes, share))
        loss = sum(penalties.values(), terms["total"])
        gradients = dict.fromkeys(splats.params)
        if torch.isfinite(loss):
            loss.backward()
            gradients = {name: value.grad for name, value in splats.params.items()}
        self._learn(share, gradients, drawn, absolute, signed, (camera.width, camera.height))
        with torch.no_grad():
            self._smooth(float(loss.detach()), float(((drawn.rgb - target) ** 2).mean()))
        for value in splats.params.values():
            value.grad = None
        self.method.shared.clear_gradients()
        self.iteration += 1
        self._refine(share)
        if self.ranks.first:
            self._after_step()

    def _learn(
        self,
        share: float,
        found: dict[str, torch.Tensor | None],
        drawn: Rasterized,
        absolute: torch.Tensor | None,
        signed: torch.Tensor | None,
        size_px: tuple[int, int],
    ) -> None:
        """The optimizer's step, on gradients averaged over the ranks."""
        splats, shared = self.splats, self.method.shared
        visible = drawn.visible
        common = shared.gradients()
        if self.ranks.count > 1:
            # Every rank takes part in every sum, whatever it has to add.
            found = {n: torch.zeros_like(v) if (g := found[n]) is None else g for n, v in splats.params.items()}
            seen = visible.to(torch.float32)
            self.ranks.sum([*(g for g in found.values() if g is not None), seen])
            self.ranks.sum(sums for sums in (absolute, signed) if sums is not None)
            self.ranks.sum(common.values())
            for total in common.values():
                total /= self.ranks.count
            for gradient in found.values():
                if gradient is not None:
                    gradient /= self.ranks.count
            visible = seen > 0
        gradients = {name: gradient for name, gradient in found.items() if gradient is not None}
        if not gradients:
            self._bad_step()
            return
        from .optimizer import adam_step

        degree = sh_degree_at(share, splats.sh_degree, self.settings.sh_warm_up)
        rates = self.rates(share)
        active = {"shN": 3 * ((degree + 1) ** 2 - 1)}
        bad = adam_step(splats, gradients, visible, rates, active=active, num_threads=self.threads)
        if bad:
            self.bad_rows += bad
            self._note("gradients that are not finite: the Gaussians they belong to were left alone in those steps")
        if not shared.step(common, rates):
            self._note("gradients of shared parameters that are not finite: they were left alone in those steps")
        if bad and bad == int(visible.sum()):
            self._bad_step()
        else:
            self.bad_in_a_row = 0
        for sums in (absolute, signed):
            if sums is not None:
                sums.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.strategy.observe(splats, visible, absolute, signed, size_px)
        self.strategy.after_step(splats, share, rates["means"])
        self.method.after_step(splats, share)

    def _bad_step(self) -> None:
        self.bad_steps += 1
        self.bad_in_a_row += 1
        self._note("a loss that is not finite: the step was left out")
        if self.bad_in_a_row >= _MAX_BAD_STEPS:
            raise SplatCodecError(
                f"{_MAX_BAD_STEPS} steps in a row had no finite loss; the run cannot go on",
                hint="lower learning rates; the last checkpoint is from before",
            )

    def rates(self, share: float) -> dict[str, float]:
        """Learning rates of all parameters at a share of the run."""
        settings, camera = self.settings, self.dataset.train[0].camera
        faster = pace(settings.max_iterations or DEFAULT_ITERATIONS)
        far = stride(max(camera.width, camera.height)) * math.sqrt(faster) * self.dataset.extent
        left = exponential(1.0, settings.rates_end, share)
        return {
            "means": exponential(settings.means_rate, settings.means_rate_end, share) * far,
            "log_scales": settings.scales_rate * faster * left,
            "quats": settings.quats_rate * faster * left,
            "opacity_logits": settings.opacities_rate * left,
            "sh0": settings.sh0_rate * faster * left,
            "shN": settings.shN_rate * faster * left,
            **self.method.rates(share),
        }

    def _refine(self, share: float) -> None:
        strategy = self.strategy
        if not strategy.start <= share < min(strategy.stop, self.method.densify_until):
            return
        due = int((share - strategy.start) / strategy.interval + 1e-9) + 1
        if due <= self.refinements:
            return
        self.refinements = due
        self.method.fold(self.splats)
        counts = strategy.refine(self.splats, share)
        if len(self.splats) == 0:
            raise SplatCodecError("no Gaussians are left; the run cannot go on", hint="is the data set's pose right?")
        for name, count in counts.items():
            self.densified[name] = self.densified.get(name, 0) + count

    def _look(self, count: int) -> Sequence[PixelErrors]:
        """Random train pictures with their errors; the same on every rank."""
        found = []
        share = self.share
        factor = resolution_factor(share, self.settings.coarse, self.settings.coarse_until)
        picks = self.random.choice(len(self.dataset.train), min(count, len(self.dataset.train)), replace=False)
        with torch.no_grad():
            attributes = self.method.attributes(self.splats, share)
            for k in picks:
                view = self.dataset.train[int(k)]
                camera, target = view.resized(factor), self._target(view, factor)
                drawn = self.draw(attributes, camera, share, with_depth=True)
                assert drawn.depth is not None
                errors = (drawn.rgb - target).abs().mean(dim=2)
                a, b, c, d = (t.cpu().numpy() for t in (errors, target, drawn.alpha, drawn.depth))
                found.append(PixelErrors(a, b, c, d, camera))
        return found

    # --- what is told and kept ---

    def _smooth(self, loss: float, mse: float) -> None:
        if math.isfinite(loss) and math.isfinite(mse):
            for name, value in (("loss", loss), ("mse", mse), ("weight", 1.0)):
                self.smoothed[name] = _SMOOTHING * self.smoothed[name] + (1 - _SMOOTHING) * value

    def _mean(self, name: str) -> float:
        weight = self.smoothed["weight"]
        return self.smoothed[name] / weight if weight else 0.0

    def _after_step(self) -> None:
        self._tick()
        share = self._share()
        if len(self.curve) <= share * _CURVE_POINTS:
            self._record(None)
        eta = self.seconds * (1 - share) / share if share > 0 else math.inf
        self._progress(Progress(self.iteration, share, psnr_db(self._mean("mse")), len(self.splats), eta))

    def _record(self, scene: Gaussians | None, last: bool = False) -> None:
        point: dict[str, float] = {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            "loss": self._mean("loss"),
            "psnr_db": psnr_db(self._mean("mse")),
            "num_gaussians": len(self.splats),
        }
        looked = sum("test_psnr_db" in known for known in self.curve)
        if not last and self.evaluations and self.dataset.test and self._share() * (self.evaluations + 1) > looked + 1:
            found = self._evaluate(self.gaussians())
            if found:
                point["test_psnr_db"] = found.psnr_db
        self.curve.append(point)

    def _evaluate(self, scene: Gaussians) -> Evaluation | None:
        return evaluate(
            scene,
            self.dataset,
            self.dataset.test,
            device=self.device,
            backend=self.settings.backend,
            num_threads=self.threads,
        )

    def gaussians(self) -> Gaussians:
        """The scene as it is now, with what a player should know."""
        share = self._share()
        with torch.no_grad():
            attributes = self.method.attributes(self.splats, share)
        scene = self.splats.raw_gaussians(attributes, **self.dataset.scene_metadata(self.settings.antialiased))
        return scene.cleaned()[0]

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        settings = self.settings.to_dict()
        for free in ("threads", "minutes", "iterations", "backend"):
            settings.pop(free)
        views = [[v.name, v.camera.width, v.camera.height] for v in (*self.dataset.train, *self.dataset.test)]
        names = json_sum(views)
        return {"settings": settings, "views": names, "max_gaussians": self.max_gaussians, "ranks": self.ranks.count}

    def save(self) -> None:
        """Write the checkpoint, on the first rank."""
        if self.checkpoint is None or not self.ranks.first:
            return
        self._tick()
        state = {
            "fingerprint": self._fingerprint(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "random": self.random.bit_generator.state,
            "order": self.order,
            "smoothed": self.smoothed,
            "curve": self.curve,
            "densified": self.densified,
            "refinements": self.refinements,
            "start_count": self.start_count,
            "notes": self.notes,
            "method": self.method.state(),
        }
        write_checkpoint(self.checkpoint, state, {**self.splats.columns(), **self.method.shared.columns()})

    def _restore(self) -> None:
        assert self.checkpoint is not None
        state, arrays = read_checkpoint(self.checkpoint)
        try:
            self._check_same(state["fingerprint"])
            self.splats = Splats.from_columns(arrays, self.device)
            self.random.bit_generator.state = state["random"]
            for name in ("iteration", "seconds", "cpu_seconds", "order", "smoothed", "curve", "densified",
                         "refinements", "start_count", "notes"):  # fmt: skip
                setattr(self, name, state[name])
            self.method.shared.restore(arrays, self.device)
            self.method.restore(state["method"])
            rows = {len(value) for name, value in arrays.items() if not name.startswith("shared")}
            if len(rows) != 1 or not set(RAW) <= set(self.splats.params):
                raise ValueError
        except SplatCodecError:
            raise
        except (KeyError, TypeError, ValueError, IndexError):
            raise FormatError("the checkpoint does not hold a run", file=self.checkpoint) from None

    def _check_same(self, theirs: dict[str, Any]) -> None:
        mine = self._fingerprint()
        for part, values in (("setting", "settings"), ("", None)):
            a, b = (theirs[values], mine[values]) if values else (theirs, mine)
            for name in b:
                if a[name] != b[name] and name != "settings":
                    what = "pictures" if name == "views" else f"{name.replace('_', ' ')}"
                    told = "" if name == "views" else f": {a[name]} there, {b[name]} here"
                    raise CheckpointMismatch(
                        f"the checkpoint is of a run with other {part + ' ' if part else ''}{what}{told}",
                        file=self.checkpoint,
                        hint="leave out --resume and give --overwrite to start anew",
                    )


class CheckpointMismatch(ParameterError):
    """A run cannot be continued with other settings or pictures."""


def json_sum(value: Any) -> str:
    """A short sum of a JSON-able value."""
    import hashlib
    import json

    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _cuda_works() -> bool:
    """Whether the CUDA rasterizer can be loaded; without it a GPU is of no use."""
    try:
        from ..render.cuda import is_available
    except ImportError:
        return False
    return bool(is_available())
