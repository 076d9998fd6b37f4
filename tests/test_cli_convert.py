"""Edit steps on the command line: order, numbers, several inputs, frames, what is said and what is written."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import api, edits
from splatcodec.cli import main as cli
from splatcodec.cli.edit_options import attach_numbers
from splatcodec.cli.exit_codes import ExitCode
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare
from splatcodec.sample import sample_scene

DATA = Path(__file__).resolve().parent / "data"
ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")


def call(*arguments: object) -> int:
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)


def assert_same(a: Gaussians, b: Gaussians) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def ply(small_files) -> Path:
    return small_files["ply"]


# --- order and numbers ---


def test_steps_are_done_in_the_order_given(ply, small_scene, tmp_path, capsys):
    first, second = tmp_path / "a.ply", tmp_path / "b.ply"
    assert call("convert", ply, first, "--translate", "1,0,0", "--scale", 2, "--translate", "0,1,0") == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["translate 1,0,0", "scale 2", "translate 0,1,0"]
    assert call("convert", ply, second, "--scale", 2, "--translate", "1,0,0", "--translate", "0,1,0") == 0
    moved = edits.translate(edits.scale(edits.translate(small_scene, (1, 0, 0)), 2), (0, 1, 0))
    assert_same(api.read(first), moved)
    np.testing.assert_array_equal(api.read(second).means, (small_scene.means * np.float32(2)) + np.float32([1, 1, 0]))


def test_every_step_does_what_its_function_does(ply, small_scene, tmp_path, capsys):
    box = (-1.0, -2.0, -1.5, 1.5, 0.25, 2.0)
    cases = [
        (("--crop-box", "-1,-2,-1.5,1.5,.25,2"), edits.crop_box(small_scene, box[:3], box[3:])),
        (
            ("--crop-box", "-inf,-2,-inf,inf,inf,inf"),
            edits.crop_box(small_scene, (-np.inf, -2, -np.inf), (np.inf,) * 3),
        ),
        (("--crop-sphere", "-.5,0,1e0,1.5"), edits.crop_sphere(small_scene, (-0.5, 0, 1), 1.5)),
        (("--sh-degree", "1"), edits.drop_sh_bands(small_scene, 1)),
        (("--min-opacity", "0.5"), edits.filter_opacity(small_scene, 0.5)),
        (("--min-size", "0.1"), edits.filter_size(small_scene, min_size=0.1)),
        (("--max-size", "0.3"), edits.filter_size(small_scene, max_size=0.3)),
        (("--remove-floaters",), edits.remove_floaters(small_scene)),
        (("--translate", "-1,-2e-1,3"), edits.translate(small_scene, (-1, -0.2, 3))),
        (("--rotate-xyz", "-90,30,0"), edits.rotate(small_scene, edits.rotation_xyz((-90, 30, 0)))),
        (("--scale", "0.5"), edits.scale(small_scene, 0.5)),
        (("--from-frame", "RDF", "--frame", "luf"), edits.convert_frame(small_scene, "LUF", "RDF")),
        (("--decimate", "0"), small_scene.selected(slice(0))),
        (("--decimate", "300"), small_scene),
    ]
    for arguments, wanted in cases:
        assert call("convert", ply, tmp_path / "out.ply", *arguments, "--overwrite", "--json") == 0, arguments
        facts = json.loads(capsys.readouterr().out)
        assert_same(api.read(tmp_path / "out.ply"), wanted)
        assert len(facts["edits"]) == 1
        (step,) = facts["edits"]
        assert step["step"] in (arguments[0][2:], "frame")
        assert (
            (step["num_gaussians_before"], step["num_gaussians"]) == (300, len(wanted)) == (300, facts["num_gaussians"])
        )
        assert step["seconds"] >= 0
    assert cases[0][1].num_gaussians not in (0, 300)


def test_decimate_leaves_exactly_so_many_and_looks(tmp_path, capsys):
    scene = edits.crop_sphere(sample_scene(4000), (0, 0, 0), 5.0)
    source, n = tmp_path / "scene.ply", len(scene)
    api.write(scene, source)
    for option, count in (("900", 900), ("30%", round(0.3 * n)), ("99.9 %", round(0.999 * n)), (".0%", 0)):
        assert call("convert", source, tmp_path / "few.ply", "--decimate", option, "--overwrite") == 0
        assert f"decimate {option}: {count:,} of {n:,} Gaussians left" in capsys.readouterr().err
        few = api.read(tmp_path / "few.ply")
        assert few.num_gaussians == count
        if count == 900:  # it rendered the scene: better than what can be told without
            blind = edits.decimate(scene, count)
            seen, unseen = (compare(scene, copy, num_views=6, size_px=96).psnr_db for copy in (few, blind))
            assert seen > unseen + 2.0


@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=6), st.sampled_from(["{:g}", "{:.3f}", "{!r}"])
)
@settings(max_examples=50, deadline=None)
def test_lists_that_begin_with_a_minus_belong_to_their_option(values, form):
    text = ",".join(form.format(value) for value in values)
    expected = ["convert", "a", f"--box={text}"] if text.startswith("-") else ["convert", "a", "--box", text]
    assert attach_numbers(["convert", "a", "--box", text]) == expected


def test_what_is_no_number_stays_an_option_of_its_own():
    for arguments in (
        ["render", "--orbit-view", "-q"],
        ["convert", "a", "--translate", "--", "-1,0,0"],
        ["x", "-1,0,0"],
        ["x", "--a=1", "-1,2"],
        ["x", "--json", "--overwrite", "-v"],
        ["x", "--to", "-info"],
    ):
        assert attach_numbers(arguments) == arguments


# --- paths, several inputs ---


def test_paths_may_stand_anywhere(ply, tmp_path):
    other, merged = tmp_path / "other.ply", tmp_path / "merged.ply"
    assert call("convert", "--scale", 2, ply, other) == 0
    assert call("convert", ply, "--translate", "0,0,0", other, merged) == 0
    assert api.read(merged).num_gaussians == 600
    assert call("convert", ply, other, "--overwrite", merged) == 0
    assert call("convert", ply, other, other, merged, "--overwrite", "--quiet") == 0
    assert api.read(merged).num_gaussians == 900


def test_several_inputs_become_one_scene(ply, small_scene, tmp_path, capsys):
    out, moved = tmp_path / "both.ply", tmp_path / "moved.ply"
    assert call("convert", ply, moved, "--translate", "10,0,0", "--sh-degree", 1, "--quiet") == 0
    assert call("convert", ply, moved, out, "--scale", 3, "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert [step["step"] for step in facts["edits"]] == ["merge", "scale"]
    assert facts["edits"][0]["inputs"] == [str(ply), str(moved)]
    assert facts["edits"][0]["num_gaussians_before"] == [300, 300]
    assert "merge: 300 + 300 = 600 Gaussians" in said.err
    second = edits.drop_sh_bands(edits.translate(small_scene, (10, 0, 0)), 1)
    assert_same(api.read(out), edits.scale(edits.merge([small_scene, second]), 3))


def test_inputs_that_do_not_go_together(ply, small_scene, tmp_path, capsys):
    tagged = tmp_path / "tagged.splc"
    api.write(edits.with_frame(small_scene, "RUB"), tagged, lossless=True)
    assert call("convert", ply, tagged, tmp_path / "out.ply") == ExitCode.USAGE
    assert "number 1 does not say" in capsys.readouterr().err
    assert not (tmp_path / "out.ply").exists()
    assert call("convert", ply, tagged, tmp_path / "out.ply", "--from-frame", "RUB") == 0
    assert_same(api.read(tmp_path / "out.ply"), edits.merge([small_scene, small_scene]))


def test_one_path_is_too_few(ply, tmp_path, capsys):
    assert call("convert", ply) == ExitCode.USAGE
    assert "give IN, then OUT" in capsys.readouterr().err
    assert call("convert", ply, tmp_path / "a.ply", "--frob") == ExitCode.USAGE
    assert "unrecognized arguments: --frob" in capsys.readouterr().err
    assert call("render", ply, tmp_path / "a.png", "more") == ExitCode.USAGE
    assert "unrecognized arguments: more" in capsys.readouterr().err
    assert call("convert", ply, tmp_path / "no" / "such.ply", tmp_path / "a.ply") == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


# --- frames ---


def test_the_frame_is_stated_never_guessed(ply, small_scene, tmp_path, capsys):
    out = tmp_path / "out.splc"
    assert call("convert", ply, out, "--frame", "RUB") == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "does not say which frame" in said
    assert "--from-frame" in said
    assert not out.exists()
    for wrong in ("RDR", "XYZ", "RD"):
        assert call("convert", ply, out, "--from-frame", wrong) == ExitCode.USAGE
        assert call("convert", ply, out, "--from-frame", "RDF", "--frame", wrong) == ExitCode.USAGE
        assert f"'{wrong}' is not a coordinate frame" in capsys.readouterr().err

    assert call("compress", ply, out, "--from-frame", "rdf", "--lossless") == 0
    assert api.read(out).metadata["frame"] == "RDF"
    assert call("convert", out, tmp_path / "rub.ply", "--frame", "RUB") == 0
    assert_same(api.read(tmp_path / "rub.ply"), edits.convert_frame(small_scene, "RUB", "RDF"))
    capsys.readouterr()
    assert call("convert", out, tmp_path / "luf.ply", "--from-frame", "LDB", "--frame", "LUF") == 0
    assert "states the frame RDF; it is taken to be in LDB, as told" in capsys.readouterr().err
    assert_same(api.read(tmp_path / "luf.ply"), edits.convert_frame(small_scene, "LUF", "LDB"))


def test_frames_between_formats(tmp_path):
    spz = DATA / "t5_v3.spz"
    assert call("convert", spz, tmp_path / "a.ply", "--from-frame", "RUB", "--frame", "RDF", "--frame", "RUB") == 0
    assert_same(api.read(tmp_path / "a.ply"), api.read(spz))


def test_an_unknown_suffix_is_told_with_all_that_can_be_written(ply, tmp_path, capsys):
    assert call("convert", ply, tmp_path / "out.xyz") == ExitCode.USAGE
    told = capsys.readouterr().err
    assert all(suffix in told for suffix in (".splc", ".spz", ".compressed.ply"))
    assert call("convert", ply, tmp_path / "out.slpc") == ExitCode.USAGE
    assert ".splc" in capsys.readouterr().err


# --- compress and render ---


def test_compress_edits_first(ply, small_scene, tmp_path, capsys):
    out, back = tmp_path / "part.splc", tmp_path / "back.ply"
    steps = ("--crop-sphere", "0,0,0,2.5", "--rotate-xyz", "0,90,0")
    part = edits.rotate(edits.crop_sphere(small_scene, (0, 0, 0), 2.5), edits.rotation_xyz((0, 90, 0)))
    assert call("compress", ply, out, *steps, "--lossless", "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert [step["step"] for step in facts["edits"]] == ["crop-sphere", "rotate-xyz"]
    assert facts["num_gaussians"] == len(part)
    assert any("edited scene is kept exactly" in note for note in facts["notes"])
    assert_same(api.read(out), part)
    assert call("decompress", out, back) == 0, "the file it was made from is not what it is compared with"
    assert_same(api.read(back), part)

    assert call("compress", ply, out, *steps, "--effort", 1, "--quality", 80, "--overwrite", "--no-prune") == 0
    assert compare(part, api.read(out), num_views=4, size_px=64).psnr_db > 40
    assert call("compress", ply, out, *steps, "--effort", 1) == ExitCode.USAGE
    assert "exists" in capsys.readouterr().err


def test_compare_edits_both(ply, small_scene, tmp_path, capsys):
    """What lies outside of the crop is not looked at."""
    other = tmp_path / "other.ply"
    far = np.linalg.norm(small_scene.means, axis=1) > 2.5
    assert 0 < far.sum() < len(far)
    api.write(small_scene.replaced(sh0=np.where(far[:, None, None], np.float32(2), small_scene.sh0)), other)
    arguments = ("compare", ply, other, "--views", 2, "--size", 48, "--json")
    assert call(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["psnr_db"] < 40
    assert call(*arguments, "--crop-sphere", "0,0,0,2.5") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["psnr_db"] == 100
    assert facts["reference"]["num_gaussians"] == facts["decoded"]["num_gaussians"] == len(far) - far.sum()
    assert [step["step"] for step in facts["edits"]] == ["crop-sphere"]


def test_an_edited_lossless_file_does_not_claim_its_old_source(small_files, small_scene, tmp_path, capsys):
    out = tmp_path / "out.splc"
    for step in (("--scale", 2), ("--crop-box", "-999,-999,-999,999,999,999")):
        assert call("compress", small_files["lossless"], out, *step, "--lossless", "--overwrite") == 0
        assert "source" not in api.read(out).metadata
        assert call("decompress", out, tmp_path / "back.ply", "--overwrite") == 0


def test_render_edits_first(ply, tmp_path):
    direct, converted = tmp_path / "direct.png", tmp_path / "converted.png"
    steps = ("--crop-box", "-2,-2,-2,2,2,2", "--rotate-xyz", "0,0,45")
    view = ("--views-of", ply, "--size", 48)
    assert call("render", ply, direct, *steps, *view) == 0
    assert call("convert", ply, tmp_path / "part.ply", *steps) == 0
    assert call("render", tmp_path / "part.ply", converted, *view) == 0
    assert direct.read_bytes() == converted.read_bytes()
    assert call("render", ply, converted, *view, "--overwrite") == 0
    assert direct.read_bytes() != converted.read_bytes()


# --- other commands, as processes ---


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splatcodec", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


STEPS = ("--crop-sphere", "0,0,0,2.5", "--rotate-xyz", "0,90,0")


def edited(scene: Gaussians) -> Gaussians:
    return edits.rotate(edits.crop_sphere(scene, (0, 0, 0), 2.5), edits.rotation_xyz((0, 90, 0)))


@pytest.mark.parametrize("kind", ["lossy", "lossless"])
def test_decompress_edits_what_was_decoded(kind, small_files, tmp_path):
    """A lossy file is edited block by block, a lossless one as a whole."""
    source, out = small_files[kind], tmp_path / "part.ply"
    part = edited(api.read(source))
    done = run("decompress", source, out, *STEPS, "--json")
    assert "crop-sphere 0,0,0,2.5:" in done.stderr
    facts = json.loads(done.stdout)
    assert [step["step"] for step in facts["edits"]] == ["crop-sphere", "rotate-xyz"]
    assert facts["num_gaussians"] == len(part) > 0
    assert facts["size_bytes"] == out.stat().st_size
    assert "identical" not in facts, "the edited scene is not the source"
    assert_same(api.read(out), part)
    assert "source" not in api.read(out).metadata
    assert "exists" in run("decompress", source, out, *STEPS, code=ExitCode.USAGE).stderr


def test_decompress_edits_a_part(small_files, tmp_path):
    source, out = small_files["lossy"], tmp_path / "part.spz"
    part = edits.filter_opacity(api.decompress(source, sh_degree=1), 0.5)
    told = run("decompress", source, out, "--sh-degree", 1, "--min-opacity", 0.5, "--decimate", "50%").stderr
    assert f"decimate 50%: {round(len(part) / 2):,} of {len(part):,}" in told
    assert "SPZ" in told, "what the format does not hold is said"
    found = api.read(out)
    assert (len(found), found.sh_degree) == (round(len(part) / 2), 1)
    run("decompress", source, tmp_path / "a.ply", "--from-frame", "RDF", "--frame", "RUB")
    expected = edits.convert_frame(api.read(source), "RUB", api.read(source).metadata.get("frame") or "RDF")
    assert_same(api.read(tmp_path / "a.ply"), expected)


@pytest.mark.parametrize("kind", ["ply", "lossy"])
def test_info_says_what_steps_would_leave(kind, small_files):
    source = small_files[kind]
    before, part = source.read_bytes(), edited(api.read(source))
    facts = json.loads(run("info", source, *STEPS, "--json").stdout)
    assert facts["num_gaussians"] == len(part)
    np.testing.assert_allclose(facts["bounds"]["max"], part.means.max(axis=0), rtol=1e-6)
    assert [step["step"] for step in facts["edits"]] == ["crop-sphere", "rotate-xyz"]
    assert facts["format"] == ("ply" if kind == "ply" else "splc")
    assert f"after the edit steps {len(part)} Gaussians" in run("info", source, *STEPS).stdout
    assert source.read_bytes() == before


def scene_in_page(page: Path) -> bytes:
    found = re.search(r'id="content">([^<]*)<', page.read_text())
    assert found
    return base64.b64decode(found[1])


def test_pages_of_edited_scenes_and_other_formats(small_files, small_scene, tmp_path):
    page, copy = tmp_path / "page.html", tmp_path / "copy.splc"
    assert "compressed" not in run("export-html", small_files["lossy"], page).stderr
    assert scene_in_page(page) == small_files["lossy"].read_bytes(), "what can be shown is taken as it is"
    for source, steps, expected in (
        (small_files["ply"], STEPS, edited(small_scene)),
        (small_files["lossy"], STEPS, edited(api.read(small_files["lossy"]))),
        (small_files["lossless"], (), small_scene),
    ):
        done = run("export-html", source, page, *steps, "--quality", 75, "--title", "A page", "--overwrite")
        assert f"compressed: {len(expected)} Gaussians" in done.stderr
        copy.write_bytes(scene_in_page(page))
        assert compare(expected, api.read(copy), num_views=4, size_px=64).psnr_db > 38
    site = tmp_path / "site"
    run("package", small_files["ply"], site, *STEPS)
    assert compare(edited(small_scene), api.read(site / "scene.splc"), num_views=4, size_px=64).psnr_db > 35
    assert "exists" in run("export-html", small_files["ply"], page, *STEPS, code=ExitCode.USAGE).stderr
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    run("export-html", tmp_path / "bad.ply", tmp_path / "bad.html", code=ExitCode.BAD_FILE)
    assert not (tmp_path / "bad.html").exists()


def test_moving_scenes_are_not_edited(small_scene, tmp_path):
    moving = tmp_path / "moving.splc"
    api.compress_sequence(iter([small_scene, edits.translate(small_scene, (0.01, 0, 0))]), moving, fps=30)
    for command in (("info", moving), ("decompress", moving, "frames"), ("export-html", moving, "a.html")):
        told = run(*command, "--scale", 2, code=ExitCode.USAGE).stderr
        assert "edit steps are for still scenes" in told
    assert "edit steps are for still scenes" in run("package", moving, "site", "--scale", 2, code=ExitCode.USAGE).stderr
    assert "--quality is for" in run("export-html", moving, "a.html", "--quality", 50, code=ExitCode.USAGE).stderr


# --- nothing left, bad arguments ---


def test_nothing_left_is_said(ply, tmp_path, capsys):
    for name in ("empty.ply", "empty.splc"):
        steps = ("--crop-sphere", "100,0,0,1", "--scale", 2, "--decimate", "50%", "--remove-floaters")
        assert call("convert", ply, tmp_path / name, *steps) == 0
        said = capsys.readouterr().err
        assert "0 of 300 Gaussians left: the scene is empty" in said
        assert "remove-floaters: 0 Gaussians" in said
        assert api.read(tmp_path / name).num_gaussians == 0
    assert call("convert", tmp_path / "empty.ply", ply, tmp_path / "both.ply", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert api.read(tmp_path / "both.ply").num_gaussians == 300


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--crop-box", "1,2,3"), "6 numbers"),
        (("--crop-box", "0,0,0,nan,1,1"), "6 numbers"),
        (("--crop-box", "1,0,0,0,1,1"), "field --crop-box"),
        (("--crop-sphere", "0,0,0,-1"), "field --crop-sphere"),
        (("--crop-sphere", "a,b,c,d"), "4 numbers"),
        (("--sh-degree", "4"), "SH degree"),
        (("--min-opacity", "2"), "field --min-opacity"),
        (("--min-opacity", "nan"), "not a number"),
        (("--max-size", "-1"), "field --max-size"),
        (("--translate", "inf,0,0"), "field --translate"),
        (("--translate", "1,2"), "3 numbers"),
        (("--translate", "--json"), "expected one argument"),
        (("--rotate-xyz", "1;2;3"), "3 numbers"),
        (("--scale", "0"), "field --scale"),
        (("--scale", "-1"), "field --scale"),
        (("--scale", "inf"), "field --scale"),
        (("--decimate", "-5"), "number of Gaussians"),
        (("--decimate", "101%"), "more than all"),
        (("--decimate", "1.5"), "number of Gaussians"),
        (("--decimate", "many"), "number of Gaussians"),
        (("--remove-floaters=3",), "ignored explicit argument"),
    ],
)
def test_bad_steps(arguments, told, ply, tmp_path, capsys):
    assert call("convert", ply, tmp_path / "out.ply", *arguments) == ExitCode.USAGE
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_of_a_conversion(tmp_path):
    scene = sample_scene(120_000)
    source, array_bytes = tmp_path / "large.ply", scene.array_bytes
    api.write(scene, source)
    del scene
    steps = (
        "--crop-box",
        "-9,-9,-9,9,9,9",
        "--rotate-xyz",
        "10,20,30",
        "--scale",
        2,
        "--from-frame",
        "RDF",
        "--frame",
        "LUF",
    )
    tracemalloc.start()
    try:
        assert call("convert", source, tmp_path / "out.ply", *steps) == 0
        assert tracemalloc.get_traced_memory()[1] < 2.5 * array_bytes
        tracemalloc.reset_peak()
        assert call("convert", source, source, tmp_path / "twice.ply") == 0
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 2 * array_bytes
    finally:
        tracemalloc.stop()
