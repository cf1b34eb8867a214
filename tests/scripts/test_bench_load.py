"""scripts/benchmarks/bench_load.py at a tiny size: it writes, reads past the cache, loads, reports and cleans up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hunyuan.checkpoint.folder import read_config
from scripts.benchmarks import bench_load


def test_everything_is_measured_and_nothing_left(tmp_path, capsys):
    folder = tmp_path / "bench"
    assert bench_load.main([str(folder), "--tiny", "--device", "cpu", "--margin-gib", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"wrote 0\.00\d GB, 2 layers in 3 files", out)
    assert re.search(r"disk alone: 0\.00\d GB in .* GB/s \((direct reads|reads after dropping the cache)", out)
    assert re.search(r"loaded: 0\.00\d GB in .* GB/s", out)
    assert re.search(r"host memory: peak \d+\.\d\d GiB resident", out)
    assert not folder.exists()


@pytest.mark.slow
def test_an_edit_follows_where_asked_for(tmp_path, capsys):
    arguments = ["--tiny", "--device", "cpu", "--edit", "--size", "256x256", "--tokens", "3", "--steps", "1"]
    assert bench_load.main([str(tmp_path / "bench"), "--margin-gib", "0", *arguments]) == 0
    out = capsys.readouterr().out
    assert re.search(r"ready \d+\.\d s after that: experts eager", out)
    assert re.search(r"disk to ready: 0\.00\d GB in \d+\.\d\d s, \d", out)
    assert re.search(r"the first edit, 256x256, 3 tokens, 1 steps: prepare \d", out)


def test_kept_folder_is_used_again_and_quantized_on_the_way(tmp_path, capsys):
    folder = tmp_path / "bench"
    arguments = [str(folder), "--tiny", "--experts", "bf16", "--layers", "3", "--margin-gib", "0"]
    assert bench_load.main([*arguments, "--keep"]) == 0
    first = capsys.readouterr().out
    assert read_config(folder).num_hidden_layers == 3
    files = [load_file(path) for path in sorted(folder.glob("model-*.safetensors"))]
    blocks = [file[f"model.layers.{n}.mlp.experts.0.down_proj.weight"] for n, file in enumerate(files[:3])]
    assert not (blocks[0] == blocks[1]).all()
    assert bench_load.main([*arguments, "--load-as", "mxfp4", "--runs", "2"]) == 0
    second = capsys.readouterr().out
    assert "wrote" not in second
    assert second.count("loaded:") == 2
    sizes = [float(re.findall(r"in place: (\S+) GB", text)[0]) for text in (first, second)]
    assert sizes[1] < sizes[0]
    assert not folder.exists()


@pytest.mark.parametrize("arguments", [["--margin-gib", "1e9"], ["--layers", "100000000"]])
def test_a_disk_that_is_too_small_is_said(tmp_path, capsys, arguments):
    assert bench_load.main([str(tmp_path / "bench"), "--tiny", *arguments]) == 1
    assert "the disk holds" in capsys.readouterr().err


def test_other_peoples_files_are_left_alone(tmp_path: Path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert bench_load.main([str(tmp_path), "--tiny"]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
