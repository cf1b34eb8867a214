"""Numbers in config.json that no model has: refused at once, by name, and before anything is made of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hunyuan.checkpoint.folder import INDEX_FILE, MOST_FILES, read_config, weight_files
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.errors import CheckpointError
from hunyuan.model.config_bounds import MOST, MOST_EXPERTS, check_bounds

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import resource, sys, time
from pathlib import Path
from hunyuan import Editor, Settings
from hunyuan.errors import HunyuanError
import hunyuan.engines.native, hunyuan.editor
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = most(), time.process_time()
try:
    Editor.load(Settings(model_id=Path(sys.argv[1]), device="cpu"))
except HunyuanError as error:
    print(str(error)[:2000])
else:
    print("loaded")
print(most() - before, time.process_time() - started)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    """With a config of its own; the other files are links."""
    for path in whole.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    shutil.copy(whole / "config.json", tmp_path)
    return tmp_path


def change(folder: Path, path: str, value: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    section = raw
    *above, key = path.split(".")
    for name in above:
        section = section[name]
    section[key] = value
    (folder / "config.json").write_text(json.dumps(raw))


def load(folder: Path) -> tuple[str, float, float]:
    """What loading says, the MiB by which it grows and the seconds it computes, in a process of its own."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    *said, figures = result.stdout.strip().splitlines()
    memory, seconds = map(float, figures.split())
    return "\n".join(said), memory, seconds


@pytest.mark.parametrize("path", MOST)
@pytest.mark.parametrize("value", [10**9, 10**30, [10**9] * 8, -(10**12)])
def test_a_number_beyond_its_bound_is_named(folder: Path, path: str, value: Any) -> None:
    change(folder, path, value)
    with pytest.raises(CheckpointError) as caught:
        read_config(folder)
    assert f"{path}: " in str(caught.value)
    assert f"at most {MOST[path]} is allowed" in str(caught.value)


@pytest.mark.parametrize("path", ["num_experts", "moe_topk", "vae.block_out_channels"])
def test_a_list_beyond_its_bound_is_named(folder: Path, path: str) -> None:
    change(folder, path, [1] * 100_000)
    with pytest.raises(CheckpointError, match=rf"{path}: a list of 100000; at most 512 are allowed"):
        read_config(folder)


@pytest.mark.parametrize("experts", [4096, [4096] * 512])
def test_experts_of_all_layers_are_bounded_together(folder: Path, experts: Any) -> None:
    change(folder, "num_experts", experts)
    change(folder, "num_hidden_layers", 512)
    with pytest.raises(CheckpointError, match=f"num_experts: {4096 * 512} in 512 layers together; at most 16384"):
        read_config(folder)


def test_the_published_models_are_far_below() -> None:
    raw = full_size_config(experts="bf16")
    check_bounds(raw)
    assert raw["num_hidden_layers"] * raw["num_experts"] * 8 <= MOST_EXPERTS


# --- through the whole loading, in a process of its own


@pytest.mark.parametrize(
    ("path", "value"), [("num_hidden_layers", 10**9), ("num_experts", 10**7), ("vit.num_hidden_layers", 10**8)]
)
def test_loading_refuses_at_once(folder: Path, path: str, value: int) -> None:
    change(folder, path, value)
    said, memory, seconds = load(folder)
    assert f"config.json: {path}: {value}; at most" in said
    assert memory < 100
    assert seconds < 2


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 512, "num_experts": 32, "moe_topk": 2, "num_shared_expert": 1},
        {"vit.num_hidden_layers": 512},
        {"vae.layers_per_block": 16},
        {"hidden_size": 65536, "vit_aligner.n_embed": 65536},
        {"vocab_size": 1 << 22},
    ],
    ids=lambda values: next(iter(values)),
)
def test_the_bounds_themselves_cost_little(folder: Path, values: dict[str, Any]) -> None:
    """Numbers that the weights do not bear out: the files' headers are looked at before anything is allocated."""
    for path, value in values.items():
        change(folder, path, value)
    said, memory, seconds = load(folder)
    assert said != "loaded"
    assert memory < 800
    assert seconds < 30


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", 1e9),
        ("vit.layer_norm_eps", 0.0),
        ("rope_theta", -1.0),
        ("rope_theta", 0.0),
        ("vae.scaling_factor", -1.0),
        ("vit_processor.image_mean", []),
        ("vit_processor.image_std", [0.5, 0.0, 0.5]),
        ("vit_processor.rescale_factor", -1.0),
        ("vit.hidden_act", "x" * 10**6),
    ],
)
def test_numbers_that_make_no_picture_are_refused_by_name(folder: Path, path: str, value: Any) -> None:
    change(folder, path, value)
    with pytest.raises(CheckpointError) as caught:
        read_config(folder)
    assert path in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_index_of_countless_files_is_refused_at_once(folder: Path) -> None:
    index = {"weight_map": {f"key{i}": f"file{i}" for i in range(MOST_FILES + 1)}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"names {MOST_FILES + 1} weight files; at most {MOST_FILES}"):
        weight_files(folder)
