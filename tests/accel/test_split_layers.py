"""Layers over several devices: where they go, and that everything they touch goes with them."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from small_model import model_config, noise, randomized
from split_model import move_layers
from torch import Tensor

from hunyuan.accel import split_layers as placing
from hunyuan.accel.split_layers import connect
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.attention import Segment
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.model.transformer import Transformer
from hunyuan.placement import Placement, layer_counts

A, B, C = (torch.device("cuda", i) for i in range(3))
CPU, META = torch.device("cpu"), torch.device("meta")
TOKENS = 6
PER_LAYER = {"moe_intermediate_size": 32, "moe_topk": 2, "num_shared_expert": 1}


# --- who goes where


def slack(layer_bytes: list[int], room: list[int], counts: tuple[int, ...]) -> int:
    """The least that is left free on a device that has layers, and on the first one."""
    left, start = [], 0
    for index, (free, count) in enumerate(zip(room, counts, strict=True)):
        used = sum(layer_bytes[start : start + count])
        start += count
        if count or index == 0:
            left.append(free - used)
    return min(left)


@pytest.mark.parametrize("room", [[10, 10], [4, 20], [20, 4, 9], [7, 7, 7], [30], [0, 30], [9, 1, 30]])
@pytest.mark.parametrize("layer_bytes", [[3, 3, 3, 3], [5, 1, 1, 5], [1, 2, 3, 4, 5]])
def test_the_fullest_device_is_as_empty_as_can_be(layer_bytes, room):
    every = [c for c in product(range(len(layer_bytes) + 1), repeat=len(room)) if sum(c) == len(layer_bytes)]
    possible = [c for c in every if slack(layer_bytes, room, c) >= 0]
    counts = layer_counts(layer_bytes, room)
    if not possible:
        assert counts is None
        return
    assert counts is not None
    assert sum(counts) == len(layer_bytes)
    assert slack(layer_bytes, room, counts) == max(slack(layer_bytes, room, c) for c in possible)


def test_nothing_fits_where_the_first_device_is_overfull_without_layers():
    assert layer_counts([1, 1], [-1, 100]) is None
    assert layer_counts([1, 1], [0, -1, 100]) == (0, 0, 2)


def test_layers_are_placed_in_order_and_the_rest_on_the_first():
    placement = Placement.in_order([A, B, C], [1, 2, 1])
    assert placement.layers == (A, B, B, C)
    assert placement.is_split
    names = {"model.layers.0.mlp.gate.wg.weight": A, "model.layers.2.self_attn.o_proj.weight": B, "model.layers.3": C}
    names |= dict.fromkeys(("lm_head.weight", "model.wte.weight", "model.ln_f.weight", "vae.decoder.conv_in.bias"), A)
    assert {name: placement.device_of(name) for name in names} == names


def test_every_parameter_of_a_checkpoint_has_a_device():
    config = model_config()
    placement = Placement.in_order([A, B], [1, 1])
    on_b = {spec.param for spec in expected_tensors(config).values() if placement.device_of(spec.param) == B}
    assert on_b == {s.param for s in expected_tensors(config).values() if s.param.startswith("model.layers.1.")}


def test_one_device_is_no_split():
    placement = Placement.single(A, 3)
    assert placement.layers == (A, A, A)
    assert not placement.is_split


# --- going there


def backbone(layers: int = 4, **changes: Any) -> Transformer:
    return randomized(Transformer(model_config(num_hidden_layers=layers, **PER_LAYER, **changes)))


def buffers(layers: int, devices: tuple[torch.device, ...] | None = None) -> KVCache:
    config = model_config(num_hidden_layers=layers, **PER_LAYER)
    return KVCache.allocate(config, 1, 8, torch.float32, devices or CPU)


def rope(start: int, stop: int) -> tuple[Tensor, Tensor]:
    config = model_config()
    return rope_table(positions_2d(start, stop, []), config.attention_head_dim, config.rope_theta)


def prefill(model: Transformer, kv: KVCache) -> Tensor:
    segments = [Segment(0, TOKENS, causal=True)]
    return model(noise(1, TOKENS, model_config().hidden_size), rope(0, TOKENS), kv, segments)


def decode(model: Transformer, kv: KVCache) -> Tensor:
    x = noise(1, 1, model_config().hidden_size, seed=1)
    return model.decode(x, rope(TOKENS, TOKENS + 1), kv, torch.tensor([TOKENS], dtype=torch.int32))


@pytest.fixture
def journey(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every tensor that is sent anywhere, as (shape, device), and every change of the current device, in order.

    The devices are names here: all tensors stay on the CPU.
    """
    seen: list[Any] = []
    where: dict[int, torch.device] = {}
    kept: list[Tensor] = []  # ids must not be used again

    def transfer(tensor: Tensor, device: torch.device) -> Tensor:
        if where.get(id(tensor), A if device != A else None) == device:
            return tensor
        seen.append((tuple(tensor.shape), device.index))
        moved = tensor.clone()
        where[id(moved)] = device
        kept.append(moved)
        return moved

    monkeypatch.setattr(placing, "transfer", transfer)
    monkeypatch.setattr(placing, "_make_current", lambda device: seen.append(device.index))
    return seen


@pytest.mark.parametrize("counts", [(2, 2), (1, 3), (3, 1), (0, 4)])
def test_two_devices_compute_what_one_does(journey, counts):
    one = backbone()
    two = copy.deepcopy(one)
    connect(two, Placement.in_order([A, B], counts))
    ours, theirs = buffers(4), buffers(4)
    assert torch.equal(prefill(two, ours), prefill(one, theirs))
    assert torch.equal(decode(two, ours), decode(one, theirs))
    for layer in range(4):
        assert torch.equal(ours.keys[layer][:, : TOKENS + 1], theirs.keys[layer][:, : TOKENS + 1])


def test_tables_travel_once_a_pass_and_the_answer_comes_back(journey):
    model, hidden = backbone(5), model_config().hidden_size
    connect(model, Placement.in_order([A, B, C], [1, 1, 3]))
    prefill(model, buffers(5))
    sent = [item for item in journey if isinstance(item, tuple)]
    head = model_config().attention_head_dim
    stream, table = (1, TOKENS, hidden), (TOKENS, head)
    # The record does not know where a layer's result is, so the stream shows as sent at every layer.
    assert [s for s in sent if s[0] == table] == [(table, 1)] * 2 + [(table, 2)] * 2
    assert sent[0] == (stream, 1)
    assert sent[-1] == (stream, 0)
    assert journey.count((table, 2)) == 2


def test_each_layer_runs_with_its_device_current(journey):
    model = backbone(3)
    connect(model, Placement.in_order([A, B], [1, 2]))
    prefill(model, buffers(3))
    assert [item for item in journey if isinstance(item, int)] == [1, 0, 1, 0]


def test_an_error_leaves_the_first_device_current_and_the_next_pass_right(journey):
    model = backbone(3)
    plain = copy.deepcopy(model)
    connect(model, Placement.in_order([A, B], [1, 2]))
    parts = model.layers[1].mlp.parts

    def fail(x: Tensor) -> list[Tensor]:
        raise RuntimeError("broken")

    model.layers[1].mlp.parts = fail
    with pytest.raises(RuntimeError, match="broken"):
        prefill(model, buffers(3))
    assert [item for item in journey if isinstance(item, int)] == [1, 0]
    model.layers[1].mlp.parts = parts
    assert torch.equal(prefill(model, buffers(3)), prefill(plain, buffers(3)))


def test_placement_on_one_device_changes_nothing(journey):
    model = backbone(2)
    connect(model, Placement.single(A, 2))
    prefill(model, buffers(2))
    assert journey == []


def test_placement_of_another_model_is_refused():
    with pytest.raises(ValueError, match="a placement of 3 layers for a model of 2"):
        connect(backbone(2), Placement.single(A, 3))


def send_back_from_meta(tensor: Tensor, device: torch.device) -> Tensor:
    """A meta tensor has no contents to bring."""
    return torch.zeros(tensor.shape) if tensor.is_meta and device == CPU else tensor.to(device)


def test_nothing_of_a_moved_layer_meets_a_tensor_elsewhere(monkeypatch):
    """Two kinds of device that every machine has; an operation on tensors of both raises."""
    monkeypatch.setattr(placing, "transfer", send_back_from_meta)
    model = backbone(4, moe_layer_num_skipped=4, intermediate_size=32)  # the experts' loop reads its indices
    placement = Placement.in_order([CPU, META], [2, 2])
    move_layers(model, placement)
    kv = buffers(4, placement.layers)
    out = prefill(model, kv)
    assert (out.device, out.shape) == (CPU, (1, TOKENS, model_config().hidden_size))
    assert [{p.device for p in layer.parameters()} for layer in model.layers] == [{CPU}, {CPU}, {META}, {META}]
    assert [k.device for k in kv.keys] == [CPU, CPU, META, META]


@pytest.mark.parametrize("hook", ["_leave_norm_to_next", "transfer"])
def test_the_test_above_would_notice(monkeypatch, hook):
    monkeypatch.setattr(placing, "transfer", send_back_from_meta)
    monkeypatch.setattr(placing, hook, lambda *args: args[0] if hook == "transfer" else None)
    model = backbone(4, moe_layer_num_skipped=4, intermediate_size=32)
    placement = Placement.in_order([CPU, META], [2, 2])
    move_layers(model, placement)
    with pytest.raises((RuntimeError, NotImplementedError)):
        prefill(model, buffers(4, placement.layers))
