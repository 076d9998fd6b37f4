"""What results.json of tools/bench.py says: ratios against rivals, targets, tables, plots and docs/benchmarks.md.

Everything here is derived from the records alone, so that tables can be made again without measuring.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splatcodec.errors import ParameterError
from splatcodec.metrics.bd_rate import bd_rate, rate_at_psnr

__all__ = ["Comparison", "comparisons", "curve_points", "markdown", "summary", "targets", "write_docs", "write_results"]

OURS = "splatcodec"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADLINE = ("donut", "banana", "leica", "bouquet-dithered")
RAW = ("donut", "banana", "leica")
VARIANTS = ("-x0.001", "-x1000", "-moved", "-shell", "-million")
SPEED_SCENE = "bouquet-million"
# Bits per original Gaussian wanted at a covered PSNR.
ABSOLUTE = {"donut": (48.0, 45.0), "banana": (140.0, 43.5), "leica": (128.0, 45.0)}
PEER_ORDER = ("spz-v4", "spz-v3", "sog", "compressed-ply")

Results = Mapping[str, Any]
Row = Mapping[str, Any]


def is_variant(scene: str) -> bool:
    """Whether a scene is another one moved, scaled, in a shell or repeated: not counted in means."""
    return scene.endswith(VARIANTS)


def curve_points(results: Results, scene: str) -> list[Row]:
    """Our records of a scene by rising PSNR, one a PSNR."""
    rows = [row for row in results["records"] if row["scene"] == scene and row["codec"] == OURS]
    points: dict[float, Row] = {}
    for row in sorted(rows, key=lambda row: (row["psnr_db"], row["size_bytes"])):
        points.setdefault(row["psnr_db"], row)
    return list(points.values())


def _at(points: Sequence[Row], psnr_db: float, column: str) -> float | None:
    """A column of our curve at a PSNR: bytes by log interpolation, others linear; None outside of the curve."""
    dbs = [row["psnr_db"] for row in points]
    if len(points) < 2 or not dbs[0] <= psnr_db <= dbs[-1]:
        return None
    values = [row[column] for row in points]
    return rate_at_psnr(values, dbs, psnr_db) if column == "size_bytes" else float(np.interp(psnr_db, dbs, values))


_WORST_BELOW_DB = 1.0  # how much lower than a rival's our worst view may be


def _enough(points: Sequence[Row], psnr_db: float, worst_db: float) -> float | None:
    """PSNR from which on all of our curve has this mean and this worst view; None where its end has not."""
    low = [k for k, row in enumerate(points) if row["worst_psnr_db"] < worst_db]
    if not low:
        return psnr_db
    if low[-1] + 1 == len(points):
        return None
    a, b = points[low[-1]], points[low[-1] + 1]
    share = (worst_db - a["worst_psnr_db"]) / (b["worst_psnr_db"] - a["worst_psnr_db"])
    return max(psnr_db, a["psnr_db"] + share * (b["psnr_db"] - a["psnr_db"]))


class Comparison(dict[str, Any]):
    """scene, codec, psnr_db, peer_bytes, our_bytes, ratio, worst_difference_db (ours less theirs); None: not known.

    worst_ratio: the bytes from which on our worst view, too, is at most 1 dB below theirs, over theirs.
    """


def comparisons(results: Results) -> list[Comparison]:
    """Our curve at every rival's own covered PSNR."""
    found = []
    for row in results["records"]:
        if row["codec"] == OURS:
            continue
        points = curve_points(results, row["scene"])
        size, worst = (_at(points, row["psnr_db"], column) for column in ("size_bytes", "worst_psnr_db"))
        enough = _enough(points, row["psnr_db"], row["worst_psnr_db"] - _WORST_BELOW_DB)
        enough_bytes = None if enough is None else _at(points, enough, "size_bytes")
        found.append(
            Comparison(
                scene=row["scene"],
                codec=row["codec"],
                psnr_db=row["psnr_db"],
                peer_bytes=row["size_bytes"],
                our_bytes=size,
                ratio=None if size is None else size / row["size_bytes"],
                worst_difference_db=None if worst is None else worst - row["worst_psnr_db"],
                worst_ratio=None if enough_bytes is None else enough_bytes / row["size_bytes"],
            )
        )
    return found


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def front_bd_rate(results: Results, scene: str) -> float | None:
    """BD-rate in per cent of our curve against all rivals as one.

    Each rival has one setting, hence one point and no curve; their points that no other rival beats in both size and
    PSNR are taken for the curve of whoever picks the best rival each time. None with fewer than two such points.
    """
    rivals = [row for row in results["records"] if row["scene"] == scene and row["codec"] != OURS]
    best = [
        row
        for row in rivals
        if not any(
            other["size_bytes"] <= row["size_bytes"] and other["psnr_db"] >= row["psnr_db"] and other is not row
            for other in rivals
        )
    ]
    return _bd([(row["size_bytes"], row["psnr_db"]) for row in best],
               [(row["size_bytes"], row["psnr_db"]) for row in curve_points(results, scene)])  # fmt: skip


def _bd(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float | None:
    """BD-rate of (bytes, PSNR) points in per cent, one point a PSNR; None where the curves do not overlap."""
    anchor, test = (list({psnr: (size, psnr) for size, psnr in points}.values()) for points in (anchor, test))
    if len(anchor) < 2 or len(test) < 2:
        return None
    try:
        return bd_rate(*zip(*anchor), *zip(*test))
    except ParameterError:
        return None


# --- targets ----------------------------------------------------------------------------------------------------------


def targets(results: Results) -> list[tuple[str, str, str, bool | None]]:
    """(what, wanted, measured, met) of the project's targets; met is None where a scene is missing."""
    ratio = {(c["scene"], c["codec"]): c for c in comparisons(results)}
    rows: list[tuple[str, str, str, bool | None]] = []

    def mean_at_most(
        codec: str, scenes: Sequence[str], limit: float, each: float | None = None, key: str = "ratio"
    ) -> None:
        found = [ratio.get((scene, codec)) for scene in scenes]
        known = [c for c in found if c and c[key] is not None]
        mean = geometric_mean(c[key] for c in known)
        missing = [scene for scene, c in zip(scenes, found) if not c or c[key] is None]
        wanted = f"at most {limit:.2f}" + (f", none above {each:.2f}" if each else "")
        which = "at its PSNR" if key == "ratio" else "at its PSNR or above, worst view at most 1 dB below its"
        what = f"bytes over {codec}'s {which}: {', '.join(scenes)}"
        if mean is None:
            rows.append((what, wanted, "-", None))
            return
        worst = max(known, key=lambda c: c[key])
        text = f"{mean:.3f}, worst {worst[key]:.3f} ({worst['scene']})"
        text += f"; missing: {', '.join(missing)}" if missing else ""
        met = mean <= limit and (each is None or worst[key] <= each)
        rows.append((what, wanted, text, met if not missing else None))

    for key in ("ratio", "worst_ratio"):
        mean_at_most("spz-v4", HEADLINE, 0.42, 0.60, key)
        mean_at_most("sog", ("banana", "leica"), 0.45, None, key)
        mean_at_most("sog", ("donut", "angel-dithered"), 0.80, None, key)
    pairs = [(scene, "spz-v4") for scene in HEADLINE]
    pairs += [(scene, "sog") for scene in ("banana", "leica", "donut", "angel-dithered")]
    known = [ratio[pair] for pair in pairs if pair in ratio and ratio[pair]["ratio"] is not None]
    if known:
        worst = min(known, key=lambda c: c["worst_difference_db"])
        text = f"{worst['worst_difference_db']:+.2f} dB ({worst['scene']}, {worst['codec']})"
        met = worst["worst_difference_db"] >= -_WORST_BELOW_DB
        rows.append(("our worst view less theirs at their PSNR, same scenes", "at least -1 dB", text,
                     False if not met else (True if len(known) == len(pairs) else None)))  # fmt: skip
    for scene, (bits, db) in ABSOLUTE.items():
        size = _at(curve_points(results, scene), db, "size_bytes")
        have = None if size is None else 8.0 * size / results["scenes"][scene]["num_gaussians"]
        text = "-" if have is None else f"{have:.1f}"
        met = None if have is None else have <= bits
        rows.append((f"{scene}: bits per original Gaussian at {db:g} dB", f"at most {bits:g}", text, met))
    rows += _variant_targets(results)
    rows += _speed_targets(results)
    rows += _quality_targets(results)
    return rows


def _default(results: Results, scene: str) -> Row | None:
    rows = [row for row in results["records"] if row["scene"] == scene and row["label"] == "default"]
    return rows[0] if rows else None


def _variant_targets(results: Results) -> list[tuple[str, str, str, bool | None]]:
    rows: list[tuple[str, str, str, bool | None]] = []
    for scene in RAW:
        base = _default(results, scene)
        for suffix in VARIANTS[:-1]:
            row = _default(results, scene + suffix)
            if base is None or row is None:
                continue
            # Per original Gaussian, because the shell's own Gaussians are more to code in any codec.
            bits = base["bits_per_gaussian"]
            more = 100.0 * (row["bits_per_gaussian"] / bits - 1.0)
            loss = row["psnr_db"] - base["psnr_db"]
            size = _at(curve_points(results, scene + suffix), base["psnr_db"], "size_bytes")
            text = f"{more:+.1f} % bits, {loss:+.2f} dB"
            if size is not None:
                text += f"; {100.0 * (8.0 * size / row['num_gaussians'] / bits - 1.0):+.1f} % at equal PSNR"
            what = f"{scene}{suffix} against {scene}, default file, bits per original Gaussian"
            rows.append((what, "+3 %, -0.5 dB", text, more <= 3.0 and loss >= -0.5))
    return rows


def _speed_targets(results: Results) -> list[tuple[str, str, str, bool | None]]:
    row = _default(results, SPEED_SCENE)
    if row is None:
        return []
    array = results["scenes"][SPEED_SCENE]["array_bytes"]
    rows: list[tuple[str, str, str, bool | None]] = [
        (f"{SPEED_SCENE}: compress in process", "at most 60 s", f"{row['encode_s']:.1f} s", row["encode_s"] <= 60.0),
        (f"{SPEED_SCENE}: decompress in process", "at most 2 s", f"{row['decode_s']:.2f} s", row["decode_s"] <= 2.0),
    ]
    for name, column in (("compress", "peak_memory_bytes"), ("decompress", "decode_peak_memory_bytes")):
        if row[column] is not None:
            share = row[column] / array
            rows.append((f"{SPEED_SCENE}: memory to {name} over the float arrays", "at most 2.5", f"{share:.2f}",
                         share <= 2.5))  # fmt: skip
    return rows


def quality_rows(results: Results, scene: str) -> list[Row]:
    """Records of the quality scale, by quality."""
    rows = [row for row in results["records"] if row["scene"] == scene and row["label"].startswith("quality ")]
    return sorted(rows, key=lambda row: float(row["label"].split()[1]))


def _quality_targets(results: Results) -> list[tuple[str, str, str, bool | None]]:
    rows: list[tuple[str, str, str, bool | None]] = []
    for scene in results["scenes"]:
        points = quality_rows(results, scene)
        if not points:
            continue
        miss = max((row["psnr_db"] - row["wanted_psnr_db"] for row in points), key=abs)
        below = max(row["psnr_db"] - row["worst_psnr_db"] for row in points)
        monotone = all(
            a["psnr_db"] < b["psnr_db"] and a["size_bytes"] < b["size_bytes"] for a, b in itertools.pairwise(points)
        )
        text = f"{miss:+.2f} dB, worst view {below:.1f} dB below{'' if monotone else ', not monotone'}"
        met = abs(miss) <= 1.5 and below <= 6.0 and monotone
        rows.append((f"{scene}: quality 0, 10, ..., 100", "within 1.5 dB, worst view 6 dB, monotone", text, met))
    return rows


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join("-" if cell is None else str(cell) for cell in row) + " |" for row in rows]


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _megabytes(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e6:.0f}"


def _codecs(results: Results) -> list[str]:
    have = {row["codec"] for row in results["records"]} - {OURS}
    return [name for name in PEER_ORDER if name in have] + sorted(have - set(PEER_ORDER))


def ratio_table(results: Results) -> list[str]:
    """Our bytes over each rival's at its PSNR, and the difference of the worst views."""
    found = {(c["scene"], c["codec"]): c for c in comparisons(results)}
    codecs = _codecs(results)
    scenes = list(results["scenes"])

    def cell(scene: str, codec: str) -> str | None:
        c = found.get((scene, codec))
        if c is None:
            return None
        if c["ratio"] is None:
            return f"outside our curve ({c['psnr_db']:.1f} dB)"
        return f"{c['ratio']:.3f} ({c['worst_difference_db']:+.1f})"

    rows: list[list[Any]] = []
    for scene in scenes:
        bd = front_bd_rate(results, scene)
        rows.append([scene, *(cell(scene, codec) for codec in codecs), _number(bd, "+.0f")])
    means: list[Any] = ["**geometric mean**, variants left out"]
    worst: list[Any] = ["worst of them"]
    for codec in codecs:
        known = [found[s, codec] for s in scenes if (s, codec) in found and not is_variant(s)]
        known = [c for c in known if c["ratio"] is not None]
        mean = geometric_mean(c["ratio"] for c in known)
        means.append(None if mean is None else f"**{mean:.3f}**")
        top = max(known, key=lambda c: c["ratio"], default=None)
        worst.append(None if top is None else f"{top['ratio']:.3f} ({top['scene']})")
    return _table(["scene", *codecs, "BD-rate, %"], [*rows, [*means, None], [*worst, None]])


def file_table(results: Results) -> list[str]:
    """Our default files and the rivals' files."""
    rows = []
    for scene in results["scenes"]:
        ours = [row for row in results["records"] if row["scene"] == scene and row["label"] == "default"]
        rivals = [row for row in results["records"] if row["scene"] == scene and row["codec"] != OURS]
        for row in ours + rivals:
            rows.append([
                scene, row["codec"], f"{row['size_bytes']:,}", f"{row['bits_per_gaussian']:.1f}",
                f"{row['psnr_db']:.2f}", f"{row['worst_psnr_db']:.2f}", f"{row['full_psnr_db']:.2f}",
                f"{row['ssim']:.4f}", f"{row['worst_ssim']:.4f}",
                _number(row["encode_s"], ".1f"), _number(row["encode_process_s"], ".1f"),
                _number(row["decode_s"], ".2f"), _number(row["decode_process_s"], ".1f"),
                _megabytes(row["peak_memory_bytes"]), _megabytes(row["decode_peak_memory_bytes"]),
            ])  # fmt: skip
    header = ["scene", "codec", "bytes", "bits/G", "PSNR", "worst", "whole picture", "SSIM", "worst", "encode s",
              "process s", "decode s", "process s", "MB encode", "MB decode"]  # fmt: skip
    return _table(header, rows)


def curve_table(results: Results) -> list[str]:
    """Every point of ours."""
    rows = []
    for scene in results["scenes"]:
        for row in curve_points(results, scene):
            rows.append([scene, row["label"], f"{row['size_bytes']:,}", f"{row['bits_per_gaussian']:.1f}",
                         f"{row['psnr_db']:.2f}", f"{row['worst_psnr_db']:.2f}", f"{row['ssim']:.4f}",
                         f"{100.0 * row['num_coded'] / max(row['num_gaussians'], 1):.0f}"])  # fmt: skip
    return _table(["scene", "point", "bytes", "bits/G", "PSNR", "worst", "SSIM", "% kept"], rows)


def quality_table(results: Results) -> list[str]:
    """Achieved less wanted PSNR, and worst view less achieved, at each quality."""
    scenes = [scene for scene in results["scenes"] if quality_rows(results, scene)]
    if not scenes:
        return []
    names = [row["label"].split()[1] for row in quality_rows(results, scenes[0])]
    rows = []
    for scene in scenes:
        cells = {
            row["label"].split()[1]: f"{row['psnr_db'] - row['wanted_psnr_db']:+.2f} "
            f"({row['worst_psnr_db'] - row['psnr_db']:.1f})"
            for row in quality_rows(results, scene)
        }
        rows.append([scene, *(cells.get(name) for name in names)])
    return _table(["scene", *names], rows)


def _worst_change(full: Sequence[Row], points: Sequence[Row]) -> float | None:
    """Mean change of the worst view at equal PSNR, dB, over the range that both have."""
    curves = [sorted((p["psnr_db"], p["worst_psnr_db"]) for p in part) for part in (full, points)]
    if not all(curves):
        return None
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if not low < high:
        return None
    at = np.linspace(low, high, 25)
    before, after = (np.interp(at, *zip(*curve)) for curve in curves)
    return float(np.mean(after - before))


def ablation_rows(results: Results) -> list[tuple[str, str, dict[str, str | None], dict[str, str | None]]]:
    """(name, what, by scene the bytes at equal PSNR in per cent and the worst view's change, by scene why not)."""
    rows: dict[str, tuple[str, str, dict[str, str | None], dict[str, str | None]]] = {}
    full = {row["scene"]: row["points"] for row in results["ablation"] if row["name"] == "full"}
    for row in results["ablation"]:
        if row["name"] == "full":
            continue
        entry = rows.setdefault(row["name"], (row["name"], row["what"], {}, {}))
        both = full.get(row["scene"], []), row["points"]
        rate = _bd(*([(p["size_bytes"], p["psnr_db"]) for p in part] for part in both))
        entry[2][row["scene"]] = None if rate is None else f"{rate:+.1f} ({_worst_change(*both):+.1f})"
        entry[3][row["scene"]] = row["why_not"]
    return list(rows.values())


def ablation_table(results: Results) -> list[str]:
    """More bytes at equal PSNR without each technique."""
    rows = ablation_rows(results)
    scenes = list(dict.fromkeys(row["scene"] for row in results["ablation"]))
    lines = []
    for name, what, rates, why in rows:
        if all(why.get(scene) for scene in scenes):
            continue
        lines.append([name, what, *(rates.get(scene) for scene in scenes)])
    if not lines:
        return []
    table = _table(["change", "what is done instead", *(f"{scene}, %" for scene in scenes)], lines)
    skipped = {name: next(iter(why.values())) for name, _, _, why in rows if why and all(why.values())}
    return table + ([""] if skipped else []) + [f"- {name}: not measured, {reason}" for name, reason in skipped.items()]


def target_table(results: Results) -> list[str]:
    """The project's targets and what was measured."""
    verdict = {True: "met", False: "**missed**", None: "incomplete"}
    return _table(["target", "wanted", "measured", ""], [(a, b, c, verdict[met]) for a, b, c, met in targets(results)])


def skipped_lines(results: Results) -> list[str]:
    """What was left out and why."""
    return [f"- {row['scene']}, {row['codec']}: {row['why']}" for row in results["skipped"]]


def summary(results: Results) -> str:
    """The ratios, for the terminal."""
    lines = ["our bytes over theirs at their covered PSNR (worst view, dB, ours less theirs)", *ratio_table(results)]
    lines += ["", *target_table(results)]
    ablation = ablation_table(results)
    lines += ["", "bytes at equal PSNR against the full codec", *ablation] if ablation else []
    lines += ["", "skipped:", *skipped_lines(results)] if results["skipped"] else []
    return "\n".join(lines)


# --- documents --------------------------------------------------------------------------------------------------------


RATIO_TEXT = """\
Our bytes, log bytes interpolated over dB on our curve at the rival's covered PSNR, over the rival's bytes; in brackets
our worst view less theirs at that point, dB. BD-rate: against all rivals as one, that is the curve through those of
their files that none of the others beats in both size and PSNR (each rival has one setting, so none has a curve)."""

FILES_TEXT = """\
Ours at default settings (`splatcodec compress IN OUT.splc`), everything in the file counted; theirs at their defaults.
Bits per original Gaussian; dB over covered pixels (mean of the views, worst view) and over whole pictures. Seconds in
process after warm-up and of the whole cold process; memory: peak growth of a fresh process with the package imported.
Rivals' encoders only as whole processes, timed when their files were made, under the load of that moment (a hint, not a
race); their files are decoded by our readers."""

CAVEATS = (
    "- donut, banana and leica are raw. The `-dithered` scenes have been through a format and were dithered, so that\n"
    "  they do not favour it; the dithering leaves angel's and playbot's x and z positions on their old grid.",
    "- bouquet-million repeats nine tiles: for speed and memory only; its rates flatter codecs that match repeats.",
    "- The `-moved` scenes lie 100,000 units from the origin: float32 itself rounded them before any codec saw them.",
    "- The worst view depends on which views are taken: all codecs are judged on the same, and no encoder saw them.",
)

SHARED_PASS = """\
- Points of a curve share one importance pass; that this gives the bytes of `compress` was checked on every scene."""


def markdown(results: Results, plots: Mapping[str, str] | None = None) -> str:
    """Everything, as Markdown.

    Args:
        plots: path of the plot of each scene, as the text should name it.
    """
    records, scenes, machine = results["records"], results["scenes"], results["machine"]
    kernels = results.get("kernels") or {}
    ours = [row for row in records if row["codec"] == OURS]
    commits = sorted({row["commit"] for row in ours if row["commit"]})
    dates = sorted({row["date"] for row in ours})
    versions = sorted({f"{row['codec']} by {row['version']}" for row in records if row["codec"] != OURS})
    views = sorted({f"{facts['num_views']} views at {facts['size_px']} px" for facts in scenes.values()})
    efforts = sorted({str(facts["effort"]) for facts in scenes.values()})
    indirect = [name for name, facts in scenes.items() if facts["curve_by"] != "slopes"]
    guessed = [name for name, facts in scenes.items() if facts["up_guessed"]]
    fresh = [name for name, facts in scenes.items() if facts["same_bytes_in_a_fresh_process"] is False]

    lines = [
        f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else '-'} at commit "
        f"{', '.join(commits) or 'unknown'} (+: with changes not committed), effort {', '.join(efforts)}, "
        f"{'; '.join(views)}, on {machine.get('cores')} cores ({machine.get('architecture')}, "
        f"{machine.get('system')}, Python {machine.get('python')}). Rivals: {'; '.join(versions) or 'none'}.",
        "",
        "```sh",
        "python tools/peers.py --install && python tools/peers.py --scenes",
        f"python tools/bench.py {' '.join(scenes)} --out .cache/bench",
        "python tools/bench.py --write-docs .cache/bench",
        "```",
        "",
        "### Targets",
        "",
        *target_table(results),
        "",
        "### Bytes at a rival's own PSNR",
        "",
        RATIO_TEXT,
        "",
        *ratio_table(results),
        "",
    ]
    plots = {name: path for name, path in (plots or {}).items() if name in scenes}
    if plots:
        lines += [*(f"![Rate and distortion of {name}]({path})" for name, path in plots.items()), ""]
    lines += [
        "### Files",
        "",
        FILES_TEXT,
        "",
        *file_table(results),
        "",
    ]
    if kernels:
        lines += [
            f"Of the memory, {_megabytes(kernels['peak_memory_bytes'])} MB (encode) and "
            f"{_megabytes(kernels['decode_peak_memory_bytes'])} MB (decode) are what a scene of 300 Gaussians takes: "
            "compiled code.",
            "",
        ]
    quality = quality_table(results)
    if quality:
        lines += ["### Quality scale", "", "Covered PSNR less 25 + 0.3 q dB; in brackets the worst view less the mean.",
                  "", *quality, ""]  # fmt: skip
    ablation = ablation_table(results)
    if ablation:
        lines += ["### What each technique gives", "",
                  "More (+) or fewer bytes than the default codec at equal covered PSNR (BD-rate, about 38 to 50 dB);",
                  "in brackets how much better (+) or worse the worst view gets at equal PSNR, dB.",
                  "", *ablation, ""]  # fmt: skip
    lines += ["### Our curves", "", *curve_table(results), ""]
    lines += ["### Left out", "", *skipped_lines(results), ""] if results["skipped"] else []
    lines += [
        "### Read with care",
        "",
        *CAVEATS,
        f"- Where a scene does not say which way is up, the views guess it: {', '.join(guessed) or 'none'}.",
    ]
    if indirect:
        notes = "; ".join(f"{name} ({scenes[name]['curve_note']})" for name in indirect)
        lines.append(f"- Points made by `compress(target_psnr=...)` one by one: {notes}.")
    else:
        lines.append(SHARED_PASS)
    if fresh:
        lines.append(f"- **A fresh process gave other bytes**: {', '.join(fresh)}.")
    return "\n".join(lines) + "\n"


def plot(results: Results, scene: str, path: Path) -> None:
    """Our curve and the rivals' points of one scene, as SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ink, muted, accent = "#1f2328", "#6e7781", "#0b62c4"
    colors = ("#c2410c", "#7c3aed", "#0f766e", "#a16207", "#be185d", "#475569")
    points = curve_points(results, scene)
    codecs = _codecs(results)
    rivals = [row for row in results["records"] if row["scene"] == scene and row["codec"] != OURS]
    style = {"svg.fonttype": "none", "svg.hashsalt": scene, "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.6, 4.0), layout="constrained")
        bits = [row["bits_per_gaussian"] for row in points]
        axes.plot(bits, [row["worst_psnr_db"] for row in points], color=accent, linewidth=1.0, linestyle=(0, (4, 2)),
                  alpha=0.7, label="splatcodec, worst view")  # fmt: skip
        axes.plot(bits, [row["psnr_db"] for row in points], color=accent, linewidth=2.0, marker="o", markersize=4,
                  label="splatcodec")  # fmt: skip
        for row in points:
            if row["label"] == "default":
                axes.plot(row["bits_per_gaussian"], row["psnr_db"], "o", color="white", markeredgecolor=accent,
                          markeredgewidth=2, markersize=8, zorder=4, label="default settings")  # fmt: skip
        for row in rivals:
            color = colors[codecs.index(row["codec"]) % len(colors)]
            x, high, low = row["bits_per_gaussian"], row["psnr_db"], row["worst_psnr_db"]
            axes.plot([x, x], [low, high], color=color, linewidth=1.0, alpha=0.6)
            axes.plot(x, low, "_", color=color, markersize=7)
            axes.plot(x, high, "D", color=color, markersize=6, label=row["codec"])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("bits per original Gaussian", color=ink)
        axes.set_ylabel("covered PSNR, dB", color=ink)
        facts = results["scenes"][scene]
        axes.set_title(f"{scene}: {facts['num_gaussians']:,} Gaussians, SH degree {facts['sh_degree']}", color=ink,
                       loc="left")  # fmt: skip
        axes.grid(True, color="#d0d7de", linewidth=0.6)
        axes.tick_params(colors=muted)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.legend(frameon=False, loc="outside right upper", fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _plots(results: Results, folder: Path, scenes: Iterable[str]) -> dict[str, Path]:
    """Plot of every scene with a curve; none where matplotlib is missing."""
    made = {}
    for scene in scenes:
        if len(curve_points(results, scene)) < 2:
            continue
        path = folder / f"{scene}.svg"
        try:
            plot(results, scene, path)
        except ImportError:
            print("no plots: matplotlib is not installed (pip install 'splatcodec[dev]')", file=sys.stderr)
            return {}
        made[scene] = path
    return made


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.md and the plots into a folder."""
    _write(out / "results.json", json.dumps(results, indent=1) + "\n")
    plots = _plots(results, out, results["scenes"])
    _write(out / "results.md", markdown(results, {name: path.name for name, path in plots.items()}))


def write_docs(results: Results, docs: Path, log: Callable[[str], None] = print) -> None:
    """Write docs/benchmarks.json, plots of the scenes that are not variants, and the part of docs/benchmarks.md between
    the markers; what people wrote around it stays.

    Raises:
        ParameterError: benchmarks.md lacks the markers.
    """
    page, folder = docs / "benchmarks.md", docs / "benchmarks"
    text = page.read_text() if page.is_file() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ParameterError(f"the markers {BEGIN} and {END} are not there", file=page.name)
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plots(results, folder, [scene for scene in results["scenes"] if not is_variant(scene)])
    body = markdown(results, {name: f"{folder.name}/{path.name}" for name, path in plots.items()})
    _write(page, f"{before}{BEGIN}\n{body}{END}{after}")
    _write(docs / "benchmarks.json", json.dumps(results, indent=1) + "\n")
    log(f"{page.name}, benchmarks.json and {len(plots)} plots written")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
