"""A perturbed weight, constant or record in any section of the golden folder makes that section fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from golden_copy import perturb_weight
from safetensors.torch import load_file, save_file

from hunyuan.generation import denoise, scheduler
from hunyuan.model import rope
from hunyuan.prompt import images, layout, resolution
from scripts import check_goldens
from scripts.goldens.folder import Golden

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
RECORDED_EDITS = ["e2e_edit2_img_ratio", "e2e_edit1_align", "e2e_edit2_think_recaption_fixed", "e2e_t2i_recaption"]


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "copy"))


def test_every_routed_edit_is_there(golden: Path) -> None:
    assert set(ROUTED_EDITS) <= set(json.loads((golden / "manifest.json").read_text())["sections"])


def edits_are_slow(sections: Collection[str]) -> list[Any]:
    """The quick tests look at the parts of the network and at one edit; CI runs them all."""
    slow = {name for name in sections if name.startswith("e2e_") and name != "e2e_t2i_recaption"}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in sections]


WEIGHT_OF_SECTION = {
    "vae": "vae.encoder.conv_in.weight",
    "vit": "vision_model.encoder.layers.0.mlp.fc1.weight",
    "embed": "patch_embed.model.0.weight",
    "moe": "model.layers.0.mlp.experts.3.down_proj.weight",
    "backbone": "model.layers.0.self_attn.qkv_proj.weight",
    "backbone_easymoe": "model.layers.1.mlp.experts.0.gate_and_up_proj.weight",
    "e2e_edit_think_recaption": "vae.encoder.mid.block_1.conv1.weight",
    "e2e_edit2_img_ratio": "vae.encoder.conv_in.bias",
    "e2e_edit1_align": "vae.encoder.norm_out.weight",
    "e2e_edit2_think_recaption_fixed": "vae.encoder.mid.attn_1.v.weight",
    **dict.fromkeys(ROUTED_EDITS, "final_layer.model.1.2.weight"),
}


@pytest.mark.parametrize("section", edits_are_slow(WEIGHT_OF_SECTION))
def test_a_perturbed_weight_fails_its_section(copy: Path, section: str) -> None:
    perturb_weight(copy, WEIGHT_OF_SECTION[section])
    assert check_goldens.check_section(Golden(copy), section).failures


@pytest.mark.slow
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


@pytest.mark.parametrize("section", edits_are_slow(CONSTANTS))
def test_a_perturbed_constant_fails_its_section(golden: Path, section: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        CONSTANTS[section](patch)
        failures = check_goldens.check_section(Golden(golden), section).failures
    resolution.resolution_group.cache_clear()
    assert failures


@pytest.mark.parametrize("section", edits_are_slow(RECORDED_EDITS))
def test_a_perturbed_record_fails_its_section(copy: Path, section: str) -> None:
    tensors = load_file(copy / f"{section}.safetensors")
    tensors["gen_input_ids"][0, 3] += 1
    save_file(tensors, copy / f"{section}.safetensors")
    assert check_goldens.check_section(Golden(copy), section).failures
