"""Adapters in the weights: every kind of layer, loaded or quantized, alone or several, and the folder that says so."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from lora_files import added, random_pairs, write_kohya, write_peft
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan import Editor, Settings
from hunyuan.adapters import Adapter, adapters_of
from hunyuan.checkpoint import load, quantize_tasks
from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.checkpoint.adapters.merge import Adapters, model_name
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.cli.main import main
from hunyuan.errors import CheckpointError, SettingsError
from hunyuan.model.network import HunyuanImage3

CPU = torch.device("cpu")
QKV = "model.layers.1.self_attn.qkv_proj"
EXPERTS = tuple(f"model.layers.0.mlp.experts.{expert}.down_proj" for expert in range(8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In sixty shards, so that stacks of experts lie in two."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "official", shards=60)


@pytest.fixture(scope="module")
def layers(source: Path) -> LinearLayers:
    return LinearLayers(read_config(source))


@pytest.fixture(scope="module")
def everything(layers: LinearLayers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 3 for every linear layer."""
    return write_peft(tmp_path_factory.mktemp("lora") / "ink", random_pairs(layers, layers.specs))


def loaded(
    folder: Path, *lora: Adapter, experts: str = "bf16", dense: str = "bf16", dtype: torch.dtype = torch.float32
) -> HunyuanImage3:
    return load_model(folder, read_config(folder).with_formats(experts, dense), CPU, dtype, lora)


def weights(model: HunyuanImage3) -> dict[str, Tensor]:
    """By the official keys."""
    parameters, config = dict(model.named_parameters()), model.config
    specs = expected_tensors(config)
    return {
        key: parameters[spec.param].data if spec.slot is None else parameters[spec.param].data[spec.slot]
        for key, spec in specs.items()
    }


def bits(model: HunyuanImage3) -> dict[str, bytes]:
    return {
        name: parameter.data.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, parameter in model.named_parameters()
    }


def stored(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_added(merged: dict[str, Tensor], plain: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Exactly the layers of `wanted` have changed, each by that, to a few roundings of float32."""
    for key, before in plain.items():
        if key not in wanted:
            assert torch.equal(merged[key], before), key
            continue
        exact = before.double() + wanted[key]
        assert (merged[key] - exact).abs().max() < 1e-6, key
        assert (merged[key] - before).abs().max() > 1e-3, key


def test_stacks_lie_across_shards(source: Path) -> None:
    """What the tests below rest on."""
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    stacks = [{index[f"{name}.weight"] for name in EXPERTS}]
    stacks += [{file for key, file in index.items() if f"layers.{n}.mlp.experts" in key} for n in (0, 1)]
    assert any(len(files) > 1 for files in stacks)


# --- loading


def test_every_kind_of_layer_gets_its_part(source: Path, layers: LinearLayers, everything: Path) -> None:
    pairs = random_pairs(layers, layers.specs)
    kinds = {name.rpartition(".")[2] for name in layers.specs}
    assert kinds >= {"qkv_proj", "o_proj", "gate_and_up_proj", "down_proj", "wg", "lm_head", "fc1", "q_proj"}
    merged = weights(loaded(source, Adapter(everything, 0.5)))
    assert_added(merged, weights(loaded(source)), added(pairs, 0.5))


def test_the_layer_s_output_is_that_of_weight_and_adapter_side_by_side(
    source: Path, layers: LinearLayers, tmp_path: Path
) -> None:
    pairs = random_pairs(layers, [QKV], rank=4)
    model = loaded(source, Adapter(write_kohya(tmp_path / "a.safetensors", pairs, 8.0), 0.25))
    plain, (down, up) = loaded(source).get_submodule(QKV), pairs[QKV]
    x = torch.randn(7, down.shape[1], generator=torch.Generator().manual_seed(1))
    beside = plain(x) + 0.25 * (8 / 4) * (x @ down.T @ up.T)
    torch.testing.assert_close(model.get_submodule(QKV)(x), beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("experts", ["bf16", "mxfp4"])
def test_scale_0_changes_no_bit(source: Path, everything: Path, tmp_path: Path, experts: str) -> None:
    copied = shutil.copytree(source, tmp_path / "zeros")
    for path in copied.glob("*.safetensors"):  # minus zero plus zero is zero
        save_file({key: torch.where(value < 0, -0.0 * value, value) for key, value in load_file(path).items()}, path)
    for dtype in (torch.float32, torch.bfloat16):
        changed = bits(loaded(copied, Adapter(everything, 0.0), experts=experts, dtype=dtype))
        assert changed == bits(loaded(copied, experts=experts, dtype=dtype))


def test_pieces_of_rows_make_the_same_weights(source: Path, everything: Path, monkeypatch) -> None:
    whole = weights(loaded(source, Adapter(everything)))
    monkeypatch.setattr(load, "PIECE_BYTES", 1000)
    for key, weight in weights(loaded(source, Adapter(everything))).items():
        torch.testing.assert_close(weight, whole[key], rtol=0, atol=1e-6)


def test_several_add_up_on_one_layer(source: Path, layers: LinearLayers, tmp_path: Path) -> None:
    names = [QKV, *EXPERTS]
    first, second = random_pairs(layers, names, seed=1), random_pairs(layers, [QKV, "lm_head"], rank=5, seed=2)
    one = Adapter(write_kohya(tmp_path / "one.safetensors", first, None), 0.5)
    two = Adapter(write_peft(tmp_path / "two", second, {"lora_alpha": 10, "use_rslora": False}, ".default"), -1.5)
    wanted = added(first, 0.5)
    for key, part in added(second, -1.5 * 10 / 5).items():
        wanted[key] = wanted.get(key, 0) + part
    assert_added(weights(loaded(source, one, two)), weights(loaded(source)), wanted)


def test_sixteen_bits_are_rounded_once(source: Path, layers: LinearLayers, everything: Path) -> None:
    exact = weights(loaded(source, Adapter(everything)))
    for key, weight in weights(loaded(source, Adapter(everything), dtype=torch.bfloat16)).items():
        if weight.dtype == torch.bfloat16:
            assert torch.equal(weight, exact[key].bfloat16()), key


def test_an_adapter_of_the_instruct_model_fits_distil(everything: Path, layers: LinearLayers, tmp_path: Path) -> None:
    distil = write_tiny_checkpoint(tmp_path / "distil", TinyShape(distil=True))
    merged = weights(loaded(distil, Adapter(everything)))
    assert_added(merged, weights(loaded(distil)), added(random_pairs(layers, layers.specs), 1.0))


def test_what_only_distil_has_is_refused_by_the_instruct_model(source: Path, tmp_path: Path) -> None:
    distil = LinearLayers(read_config(write_tiny_checkpoint(tmp_path / "distil", TinyShape(distil=True))))
    path = write_kohya(tmp_path / "d.safetensors", random_pairs(distil, ["guidance_emb.mlp.0", QKV]), None)
    with pytest.raises(CheckpointError, match=r"adapter d: 2 keys name no linear layer.*lora_unet_guidance_emb_mlp_0"):
        loaded(source, Adapter(path))


def test_values_that_are_no_numbers_fail_the_load(source: Path, layers: LinearLayers, tmp_path: Path) -> None:
    pairs = random_pairs(layers, [QKV])
    pairs[QKV][1][2, 1] = torch.nan
    path = write_kohya(tmp_path / "nan.safetensors", pairs, 1.0)
    with pytest.raises(CheckpointError, match=rf"{QKV}.weight: adapter nan holds values there that are no numbers"):
        loaded(source, Adapter(path))


def test_no_more_is_read_at_a_time_than_a_piece_needs(
    source: Path, layers: LinearLayers, tmp_path: Path, monkeypatch
) -> None:
    """Of an adapter's larger matrix only the piece's rows are read."""
    path = write_kohya(tmp_path / "head.safetensors", random_pairs(layers, ["lm_head"], rank=2), 1.0)
    inputs = layers.specs["lm_head"].shape[1]
    with Adapters([Adapter(path)], source) as adapters:
        reader, sizes = adapters.files[0]._reader, []
        original = reader.read_into
        monkeypatch.setattr(reader, "read_into", lambda buffer, at: (sizes.append(len(buffer)), original(buffer, at)))
        adapters.merged("lm_head.weight", torch.zeros(10, inputs), 20)
    assert sizes == [2 * inputs * 4, 10 * 2 * 4]


# --- quantizing


@pytest.mark.parametrize(("word", "experts", "dense"), [("4bit", "mxfp4", "bf16"), ("fp8", "fp8", "fp8")])
def test_baked_in_is_the_same_to_the_bit_as_merged_while_loading(
    source: Path, everything: Path, tmp_path: Path, word: str, experts: str, dense: str
) -> None:
    lora = adapters_of(f"{everything}:0.5,{everything}:0.25")
    quantize_folder(source, tmp_path / "out", QuantizeOptions(word, dense, lora=lora))
    baked = load_model(tmp_path / "out", read_config(tmp_path / "out"), CPU, torch.bfloat16)
    assert bits(baked) == bits(loaded(source, *lora, experts=experts, dense=dense, dtype=torch.bfloat16))
    assert bits(baked) != bits(loaded(source, experts=experts, dense=dense, dtype=torch.bfloat16))


def test_without_adapters_a_folder_is_what_it_was(source: Path, tmp_path: Path, everything: Path) -> None:
    for name, lora in (("plain", ()), ("zero", (Adapter(everything, 0.0),))):
        quantize_folder(source, tmp_path / name, QuantizeOptions(lora=lora))
    plain, zero = stored(tmp_path / "plain"), stored(tmp_path / "zero")
    assert all(torch.equal(plain[key], value) for key, value in zero.items())
    assert "lora" not in (tmp_path / "plain/config.json").read_text()
    assert "lora" not in (tmp_path / "plain/quantization_report.json").read_text()


def test_the_folder_says_what_is_in_it(source: Path, everything: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "small"
    words = ["quantize", str(source), str(out), "--lora", f"{everything}:0.5", "--device", "cpu", "--workers", "1"]
    assert main(words) == 0
    (record,) = read_config(out).merged_adapters
    assert (record.name, record.scale) == ("ink", 0.5)
    assert str(everything) not in "".join(path.read_text() for path in out.glob("*.json"))
    assert model_name("small", out, ()) == "small+ink:0.5"
    assert read_config(out).with_formats("mxfp4", "fp8").merged_adapters == (record,)
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    said, complete = capsys.readouterr().out.splitlines()
    assert complete == f"{out} is complete"
    assert said.endswith(f", with 'ink' (scale 0.5, SHA-256 {record.sha256[:16]}) merged before")


def test_other_adapters_are_another_job(
    source: Path, everything: Path, layers: LinearLayers, tmp_path: Path, monkeypatch
) -> None:
    """An interrupted quantization goes on with its own adapters only."""
    lora, out = (Adapter(everything),), tmp_path / "out"

    def interrupted(weight: Tensor, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quantize_tasks, "quantize_mxfp4_measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(source, out, QuantizeOptions(lora=lora, workers=1))
    for other in ((), (Adapter(everything, 0.5),)):
        with pytest.raises(CheckpointError, match="another quantization"):
            quantize_folder(source, out, QuantizeOptions(lora=other))
    quantize_folder(source, out, QuantizeOptions(lora=lora))
    quantize_folder(source, tmp_path / "at once", QuantizeOptions(lora=lora))
    first, second = stored(out), stored(tmp_path / "at once")
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_an_adapter_that_does_not_fit_writes_nothing(source: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"model.layers.7.self_attn.qkv_proj.lora_A.weight": torch.ones(2, 64)}, path)
    assert main(["quantize", str(source), str(tmp_path / "out"), "--lora", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: adapter x: 1 keys name no linear layer of this network: model.layers.7")
    assert not (tmp_path / "out").exists()
    assert main(["quantize", str(source), str(tmp_path / "out"), "--lora", "none.safetensors"]) == 2
    assert capsys.readouterr().err == "error: --lora: no such file or folder: none.safetensors\n"


# --- folders that are quantized already


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (QuantizeOptions(), ["--weights", "4bit"]),
        (QuantizeOptions("fp8", "fp8"), ["--weights", "fp8", "--dense", "fp8"]),
    ],
)
def test_a_quantized_folder_is_refused_with_the_command(
    source: Path, everything: Path, tmp_path: Path, options: QuantizeOptions, words: list[str]
) -> None:
    quantize_folder(source, tmp_path / "small", options)
    named = shutil.copytree(everything, tmp_path / "my ink")
    settings = Settings(model_id=tmp_path / "small", device="cpu", dense=options.dense, lora=f"{named}:0.5")
    with pytest.raises(CheckpointError, match="small is quantized already") as caught:
        Editor.load(settings)
    command = shlex.split(str(caught.value).rpartition(": hunyuan ")[2])
    assert command == ["quantize", "OFFICIAL_FOLDER", "NEW_FOLDER", *words, "--lora", f"{named}:0.5"]
    assert main([command[0], str(source), str(tmp_path / "new"), *command[3:], "--device", "cpu"]) == 0
    assert [adapter.name for adapter in read_config(tmp_path / "new").merged_adapters] == ["my ink"]
    with pytest.raises(CheckpointError, match=r"in its weights, my ink:0\.5, is to be named there again"):
        Adapters([Adapter(everything)], tmp_path / "new")


def test_the_official_engine_refuses_adapters(source: Path, everything: Path) -> None:
    with pytest.raises(SettingsError, match="HUNYUAN_LORA: the official engine merges no adapters"):
        Editor.load(Settings(model_id=source, engine="official", lora=everything))
