"""The memory plan: exact weights, the real model against what was measured, decisions and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_model import model_config

from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.layer_choice import LayerErrors
from hunyuan.errors import SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.modules import use_weight_formats
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.network import HunyuanImage3
from hunyuan.plan.choice import Choice, DoesNotFit, Gpu, choose, describe
from hunyuan.plan.memory import (
    GIB,
    MARGIN,
    TEXT_ROW_TOKENS,
    Work,
    begun_bytes,
    kv_layer_bytes,
    moe_workspace_bytes,
    plan_copies,
    plan_memory,
    stage_bytes,
)
from hunyuan.plan.table import render
from hunyuan.plan.weights import stored_weights, weight_bytes
from hunyuan.prompt.resolution import Size

H100, H200 = Gpu("H100", int(79.6 * GIB)), Gpu("H200", 140 * GIB)


def quantized(experts: str | list[str], dense: str = "bf16") -> dict[str, Any]:
    section = {"quant_method": "hunyuan-bento", "version": 1, "experts": experts, "dense": dense}
    return {"quantization_config": section}


@pytest.fixture(scope="module")
def real() -> CheckpointConfig:
    return CheckpointConfig.from_dict(full_size_config(experts="bf16"))


def kept_in_fp8(config: CheckpointConfig, layers: int) -> CheckpointConfig:
    return config.with_formats(["fp8"] * layers + ["mxfp4"] * (config.num_hidden_layers - layers), config.dense_format)


# --- weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        quantized("fp8"),
        quantized("mxfp4"),
        quantized("mxfp4", "fp8"),
        quantized(["mxfp4", "fp8"]),
        quantized(["bf16", "mxfp4"], "fp8"),
        {"tie_word_embeddings": True, **quantized("fp8", "fp8")},
        {"moe_layer_num_skipped": 1, **quantized("mxfp4", "fp8")},
        {"cfg_distilled": True, "use_meanflow": True},
    ],
    ids=str,
)
def test_weights_are_those_of_the_network(changes):
    config = model_config(**changes)
    with torch.device("meta"):
        model = HunyuanImage3(config)
        use_weight_formats(model, config)
    parts = weight_bytes(config, itemsize=4)

    def held(*prefixes: str) -> int:
        found = {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
        return sum(p.numel() * p.element_size() for p in found.values())

    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        assert parts.layer(layer) == held(name)
        assert parts.experts[layer] == held(name + "mlp.experts.")
        assert parts.router[layer] == held(name + "mlp.gate.")
    assert parts.embedding == held("model.wte.")
    assert parts.head == held("lm_head.", "model.ln_f.")
    assert parts.autoencoder == held("vae.")
    assert parts.vision == held("vision_")
    assert parts.total == held("")


def test_16_bits_halve_all_but_the_router():
    config = model_config()
    wide, narrow = (weight_bytes(config, itemsize) for itemsize in (4, 2))
    assert wide.router == narrow.router
    assert wide.total - sum(wide.router) == 2 * (narrow.total - sum(narrow.router))


@pytest.mark.parametrize(("kind", "gib"), [("bf16", 144.0), ("fp8", 72.0), ("mxfp4", 38.3)])
def test_experts_of_the_real_model(real, kind, gib):
    assert sum(weight_bytes(real.with_formats(kind, "bf16")).experts) / GIB == pytest.approx(gib, abs=0.06)


def test_other_weights_of_the_real_model(real):
    parts = weight_bytes(real)
    dense = sum(parts.dense) + sum(parts.router) + parts.head + parts.embedding
    assert dense / GIB == pytest.approx(6.8, abs=0.05)
    assert (parts.autoencoder + parts.vision + parts.image_layers) / GIB == pytest.approx(3.9, abs=0.1)
    assert parts.total / 2 / 1e9 == pytest.approx(83.0, abs=0.1)  # parameters


# --- what a request needs


def test_keys_and_values_are_those_of_the_engine(real):
    work = Work.create(real, capacity=11_000)
    assert 32 * kv_layer_bytes(real, work, 2) / GIB == pytest.approx(2.7, abs=0.02)
    config = model_config()
    work = Work.create(config, capacity=100)
    cache = KVCache.allocate(config, work.rows, 100, torch.float32, torch.device("meta"))
    assert sum(t.numel() * 4 for t in cache.keys + cache.values) == 2 * kv_layer_bytes(config, work, 4)


def test_rows_for_texts_decoded_together_are_reserved_and_shown(real):
    alone, shared = Work.create(real), Work.create(real, texts=4)
    more = 32 * (kv_layer_bytes(real, shared, 2) - kv_layer_bytes(real, alone, 2))
    assert more == 4 * GIB  # 8,192 tokens of 128 KiB
    small = Work.create(model_config(), capacity=100, texts=2)
    assert small.text_capacity == 100
    config = real.with_formats("mxfp4", "fp8")
    table = render(choose(config, "4bit", "fp8", [H100], work=shared))
    assert "keys and values, 2 x 22,800 + 4 x 8,192 tokens" in table
    assert plan_memory(config, [H100.memory], Work.create(real, texts=8)).fits
    needed = [plan_memory(config, [H100.memory], work).needed for work in (alone, shared)]
    # Embeddings of images in bf16 and latents in fp32, at most one of each per token of a row: 65 MiB.
    pictures = 4 * 8192 * (4096 * 2 + 32 * 4)
    assert begun_bytes(real, shared, 2) == pictures
    assert f"pictures of texts begun, 4 x 8,192 tokens{pictures / GIB:>10.2f}".split() in [
        r.split() for r in table.splitlines()
    ]
    assert "pictures of texts begun" not in render(choose(config, "4bit", "fp8", [H100], work=alone))
    assert needed[1] - needed[0] == more + pictures
    assert alone.pass_tokens == shared.pass_tokens
    copies = [plan_copies(config, [H100.memory] * 2, work) for work in (alone, shared)]
    assert all(copies)
    assert [b.needed - a.needed for a, b in zip(copies[0].gpus, copies[1].gpus, strict=True)] == [more + pictures, 0]


def test_begun_images_are_no_more_than_is_counted(real):
    """Three photographs' tokens do not fit a row: 5,120 embeddings each of the real model's width."""
    each = 4096 + real.vit_processor.max_num_patches
    assert each < TEXT_ROW_TOKENS < 2 * each
    assert each * real.hidden_size * 2 < begun_bytes(real, Work.create(real, texts=1), 2)


def test_a_model_over_several_gpus_reserves_no_rows_for_texts(real):
    """It decodes each text alone (`accel.prepare.prepare_company`)."""
    shared = Work.create(real, texts=8)
    plans = [plan_memory(real, [H100.memory] * 3, work) for work in (Work.create(real), shared)]
    assert plans[0] == plans[1]
    assert (len(plans[1].gpus), plans[1].work.texts) == (3, 0)
    table = render(choose(real, "bf16", "bf16", [H100] * 3, work=shared))
    assert "keys and values, 2 x 22,800 tokens" in table
    assert "pictures of texts begun" not in table
    too_small = plan_memory(real, [H100.memory], shared)
    assert (too_small.fits, too_small.work.texts) == (False, 8)


def test_mixed_on_two_gpus_is_two_copies_of_what_one_gpu_takes(real):
    alone, both = (choose(real, "mixed", "fp8", [H100] * count) for count in (1, 2))
    assert both.config == alone.config
    assert both.config.formats != real.with_formats("mxfp4", "fp8").formats  # some layers are in fp8
    assert both.plan.copies
    assert not alone.plan.copies
    small = Gpu("small", 40 * GIB)  # neither holds 4 bits alone
    split = choose(real, "mixed", "fp8", [small] * 2)
    assert not split.plan.copies
    assert len(split.plan.gpus) == 2


def test_experts_workspace_is_not_below_what_was_measured(real):
    assert 2.3 <= moe_workspace_bytes(real, 8240) / GIB < 2.5


def test_a_model_without_experts_needs_no_workspace_for_them():
    assert moe_workspace_bytes(model_config(moe_layer_num_skipped=2), 100) == 0


@pytest.mark.parametrize(
    ("size", "expected"), [(None, "1024x1024"), (Size(512, 512), "1024x1024"), (Size(1920, 1080), "1280x720")]
)
def test_work_is_of_a_size_that_the_model_paints(real, size, expected):
    work = Work.create(real, size)
    assert str(work.size) == expected
    assert work.image_tokens == work.size.width * work.size.height // 256 + 1


def test_work_of_a_distilled_checkpoint_has_one_row(real):
    assert Work.create(replace(real, cfg_distilled=True, use_meanflow=True)).rows == 1


@pytest.mark.parametrize(("capacity", "tokens"), [(None, 22_800), (11_000, 11_000), (10**6, 22_800)])
def test_work_is_bounded_by_the_checkpoint(real, capacity, tokens):
    work = Work.create(real, capacity=capacity)
    assert work.capacity == tokens
    assert work.pass_tokens == max(tokens - work.image_tokens, 2 * work.image_tokens)


def test_whole_edit_in_4_bits_stays_under_72_gib(real):
    plan = plan_memory(real.with_formats("mxfp4", "bf16"), [H100.memory], Work.create(real))
    assert plan.fits
    assert plan.needed < 72 * GIB


@pytest.mark.parametrize(("dense", "allocated", "reserved"), [("bf16", 58.8, 60.0), ("fp8", 56.0, 57.1)])
def test_plan_is_a_little_above_the_measured_peak(real, dense, allocated, reserved):
    """Peaks of one edit at 1024x1024 in 4 bits, keys and values 2 x 22,800, GiB (NVIDIA H200, 2026-11-25)."""
    plan = plan_memory(real.with_formats("mxfp4", dense), [H100.memory], Work.create(real))
    assert allocated < (plan.needed - MARGIN) / GIB < allocated + 1.5  # the margin is what PyTorch does not allocate
    assert reserved < plan.needed / GIB < reserved + 2.5


@pytest.mark.parametrize("capacity", [6000, 22_800])
@pytest.mark.parametrize("distil", [False, True])
def test_a_step_with_attention_in_fp8_fits_into_the_stage(real, capacity, distil):
    """Two streams, the fused projection, q and the result in 16 bits; q, all keys and all values in 8."""
    work = Work.create(replace(real, cfg_distilled=distil), capacity=capacity)
    heads, kv_heads, dim = real.num_attention_heads, real.num_key_value_heads, real.attention_head_dim
    each = 2 * (2 * real.hidden_size + (3 * heads + 2 * kv_heads) * dim)
    copies = work.rows * (work.image_tokens * heads + 2 * work.capacity * kv_heads) * dim
    assert work.rows * work.image_tokens * each + copies < stage_bytes(real, work, 2).layers


def test_fp32_is_planned_with_the_plain_autoencoder(real):
    wide, narrow = (stage_bytes(real, Work.create(real), itemsize).autoencoder for itemsize in (4, 2))
    assert wide / narrow == pytest.approx(2 * 11 / 3)


def test_pictures_are_the_first_gpu_s_business(real):
    config = real.with_formats("fp8", "bf16")
    small, large = (
        plan_memory(config, [H100.memory] * 2, Work.create(real, size)) for size in (Size(1280, 720), Size(1024, 1024))
    )
    assert small.gpus[0].stage < large.gpus[0].stage
    assert max(small.gpus[1].stage, large.gpus[1].stage) < small.gpus[0].stage


def test_shares_of_several_gpus_add_up(real):
    plan = plan_memory(real, [H100.memory] * 4, Work.create(real))
    assert plan.fits
    assert len(plan.gpus) == 3
    assert sum(plan.layer_counts) == 32
    assert sum(gpu.weights for gpu in plan.gpus) == plan.weights.total
    assert [gpu.outside > 0 for gpu in plan.gpus] == [True, False, False]
    assert all(gpu.left >= 0 and gpu.margin == MARGIN for gpu in plan.gpus)
    assert max(g.left for g in plan.gpus) - min(g.left for g in plan.gpus) < 2 * plan.weights.layer(0)


def test_gpus_of_different_sizes_are_filled_as_they_are(real):
    plan = plan_memory(real.with_formats("fp8", "bf16"), [40 * GIB, H200.memory], Work.create(real))
    assert plan.fits
    assert plan.layer_counts[0] < 10 < plan.layer_counts[1]


# --- two copies, one for each row of guidance


def test_copies_are_whole_and_have_one_row_each(real):
    config, work = real.with_formats("mxfp4", "bf16"), Work.create(real)
    plan, alone = plan_copies(config, [H100.memory] * 2, work), plan_memory(config, [H100.memory], work)
    assert plan is not None
    assert (plan.fits, plan.copies, plan.layer_counts, plan.work.rows) == (True, True, (32, 32), 1)
    first, second = plan.gpus
    assert first.weights == alone.gpus[0].weights
    assert first.weights - second.weights == plan.weights.head + plan.weights.autoencoder + plan.weights.vision
    assert first.kv == second.kv == alone.gpus[0].kv // 2
    assert second.stage == plan.stages.layers < first.stage


@pytest.mark.parametrize("small", [0, 1])
def test_copies_need_room_on_both_gpus(real, small):
    config, work = real.with_formats("mxfp4", "bf16"), Work.create(real)
    plan = plan_copies(config, [H100.memory] * 2, work)
    assert plan is not None
    for short, there in ((0, True), (1, False)):
        memories = [H100.memory] * 2
        memories[small] = plan.gpus[small].needed - short
        assert (plan_copies(config, memories, work) is not None) == there


def test_one_gpu_or_one_row_is_no_pair(real):
    config = real.with_formats("mxfp4", "bf16")
    assert plan_copies(config, [H200.memory], Work.create(config)) is None
    assert plan_copies(config, [H200.memory] * 2, replace(Work.create(config), rows=1)) is None


@pytest.mark.parametrize(
    ("stored", "gpus", "best"), [("bf16", H100, "4bit"), ("bf16", H200, "fp8"), ("mxfp4", H100, "4bit")]
)
def test_auto_keeps_its_rule_and_says_what_a_name_would_do(real, stored, gpus, best):
    choice = choose(real.with_formats(stored, "bf16"), "auto", "bf16", [gpus] * 2)
    assert choice.plan is not None
    assert not choice.plan.copies
    line = f"HUNYUAN_WEIGHTS={best}: a copy on each of two GPUs, which run the two rows of guidance at once"
    assert choice.option == line
    assert render(choice).splitlines()[-1] == line


def test_a_format_by_name_on_two_gpus_is_held_twice(real):
    choice = choose(real, "4bit", "fp8", [H100] * 2)
    assert choice.plan is not None
    assert choice.plan.copies
    assert choice.reason.startswith("HUNYUAN_WEIGHTS=4bit, which fits 2 x H100 (79.6 GiB)")
    text = render(choice)
    assert "GPU 0     GPU 1       all" in text
    assert text.splitlines()[-1].startswith("GPU 0 runs the guided row and all else, GPU 1 the unguided row;")
    parts = ("experts (", "attention", "router", "lm_head", "token emb", "autoenc", "vision", "latents")
    for column in range(3):
        total = sum(cells(text, part)[column] for part in parts)
        assert total == pytest.approx(cells(text, "weights  ")[column], abs=0.05)


@pytest.mark.parametrize("asked", ["auto", "4bit"])
def test_a_distilled_checkpoint_takes_one_gpu_and_says_so(real, asked):
    distilled = replace(real.with_formats("mxfp4", "bf16"), cfg_distilled=True, use_meanflow=True)
    choice = choose(distilled, asked, "bf16", [H100] * 2)
    assert len(choice.gpus) == 1
    assert choice.option == "one GPU is used: a distilled checkpoint has no unguided row"


@pytest.mark.parametrize("second", [H200, Gpu("H100", 40 * GIB)], ids=str)
def test_a_gpu_that_stays_idle_is_explained(real, second):
    choice = choose(real, "4bit", "bf16", [H100, second])
    assert len(choice.gpus) == 1
    assert choice.option == "one GPU is used: GPU 1 is of another kind or too small for a copy"


def test_one_gpu_has_no_option(real):
    assert choose(real, "auto", "bf16", [H100]).option == choose(real, "4bit", "bf16", [H100]).option == ""


# --- decisions


@pytest.mark.parametrize(
    ("gpus", "asked", "weights", "used"),
    [
        ([H100], "auto", "4bit", 1),
        ([H100] * 2, "auto", "fp8", 2),
        ([H100] * 3, "auto", "bf16", 3),
        ([H100] * 8, "auto", "bf16", 3),
        ([H200], "auto", "fp8", 1),
        ([H200] * 2, "auto", "bf16", 2),
        ([H100] * 2, "4bit", "4bit", 2),
        ([H100] * 8, "4bit", "4bit", 2),
        ([H100, Gpu("small", 40 * GIB)], "4bit", "4bit", 1),
        ([H200] * 2, "fp8", "fp8", 2),
        ([H100, H200], "bf16", "bf16", 2),
    ],
)
def test_official_folder(real, gpus, asked, weights, used):
    choice = choose(real, asked, "bf16", gpus)
    assert (choice.weights, len(choice.gpus), choice.quantize) == (weights, used, weights != "bf16")
    assert choice.plan is not None
    assert choice.plan.fits
    assert stored_weights(choice.config) == weights
    assert ("hunyuan quantize" in choice.reason) == choice.quantize


def test_reason_says_what_was_too_big(real):
    reason = choose(real, "auto", "bf16", [H100]).reason
    assert reason.startswith("the best that fits 1 x H100 (79.6 GiB): bf16 needs 167.6 GiB, fp8 needs 95.6 GiB;")


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_quantized_folder_is_taken_as_it_is(real, kind):
    config = real.with_formats(kind, "bf16")
    choice = choose(config, "auto", "bf16", [H200])
    assert (choice.config, choice.quantize) == (config, False)
    assert "stored as" in choice.reason


def test_mixed_folder_is_taken_as_it_is(real):
    config = kept_in_fp8(real, 6)
    for asked in ("auto", "mixed"):
        choice = choose(config, asked, "bf16", [H100])
        assert (choice.weights, choice.config) == ("mixed", config)
    assert "26 layers mxfp4" in render(choice)


@pytest.mark.parametrize(
    ("stored", "asked", "target"), [("bf16", "bf16", "bf16"), ("bf16", "fp8", "fp8"), ("fp8", "bf16", "fp8")]
)
def test_dense_layers(real, stored, asked, target):
    choice = choose(real.with_formats("mxfp4", stored), "auto", asked, [H100])
    assert choice.config.dense_format == target
    assert choice.quantize == (stored != target)


def test_fp8_dense_layers_take_half(real):
    wide, narrow = (choose(real, "4bit", dense, [H100]).plan for dense in ("bf16", "fp8"))
    assert wide is not None
    assert narrow is not None
    assert (wide.needed - narrow.needed) / GIB == pytest.approx((4.75 + 1.02) / 2, abs=0.02)


@pytest.mark.parametrize(("asked", "weights"), [("auto", "bf16"), ("4bit", "4bit")])
def test_a_cpu_is_not_planned_for(real, asked, weights):
    choice = choose(real, asked, "bf16", [])
    assert (choice.weights, choice.gpus, choice.plan) == (weights, (), None)
    assert render(choice).startswith(f"weights: {weights} (")


def test_mixed_keeps_as_many_layers_in_fp8_as_fit_those_that_gain_most(real):
    errors = {n: LayerErrors(0.1 + n / 1000, 0.03) for n in range(32)} | {31: LayerErrors(0.02, 0.03)}
    choice = choose(real, "mixed", "bf16", [H100], errors=lambda: errors)
    assert [n for n, kind in enumerate(choice.config.expert_formats) if kind == "fp8"] == list(range(15, 31))
    assert (choice.weights, choice.quantize) == ("mixed", True)
    assert choice.reason.startswith(
        "HUNYUAN_WEIGHTS=mixed: 4 bits, and fp8 in as many layers as fit 1 x H100 (79.6 GiB);"
    )
    assert choice.plan is not None
    assert choice.plan.fits
    assert choice.plan.gpus[0].left < 1.06 * GIB  # none more
    assert "16 layers mxfp4, 16 layers fp8" in render(choice)


def test_mixed_on_more_memory_leaves_what_gains_nothing_in_4_bits(real):
    errors = {n: LayerErrors(0.1 if n else 0.02, 0.03) for n in range(32)}
    choice = choose(real, "mixed", "bf16", [H200], errors=lambda: errors)
    assert choice.config.expert_formats == ("mxfp4",) + ("fp8",) * 31


def test_mixed_on_less_memory_is_4_bits_or_refused(real):
    choice = choose(real, "mixed", "bf16", [Gpu("GPU", 62 * GIB)], errors=dict)
    assert set(choice.config.expert_formats) == {"mxfp4"}
    message, _ = refusal(real, "mixed", "bf16", [Gpu("GPU", 50 * GIB)])
    assert message.startswith("mixed needs 61.9 GiB")


def test_auto_takes_no_layer_in_fp8_unasked(real):
    """It would fit, and makes a token slower: nothing is even measured."""

    def errors() -> dict[int, LayerErrors]:
        raise AssertionError("auto measured")

    for gpu in (H100, Gpu("GPU", 90 * GIB)):
        choice = choose(real, "auto", "bf16", [gpu], errors=errors)
        assert set(choice.config.expert_formats) == {"mxfp4"}


def test_mixed_of_an_official_folder_needs_a_gpu(real):
    with pytest.raises(SettingsError, match=r"HUNYUAN_WEIGHTS=mixed fills .* hunyuan quantize SRC OUT"):
        choose(real, "mixed", "bf16", [])


@pytest.mark.parametrize("asked", ["bf16", "fp8", "mixed"])
def test_a_quantized_folder_is_no_other_one(real, asked):
    with pytest.raises(SettingsError, match=f"HUNYUAN_WEIGHTS={asked}, but this folder's experts are stored as 4bit"):
        choose(real.with_formats("mxfp4", "bf16"), asked, "bf16", [H100])


# --- refusals


def refusal(*arguments: Any) -> tuple[str, Choice]:
    with pytest.raises(DoesNotFit) as caught:
        choose(*arguments)
    return str(caught.value), caught.value.choice


def test_refusal_says_what_would_fit(real):
    message, choice = refusal(real, "bf16", "bf16", [H100])
    assert message == (
        "bf16 needs 167.6 GiB; there is 1 x H100 (79.6 GiB); fits: 4bit on this GPU, fp8 on 2 x H100, bf16 on 3 x H100"
    )
    assert choice.plan is not None
    assert not choice.plan.fits
    assert choice.plan.needed / GIB == pytest.approx(167.6, abs=0.1)


def test_refusal_on_several_gpus(real):
    message, _ = refusal(real, "bf16", "bf16", [H100] * 2)
    assert message.endswith(
        "there is 2 x H100 (79.6 GiB); fits: 4bit on these GPUs, fp8 on these GPUs, bf16 on 3 x H100"
    )


def test_refusal_of_auto_names_all_that_was_tried(real):
    message, _ = refusal(real, "auto", "bf16", [Gpu("GPU", 40 * GIB)])
    assert message.startswith("bf16 needs 167.6 GiB, fp8 needs 95.6 GiB, 4bit needs 61.9 GiB; there is 1 x GPU")
    assert "4bit on 2 x GPU" in message


def test_refusal_of_a_quantized_folder_points_to_the_official_one(real):
    message, _ = refusal(real.with_formats("fp8", "bf16"), "auto", "bf16", [H100])
    assert "fits: fp8 on 2 x H100; the official folder in another format: hunyuan quantize" in message


def test_refusal_where_nothing_would_do(real):
    message, _ = refusal(real, "auto", "bf16", [Gpu("GPU", 8 * GIB)])
    assert "fits: nothing on up to 8 x GPU" in message


# --- the table


def cells(text: str, label: str) -> list[float]:
    line = next(line for line in text.splitlines() if line.startswith(label))
    return [float(cell) for cell in line.split() if cell.replace(".", "").lstrip("-").isdigit() and "." in cell]


def test_table_of_one_gpu_adds_up(real):
    text = render(choose(real, "auto", "bf16", [H100]))
    parts = ("experts (", "attention", "router", "lm_head", "token emb", "autoenc", "vision", "latents")
    assert sum(cells(text, part)[0] for part in parts) == pytest.approx(cells(text, "weights  ")[0], abs=0.05)
    rest = ("weights  ", "keys and values", "experts' workspace", "largest stage", "margin")
    assert sum(cells(text, part)[0] for part in rest) == pytest.approx(cells(text, "needed")[0], abs=0.03)
    assert cells(text, "there is")[0] - cells(text, "needed")[0] == pytest.approx(cells(text, "left")[0], abs=0.02)
    assert "autoencoder at 1024x1024" in text


def test_table_of_several_gpus_has_a_column_each(real):
    text = render(choose(real, "auto", "bf16", [H100] * 3))
    assert "GPU 0     GPU 1     GPU 2       all" in text
    first, second, third, total = cells(text, "weights  ")
    assert first + second + third == pytest.approx(total, abs=0.02)
    assert next(line for line in text.splitlines() if line.startswith("layers")).split()[1:] == ["10", "11", "11", "32"]


def test_gpus_are_described_by_kind():
    assert describe([H100, H100]) == "2 x H100 (79.6 GiB)"
    assert describe([H100, H200]) == "H100 (79.6 GiB), H200 (140.0 GiB)"
