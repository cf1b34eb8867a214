"""Which checkpoints `hunyuan compare` takes, and what it says of the others before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hunyuan import Editor, EditRequest
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.cli.compare import build_cases
from hunyuan.cli.main import build_parser, main
from hunyuan.compare.comparable import NotComparable, check_comparable
from hunyuan.compare.sample_photos import photo
from hunyuan.errors import CheckpointError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with all 37 shapes, as Instruct has them."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("reference") / "a", TinyShape(extra_ratios=True))


@pytest.fixture
def other(reference: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes another folder of the reference's small files; no weights: nothing reads them."""

    def make(file: str, change: Change, source: Path = reference) -> Path:
        folder = tmp_path / "b"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return folder

    return make


def cases(*options: str) -> list[EditRequest]:
    return build_cases(build_parser("compare").parse_args(["compare", "a", "b", *options]))


def with_values(**values: Any) -> Change:
    return lambda config: config.update(values)


def wider(config: dict[str, Any]) -> None:
    config["hidden_size"] = config["vit_aligner"]["n_embed"] = 96


def with_more_latents(config: dict[str, Any]) -> None:
    config["vae"]["latent_channels"] = 16


# --- what differs in config.json


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (wider, "hidden_size 96 instead of 64"),
        (with_values(vocab_size=5000), "vocab_size 5000 instead of VOCABULARY"),
        (with_values(num_hidden_layers=1), "num_hidden_layers 1 instead of 2"),
        (with_more_latents, "vae.latent_channels 16 instead of 8"),
        (with_values(vae_downsample_factor=[8, 16]), "vae_downsample_factor (8, 16) instead of 16"),
        (with_values(image_base_size=512), "image_base_size 512 instead of 256"),
        (with_values(num_experts=4), "num_experts 4 instead of 8"),
        (with_values(moe_intermediate_size=[32, 64]), "moe_intermediate_size (32, 64) instead of 32"),
        (
            with_values(num_experts=4, vocab_size=5000),
            "vocab_size 5000 instead of VOCABULARY, num_experts 4 instead of 8",
        ),
    ],
)
def test_other_shapes_are_refused_in_one_line_before_anything_loads(
    reference, other, change, told, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(Editor, "load", lambda *_: pytest.fail("loaded"))
    folder = other("config.json", change)
    assert main(["compare", str(reference), str(reference), f"{folder}@weights=4bit"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    vocabulary = json.loads((reference / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    differences = told.replace("VOCABULARY", str(vocabulary))
    assert line == f"error: {folder} cannot be compared with {reference}: config.json has {differences}"


def test_every_candidate_that_cannot_be_compared_is_named(reference, other, tmp_path) -> None:
    shallow = other("config.json", with_values(num_hidden_layers=1)).rename(tmp_path / "shallow")
    wide = other("config.json", wider)
    with pytest.raises(NotComparable) as error:
        check_comparable(reference, [shallow, reference, wide, wide], cases())
    assert str(error.value) == (
        f"{shallow} cannot be compared with {reference}: config.json has num_hidden_layers 1 instead of 2; "
        f"{wide} cannot be compared with {reference}: config.json has hidden_size 96 instead of 64"
    )


@pytest.mark.parametrize(
    "change",
    [
        with_values(cfg_distilled=True, use_meanflow=True),
        with_values(num_attention_heads=2, rope_theta=20000.0, torch_dtype="bfloat16"),
        with_values(num_experts=[8, 8, 8], moe_topk=1),
        with_values(quantization_config={"experts": "fp8", "dense": "fp8"}),
        with_values(quantization_config={"experts": ["fp8", "mxfp4"], "dense": "bf16"}),
        with_values(
            quantization_config={"experts": "mxfp4", "lora": [{"name": "faces", "scale": 0.5, "sha256": "0" * 64}]}
        ),
        with_values(max_position_embeddings=8192),
    ],
)
def test_what_no_measure_needs_may_differ(reference, other, change) -> None:
    folder = other("config.json", change)
    check_comparable(reference, [folder], cases())
    check_comparable(folder, [reference], cases())


def test_a_quantized_folder_and_its_source(reference, tmp_path) -> None:
    quantize_folder(reference, tmp_path / "4bit", QuantizeOptions())
    check_comparable(reference, [tmp_path / "4bit"], cases())
    check_comparable(tmp_path / "4bit", [reference, tmp_path / "4bit"], cases())


def test_experts_of_a_quantized_reference_are_not_measured(reference, other, tmp_path) -> None:
    a = other("config.json", with_values(quantization_config={"experts": "mxfp4"})).rename(tmp_path / "4bit")
    check_comparable(a, [other("config.json", with_values(num_experts=4))], cases())


# --- sizes of pictures


def test_the_base_model_paints_the_built_in_requests_in_the_same_sizes(reference, other) -> None:
    check_comparable(reference, [other("config.json", with_values(model_version="HunyuanImage-3.0"))], cases())


def test_a_size_that_only_one_side_has_is_named_with_the_reason(reference, other, tmp_path) -> None:
    folder = other("config.json", with_values(model_version="HunyuanImage-3.0"))
    wide = cases("--prompt", "Make it blue", "--resolution", "1280x720")
    with pytest.raises(NotComparable) as error:
        check_comparable(reference, [folder], wide)
    assert str(error.value).endswith(
        "config.json has model_version 'HunyuanImage-3.0' instead of 'HunyuanImage-3.0-Instruct', "
        "so that 'Make it blue' is painted at 320x192 px instead of 1280x720"
    )


def test_a_source_that_decides_about_the_size_on_one_side_only(reference, other, tmp_path) -> None:
    """What is painted has the same size; the picture takes on the source's ratio where both have the same bucket."""
    folder = other("config.json", with_values(image_fixed_shapes=False))
    photo(730, 1000).save(tmp_path / "photo.png")
    requests = cases("--prompt", "x", "--image", str(tmp_path / "photo.png"), "--resolution", "224x288")
    with pytest.raises(NotComparable) as error:
        check_comparable(reference, [folder], requests)
    told = "config.json has image_fixed_shapes False instead of True, so that 'x' is painted at 219x300 px instead of "
    assert str(error.value).endswith(f"{told}224x288")


def test_a_size_that_each_side_would_choose_is_refused(reference, capsys) -> None:
    for size, told in (("auto", "which each side may read otherwise"), ("big", "got 'big'")):
        assert main(["compare", str(reference), str(reference), "--resolution", size]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --resolution: ")
        assert told in line


# --- tokenizer.json


def unchanged(_content: dict[str, Any]) -> None:
    """Written with other blanks than the library writes."""


def without_a_special_token(content: dict[str, Any]) -> None:
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<timestep_r>"]


def merges_as_pairs(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]


@pytest.mark.parametrize("change", [unchanged, without_a_special_token, merges_as_pairs])
def test_a_tokenizer_that_reads_texts_alike_is_the_same(reference, other, change) -> None:
    check_comparable(reference, [other("tokenizer.json", change)], cases())


def swapped(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def without_the_last_merge(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def with_another_split(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def with_a_word_of_its_own(content: dict[str, Any]) -> None:
    last = max(token["id"] for token in content["added_tokens"])
    word = {"id": last + 1, "content": "hello", "special": False, "single_word": False, "normalized": False}
    content["added_tokens"].append(word | {"lstrip": False, "rstrip": False})


def cut_short(content: dict[str, Any]) -> None:
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_a_word_of_its_own, r"'hello' \d+ instead of None$"),
        (cut_short, r"another truncation$"),
        (swapped, r"2 other tokens, for one 'a' (\d+) instead of (?!\1)\d+$"),
        (without_the_last_merge, r"another model\.merges$"),
        (with_another_split, r"another pre_tokenizer$"),
    ],
)
def test_another_tokenizer_is_refused(reference, other, change, told) -> None:
    with pytest.raises(NotComparable, match=rf"cannot be compared with \S+: tokenizer\.json has {told}"):
        check_comparable(reference, [other("tokenizer.json", change)], cases())


# --- files that are missing


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_candidate_without_its_small_files_is_named_before_anything_loads(
    reference, other, file, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(Editor, "load", lambda *_: pytest.fail("loaded"))
    folder = other(file, unchanged)
    (folder / file).unlink()
    assert main(["compare", str(reference), str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {folder}: {file} is missing in the checkpoint folder b"


def test_a_refusal_is_a_wrong_folder_s() -> None:
    assert issubclass(NotComparable, CheckpointError)
