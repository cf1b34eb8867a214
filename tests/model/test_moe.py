"""Router, experts and shared MLP: the arithmetic, no dropped tokens, and no memory that grows with the experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from small_model import model_config, noise, randomized
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan.checkpoint.load import empty_model
from hunyuan.model.moe import GatedMlp, MoE, experts_loop, gated_mlp
from hunyuan.model.operations import PLAIN, Operations
from hunyuan.model.transformer import Transformer

CPU = torch.device("cpu")


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation had, weights themselves left out."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = {w.untyped_storage().data_ptr() for w in weights}
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                self.numel = max(self.numel, tensor.numel())
        return out


def moe(experts: int = 8, topk: int = 2, shared: int = 1, hidden: int = 16, width: int = 12, seed: int = 0) -> MoE:
    return randomized(MoE(hidden, width, experts, topk, shared), seed)


def one_expert(x: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """One token `[hidden]` through one expert, the halves taken apart by hand."""
    width = len(gate_and_up) // 2
    up, gate = gate_and_up[:width] @ x, gate_and_up[width:] @ x
    return down @ (up * gate * torch.sigmoid(gate))


def by_hand(block: MoE, x: Tensor) -> Tensor:
    """`[tokens, hidden]` through router and experts, token by token, without the shared MLP."""
    rows = []
    for token in x.float():
        logits = block.gate.wg.weight.float() @ token
        probabilities = logits.exp() / logits.exp().sum()
        chosen = sorted(range(len(logits)), key=lambda e: -probabilities[e])[: block.topk]
        total = sum(probabilities[e] for e in chosen)
        stacks = block.experts
        parts = [
            probabilities[e] / total * one_expert(token, stacks.gate_and_up_proj[e], stacks.down_proj[e])
            for e in chosen
        ]
        rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows)


# --- one MLP


@pytest.mark.trap(14)
def test_activation_is_on_the_second_half():
    x = noise(5, 4)
    identity = torch.eye(4)
    up_then_gate = torch.cat([2 * identity, -3 * identity])
    torch.testing.assert_close(gated_mlp(x, up_then_gate, identity), 2 * x * silu(-3 * x))
    gate_then_up = torch.cat([-3 * identity, 2 * identity])
    torch.testing.assert_close(gated_mlp(x, gate_then_up, identity), -3 * x * silu(2 * x))


def test_module_of_one_mlp_keeps_leading_dimensions():
    mlp = randomized(GatedMlp(6, 10))
    x = noise(2, 3, 6)
    expected = [[one_expert(t, mlp.gate_and_up_proj.weight, mlp.down_proj.weight) for t in row] for row in x]
    torch.testing.assert_close(mlp(x), torch.stack([torch.stack(row) for row in expected]))
    assert [name for name, _ in mlp.named_parameters()] == ["gate_and_up_proj.weight", "down_proj.weight"]


# --- router


def test_router_chooses_the_best_and_normalizes_over_them():
    x, router = noise(40, 16), noise(8, 16, seed=1)
    weights, index = PLAIN.route(x, router, 3)
    probabilities = (x @ router.T).softmax(-1)
    best, order = probabilities.sort(dim=-1, descending=True)
    assert index.tolist() == order[:, :3].tolist()
    torch.testing.assert_close(weights, best[:, :3] / best[:, :3].sum(-1, keepdim=True))
    assert weights.dtype == torch.float32
    assert index.dtype == torch.int64


@pytest.mark.parametrize("topk", [1, 2, 8])
def test_weights_of_a_token_sum_to_one_also_where_the_router_is_sure(topk):
    x = torch.cat([noise(20, 16), 50 * noise(20, 16, seed=1), torch.zeros(1, 16)])
    weights, index = PLAIN.route(x, noise(8, 16, seed=2), topk)
    torch.testing.assert_close(weights.sum(-1), torch.ones(41))
    assert all(len(set(chosen)) == topk for chosen in index.tolist())


@pytest.mark.trap(14)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_router_of_a_model_stays_fp32(dtype):
    dtype = getattr(torch, dtype)
    model = empty_model(model_config(), CPU, dtype)
    kinds = {name: p.dtype for name, p in model.named_parameters() if not name.startswith("vae.")}
    routers = {name for name in kinds if name.endswith("mlp.gate.wg.weight")}
    assert len(routers) == 2
    assert {kinds[name] for name in routers} == {torch.float32}
    assert {kinds[name] for name in kinds.keys() - routers} == {dtype}


@pytest.mark.trap(14)
def test_router_of_a_new_block_is_fp32_whatever_the_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        block = MoE(16, 12, 8, 2, 1)
    finally:
        torch.set_default_dtype(before)
    assert block.gate.wg.weight.dtype == torch.float32
    assert block.experts.down_proj.dtype == torch.bfloat16


@pytest.mark.trap(14)
def test_bf16_tokens_are_routed_in_fp32():
    """The two logits are one number in bf16: 1 + 1/1024 rounds to 1."""
    x = torch.ones(1, 1, 16, dtype=torch.bfloat16)
    block = moe(experts=2, topk=1, shared=0).bfloat16()
    block.gate.wg.float()
    block.experts.down_proj.zero_()
    block.experts.down_proj[1] = 1
    for better in (0, 1):
        router = torch.zeros(2, 16)
        router[:, 0] = 1.0
        router[better, 0] += 2**-10
        block.gate.wg.weight.copy_(router)
        assert bool(block(x).abs().sum() > 0) == (better == 1)
    weights, _ = PLAIN.route(x[0], block.gate.wg.weight, 2)
    assert weights[0, 0] > weights[0, 1]
    weights, _ = Operations(torch.bfloat16).route(x[0], block.gate.wg.weight, 2)
    assert weights[0, 0] == weights[0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bf16_router_is_that_of_autocast(dtype):
    x, router = noise(300, 64).to(dtype), noise(16, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(x, router)
    assert logits.dtype == torch.bfloat16
    expected, chosen = logits.float().softmax(-1).topk(3)
    weights, index = Operations(torch.bfloat16).route(x, router, 3)
    assert torch.equal(index, chosen)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))
    assert not torch.equal(index, PLAIN.route(x, router, 3)[1])


# --- experts


@pytest.mark.parametrize(("experts", "topk"), [(8, 2), (8, 1), (4, 4), (16, 3)])
def test_routed_experts_equal_a_loop_over_tokens(experts, topk):
    block = moe(experts, topk, shared=0)
    x = noise(1, 23, 16, seed=3)
    torch.testing.assert_close(block(x)[0], by_hand(block, x[0]))


def test_given_choices_are_followed_in_any_order():
    """Weights and indices as a router would never make them: no order, weights that sum to 5."""
    block = moe()
    stacks = block.experts.gate_and_up_proj, block.experts.down_proj
    x = noise(6, 16, seed=4)
    index = torch.tensor([[7, 0], [0, 7], [3, 2], [2, 3], [5, 4], [0, 1]])
    weights = torch.tensor([[1.0, 4.0], [4.0, 1.0], [2.0, 3.0], [5.0, 0.0], [0.0, 5.0], [2.5, 2.5]])
    expected = [
        sum(w * one_expert(t, stacks[0][e], stacks[1][e]) for w, e in zip(ws, es, strict=True))
        for t, ws, es in zip(x, weights, index, strict=True)
    ]
    torch.testing.assert_close(experts_loop(x, weights, index, picked(stacks)), torch.stack(expected))


def test_bf16_result_is_rounded_once_after_the_weighted_sum():
    block = moe().bfloat16()
    stacks = block.experts.gate_and_up_proj, block.experts.down_proj
    x, index = noise(12, 16, seed=5).bfloat16(), torch.tensor([[0, 5]]).expand(12, 2)
    weights = torch.tensor([[0.7123, 0.2877]]).expand(12, 2)
    out = experts_loop(x, weights, index, picked(stacks))
    parts = [linear(_gated(x, stacks[0][e]), stacks[1][e]).float() for e in (0, 5)]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (parts[0] * 0.7123 + parts[1] * 0.2877).bfloat16())


def picked(stacks: tuple[Tensor, Tensor]) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda expert: (stacks[0][expert], stacks[1][expert])


def _gated(x: Tensor, gate_and_up: Tensor) -> Tensor:
    up, gate = linear(x, gate_and_up).split(len(gate_and_up) // 2, dim=-1)
    return up * silu(gate)


@pytest.mark.trap(8)
def test_nothing_is_dropped_when_all_tokens_want_the_same_experts():
    block = moe(shared=0)
    block.gate.wg.weight[:, 0] = torch.tensor([0.0, 0, 0, 9, 0, 8, 0, 0])
    x = noise(1, 200, 16, seed=6)
    x[..., 0] = 5
    _, index = PLAIN.route(x[0], block.gate.wg.weight, 2)
    assert index.tolist() == [[3, 5]] * 200
    torch.testing.assert_close(block(x)[0], by_hand(block, x[0]))


@pytest.mark.trap(8)
def test_token_does_not_depend_on_the_others():
    block = moe()
    x = noise(3, 40, 16, seed=7)
    whole = block(x)
    for row, token in [(0, 0), (1, 17), (2, 39)]:
        alone = block(x[row : row + 1, token : token + 1])
        torch.testing.assert_close(alone[0, 0], whole[row, token])


@pytest.mark.trap(8)
@pytest.mark.parametrize("crowded", [False, True])
def test_memory_does_not_grow_with_experts_times_tokens(crowded):
    tokens, hidden, width, topk = 128, 32, 16, 2
    sizes = {}
    for experts in (8, 64):
        block = moe(experts, topk, hidden=hidden, width=width)
        x = noise(1, tokens, hidden)
        if crowded:
            x[:] = x[:, :1]
        with LargestTensor(list(block.parameters())) as largest:
            block(x)
        sizes[experts] = largest.numel
    # One row for each choice of a token, and one logit for each expert; no mask over [tokens, topk, experts].
    assert sizes[8] == tokens * topk * hidden
    assert sizes[64] == tokens * max(topk * hidden, 64)


# --- the block


@pytest.mark.parametrize("shared", [1, 3])
def test_shared_mlp_is_added_to_the_experts(shared):
    block = moe(shared=shared)
    assert block.shared_mlp.down_proj.weight.shape == (16, 12 * shared)
    x = noise(2, 9, 16, seed=8)
    flat = x.flatten(0, 1)
    expected = by_hand(block, flat) + block.shared_mlp(flat)
    torch.testing.assert_close(block(x), expected.view(2, 9, 16))


def test_block_may_have_no_shared_mlp():
    block = moe(shared=0)
    assert block.shared_mlp is None
    assert not any("shared" in name for name, _ in block.named_parameters())


def test_strided_tokens_are_fine():
    block = moe()
    x = noise(16, 9, 2, seed=9).transpose(0, 2)
    torch.testing.assert_close(block(x), block(x.contiguous()))


class Sevens(nn.Module):
    """A backend that remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *arguments: Tensor) -> Tensor:
        self.calls.append(arguments)
        return torch.full_like(arguments[0], 7.0)


def test_backend_gets_tokens_and_choices_and_its_result_is_used():
    block, x = moe(shared=0), noise(2, 5, 16)
    expected = PLAIN.route(x.flatten(0, 1), block.gate.wg.weight, 2)
    block.experts = Sevens()
    assert torch.equal(block(x), torch.full((2, 5, 16), 7.0))
    ((tokens, *choices),) = block.experts.calls
    assert torch.equal(tokens, x.flatten(0, 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(choices, expected, strict=True))


def test_recorded_block(golden, golden_editor):
    recorded = load_file(golden / "moe.safetensors")
    block = golden_editor.engine.checkpoint.model.model.layers[0].mlp
    weights, index = PLAIN.route(recorded["x"].flatten(0, 1), block.gate.wg.weight, 2)
    assert torch.equal(index, recorded["easy_index"])
    torch.testing.assert_close(weights, recorded["easy_weights"], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(block(recorded["x"]), recorded["out_easy_topk"], rtol=1e-3, atol=1e-4)


# --- which layers have one


def feed_forwards(**changes: object) -> list[nn.Module]:
    with torch.device("meta"):
        return [layer.mlp for layer in Transformer(model_config(**changes)).layers]


def test_skipped_layers_are_dense():
    dense, sparse = feed_forwards(moe_layer_num_skipped=1, intermediate_size=48)
    assert isinstance(dense, GatedMlp)
    assert dense.gate_and_up_proj.weight.shape == (96, 64)
    assert isinstance(sparse, MoE)
    assert sparse.experts.gate_and_up_proj.shape == (8, 64, 64)


def test_layers_have_their_own_sizes():
    first, second = feed_forwards(
        num_experts=[4, 6], moe_topk=[1, 3], moe_intermediate_size=[8, 24], num_shared_expert=[1, 2]
    )
    assert (first.topk, second.topk) == (1, 3)
    assert first.experts.down_proj.shape == (4, 64, 8)
    assert second.experts.down_proj.shape == (6, 64, 24)
    assert second.gate.wg.weight.shape == (6, 64)
    assert second.shared_mlp.down_proj.weight.shape == (64, 48)


def test_mixed_mlp_switch_removes_the_shared_mlp():
    assert [block.shared_mlp for block in feed_forwards(use_mixed_mlp_moe=False)] == [None, None]
