"""The command line as a process: what it prints where, what it leaves on disk, how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splatcodec import api
from splatcodec.bitstream.container import Chunk, Feature, write_container
from splatcodec.cli import main as cli
from splatcodec.cli.arguments import size_bytes
from splatcodec.cli.edit_options import add_edit_options
from splatcodec.cli.exit_codes import ExitCode
from splatcodec.formats import formats
from splatcodec.preprocess.plan import LossyOptions
from splatcodec.sample import sample_scene
from splatcodec.static import encoder

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numba", "llvmlite", "torch", "PIL", "scipy", "sklearn", "av", "constriction")


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splatcodec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]


def call(*arguments: object) -> int:
    """The command line in this process: for outcomes that need no process of their own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)


def error_of(done: subprocess.CompletedProcess[str], code: ExitCode) -> str:
    """The one message on stderr of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


# --- round trips ---


def test_lossy_there_and_back(small_files, tmp_path):
    packed, back = tmp_path / "scene.splc", tmp_path / "scene.ply"
    done = run("compress", small_files["ply"], packed, "--quality", 80, "--effort", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bits per Gaussian" in done.stdout
    assert run("decompress", packed, back).returncode == 0
    assert api.read(back).num_gaussians == api.read(packed).num_gaussians > 0
    done = run("compare", small_files["ply"], back, "--views", 4, "--size", 64, "--min-psnr", 30, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["passed"] is True
    assert len(facts["views"]) == facts["num_views"] == 4
    assert facts["worst_psnr_db"] == min(view["psnr_db"] for view in facts["views"])
    assert facts["reference"]["num_gaussians"] == 300


def test_lossless_gives_the_ply_back(small_files, tmp_path):
    back = tmp_path / "scene.ply"
    done = run("decompress", small_files["lossless"], back)
    assert done.returncode == 0, done.stderr
    assert "identical to the source" in done.stdout
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(small_files["ply"].read_bytes()).digest()


def test_lossless_that_differs_is_told(small_files, tmp_path, capsys):
    # The stored sha256 is wrong on purpose: as if the file had been made by a broken encoder.
    with api.open(small_files["lossless"]) as scene:
        container = scene.container
        metadata = {**scene.metadata, "source": {**scene.metadata["source"], "sha256": "0" * 64}}
        chunks = [Chunk(e.type, container.read(e), e.critical, e.level, e.tile, e.count) for e in container.chunks]
        chunks[0] = dataclasses.replace(chunks[0], payload=json.dumps(metadata).encode())
        with open(tmp_path / "wrong.splc", "wb") as file:
            write_container(file, chunks, num_gaussians=container.num_gaussians, features=container.features)
    assert call("decompress", tmp_path / "wrong.splc", tmp_path / "back.ply") == ExitCode.CHECK_FAILED
    assert "not identical" in capsys.readouterr().err


def test_convert(tmp_path, capsys):
    source = ROOT / "tests" / "data" / "t5_v3.spz"
    assert call("convert", source, tmp_path / "a.ply") == 0
    assert call("convert", tmp_path / "a.ply", tmp_path / "b.splc", "--json") == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["num_gaussians"] == 5
    assert np.array_equal(api.read(tmp_path / "a.ply").means, api.read(source).means)
    assert call("convert", source, tmp_path / "a.ply") == ExitCode.USAGE
    assert call("convert", source, tmp_path / "a.ply", "--overwrite") == 0
    assert call("convert", source, tmp_path / "a.spz", "--format-version", 9) == ExitCode.UNSUPPORTED
    assert call("convert", source, tmp_path / "b.ply", "--quality", 50) == ExitCode.USAGE
    assert call("convert", source, tmp_path / "a.spz", "--quality", 90, "--format-version", 4) == 0
    assert api.read(tmp_path / "a.spz").metadata["spz"]["version"] == 4
    assert "warning: SPZ: values rounded as coarsely as quality 90 allows" in capsys.readouterr().err
    assert call("convert", source, tmp_path / "a.xyz") == ExitCode.USAGE


def test_render_and_report(small_files, tmp_path, capsys):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    assert call("render", small_files["ply"], first, "--view", 3, "--size", 48, "--background", "1,1,1") == 0
    assert call("render", small_files["lossless"], second, "--view", 3, "--size", 48, "--background", "1,1,1") == 0
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (48, 48)
    assert call("render", small_files["lossy"], second, "--orbit-view", "1/3", "--size", 48) == ExitCode.USAGE
    more = ("--size", 48, "--overwrite", "--views-of", small_files["ply"])
    assert call("render", small_files["lossy"], second, "--orbit-view", "1/3", *more) == 0
    assert first.read_bytes() != second.read_bytes()
    assert call("render", small_files["ply"], tmp_path / "a.jpg") == ExitCode.USAGE
    assert call("render", small_files["ply"], tmp_path / "c.png", "--view", 24) == ExitCode.USAGE
    capsys.readouterr()

    report = tmp_path / "report.html"
    arguments = ("compare", small_files["ply"], small_files["lossy"], "--views", 4, "--size", 32)
    assert call(*arguments, "--report", report, "--min-psnr", 99) == ExitCode.CHECK_FAILED
    said = capsys.readouterr()
    assert "below --min-psnr 99" in said.err
    assert "worst" in said.out
    page = report.read_text()
    assert page.count("data:image/png;base64,") == 4
    assert page.count("the worst") == 2 + 1  # caption and description of the picture, and the text
    assert not re.search(r"(src|href)=.(?!data:)", page), "the page must need nothing else"
    assert call(*arguments, "--report", report) == ExitCode.USAGE


def test_sample_is_always_the_same(tmp_path):
    assert call("sample", tmp_path / "a.ply", "--gaussians", 100, "--quiet") == 0
    again = api.read(tmp_path / "a.ply")
    assert np.array_equal(again.means, sample_scene(100).means)
    assert "synthetic" in again.metadata["comments"][0]


# --- what is printed ---


def test_json_is_one_object_and_nothing_else(small_files, tmp_path, capsys):
    ply, lossy = small_files["ply"], small_files["lossy"]
    keys = {
        ("compress", ply, tmp_path / "a.splc", "--effort", 1): {
            "num_gaussians", "num_coded", "input_bytes", "size_bytes", "bits_per_gaussian", "lossless", "rate_bits",
            "seconds", "notes",
        },
        ("decompress", lossy, tmp_path / "a.ply"): {"file", "num_gaussians", "size_bytes", "lossless", "seconds"},
        ("decompress", small_files["lossless"], tmp_path / "b.ply"): {"identical", "differs"},
        ("info", lossy): {
            "file", "format", "version", "size_bytes", "num_gaussians", "bits_per_gaussian", "lossless", "features",
            "num_chunks", "chunk_types", "metadata",
        },
        ("info", lossy, "--verbose"): {"chunks"},
        ("info", ply): {
            "file", "format", "title", "size_bytes", "num_gaussians", "sh_degree", "extras", "bounds", "non_finite",
            "undrawable", "zero_quaternions", "nearly_transparent", "metadata",
        },
        ("verify", lossy): {
            "file", "ok", "version", "features", "num_gaussians", "num_chunks", "size_bytes", "decoded"
        },
        ("compare", ply, ply, "--views", 2, "--size", 32, "--min-psnr", 99): {
            "reference", "decoded", "psnr_db", "worst_psnr_db", "full_psnr_db", "ssim", "worst_view", "worst_camera",
            "num_views", "views", "up_guessed", "dropped", "min_psnr_db", "passed",
        },
    }  # fmt: skip
    documented = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "cli.md").read_text()))
    for arguments, expected in keys.items():
        assert call(*arguments, "--json") == 0, arguments
        facts = json.loads(capsys.readouterr().out)
        assert expected <= set(facts), arguments
        assert set(facts) <= documented, set(facts) - documented


def test_json_of_values_that_json_lacks(tmp_path, small_scene, capsys):
    means = small_scene.means.copy()
    means[:, 0] = np.nan
    api.write(small_scene.replaced(means=means), tmp_path / "nan.ply")
    assert call("info", tmp_path / "nan.ply", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bounds"], facts["undrawable"], facts["non_finite"]["means"]) == (None, 300, 300)
    assert call("info", tmp_path / "nan.ply") == 0


def test_warnings_go_to_stderr_unless_quiet(tmp_path, small_scene, capsys):
    means = small_scene.means.copy()
    means[0, 0] = np.nan
    api.write(small_scene.replaced(means=means), tmp_path / "nan.ply")
    arguments = ("compare", tmp_path / "nan.ply", tmp_path / "nan.ply", "--views", 1, "--size", 16)
    assert call(*arguments) == 0
    said = capsys.readouterr()
    assert "1 Gaussians cannot be drawn" in said.err
    assert "cannot be drawn" not in said.out
    assert call(*arguments, "--quiet") == 0
    said = capsys.readouterr()
    assert (said.err, "mean" in said.out) == ("", True)


@pytest.mark.parametrize("arguments", [("--help",), ("compress", "--help"), ("--version",), ("info", "FILE")])
def test_nothing_heavy_is_imported(arguments, small_files):
    arguments = [str(small_files["lossy"]) if argument == "FILE" else argument for argument in arguments]
    script = (
        "import sys; from splatcodec.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), 'numpy' in sys.modules, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    with_numpy = arguments[0] == "info"
    assert done.stderr.strip() == f"[] {with_numpy}"


def test_info_of_other_formats_imports_no_decoder(small_files):
    script = f"""
import sys; from splatcodec.cli.main import main
code = main(["info", {str(small_files["ply"])!r}])
assert not set({HEAVY!r}) & set(sys.modules), sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(code)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- the documentation ---


def parsers() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_documentation_names_every_command_and_option_and_no_others():
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(parsers())
    intro = text[: text.index("\n## ")]
    common = {"--quiet", "--verbose", "--overwrite", "--json", "--help"}
    assert common - {"--help"} <= set(re.findall(r"--[a-z-]+", intro))
    # Commands share the edit steps, which have a section of their own.
    steps = argparse.ArgumentParser(add_help=False)
    add_edit_options(steps)
    edits = {option for action in steps._actions for option in action.option_strings}
    steps_section = re.search(r"^## Edit steps\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert steps_section
    assert set(re.findall(r"--[a-z][a-z-]*", steps_section[1])) - {"--lossless"} == edits
    for name, parser in parsers().items():
        known = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        written = set(re.findall(r"--[a-z][a-z-]*", sections[name]))
        assert written <= known, name
        assert known - common - edits <= written, name
        steps_of = edits & known - {"--sh-degree"}  # which decompress has too, to read less
        assert edits <= known or not steps_of, name
        assert not steps_of or "edit steps" in sections[name], name
    for page in ("README.md", "Makefile"):
        for line in (ROOT / page).read_text().splitlines():
            found = re.match(r"\s+(?:splatcodec|\$\(RUN\)) (\w+)(.*)", line.split(" #")[0])
            if found:
                known = {option for action in parsers()[found[1]]._actions for option in action.option_strings}
                assert set(re.findall(r"--[a-z][a-z-]*", found[2])) <= known, line


def test_every_lossy_option_can_be_given():
    known = {action.dest for action in parsers()["compress"]._actions}
    assert {field.name for field in dataclasses.fields(LossyOptions)} <= known
    default = parsers()["compress"].format_help()
    assert f"(default {LossyOptions().quality:g})" in default


def test_efforts_are_documented():
    names = [field.name for field in dataclasses.fields(encoder.Effort)]
    rows = [f"| effort | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for level, effort in encoder._EFFORTS.items():
        rows.append(f"| {level} | {' | '.join(f'{getattr(effort, name):,}' for name in names)} |")
    table = "\n".join(rows)
    assert table in (ROOT / "docs" / "cli.md").read_text(), f"docs/cli.md needs this table:\n{table}"


def test_exit_codes_are_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \| [^|]+ \|$", text, re.MULTILINE)}
    assert listed == set(ExitCode) - {ExitCode.TERMINATED}


def test_readme_lists_the_formats():
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| yes \| (yes|no) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    written = {suffix: can == "yes" for suffixes, can in rows for suffix in re.findall(r"`([^`]+)`", suffixes)}
    assert written.pop(".splc") is True
    for fmt in formats().values():
        assert written.pop(fmt.suffixes[0] if fmt.suffixes else fmt.index_name) is fmt.can_write, fmt.name
    assert set(written) <= {name for fmt in formats().values() for name in (*fmt.suffixes, fmt.index_name)}


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("1k", 1000), ("2.5M", 2_500_000), ("1G", 10**9), ("3Ki", 3072), ("1MiB", 1 << 20)]
)
def test_sizes(text, expected):
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1x", "1e3", "1 2", "1i"])
def test_sizes_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        size_bytes(text)


# --- how it fails ---


def test_wrong_usage(small_files, tmp_path, capsys):
    ply, out = small_files["ply"], tmp_path / "out.splc"
    for arguments in (
        (),
        ("compresss",),
        ("compress", ply),
        ("compress", ply, out, "--quality", 50, "--lossless"),
        ("compress", ply, out, "--target-size", "huge"),
        ("compress", ply, out, "--reorder"),
        ("compress", ply, out, "--quality", 101),
        ("compress", ply, out, "--quality", "nan"),
        ("compress", ply, out, "--lossless", "--effort", 3),
        ("compress", ply, out, "--threads", 0),
        ("compress", ply, out, "--qual", 50),
        ("compress", tmp_path / "none.ply", out),
        ("compress", tmp_path, out),
        ("compress", ply, tmp_path / "no" / "such" / "folder.splc"),
        ("compress", ply, tmp_path),
        ("decompress", tmp_path / "none.splc", tmp_path / "x.ply"),
        ("decompress", tmp_path, tmp_path / "x.ply"),
        ("decompress", small_files["lossy"], tmp_path / "x.ply", "--format", "nonsense"),
        ("info", tmp_path / "none.ply"),
        ("info", "/dev/null"),
        ("verify", tmp_path / "none.splc"),
        ("compare", ply, tmp_path / "none.ply"),
        ("render", ply, tmp_path / "x.png", "--background", "red"),
        ("render", ply, tmp_path / "x.png", "--orbit-view", "3/3"),
    ):
        assert call(*arguments) == ExitCode.USAGE, arguments
        assert "error" in capsys.readouterr().err or not arguments
    assert os.listdir(tmp_path) == []


def test_messages_say_what_where_and_what_to_try(small_files, tmp_path):
    assert "none.ply: cannot read: No such file" in error_of(run("info", tmp_path / "none.ply"), ExitCode.USAGE)
    broken = tmp_path / "broken.splc"
    content = bytearray(small_files["lossy"].read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    message = error_of(run("decompress", broken, tmp_path / "x.ply"), ExitCode.BAD_FILE)
    assert re.search(r"broken\.splc: chunk SHC3\[1/0\]: byte \d+: checksum does not match", message)
    assert not (tmp_path / "x.ply").exists()


def _bad_files(folder: Path, small_files: dict[str, Path]) -> dict[str, tuple[ExitCode, str]]:
    """Bad files by name, with the exit code and a word of the message."""
    lossy = small_files["lossy"].read_bytes()
    ply = small_files["ply"].read_bytes()
    contents = {
        "empty.ply": b"",
        "empty.splc": b"",
        "cut.splc": lossy[:-10],
        "header-cut.splc": lossy[:20],
        "longer.splc": lossy + b"\0",
        "flipped.splc": lossy[:50] + bytes([lossy[50] ^ 1]) + lossy[51:],
        "ply.splc": ply,
        "cut.ply": ply[:-10],
        "text.ply": b"hello world, not a scene",
        "noise.spz": bytes(range(256)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return dict.fromkeys(contents, (ExitCode.BAD_FILE, "")) | _other_bad_files(folder, lossy)


def _other_bad_files(folder: Path, lossy: bytes) -> dict[str, tuple[ExitCode, str]]:
    from fuzz import repaired

    future = bytearray(lossy)
    future[4] = 9
    (folder / "future.splc").write_bytes(repaired(bytes(future)))
    with open(folder / "feature.splc", "wb") as file:
        write_container(file, [], num_gaussians=0, features=[Feature("holograms-1")])
    with open(folder / "huge.ply", "wb") as file:
        columns = "".join(f"property float {name}\n" for name in ("x", "y", "z"))
        file.write(f"ply\nformat binary_little_endian 1.0\nelement vertex {10**15}\n{columns}end_header\n".encode())
    return {
        "future.splc": (ExitCode.UNSUPPORTED, "version 9"),
        "feature.splc": (ExitCode.UNSUPPORTED, "holograms-1"),
        "huge.ply": (ExitCode.LIMIT, f"{10**15} Gaussians"),
    }


def test_bad_files_end_with_their_code(small_files, tmp_path, capsys):
    for name, (code, word) in _bad_files(tmp_path, small_files).items():
        for command in (("info",), ("compress",), ("convert",), ("render",), ("decompress",)):
            if command == ("decompress",) and not name.endswith(".splc"):
                continue
            if command == ("info",) and name in ("cut.splc", "flipped.splc"):
                continue  # info reads no chunk but META; what it says of these is right
            out = {"compress": ["o.splc"], "convert": ["o.ply"], "render": ["o.png"], "decompress": ["o.ply"]}
            targets = [tmp_path / target for target in out.get(command[0], [])]
            assert call(*command, tmp_path / name, *targets) == code, (command, name, capsys.readouterr().err)
            message = capsys.readouterr().err
            assert message.startswith(f"splatcodec: error: {tmp_path / name}: ")
            assert word in message
            assert not any(target.exists() for target in targets)
        if name.endswith(".splc"):
            expected = ExitCode.CHECK_FAILED if code == ExitCode.BAD_FILE else code
            assert call("verify", tmp_path / name, "--json") == expected, name
            out = capsys.readouterr().out
            assert expected != ExitCode.CHECK_FAILED or json.loads(out)["ok"] is False


def test_internal_errors_are_called_that(small_files, monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(api, "read", broken)
    assert call("info", small_files["ply"]) == ExitCode.INTERNAL
    said = capsys.readouterr().err
    assert "internal error: AssertionError: a bug" in said
    assert "Traceback" not in said
    assert call("info", small_files["ply"], "--verbose") == ExitCode.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_overwrite_is_asked_for(small_files, tmp_path, capsys):
    out = tmp_path / "out.splc"
    out.write_bytes(b"precious")
    assert call("compress", small_files["ply"], out, "--lossless") == ExitCode.USAGE
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert call("compress", small_files["ply"], out, "--lossless", "--overwrite") == 0
    assert api.read(out).num_gaussians == 300
    back = tmp_path / "back.ply"
    back.write_bytes(b"precious")
    assert call("decompress", out, back) == ExitCode.USAGE
    assert back.read_bytes() == b"precious"


def _limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with EFBIG instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk(small_files, tmp_path, existing):
    out = tmp_path / "out.ply"
    if existing:
        out.write_bytes(b"precious")
    # Compiled code would be cached in files too, which the limit forbids: the cache goes where nothing is.
    done = run(
        "convert",
        small_files["ply"],
        out,
        "--overwrite",
        preexec_fn=_limit_file_size,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "no-cache"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "cannot write" in error_of(done, ExitCode.INTERNAL)
    left = [entry.name for entry in tmp_path.iterdir() if entry.is_file()]
    assert left == (["out.ply"] if existing else [])
    assert not existing or out.read_bytes() == b"precious"


def test_full_stdout_and_closed_pipe(small_files):
    command = [sys.executable, "-m", "splatcodec", "info", str(small_files["lossy"])]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.INTERNAL
    assert done.stderr.startswith("splatcodec: error: cannot write the result")
    assert len(done.stderr.splitlines()) == 1
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.INTERNAL, "")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, sent, code):
    scene, out = tmp_path / "scene.ply", tmp_path / "out.splc"
    api.write(sample_scene(200_000), scene)
    command = [sys.executable, "-u", "-m", "splatcodec", "compress", str(scene), str(out), "--verbose"]
    # What a shell starts in the background ignores interrupts, and so would the child.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_take_interrupts) as child:
        _wait_until(lambda: _handles_sigterm(child.pid) or child.poll() is not None)
        time.sleep(0.3)
        child.send_signal(sent)
        _, said = child.communicate(timeout=120)
    assert child.returncode == code, said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["scene.ply"]


def test_interrupted_while_source_runs(tmp_path):
    # An interrupt inside exec() leaves a mark with Python 3.11 to 3.13 that would turn the exit code into the signal.
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from splatcodec.cli.commands import info\n"
        "from splatcodec.cli.main import main\n"
        "source = 'import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)'\n"
        "info.run = lambda args, console: exec(source)\n"
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(main(['info', 'any.splc']))\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        ExitCode.INTERRUPTED,
        "splatcodec: interrupted; nothing half-written is left\n",
    )


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _handles_sigterm(pid: int) -> bool:
    """Whether the process is through its imports: `main` is what sets the handler."""
    caught = Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_progress_bar_only_on_a_terminal(small_files, tmp_path):
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "splatcodec", "compare", *[str(small_files["ply"])] * 2, "--views", "2"]
    done = subprocess.run([*command, "--size", "32"], stdout=subprocess.PIPE, stderr=terminal, timeout=120, check=False)
    os.close(terminal)
    drawn = os.read(controller, 1 << 16).decode()
    os.close(controller)
    assert done.returncode == 0
    assert "[###" in drawn
    assert drawn.endswith("\r\x1b[K"), "the bar is taken away in the end"
    assert b"[#" not in done.stdout
