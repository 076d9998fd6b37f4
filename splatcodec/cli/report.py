"""The page that `compare --report` writes: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..gaussians import Gaussians
from ..metrics.compare import Comparison
from ..render.cpu import render
from ..render.images import side_by_side
from ..version import __version__
from .arguments import human_bytes
from .pictures import png_bytes

__all__ = ["Side", "html_report"]

_NUM_SHOWN = 4
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .9rem; text-align: right; }
th { border-bottom: 1px solid; } th:first-child, td:first-child { text-align: left; }
tr.worst td, tr.mean td { font-weight: bold; } tr.mean td { border-top: 1px solid; }
figure { margin: 0 0 1.5rem; } img { width: 100%; height: auto; image-rendering: auto; }
figcaption, footer, .small { opacity: .75; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Side:
    """One of the two files that are compared."""

    file: str
    num_gaussians: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.file}, {self.num_gaussians:,} Gaussians, {human_bytes(self.size_bytes)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def html_report(
    comparison: Comparison,
    reference: Gaussians,
    decoded: Gaussians,
    reference_side: Side,
    decoded_side: Side,
    *,
    num_threads: int | None = None,
) -> str:
    """The page: figures, the table of views, the worst view and a few others as pictures."""
    figures = []
    for k in shown_views(comparison):
        pictures = [
            render(
                scene,
                comparison.cameras[k],
                antialiased=bool(reference.metadata.get("antialiased", False)),
                num_threads=num_threads,
            )
            for scene in (reference, decoded)
        ]
        image = base64.b64encode(png_bytes(side_by_side(*pictures))).decode("ascii")
        view = comparison.views[k]
        label = f"View {k}{', the worst' if k == comparison.worst_view else ''}: {view['psnr_db']:.2f} dB"
        figures.append(
            f"<figure><figcaption>{label}. Left to right: original, copy, difference times 8.</figcaption>\n"
            f'<img alt="{label}: original, copy and difference" src="data:image/png;base64,{image}"></figure>'
        )
    return _page(comparison, reference_side, decoded_side, figures)


def shown_views(comparison: Comparison) -> list[int]:
    """Views to show: the worst first, then others evenly spread over the order from bad to good."""
    order = [int(k) for k in np.argsort([view["psnr_db"] for view in comparison.views], kind="stable")]
    picks = np.linspace(0, len(order) - 1, min(_NUM_SHOWN, len(order))).round().astype(int)
    return list(dict.fromkeys([comparison.worst_view, *(order[k] for k in picks)]))[:_NUM_SHOWN]


def _page(comparison: Comparison, reference: Side, decoded: Side, figures: list[str]) -> str:
    ratio = f", {reference.size_bytes / decoded.size_bytes:.1f} times smaller" if decoded.size_bytes else ""
    bits = 8 * decoded.size_bytes / reference.num_gaussians if reference.num_gaussians else 0.0
    rows = [_row(str(k), view, k == comparison.worst_view and "worst") for k, view in enumerate(comparison.views)]
    mean = {"psnr_db": comparison.psnr_db, "full_psnr_db": comparison.full_psnr_db, "ssim": comparison.ssim}
    camera = comparison.cameras[0]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(decoded.file)} compared</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Two scenes compared by what one sees of them</h1>
<p>Original: {html.escape(str(reference))}<br>
Copy: {html.escape(str(decoded))}{ratio}, {bits:.1f} bits per original Gaussian</p>
<p><b>{comparison.psnr_db:.2f} dB</b> mean PSNR over covered pixels,
{comparison.worst_psnr_db:.2f} dB in the worst view, {comparison.full_psnr_db:.2f} dB over whole pictures,
SSIM {comparison.ssim:.4f}; {len(comparison.views)} views of {camera.width} x {camera.height} pixels.</p>
<h2>Pictures</h2>
{chr(10).join(figures)}
<h2>Views</h2>
<table>
<tr><th>view</th><th>PSNR, covered pixels (dB)</th><th>PSNR, whole picture (dB)</th><th>SSIM</th></tr>
{chr(10).join(rows)}
{_row("mean", mean, "mean")}
</table>
<p class="small">Pictures are compared in float, on black and on white; the worse counts. Covered pixels are those with
more than 5 % coverage in either picture. 100 dB means equal.{_guess(comparison)}</p>
<footer>splatcodec {__version__}</footer>
</body>
</html>
"""


def _row(name: str, view: dict[str, float], kind: str | bool) -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    cells = f"<td>{view['psnr_db']:.2f}</td><td>{view['full_psnr_db']:.2f}</td><td>{view['ssim']:.4f}</td>"
    return f"{start}<td>{name}</td>{cells}</tr>"


def _guess(comparison: Comparison) -> str:
    return " The file does not say which way is up; the views assume -y." if comparison.up_guessed else ""
