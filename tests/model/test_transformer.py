"""The decoder stack: how q, k and v lie in the projection, the order of rotation and norm, and no state left behind."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from small_model import Buffers, model_config, noise, randomized
from torch import Tensor, nn

from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.attention import split_heads, split_segments
from hunyuan.model.rope import Grid, apply_rope, positions_2d, rope_table
from hunyuan.model.transformer import DecoderLayer, RMSNorm, SelfAttention, Transformer
from scripts.support.dense_attention import attend_masked, dense_mask

LENGTH = 14
BLOCKS = [(3, 9)]
GRIDS = [Grid(3, 2, 3)]


def rope(config: CheckpointConfig, start: int = 0, stop: int = LENGTH) -> tuple[Tensor, Tensor]:
    return rope_table(positions_2d(start, stop, GRIDS), config.attention_head_dim, config.rope_theta)


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def run(model: Transformer, x: Tensor, kv: Buffers | None = None, start: int = 0) -> Tensor:
    stop = start + x.shape[1]
    segments = split_segments(start, stop, BLOCKS)
    return model(x, rope(model_config(), start, stop), Buffers() if kv is None else kv, segments)


def split_qkv(block: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of `x`, before RoPE and QK norm: `[rows, tokens, heads or kv_heads, head_dim]`."""
    return split_heads(block.qkv_proj(x), block.shape.heads, block.shape.kv_heads, block.shape.head_dim)


def attention_by_hand(block: SelfAttention, config: CheckpointConfig, x: Tensor, norm_first: bool = False) -> Tensor:
    q, k, v = split_qkv(block, x)

    def norm(t: Tensor, layer: RMSNorm | None) -> Tensor:
        return t if layer is None else rms(t, layer.weight)

    cos, sin = rope(config)
    if norm_first:
        q, k = (apply_rope(norm(t, n), cos, sin) for t, n in ((q, block.query_layernorm), (k, block.key_layernorm)))
    else:
        q, k = (norm(apply_rope(t, cos, sin), n) for t, n in ((q, block.query_layernorm), (k, block.key_layernorm)))
    out = attend_masked(q, k, v, dense_mask(LENGTH, BLOCKS))
    return block.o_proj(out.flatten(2))


def attention(block: SelfAttention, config: CheckpointConfig, x: Tensor, kv: Buffers | None = None) -> Tensor:
    return block(x, rope(config), Buffers() if kv is None else kv, 0, split_segments(0, LENGTH, BLOCKS))


# --- norm


def test_rms_norm_formula():
    layer, x = randomized(RMSNorm(6, 0.25)), noise(2, 3, 6)
    for row in range(2):
        for token in range(3):
            values = x[row, token].tolist()
            scale = (sum(v * v for v in values) / 6 + 0.25) ** -0.5
            expected = [v * scale * w for v, w in zip(values, layer.weight.tolist(), strict=True)]
            torch.testing.assert_close(layer(x)[row, token], torch.tensor(expected))


def test_rms_norm_rounds_before_the_weight():
    layer = randomized(RMSNorm(64, 1e-5)).bfloat16()
    x = (100 * noise(8, 64)).bfloat16()
    exact = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, layer.weight * exact.bfloat16())
    assert not torch.equal(out, (layer.weight.float() * exact).bfloat16())


# --- q, k and v


@pytest.mark.trap(14)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 2), (4, 4), (4, 1)])
def test_fused_projection_is_interleaved_per_key_value_head(heads, kv_heads):
    """Each output of the projection is its own row number, so every head says which rows it was made of."""
    dim, group = 4, heads // kv_heads
    config = model_config(num_attention_heads=heads, num_key_value_heads=kv_heads, attention_head_dim=dim)
    block = randomized(SelfAttention(config))
    rows = (heads + 2 * kv_heads) * dim
    block.qkv_proj.weight.zero_()
    block.qkv_proj.weight[:, 0] = torch.arange(rows)
    x = torch.zeros(1, 1, config.hidden_size)
    x[..., 0] = 1
    q, k, v = (t[0, 0] for t in split_qkv(block, x))
    # [q, q, .., k, v] of key-value head 0, then those of head 1, ...
    order = torch.arange(rows).view(-1, dim).tolist()
    expected_q, expected_k, expected_v = [], [], []
    for _ in range(kv_heads):
        expected_q += [order.pop(0) for _ in range(group)]
        expected_k.append(order.pop(0))
        expected_v.append(order.pop(0))
    assert q.tolist() == expected_q
    assert k.tolist() == expected_k
    assert v.tolist() == expected_v


def test_head_dim_is_free_of_hidden_size():
    block = SelfAttention(model_config(attention_head_dim=24))
    assert block.qkv_proj.weight.shape == ((4 + 2 * 2) * 24, 64)
    assert block.o_proj.weight.shape == (64, 4 * 24)


# --- attention


def test_rotation_comes_before_the_norm():
    config = model_config()
    block, x = randomized(SelfAttention(config)), noise(2, LENGTH, 64)
    out = attention(block, config, x)
    torch.testing.assert_close(out, attention_by_hand(block, config, x), rtol=1e-4, atol=1e-5)
    assert (out - attention_by_hand(block, config, x, norm_first=True)).abs().max() > 0.01


def test_without_qk_norm_there_is_none():
    config = model_config(use_qk_norm=False)
    block, x = randomized(SelfAttention(config)), noise(2, LENGTH, 64)
    assert [name for name, _ in block.named_parameters()] == ["qkv_proj.weight", "o_proj.weight"]
    out = attention(block, config, x)
    torch.testing.assert_close(out, attention_by_hand(block, config, x), rtol=1e-4, atol=1e-5)
    with_norm = randomized(SelfAttention(model_config()))
    with_norm.qkv_proj.weight.copy_(block.qkv_proj.weight)
    with_norm.o_proj.weight.copy_(block.o_proj.weight)
    assert (out - attention(with_norm, config, x)).abs().max() > 0.01


def test_buffers_get_turned_and_normed_keys_and_plain_values():
    config = model_config()
    block, x, kv = randomized(SelfAttention(config)), noise(2, LENGTH, 64), Buffers()
    attention(block, config, x, kv)
    _, k, v = split_qkv(block, x)
    torch.testing.assert_close(kv.keys[0], rms(apply_rope(k, *rope(config)), block.key_layernorm.weight))
    assert torch.equal(kv.values[0], v)


def test_bf16_buffers_stay_bf16():
    config = model_config()
    block, kv = randomized(SelfAttention(config)).bfloat16(), Buffers()
    out = attention(block, config, noise(1, LENGTH, 64).bfloat16(), kv)
    assert out.dtype == kv.keys[0].dtype == kv.values[0].dtype == torch.bfloat16


# --- layers


def transformer(**changes: Any) -> Transformer:
    return randomized(Transformer(model_config(**changes)))


def test_layer_adds_attention_and_then_experts_of_the_normed_stream():
    config = model_config()
    layer, x = randomized(DecoderLayer(config, 1)), noise(2, LENGTH, 64)
    kv = Buffers()
    out = layer(x, rope(config), kv, split_segments(0, LENGTH, BLOCKS))
    assert list(kv.keys) == [1]
    x = x + attention_by_hand(layer.self_attn, config, rms(x, layer.input_layernorm.weight))
    x = x + layer.mlp(rms(x, layer.post_attention_layernorm.weight))
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-5)


def test_output_is_the_residual_stream_without_the_final_norm():
    model, x = transformer(), noise(1, LENGTH, 64)
    before = run(model, x)
    model.ln_f.weight.fill_(99.0)
    assert torch.equal(run(model, x), before)
    for layer in model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.experts.down_proj.zero_()
        layer.mlp.shared_mlp.down_proj.weight.zero_()
    assert torch.equal(run(model, x), x)


def test_every_layer_has_its_own_buffers_and_its_turn():
    model, x, kv = transformer(num_hidden_layers=3, **_lists(3)), noise(1, LENGTH, 64), Buffers()
    out = run(model, x, kv)
    assert list(kv.keys) == [0, 1, 2]
    by_layer = x
    for index, layer in enumerate(model.layers):
        assert layer.layer == index
        by_layer = layer(by_layer, rope(model_config()), Buffers(), split_segments(0, LENGTH, BLOCKS))
    assert torch.equal(out, by_layer)


def _lists(layers: int) -> dict[str, list[int]]:
    return {"moe_intermediate_size": [32] * layers, "moe_topk": [2] * layers, "num_shared_expert": [1] * layers}


@pytest.mark.parametrize("cuts", [[3], [9], [2, 3, 9, 13], [1, 2, 10, 11, 12]])
def test_sequence_may_come_in_pieces(cuts):
    model, x, kv = transformer(), noise(2, LENGTH, 64), Buffers()
    whole = run(model, x)
    ends = [0, *cuts, LENGTH]
    parts = [run(model, x[:, a:b], kv, a) for a, b in pairwise(ends)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


# --- no state


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that hangs on any module: attributes by identity, tensors by place and version too."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            items = value.items() if isinstance(value, dict) else [("", value)]
            for part, item in items:
                version = (item.data_ptr(), item._version, item.shape) if isinstance(item, Tensor) else None
                found[f"{name}.{key}.{part}"] = (id(item), version)
    return found


@pytest.mark.trap(16)
def test_forward_leaves_nothing_on_the_model():
    model = transformer()
    before, count = state(model), len(list(model.buffers()))
    run(model, noise(2, LENGTH, 64))
    run(model, noise(1, 3, 64))
    assert state(model) == before
    assert len(list(model.buffers())) == count == 0


@pytest.mark.trap(16)
def test_two_requests_taking_turns_do_not_disturb_each_other():
    model = transformer()
    first, second = noise(1, LENGTH, 64, seed=1), noise(2, LENGTH, 64, seed=2)
    alone = [run(model, first), run(model, second)]
    mine, theirs = Buffers(), Buffers()
    ours = [run(model, first[:, :9], mine)]
    others = [run(model, second[:, :10], theirs)]
    ours.append(run(model, first[:, 9:], mine, 9))
    others.append(run(model, second[:, 10:], theirs, 10))
    torch.testing.assert_close(torch.cat(ours, dim=1), alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(others, dim=1), alone[1], rtol=1e-4, atol=1e-5)
