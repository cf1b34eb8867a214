"""Which keys of a LoRA file name which layer."""

from __future__ import annotations

import pytest
from small_model import model_config

from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.checkpoint.tensor_table import expected_tensors

ATTENTION = "model.layers.1.self_attn.qkv_proj"
SHARED = "model.layers.0.mlp.shared_mlp.down_proj"
EXPERT = "model.layers.0.mlp.experts.3.gate_and_up_proj"


@pytest.fixture(scope="module")
def layers() -> LinearLayers:
    return LinearLayers(model_config())


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (f"base_model.model.{ATTENTION}.lora_A.weight", (ATTENTION, "down")),
        (f"base_model.model.{EXPERT}.lora_B.default.weight", (EXPERT, "up")),
        (f"{EXPERT}.lora_B.weight", (EXPERT, "up")),
        ("lora_unet_model_layers_0_mlp_experts_3_gate_and_up_proj.lora_down.weight", (EXPERT, "down")),
        ("lora_unet_model_layers_1_self_attn_qkv_proj.alpha", (ATTENTION, "alpha")),
        (f"base_model.model.{SHARED}.lora_A.weight", (SHARED, "down")),
        ("base_model.model.model.layers.0.mlp.gate.wg.lora_B.weight", ("model.layers.0.mlp.gate.wg", "up")),
        ("lora_unet_lm_head.lora_up.weight", ("lm_head", "up")),
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", None),
        (f"base_model.model.{ATTENTION}.lora_magnitude_vector", None),
        (f"base_model.model.{ATTENTION}.lora_B.bias", None),
        (f"base_model.model.{ATTENTION}.weight", None),
        ("base_model.model.model.wte.lora_embedding_A", None),
        ("base_model.model.model.wte.lora_A.weight", None),
        ("base_model.model.model.ln_f.lora_A.weight", None),
        ("base_model.model.final_layer.model.1.2.lora_A.weight", None),  # a convolution
        ("lora_te_model_layers_1_self_attn_qkv_proj.alpha", None),
    ],
)
def test_a_key_names_a_linear_layer_or_nothing(layers: LinearLayers, key: str, named: tuple[str, str] | None) -> None:
    assert layers.named_by(key) == named


def test_every_matrix_of_the_backbone_but_the_table_is_a_layer_and_none_share_a_flat_name(layers: LinearLayers) -> None:
    specs = expected_tensors(model_config())
    backbone = {key for key, spec in specs.items() if key.startswith(("model.", "lm_head.")) and len(spec.shape) == 2}
    assert backbone - {f"{name}.weight" for name in layers.specs} == {"model.wte.weight"}
    assert len({name.replace(".", "_") for name in layers.specs}) == len(layers.specs)
    assert all(len(spec.shape) == 2 for spec in layers.specs.values())
