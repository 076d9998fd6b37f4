"""The benchmark tool on a tiny scene without rivals, and its arithmetic on made-up records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench  # conftest.py puts tools/ on the path
import bench_report
import pytest

import splatcodec
from splatcodec.errors import BackendUnavailableError, ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare

TINY = bench.Settings(effort=1, num_views=2, size_px=48, qualities=(40.0, 80.0), memory=False)


@pytest.fixture(scope="module")
def measured(small_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small scene, measured without rivals."""
    return bench.bench_scene(small_files["ply"], TINY, tmp_path_factory.mktemp("bench"), lambda text: None)


def made_up(scene: str, codec: str, label: str, size: int, psnr: float, **more: Any) -> dict[str, Any]:
    row = bench.Record(codec, "1", scene, label, 1000, 1000, size, 8 * size / 1000, psnr, psnr - 3, psnr, 0.99, 0.9, 0)
    return {**row.to_dict(), **more}


def results_of(records: list[dict[str, Any]], ablation: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    facts = {"num_gaussians": 1000, "sh_degree": 3, "array_bytes": 59000 * 4, "num_views": 2, "size_px": 48}
    facts |= {"effort": 5, "up_guessed": True, "curve_by": "slopes", "curve_note": ""}
    facts |= {"same_bytes_in_a_fresh_process": True}
    scenes = {row["scene"]: facts for row in records}
    return {**bench._load(Path("no such file")), "scenes": scenes, "records": records, "ablation": ablation or []}


CURVE = [made_up("donut", "splatcodec", "curve", size, psnr) for size, psnr in ((1000, 30.0), (4000, 40.0))]


def test_judge_agrees_with_compare(small_scene: Gaussians) -> None:
    decoded = splatcodec.decompress(splatcodec.compress(small_scene, quality=30, effort=1))
    wanted = compare(small_scene, decoded, num_views=3, size_px=40)
    judged = bench.Judge(small_scene, 3, 40)(decoded)
    for name in ("psnr_db", "worst_psnr_db", "full_psnr_db", "ssim", "worst_view"):
        assert judged[name] == getattr(wanted, name)
    assert judged["worst_ssim"] == min(view["ssim"] for view in wanted.views)


def test_points_are_files_that_compress_writes(small_scene: Gaussians) -> None:
    encoder = bench.Encoder(small_scene, effort=2)
    payload, _ = encoder.compress()
    assert payload == splatcodec.compress(small_scene, effort=2)
    assert payload == encoder.compress()[0]  # with the importance pass remembered
    encoder.prove(payload)
    assert encoder.direct, encoder.why_not_direct
    coarser, _ = encoder.at_slope(4 * encoder.slope)
    assert len(coarser) < len(payload)
    assert splatcodec.decompress(coarser).num_gaussians <= small_scene.num_gaussians


def test_scene(measured: dict[str, Any]) -> None:
    records = measured["records"]
    assert records[0]["label"] == "default"
    assert measured["scene"]["curve_by"] == "slopes", measured["scene"]["curve_note"]
    assert measured["skipped"] == measured["ablation"] == []
    assert len(records) >= 3
    by_psnr = sorted(records, key=lambda row: row["psnr_db"])
    assert by_psnr[0]["psnr_db"] + 3 < by_psnr[-1]["psnr_db"]
    assert by_psnr[0]["size_bytes"] < by_psnr[-1]["size_bytes"]
    for row in records:
        assert row["codec"] == "splatcodec"
        assert row["bits_per_gaussian"] == pytest.approx(8 * row["size_bytes"] / 300, abs=1e-4)
        assert row["worst_psnr_db"] <= row["psnr_db"] <= row["full_psnr_db"]
        assert row["decode_s"] > 0
    assert records[0]["encode_s"] > 0
    json.dumps(measured)


def test_unusual_encoder_is_measured_through_compress(small_scene: Gaussians) -> None:
    encoder = bench.Encoder(small_scene, effort=1)
    encoder.prove(b"other bytes")
    assert not encoder.direct
    assert encoder.why_not_direct
    payload, _, _ = encoder.near(34.0)
    assert payload == splatcodec.compress(small_scene, effort=1, target_psnr=34.0)


@pytest.mark.parametrize("name", ["one class", "no pruning", "no prediction", "no KLT", "one table a stream"])
def test_ablation(small_scene: Gaussians, name: str) -> None:
    (ablation,) = (a for a in bench.ABLATIONS if a.name == name)
    assert ablation.why_not() is None
    full = bench.Encoder(small_scene, effort=1)
    payload, _ = full.compress()
    full.prove(payload)
    slope = full.slope
    changed, _ = full.changed(ablation).at_slope(slope)
    assert changed != payload
    assert splatcodec.decompress(changed).num_gaussians > 0
    assert full.at_slope(slope)[0] == payload  # nothing stays replaced


def test_another_effort_of_an_unusual_encoder(small_scene: Gaussians) -> None:
    """Nothing is known of slopes then but the one of its own first file."""
    (ablation,) = (a for a in bench.ABLATIONS if a.effort == 1)
    full = bench.Encoder(small_scene, effort=2)
    full.prove(b"other bytes")
    changed = full.changed(ablation)
    assert changed.direct
    sizes = [len(changed.near(target_db)[0]) for target_db in (30.0, 40.0)]
    assert sizes[0] < sizes[1]


def test_ablations_without_a_hook_are_said() -> None:
    assert "no_such_field" in bench.Ablation("a", "", tuning={"no_such_field": 0}).why_not()
    assert "gone" in bench.Ablation("a", "", replaced=[(bench.encoder, "gone", lambda f: f)]).why_not()


def test_absent_peer_is_skipped(small_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(peer: str, ply: Path) -> Path:
        raise BackendUnavailableError(f"peer {peer}: not installed")

    monkeypatch.setattr(bench.peers, "cached", lambda peer, ply: None)
    monkeypatch.setattr(bench.peers, "encode", absent)
    one = bench._Bench(small_files["ply"], TINY, tmp_path, lambda text: None)
    assert one.peer("spz-v4") is None
    (line,) = one.skipped
    assert line["codec"] == "spz-v4"
    assert "not installed" in line["why"]


def test_ratio_at_the_peers_psnr() -> None:
    results = results_of([*CURVE, made_up("donut", "spz-v4", "peer", 8000, 35.0)])
    (found,) = bench_report.comparisons(results)
    assert found["ratio"] == pytest.approx(2000 / 8000)
    assert found["worst_difference_db"] == pytest.approx(0.0)
    table = "\n".join(bench_report.ratio_table(results))
    assert "0.250 (+0.0)" in table
    assert "0.250 (donut)" in table


def test_ratio_with_the_worst_view_counted() -> None:
    # Our worst view is 3 dB below the mean. Theirs is as far above what we have at their mean as makes us go on to
    # 37.5 dB, where ours is 1 dB below it.
    peer = made_up("donut", "spz-v4", "peer", 8000, 35.0, worst_psnr_db=35.5)
    (found,) = bench_report.comparisons(results_of([*CURVE, peer]))
    assert found["ratio"] == pytest.approx(2000 / 8000)
    assert found["worst_ratio"] == pytest.approx(1000 * 4**0.75 / 8000)
    (found,) = bench_report.comparisons(results_of([*CURVE, {**peer, "worst_psnr_db": 32.9}]))
    assert found["worst_ratio"] == found["ratio"]
    (found,) = bench_report.comparisons(results_of([*CURVE, {**peer, "worst_psnr_db": 38.5}]))
    assert found["worst_ratio"] is None


def test_nothing_is_extrapolated() -> None:
    results = results_of([*CURVE, made_up("donut", "spz-v4", "peer", 8000, 41.0)])
    (found,) = bench_report.comparisons(results)
    assert found["ratio"] is None
    assert "outside our curve" in "\n".join(bench_report.ratio_table(results))


def test_variants_do_not_count_in_the_mean() -> None:
    records = [*CURVE, made_up("donut", "sog", "peer", 8000, 35.0)]
    records += [{**row, "scene": "donut-x1000"} for row in CURVE]
    records += [made_up("donut-x1000", "sog", "peer", 80000, 35.0)]
    mean = next(line for line in bench_report.ratio_table(results_of(records)) if "geometric mean" in line)
    assert "**0.250**" in mean


def test_bd_rate_against_the_best_rivals() -> None:
    records = [*CURVE, made_up("donut", "a", "peer", 2000, 30.0), made_up("donut", "b", "peer", 8000, 40.0)]
    records += [made_up("donut", "c", "peer", 9000, 35.0)]  # b is smaller and better
    assert bench_report.front_bd_rate(results_of(records), "donut") == pytest.approx(-50.0)
    assert bench_report.front_bd_rate(results_of(CURVE), "donut") is None


def test_targets() -> None:
    records = [*CURVE, made_up("donut", "spz-v4", "peer", 8000, 35.0)]
    records += [made_up("donut", "splatcodec", "default", 3000, 38.0)]
    records += [made_up("donut-shell", "splatcodec", "default", 3300, 37.0)]
    records += [
        made_up("donut", "splatcodec", f"quality {q}", 2000 + q, 30 + 0.1 * q, wanted_psnr_db=30 + 0.1 * q)
        for q in range(0, 101, 10)
    ]
    rows = {row[0]: row for row in bench_report.targets(results_of(records))}
    assert rows["bytes over spz-v4's at its PSNR: donut, banana, leica, bouquet-dithered"][3] is None  # not all there
    shell = rows["donut-shell against donut, default file, bits per original Gaussian"]
    assert shell[2].startswith("+10.0 % bits, -1.00 dB")
    assert shell[3] is False
    assert rows["donut: quality 0, 10, ..., 100"][3] is True


def test_ablation_table() -> None:
    points = [{name: row[name] for name in ("size_bytes", "psnr_db", "worst_psnr_db")} for row in CURVE]
    double = [{**point, "size_bytes": 2 * point["size_bytes"]} for point in points]
    rows = [
        {"scene": "donut", "name": name, "what": "w", "why_not": why, "points": made}
        for name, why, made in (("full", None, points), ("half", None, double), ("none", "no hook", []))
    ]
    table = bench_report.ablation_table(results_of(CURVE, rows))
    assert any(line.startswith("| half | w | +100.0 (+0.0) |") for line in table)
    assert "- none: not measured, no hook" in table


def test_documents(measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = bench._load(tmp_path / "results.json")
    results["machine"] = bench._machine()
    bench._merge(results, "scene", measured)
    bench_report.write_results(results, tmp_path)
    assert bench._load(tmp_path / "results.json") == json.loads(json.dumps(results))
    assert (tmp_path / "scene.svg").read_text().startswith("<?xml")
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "benchmarks.md"
    page.write_text(f"before\n{bench_report.BEGIN}\nsuperseded\n{bench_report.END}\nafter\n")
    bench_report.write_docs(results, docs, lambda text: None)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "superseded" not in text
    assert "benchmarks/scene.svg" in text
    assert (docs / "benchmarks" / "scene.svg").is_file()
    bench_report.write_docs(results, docs, lambda text: None)
    assert page.read_text() == text
    page.write_text("no markers\n")
    with pytest.raises(ParameterError, match="markers"):
        bench_report.write_docs(results, docs, lambda text: None)


def test_a_second_run_replaces_its_scenes_only(measured: dict[str, Any]) -> None:
    results = bench._load(Path("no such file"))
    other = {**measured, "records": [{**row, "scene": "other"} for row in measured["records"]]}
    for name, rows in (("scene", measured), ("other", other), ("scene", measured)):
        bench._merge(results, name, rows)
    assert set(results["scenes"]) == {"scene", "other"}
    assert len(results["records"]) == 2 * len(measured["records"])


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main([])
    assert bench.main(["no-such-scene", "--out", str(tmp_path)]) == 1
    assert "no such scene" in capsys.readouterr().err
    assert bench.main(["donut", "--peers", "zip", "--out", str(tmp_path)]) == 1


def test_records_round_but_keep_integers() -> None:
    row = made_up("s", "splatcodec", "default", 123, 40.123456789)
    assert row["psnr_db"] == 40.12346
    assert row["size_bytes"] == 123
