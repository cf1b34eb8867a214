"""The golden checker: everything agrees, and a perturbation in any section makes that section fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan.generation import denoise, scheduler
from hunyuan.model import rope
from hunyuan.prompt import images, layout, resolution
from scripts import check_goldens
from scripts.goldens.folder import Golden

WEIGHTS = "checkpoint/model.safetensors"
ROUTED_EDITS = [
    "e2e_edit_think_recaption_easymoe",
    "e2e_t2i_fixed_easymoe",
    "e2e_edit2_think_recaption_fixed_easymoe",
    "e2e_edit2_img_ratio_easymoe",
    "e2e_edit1_align_easymoe",
    "e2e_t2i_recaption_easymoe",
    "e2e_edit3_think_recaption_align_easymoe",
    "e2e_edit_unified_align_easymoe",
    "e2e_edit_drop_think_easymoe",
    "e2e_t2i_taylor_easymoe",
]


@pytest.fixture(scope="module")
def shared(golden: Path) -> Golden:
    return Golden(golden)


def test_every_section_is_known(golden: Path) -> None:
    sections = json.loads((golden / "manifest.json").read_text())["sections"]
    assert [name for name in sections if check_goldens.checker(name) is None] == []
    assert set(ROUTED_EDITS) <= set(sections)


@pytest.mark.parametrize(
    "section", json.loads((Path(__file__).parents[1] / "data/golden_a/manifest.json").read_text())["sections"]
)
@pytest.mark.slow
def test_section_agrees(shared: Golden, section: str) -> None:
    check = check_goldens.check_section(shared, section)
    assert check.failures == []
    assert set(check.present) == (check.compared | set(check.left_out)) & set(check.present)
    assert check.compared & set(check.present)


def test_only_what_may_be_left_out_is(shared: Golden) -> None:
    reasons = {
        reason
        for section in ("tokens", "moe", "backbone", "e2e_t2i_fixed", "e2e_t2i_taylor", "backbone_easymoe")
        for reason in check_goldens.check_section(shared, section).left_out.values()
    }
    assert reasons == {
        "recorded with token dropping",
        "message list: this API has none",
    }


def test_of_an_edit_with_dropping_only_what_the_router_decides_is_left_out(shared: Golden) -> None:
    left = {name: set(check_goldens.check_section(shared, name).left_out) for name in ("e2e_t2i_fixed", "backbone")}
    assert left == {"e2e_t2i_fixed": {f"pred_{i}" for i in range(4)}, "backbone": {"layer0", "layer1", "attn1"}}


def test_every_guidance_embedding_is_compared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Distil folder records: the embedding of its guidance scale, named by the scale times 1000."""
    golden = Golden(copy)
    distil = golden.model.time_embed  # any embedder will do
    tensors = load_file(copy / "embed.safetensors")
    with torch.no_grad():
        extra = {f"guidance_emb_{v}": distil(torch.tensor([float(v)])) for v in (2500, 1000)}
    save_file({**tensors, **extra}, copy / "embed.safetensors")
    assert "has none" in check_goldens.check_section(golden, "embed").failures[0]
    monkeypatch.setattr(golden.model, "guidance_emb", distil)
    check = check_goldens.check_section(golden, "embed")
    assert check.failures == []
    assert set(extra) <= check.compared
    extra["guidance_emb_1000"] += 0.01
    save_file({**tensors, **extra}, copy / "embed.safetensors")
    assert check_goldens.check_section(golden, "embed").failures


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("e2e_t2i_fixed", "guided_1"),
        ("e2e_t2i_fixed", "latents_3"),
        ("e2e_t2i_fixed", "vae_in"),
        ("e2e_t2i_fixed", "sigmas"),
        ("backbone", "ln_f"),
        ("backbone", "logits_last4"),
    ],
)
def test_what_is_computed_from_recorded_values_is_really_compared(copy: Path, section: str, name: str) -> None:
    tensors = load_file(copy / f"{section}.safetensors")
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, copy / f"{section}.safetensors")
    assert any(name in failure for failure in check_goldens.check_section(Golden(copy), section).failures)


@pytest.mark.parametrize("fact", ["output_size_wh", "cot_text", "text_calls", "step_inputs"])
def test_the_facts_of_an_edit_with_dropping_are_compared(copy: Path, fact: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    meta = manifest["sections"]["e2e_t2i_recaption"]
    change = {
        "output_size_wh": [304, 209],
        "cot_text": ["<recaption> something else</recaption>"],
        "text_calls": [{**meta["text_calls"][0], "prompt_len": 24}],
        "step_inputs": meta["step_inputs"][::-1],
    }
    meta[fact] = change[fact]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any(fact in failure for failure in check_goldens.check_section(Golden(copy), "e2e_t2i_recaption").failures)


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("section", "names", "still"),
    [
        ("moe", ["x"], "out_easy_topk"),
        ("vae", ["decode_in"], "decode_out"),
        ("embed", ["patch_in", "final_in"], "final_out"),
    ],
)
def test_an_input_that_was_trimmed_is_drawn_again(copy: Path, section: str, names: list[str], still: str) -> None:
    trim(copy, section, names)
    check = check_goldens.check_section(Golden(copy), section)
    assert check.failures == []
    assert still in check.compared


@pytest.mark.parametrize(
    ("section", "name", "lost"),
    [("embed", "patch_t", "final_out"), ("embed", "t", "sinusoid"), ("backbone_easymoe", "positions", "layer0")],
)
def test_what_cannot_be_computed_any_more_is_left_out_by_name(copy: Path, section: str, name: str, lost: str) -> None:
    trim(copy, section, [name])
    check = check_goldens.check_section(Golden(copy), section)
    assert check.failures == []
    assert lost not in check.compared
    assert name in check.left_out[lost]


def trim(folder: Path, section: str, names: list[str]) -> None:
    """Takes tensors out of a section, as a trimmed folder would lack them."""
    path = folder / f"{section}.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key not in names}, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        del manifest["sections"][section]["keys"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def perturb_weight(folder: Path, key: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[key] = (tensors[key].float() * 1.5 + 0.05).to(tensors[key].dtype)
    save_file(tensors, folder / WEIGHTS)


WEIGHT_OF_SECTION = {
    "vae": "vae.encoder.conv_in.weight",
    "vit": "vision_model.encoder.layers.0.mlp.fc1.weight",
    "embed": "patch_embed.model.0.weight",
    "moe": "model.layers.0.mlp.experts.3.down_proj.weight",
    "backbone": "model.layers.0.self_attn.qkv_proj.weight",
    "backbone_easymoe": "model.layers.1.mlp.experts.0.gate_and_up_proj.weight",
    "e2e_t2i_fixed": None,
    "e2e_edit_think_recaption": "vae.encoder.mid.block_1.conv1.weight",
    "e2e_edit2_img_ratio": "vae.encoder.conv_in.bias",
    "e2e_edit1_align": "vae.encoder.norm_out.weight",
    "e2e_edit2_think_recaption_fixed": "vae.encoder.mid.attn_1.v.weight",
    **dict.fromkeys(ROUTED_EDITS, "final_layer.model.1.2.weight"),
}


@pytest.mark.parametrize(("section", "key"), [(s, k) for s, k in WEIGHT_OF_SECTION.items() if k])
def test_a_perturbed_weight_fails_its_section(copy: Path, section: str, key: str) -> None:
    perturb_weight(copy, key)
    assert check_goldens.check_section(Golden(copy), section).failures


@pytest.mark.parametrize(
    "key",
    [
        "vae.decoder.up.4.block.0.conv1.weight",
        "model.layers.1.self_attn.key_layernorm.weight",
        "vision_aligner.layers.2.bias",
        "timestep_emb.mlp.2.bias",
        "time_embed_2.mlp.0.weight",
    ],
)
def test_an_edit_notices_every_part_of_the_network(copy: Path, key: str) -> None:
    perturb_weight(copy, key)
    assert check_goldens.check_section(Golden(copy), "e2e_edit1_align_easymoe").failures


def _extra_bucket(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolution, "_EXTRA", ((768, 1040), *resolution._EXTRA[1:]))
    resolution.resolution_group.cache_clear()


CONSTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "resolution": _extra_bucket,
    "preprocess": lambda patch: patch.setattr(images, "centre_crop", images.resize),
    "tokens": lambda patch: patch.setitem(layout.TEMPLATES, "instruct", layout.TEMPLATES["pretrain"]),
    "scheduler": lambda patch: patch.setattr(scheduler, "TRAIN_STEPS", 999),
    "mask_rope": lambda patch: patch.setattr(rope.Grid, "stop", property(lambda grid: grid.start + 1)),
    "e2e_t2i_fixed": lambda patch: patch.setitem(layout.TEMPLATES, "instruct", layout.TEMPLATES["pretrain"]),
    "e2e_t2i_recaption": lambda patch: patch.setitem(layout.TEMPLATES, "instruct", layout.TEMPLATES["pretrain"]),
    "e2e_t2i_taylor": lambda patch: patch.setitem(layout.TEMPLATES, "instruct", layout.TEMPLATES["pretrain"]),
    "e2e_t2i_fixed_easymoe": lambda patch: patch.setattr(
        denoise, "classifier_free_guidance", lambda cond, uncond, scale: cond
    ),
}


@pytest.mark.parametrize("section", CONSTANTS)
def test_a_perturbed_constant_fails_its_section(golden: Path, section: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        CONSTANTS[section](patch)
        failures = check_goldens.check_section(Golden(golden), section).failures
    resolution.resolution_group.cache_clear()
    assert failures


@pytest.mark.parametrize(
    "section", ["e2e_edit2_img_ratio", "e2e_edit1_align", "e2e_edit2_think_recaption_fixed", "e2e_t2i_recaption"]
)
def test_a_perturbed_record_fails_its_section(copy: Path, section: str) -> None:
    tensors = load_file(copy / f"{section}.safetensors")
    tensors["gen_input_ids"][0, 3] += 1
    save_file(tensors, copy / f"{section}.safetensors")
    assert check_goldens.check_section(Golden(copy), section).failures


def test_something_recorded_and_not_compared_fails(copy: Path) -> None:
    tensors = load_file(copy / "vit.safetensors")
    save_file({**tensors, "novel": torch.zeros(1)}, copy / "vit.safetensors")
    failures = check_goldens.check_section(Golden(copy), "vit").failures
    assert failures == ["not compared: novel"]


def test_something_the_manifest_names_and_the_file_lacks_fails(copy: Path) -> None:
    tensors = load_file(copy / "vit.safetensors")
    del tensors["aligned"]
    save_file(tensors, copy / "vit.safetensors")
    failures = check_goldens.check_section(Golden(copy), "vit").failures
    assert failures == ["named by the manifest and not in the file: aligned"]


def test_an_unknown_section_fails(copy: Path) -> None:
    manifest: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    manifest["sections"] = {"novel": {"file": "x.safetensors"}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert check_goldens.check_section(Golden(copy), "novel").failures == ["unknown section"]


def test_command_line_reports_and_sets_the_exit_code(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_goldens.main([str(copy), "--section", "scheduler", "--section", "vit"]) == 0
    assert "4 of   4 compared" in capsys.readouterr().out
    perturb_weight(copy, "vision_aligner.layers.0.weight")
    assert check_goldens.main([str(copy), "--section", "vit"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "aligned" in out
