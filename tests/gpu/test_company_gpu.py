"""Several texts decoded together on a GPU: to the last bit what each is alone. Run by scripts/checks/test_gpu.sh."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import model_config
from torch import Tensor, nn

from hunyuan import Editor, EditRequest, Settings
from hunyuan.accel.captured_decoding import CapturedCompany
from hunyuan.accel.experts.humming import humming_layout
from hunyuan.accel.experts.small_batch import MAX_TOKENS, SmallBatch, Stacks
from hunyuan.accel.prepare import HOPPER, capability, flashinfer_is_compiled
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.compare.sample_photos import photo
from hunyuan.formats.modules import Fp8Linear
from hunyuan.formats.numbers import FP8
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.operations import HeadNorms, HeadShape, Operations
from hunyuan.model.rope import positions_2d, rope_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
    pytest.mark.filterwarnings("default"),  # what FlashInfer warns of is not ours to fix
]
BF16, HIDDEN, WIDTH, DIM = torch.bfloat16, 4096, 3072, 128
SHAPE = TinyShape(hidden=512, heads=4, kv_heads=2, head_dim=128, experts=8, topk=4, expert_width=256)
FORMATS = [("bf16", "bf16"), ("4bit", "fp8")]


@pytest.fixture
def fast() -> Iterator[Operations]:
    from hunyuan.accel.hopper import HopperOperations

    made = HopperOperations(attention="sdpa")
    with torch.inference_mode(), made.for_a_few(MAX_TOKENS):
        yield made


def draw(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)).to(dtype)


# --- the kernels, at the model's widths


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (4096, 4096), (4096, 3072), (133120, 4096)])
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_a_linear_layer(fast: Operations, kind: str, outputs: int, inputs: int, count: int) -> None:
    layer: nn.Module = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=BF16)
    if kind == "fp8":
        layer = Fp8Linear(inputs, outputs).cuda()
        layer.weight.data = draw(outputs, inputs, dtype=torch.float32).clamp(-400, 400).to(FP8)
        layer.weight_scale.data = 0.01 + draw(outputs, dtype=torch.float32, seed=1).abs()
    x = draw(count, 1, inputs, seed=2)
    out = fast.linear(x, layer)
    for i in range(count):
        assert torch.equal(out[i : i + 1], fast.linear(x[i : i + 1], layer))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("count", [2, 8])
def test_the_router(fast: Operations, dtype: torch.dtype, count: int) -> None:
    own = type(fast)(attention="sdpa", router_dtype=dtype)
    x, router = draw(count, HIDDEN), draw(64, HIDDEN, dtype=torch.float32, seed=1) / HIDDEN**0.5
    with own.for_a_few(count):
        weights, index = own.route(x, router, 8)
        for i in range(count):
            alone = own.route(x[i : i + 1], router, 8)
            assert torch.equal(weights[i : i + 1], alone[0])
            assert torch.equal(index[i : i + 1], alone[1])


def stacks_of(kind: str) -> Stacks:
    shapes = (64, 2 * WIDTH, HIDDEN), (64, HIDDEN, WIDTH)
    if kind == "mxfp4":
        made = []
        for experts, rows, columns in shapes:
            packed = torch.randint(256, (experts, rows, columns // 2), dtype=torch.uint8, device="cuda")
            scale = torch.randint(115, 120, (experts, rows, columns // 32), dtype=torch.uint8, device="cuda")
            made.append(humming_layout(packed, scale))
        (a, a_offsets, a_scale), (b, b_offsets, b_scale) = made
        return Stacks(a, b, a_scale, b_scale, a_offsets, b_offsets)
    dtype = FP8 if kind == "fp8" else BF16
    a, b = (torch.stack([(draw(*shape[1:]) / shape[2] ** 0.5).to(dtype) for _ in range(shape[0])]) for shape in shapes)
    scale = torch.linspace(0.5, 1.5, 64, device="cuda")
    return Stacks(a, b, scale, scale) if kind == "fp8" else Stacks(a, b)


@pytest.mark.parametrize("kind", ["mxfp4", "fp8", "bf16"])
def test_the_experts(fast: Operations, kind: str) -> None:
    small = SmallBatch(stacks_of(kind))
    for count in (2, 3, 4, 8):
        x = draw(count, HIDDEN, seed=count)
        weights, index = draw(count, 64, dtype=torch.float32, seed=9).softmax(-1).topk(8)
        index[0] = index[-1]  # two tokens with the same experts
        out = small(x, weights, index)
        for i in range(count):
            assert torch.equal(out[i : i + 1], small(x[i : i + 1], weights[i : i + 1], index[i : i + 1]))


def test_attention_and_what_comes_before(fast: Operations) -> None:
    config = model_config(num_attention_heads=32, num_key_value_heads=8, attention_head_dim=DIM)
    shape, norms = HeadShape(32, 8, DIM), HeadNorms(draw(DIM), draw(DIM, seed=1), 1e-5)
    rows, places = [3, 0, 4, 2], [6999, 0, 31, 5700]
    lanes, position = (torch.tensor(values, dtype=torch.int32, device="cuda") for values in (rows, places))
    ours, alone = (KVCache.allocate(config, 5, 8192, BF16, torch.device("cuda")) for _ in range(2))
    for mine, other in zip(ours.keys + ours.values, alone.keys + alone.values, strict=True):
        mine.copy_(draw(*mine.shape, seed=3))
        other.copy_(mine)
    qkv = draw(4, 1, 48 * DIM)
    table = rope_table(positions_2d(0, 8192, []).cuda(), DIM, 10000.0)
    rope = (table[0][places], table[1][places])
    q, keys, values = fast.rope_norm_store(qkv, shape, rope, norms, ours.laned(lanes), 1, position)
    out = fast.decode_attention(q, keys, values, position, lanes)
    for i, row in enumerate(rows):
        part, one = slice(i, i + 1), (rope[0][i : i + 1], rope[1][i : i + 1])
        single = fast.rope_norm_store(qkv[part], shape, one, norms, alone.select(row), 1, position[part])
        assert torch.equal(q[part], single[0])
        assert torch.equal(out[part], fast.decode_attention(*single, position[part]))
    assert torch.equal(ours.keys[1], alone.keys[1])
    assert torch.equal(ours.values[1], alone.values[1])


# --- whole edits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if capability(torch.device("cuda")) != HOPPER or not flashinfer_is_compiled():
        pytest.skip("needs a Hopper GPU and FlashInfer's compiled kernels")
    return write_tiny_checkpoint(tmp_path_factory.mktemp("company") / "tiny", SHAPE)


@pytest.fixture(scope="module", params=FORMATS, ids=["-".join(pair) for pair in FORMATS])
def editor(request: pytest.FixtureRequest, folder: Path) -> Iterator[Editor]:
    weights, dense = request.param
    editor = Editor.load(
        Settings(model_id=folder, device="cuda", weights=weights, dense=dense, moe_impl="flashinfer", text_batch=3)
    )
    editor.warm_up()
    yield editor
    torch.cuda.empty_cache()


def edit(seed: int, **changes: Any) -> EditRequest:
    """So hot that the checkpoint leaves the one text it was made to say: texts of different words and lengths."""
    base: dict[str, Any] = {"images": [photo(400, 300, grain=60.0)] * (seed % 2), "max_new_tokens": 40 + 25 * seed}
    return EditRequest(f"Make {seed} skies orange", seed=seed, steps=2, temperature=10.0, **{**base, **changes})


def facts(result: Any) -> tuple[object, ...]:
    return np.array(result.image).tobytes(), result.cot_text, result.tokens, result.size


def together(editor: Editor, requests: list[EditRequest]) -> list[tuple[object, ...]]:
    """In the order given, texts begun as rows become free."""
    waiting, begun, found = list(requests), list[Any](), list[tuple[object, ...]]()
    while waiting or begun:
        while waiting and editor.text_places:
            begun.append(editor.begin(waiting.pop(0)))
        found.append(facts(editor.finish(begun.pop(0))))
    return found


def test_every_number_of_texts_has_its_graph(editor: Editor) -> None:
    company = editor.engine.company
    assert isinstance(company, CapturedCompany)
    assert sorted(company.graphs) == [1, 2, 3]
    assert editor.engine.checkpoint.model.operations.few == 1  # prompts go as without company


def test_nothing_is_compiled_for_texts_together(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hunyuan.accel.compile_report")
    together(editor, [edit(seed) for seed in range(3)])
    assert [record.message for record in caplog.records] == []


def test_an_edit_has_the_same_bytes_alone_and_in_company(editor: Editor) -> None:
    requests = [edit(seed) for seed in range(6)]
    alone = [facts(editor.run(request)) for request in requests]
    assert len({text for _, text, _, _ in alone}) == len(alone)
    assert len({tokens for _, _, tokens, _ in alone}) > len(alone) // 2  # they leave at different times
    assert together(editor, requests) == alone
    assert together(editor, requests[::-1]) == alone[::-1]


def test_how_many_may_go_together_changes_no_byte_of_an_edit_alone(editor: Editor) -> None:
    """With `text_batch` 1 its text goes in fused launches, which round otherwise."""
    settings = editor.settings.model_copy(update={"text_batch": 2})
    assert facts(Editor.load(settings).run(edit(1))) == facts(editor.run(edit(1)))


def test_memory_stays_flat(editor: Editor) -> None:
    allocated = []
    for _ in range(4):
        together(editor, [edit(seed) for seed in range(4)])
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1:] == [allocated[1]] * 3


@torch.inference_mode()
def test_a_step_does_not_wait_for_the_device(editor: Editor) -> None:
    company = editor.engine.company
    assert isinstance(company, CapturedCompany)
    for step in company.steps.steps:
        step.count.zero_()
    company.steps.position.zero_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        company.launch(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert company.steps.position.tolist() == [1, 1, 1]
