"""Tiles coded by a Dask cluster: the same bytes as without, and what is said where there is none."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from unittest import mock

import pytest

from splatcodec import api
from splatcodec.cli.exit_codes import ExitCode
from splatcodec.cli.main import main
from splatcodec.errors import BackendUnavailableError
from splatcodec.sample import sample_scene
from splatcodec.static import cluster, encoder

# Dask's own threads and sockets, which end when they like.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def address():
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp://"
    ) as local:
        yield local.scheduler_address


@pytest.mark.parametrize(
    ("count", "degree", "options"),
    [
        (900, 3, {"quality": 60, "effort": 1}),
        (700, 0, {"quality": 90, "effort": 1, "prune": False}),
        (90, 1, {"quality": 50, "effort": 2}),  # by context mixing, see below
    ],
)
def test_the_bytes_are_the_same(address, count, degree, options):
    scene = sample_scene(count).with_sh_degree(degree)
    small = functools.partial(encoder.cut_tiles, max_tile=count // 5)
    with (
        mock.patch.object(encoder, "cut_tiles", small),
        mock.patch.object(encoder, "level_shares", return_value=(0.3, 1.0)),
        mock.patch.object(encoder, "thumbnail_count", return_value=20),
        mock.patch.dict(encoder._EFFORTS, {2: replace(encoder._EFFORTS[1], mixing=True)}),
    ):
        alone = api.compress(scene, **options)
        with api.on_cluster(address) as workers:
            asked = []
            run = workers._map
            with mock.patch.object(workers, "_map", lambda f, *rest: (asked.append(f.__name__), run(f, *rest))[1]):
                together = api.compress(scene, **options)
    assert together == alone
    assert set(asked) == {"_make", "_quantize", "_emit"}
    assert cluster.current_cluster() is None
    with api.open(alone) as file:
        assert len(file.container.of_type("TILE")) > 2


def test_on_the_command_line(address, small_files, tmp_path):
    ply = small_files["ply"]
    assert main(["compress", str(ply), str(tmp_path / "a.splc"), "--effort", "1", "--scheduler", address]) == 0
    assert main(["compress", str(ply), str(tmp_path / "b.splc"), "--effort", "1"]) == 0
    assert (tmp_path / "a.splc").read_bytes() == (tmp_path / "b.splc").read_bytes()
    arguments = ["compress", str(ply), str(tmp_path / "c.splc"), "--lossless", "--scheduler", address]
    assert main(arguments) == ExitCode.USAGE


def test_another_version_on_the_workers_is_refused(address, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "0.0.0-other")
    with pytest.raises(BackendUnavailableError, match="expected splatcodec"), api.on_cluster(address):
        pass
    assert cluster.current_cluster() is None


def test_nobody_answers(monkeypatch):
    pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    for wrong in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(BackendUnavailableError, match="no Dask scheduler answers"), api.on_cluster(wrong):
            pass


def test_without_dask_the_hint_says_how_to_get_it(monkeypatch, small_files, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BackendUnavailableError, match=r"splatcodec\[dask\]"), api.on_cluster("tcp://127.0.0.1:9"):
        pass
    arguments = ["compress", str(small_files["ply"]), str(tmp_path / "a.splc"), "--scheduler", "tcp://127.0.0.1:9"]
    assert main(arguments) == ExitCode.BACKEND
    assert "splatcodec[dask]" in capsys.readouterr().err
    assert not (tmp_path / "a.splc").exists()
