"""`hunyuan plan`: a folder with nothing but its config, sizes of GPUs, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.cli.main import main
from hunyuan.cli.plan import MEMORIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model's config and no weights."""
    out = tmp_path_factory.mktemp("real") / "HunyuanImage-3.0-Instruct"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(full_size_config(experts="bf16")))
    return out


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ["model: HunyuanImage-3.0-Instruct", "weights: 4bit (the best", "on 1 x H100 (79.6 GiB)", "61.86"]),
        (["--gpu", "h200"], ["weights: fp8", "H200 (140.0 GiB)"]),
        (["--gpu", "H200", "--gpus", "2"], ["weights: bf16", "GPU 0", "GPU 1"]),
        (["--gpu", "90.5"], ["weights: 4bit", "1 x GPU (90.5 GiB)"]),
        (["--weights", "fp8", "--gpus", "2"], ["weights: fp8 (HUNYUAN_WEIGHTS=fp8"]),
        (["--weights", "mixed"], ["weights: mixed", "16 layers fp8, 16 layers mxfp4"]),
        (["--weights", "4bit", "--gpus", "2"], ["1 x 22,800 tokens", "113.16", "GPU 1 the unguided row"]),
        (["--gpus", "2"], ["weights: fp8", "HUNYUAN_WEIGHTS=4bit: a copy on each of two GPUs"]),
        (["--dense", "fp8"], ["attention, shared MLP (fp8)"]),
        (["--max-tokens", "11000"], ["2 x 11,000 tokens"]),
        (["--text-batch", "4"], ["2 x 22,800 + 4 x 8,192 tokens"]),
        (["--resolution", "1920x1080"], ["autoencoder at 1280x720"]),
        (["--size", "1920x1080"], ["autoencoder at 1280x720"]),  # its old name
    ],
    ids=str,
)
def test_a_plan_that_fits(folder, capsys, options, shown):
    assert main(["plan", str(folder), *options]) == 0
    out = capsys.readouterr().out
    for text in shown:
        assert text in out


def test_a_plan_that_does_not_fit(folder, capsys):
    assert main(["plan", str(folder), "--weights", "bf16"]) == 1
    out = capsys.readouterr().out
    assert "needed" in out
    assert "fits: 4bit on this GPU, fp8 on 2 x H100, bf16 on 3 x H100" in out


def test_tiny_checkpoint_fits_anywhere(golden, capsys):
    assert main(["plan", str(golden / "checkpoint"), "--gpu", "8"]) == 0
    assert "weights: bf16 (unquantized weights fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolution", "huge"], "error: --resolution: got 'huge'"),
    ],
)
def test_wrong_wishes_are_explained(folder, capsys, options, message):
    assert main(["plan", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there(capsys):
    assert main(["plan", "/nope"]) == 2
    assert capsys.readouterr().err == "error: no such folder: /nope\n"


def test_folder_without_config(tmp_path, capsys):
    assert main(["plan", str(tmp_path)]) == 2
    assert "error: config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--gpu", "tiny"], ["--gpu", "0"], ["--gpu", "inf"], ["--gpus", "0"], ["--gpus", "x"], ["--max-tokens", "-1"]],
)
def test_wrong_arguments_are_refused(folder, capsys, options):
    with pytest.raises(SystemExit) as exit_info:
        main(["plan", str(folder), *options])
    assert exit_info.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_known_gpus_are_less_than_their_names_say():
    assert MEMORIES["h100"] < 80
    assert MEMORIES["h200"] < 141
