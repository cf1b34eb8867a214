"""The list of compiled kernels: FlashInfer's tactic numbers, the cut of its sources, and what is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hunyuan.accel import flashinfer_modules
from hunyuan.accel.build import cut, tactics, wanted
from hunyuan.accel.experts import tactics as engine

ROOT = Path(__file__).resolve().parents[2]
CSRC = Path(str(flashinfer_modules.aot_folder())).parent / "csrc"

# Tactics that ran on an H100 in a build that held these tiles and no others (November 2026).
RAN = {
    "bf16": {0: (128, 16, 64), 11: (128, 256, 64), 34: (256, 128, 64), 45: (128, 16, 64), 115: (256, 128, 64)},
    "fp8": {0: (128, 16, 128), 25: (128, 128, 128), 36: (128, 16, 128), 72: (128, 16, 128), 106: (256, 128, 128)},
    "humming": {0: (64, 16, 128), 52: (128, 16, 256), 97: (128, 256, 128), 198: (128, 64, 128), 245: (128, 16, 128)},
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """FlashInfer's module; its import writes a log file, and warns about its own dependencies."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path_factory.mktemp("flashinfer")))
        yield importlib.import_module("flashinfer.jit.gemm.cutlass.generate_kernels")


@pytest.mark.parametrize("name", RAN)
def test_tactic_numbers_name_the_tiles_that_ran(name: str) -> None:
    known = tactics.tactics(tactics.MODES[name])
    for number, shape in RAN[name].items():
        tile = known[number]
        assert tile is not None
        assert tile.shape == shape


@pytest.mark.parametrize("name", RAN)
def test_the_second_product_starts_where_the_engine_says(name: str) -> None:
    known = tactics.tactics(tactics.MODES[name])
    assert known[engine.second_product(name, 0)] == known[0]
    swapped = engine.second_product(name, 30)
    assert known[swapped] == known[30]


def test_without_the_fused_sum_the_list_is_shorter() -> None:
    assert len(tactics.tactics(tactics.BF16)) == 126
    assert len(tactics.tactics(tactics.BF16, fused_finalize=False)) == 90


def test_a_number_that_is_no_tactic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[44, 900\]"):
        tactics.tiles_of(tactics.BF16, {44, 900})  # 44 is a kernel for older GPUs


def test_every_tile_of_the_engine_s_table_is_wanted() -> None:
    tiles = wanted.wanted_tiles()
    for name, ids in engine.all_profile_ids().items():
        known = tactics.tactics(tactics.MODES[name])
        assert {known[number] for number in ids} <= tiles[name]


def test_a_mode_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "all_profile_ids", lambda: {"int2": frozenset({1})})
    with pytest.raises(ValueError, match="int2"):
        wanted.wanted_tiles()


@pytest.mark.slow
def test_flashinfer_generates_every_tactic(generator: object) -> None:
    operations = cut.operations_by_mode(generator)
    for name, mode in tactics.MODES.items():
        assert {tile for tile in tactics.tactics(mode) if tile} <= operations[name].keys()


@pytest.mark.slow
def test_the_cut_fits_the_installed_flashinfer(generator: object, tmp_path: Path) -> None:
    tiles = wanted.wanted_tiles()
    sources = cut.write_sources(CSRC, tmp_path, generator, tiles)
    assert all(source.is_file() for source in sources)
    assert len(sources) < 40
    binding = (tmp_path / "flashinfer_cutlass_fused_moe_binding.cu").read_text()
    assert "std::make_shared<kernels::CutlassMoeFCRunner" not in binding
    assert binding.count("std::true_type") == len(tiles)
    operations = cut.operations_by_mode(generator)
    absent = (tmp_path / "humming_absent.cu").read_text()
    assert absent.count("template void") == len(operations["humming"].keys() - tiles["humming"])
    times = {source: source.stat().st_mtime_ns for source in sources}
    cut.write_sources(CSRC, tmp_path, generator, tiles)
    assert times == {source: source.stat().st_mtime_ns for source in sources}, "a second build would start over"


def test_a_changed_flashinfer_is_noticed() -> None:
    with pytest.raises(cut.SourceChanged, match="runners"):
        cut.cut_binding("class DtypeUtils {", ["bf16"])
    with pytest.raises(cut.SourceChanged, match="dispatchMoeGemmToCutlass"):
        cut.cut_dispatch("")


@pytest.mark.slow
def test_a_tile_that_flashinfer_lacks_is_an_error(generator: object, tmp_path: Path) -> None:
    with pytest.raises(cut.SourceChanged, match="generates no"):
        cut.write_sources(CSRC, tmp_path, generator, {"bf16": {tactics.Tile((7, 7, 7))}})


def test_missing_modules_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flashinfer_modules, "aot_folder", lambda: tmp_path)
    assert flashinfer_modules.missing_modules() == list(flashinfer_modules.ENGINE_MODULES)
    for name in flashinfer_modules.ENGINE_MODULES[1:]:
        flashinfer_modules.library(name, tmp_path).parent.mkdir()
        flashinfer_modules.library(name, tmp_path).touch()
    assert flashinfer_modules.missing_modules() == [flashinfer_modules.FUSED_MOE]
    monkeypatch.setattr(flashinfer_modules, "aot_folder", lambda: None)
    assert flashinfer_modules.missing_modules((flashinfer_modules.TUNER,)) == [flashinfer_modules.TUNER]


def test_the_command_says_what_is_missing() -> None:
    command = [sys.executable, "-m", "hunyuan", "kernels", "--check", "--module", "no_such_module"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "missing  no_such_module\n")


@pytest.mark.slow
@pytest.mark.usefixtures("generator")  # imports FlashInfer
def test_the_prefill_s_name_is_flashinfer_s() -> None:
    """The name is part of what FlashInfer looks for: a changed spelling would compile at the first call."""
    from flashinfer.jit.attention.modules import get_single_prefill_uri

    bf16 = torch.bfloat16
    for kind, name in ((bf16, flashinfer_modules.PREFILL), (torch.float8_e4m3fn, flashinfer_modules.PREFILL_FP8)):
        assert get_single_prefill_uri("fa3", kind, kind, bf16, 128, 128, 0, False, False, False) == name
