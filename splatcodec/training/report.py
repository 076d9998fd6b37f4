"""What a training run says about itself: one JSON object, and one HTML page with pictures and curves inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..render.images import side_by_side
from ..version import __version__
from .datasets import Dataset
from .evaluation import Evaluation, draw_views
from .settings import TrainSettings
from .trainer import TrainResult

__all__ = ["html_report", "report_facts"]

_NUM_SHOWN = 4
_PLOT = (640, 220)
_MARGIN = (56, 12, 12, 28)  # left, top, right, bottom
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .9rem; text-align: right; }
th { border-bottom: 1px solid; } th:first-child, td:first-child { text-align: left; }
tr.mean td { font-weight: bold; border-top: 1px solid; }
figure { margin: 0 0 1.5rem; } img { width: 100%; height: auto; } svg { max-width: 100%; height: auto; }
svg text { font-size: 12px; fill: currentColor; } svg .axis { stroke: currentColor; opacity: .35; }
figcaption, footer, .small { opacity: .75; font-size: .9rem; }
"""


def report_facts(
    result: TrainResult, dataset: Dataset, settings: TrainSettings, of_file: Evaluation | None = None
) -> dict[str, Any]:
    """Everything worth keeping of a run, JSON-able.

    Args:
        result: of the run.
        dataset: what it learned from.
        settings: how.
        of_file: the evaluation of the file that was written, where that is not exactly the scene.
    """
    first = dataset.train[0].camera
    return {
        "dataset": {
            "folder": str(dataset.folder),
            "kind": dataset.kind,
            "num_train": len(dataset.train),
            "num_test": len(dataset.test),
            "width": first.width,
            "height": first.height,
            "points": dataset.points.source,
        },
        "settings": settings.to_dict(),
        "num_gaussians": len(result.gaussians),
        "iterations": result.iterations,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "test": None if result.evaluation is None else result.evaluation.to_dict(),
        "test_of_file": None if of_file is None else of_file.to_dict(),
        "densified": result.densified,
        "curve": result.curve,
        "notes": [*dataset.notes, *result.notes],
    }


def html_report(
    result: TrainResult,
    dataset: Dataset,
    settings: TrainSettings,
    of_file: Evaluation | None = None,
    *,
    num_threads: int | None = None,
) -> str:
    """The page: figures, curves, test views (train views where there are none) and their table."""
    facts = report_facts(result, dataset, settings, of_file)
    figures = []
    views = dataset.test or dataset.train[:_NUM_SHOWN]
    for k in _shown(result.evaluation, len(views)):
        truth = dataset.picture(views[k]).astype(np.float32) / np.float32(255.0)
        (picture,) = draw_views(result.gaussians, [views[k]], dataset.background, num_threads=num_threads)
        image = base64.b64encode(_png(side_by_side(truth, picture))).decode("ascii")
        label = html.escape(views[k].name)
        if result.evaluation is not None:
            label += f": {result.evaluation.views[k]['psnr_db']:.2f} dB"
        figures.append(
            f"<figure><figcaption>{label}. Left to right: photograph, scene, difference times 8.</figcaption>\n"
            f'<img alt="{label}: photograph, scene and difference" src="data:image/png;base64,{image}"></figure>'
        )
    tests = [(p["iteration"], p["test_psnr_db"]) for p in result.curve if "test_psnr_db" in p]
    if result.evaluation is not None:
        tests.append((float(result.iterations), result.evaluation.psnr_db))
    train = [(p["iteration"], p["psnr_db"]) for p in result.curve[1:]]
    counts = [(p["iteration"], p["num_gaussians"]) for p in result.curve]
    rows = [] if result.evaluation is None else [_row(v["name"], v) for v in result.evaluation.views]
    if result.evaluation is not None:
        rows.append(_row("mean", result.evaluation.to_dict(), "mean"))
    limits = ", ".join(f"{name} {value}" for name, value in settings.to_dict().items() if value is not None)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in facts["notes"])
    data = facts["dataset"]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(dataset.folder.name)} trained</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>A scene trained from {data["num_train"]} photographs</h1>
<p>{html.escape(dataset.folder.name)} ({data["kind"]}), {data["width"]} x {data["height"]} pixels<br>
<b>{_headline(result, of_file)}</b><br>
{facts["num_gaussians"]:,} Gaussians, {result.iterations:,} steps, {result.seconds:.0f} s of wall clock,
{result.cpu_seconds:.0f} s of processor time</p>
<h2>Curves</h2>
{_plot("PSNR, dB: train pictures (line, smoothed), test views (dots)", train, tests)}
{_plot("Gaussians", counts, [])}
<h2>Pictures</h2>
{chr(10).join(figures)}
<h2>Test views</h2>
<table>
<tr><th>view</th><th>PSNR (dB)</th><th>SSIM</th></tr>
{chr(10).join(rows)}
</table>
<p class="small">Whole pictures, clamped, against 8-bit photographs.</p>
<h2>Settings</h2>
<p class="small">{html.escape(limits)}</p>
<ul class="small">{notes}</ul>
<footer>splatcodec {__version__}</footer>
</body>
</html>
"""


def _headline(result: TrainResult, of_file: Evaluation | None) -> str:
    if result.evaluation is None:
        return "no test views"
    text = f"{result.evaluation.psnr_db:.2f} dB, SSIM {result.evaluation.ssim:.4f} on the test views"
    return text if of_file is None else f"{text}; {of_file.psnr_db:.2f} dB as compressed"


def _shown(evaluation: Evaluation | None, count: int) -> list[int]:
    """The worst view first, then others from bad to good."""
    if evaluation is None:
        return list(range(min(count, _NUM_SHOWN)))
    order = [int(k) for k in np.argsort([view["psnr_db"] for view in evaluation.views], kind="stable")]
    picks = np.linspace(0, len(order) - 1, min(_NUM_SHOWN, len(order))).round().astype(int)
    return [order[k] for k in dict.fromkeys(picks.tolist())]


def _row(name: str, view: dict[str, Any], kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return f"{start}<td>{html.escape(name)}</td><td>{view['psnr_db']:.2f}</td><td>{view['ssim']:.4f}</td></tr>"


def _plot(title: str, line: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float]]) -> str:
    """A curve over the steps as an SVG element."""
    points = [*line, *dots]
    if len(points) < 2:
        return ""
    left, top, right, bottom = _MARGIN
    width, height = _PLOT
    xs, ys = np.array(points, float).T
    low, high = float(ys.min()), float(ys.max())
    if not high > low:
        low, high = low - 1.0, high + 1.0
    x_high = max(float(xs.max()), 1.0)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (width - left - right) * point[0] / x_high
        y = height - bottom - (height - top - bottom) * (point[1] - low) / (high - low)
        return round(x, 1), round(y, 1)

    path = " ".join(f"{x},{y}" for x, y in map(place, line))
    marks = "".join('<circle cx="{}" cy="{}" r="3" fill="#d55"/>'.format(*place(dot)) for dot in dots)
    digits = 0 if high - low > 100 else 1
    axis = []
    for value in (low, (low + high) / 2, high):
        y = place((0, value))[1]
        axis.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        axis.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:,.{digits}f}</text>')
    axis.append(f'<text x="{width - right}" y="{height - 8}" text-anchor="end">step {x_high:,.0f}</text>')
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(axis)}'
        f'<polyline points="{path}" fill="none" stroke="#37c" stroke-width="2"/>{marks}</svg></figure>'
    )


def _png(rgb: npt.NDArray[np.float32]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
