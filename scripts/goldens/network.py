"""Sections that run parts of the network by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.prefill import embed_prompt, encode_conditions, run_tokens
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.model.embeddings import sinusoid
from hunyuan.model.moe import MoE
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import PLAIN
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.prompt.layout import Layout
from scripts.goldens.folder import Golden
from scripts.goldens.report import Check, Tolerance
from scripts.goldens.static import case_layout
from scripts.support.dense_attention import dense_mask

DROPPING = "recorded with token dropping"
GUIDANCE = "guidance_emb_"


def mask_rope(golden: Golden, section: str) -> Check:
    recorded, shapes = golden.tensors(section), golden.sections[section]["meta"]
    check = golden.check(section, [*recorded])
    for name, layout in _mask_layouts(golden).items():
        mask = dense_mask(len(layout), layout.full_blocks)
        positions = positions_2d(0, len(layout), layout.grids)
        cos, sin = rope_table(positions, golden.config.attention_head_dim, golden.config.rope_theta)
        check.close(f"{name}.cos", cos, recorded.get(f"{name}.cos"), Tolerance(atol=1e-5))
        check.close(f"{name}.sin", sin, recorded.get(f"{name}.sin"), Tolerance(atol=1e-5))
        check.exact(f"{name}.positions_yx", positions, recorded.get(f"{name}.positions_yx"))
        rows = torch.tensor([layout.ids, layout.uncond_ids])
        ids = recorded.get(f"{name}.input_ids")
        check.exact(f"{name}.input_ids", rows if ids is None else rows[: len(ids)], ids)
        packed = recorded.get(f"{name}.attention_mask_packed")
        if packed is not None:
            shape = shapes[f"{name}.attention_mask_shape"]
            check.exact(f"{name}.attention_mask_packed", mask.expand(shape), _unpack(packed, shape))
    return check.finish()


def _mask_layouts(golden: Golden) -> dict[str, Layout]:
    """The cases of the token section at the size this section was recorded with."""
    cases = {c["name"]: c for c in golden.values("tokens")["cases"]}
    layouts = {}
    for n in (1, 2, 3):
        case = cases.get(f"edit{n}_gen_image_cot_cfg1") or cases.get(f"edit{n}_gen_image_cot_cfg2")
        if case is not None:
            at_size = {**case["inputs"], "image_size": [192, 320]}
            layouts[f"edit{n}"] = case_layout(golden, {**case, "inputs": at_size})
        if f"edit{n}_gen_text_think" in cases:
            layouts[f"edit{n}_text"] = case_layout(golden, cases[f"edit{n}_gen_text_think"])
    return layouts


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    bits = (packed[..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1
    return bits.flatten(-2)[..., : shape[-1]].bool()


def vae(golden: Golden, section: str) -> Check:
    recorded, seeds = golden.tensors(section), golden.sections[section]["seeds"]
    check, model = golden.check(section, [*recorded]), golden.model
    posterior = model.encode_image(golden.cond("images/src0.png").pixels[None].to(model.device))
    noise = RequestRandom(seeds["sample"], torch.device("cpu"), True).normal(
        posterior.mean.shape, torch.float32, model.device
    )
    sample = posterior.sample(noise)
    seed = seeds["sample"]
    check.close("mean", posterior.mean, recorded.get("mean"))
    check.close("logvar", posterior.logvar, recorded.get("logvar"))
    check.close(f"sample_seed{seed}", sample, recorded.get(f"sample_seed{seed}"))
    latents = model.vae.scale(sample)[:, :, 0]
    check.close(f"cond_latents_seed{seed}", latents, recorded.get(f"cond_latents_seed{seed}"))
    check.used("decode_in")
    if "decode_out" in recorded:
        n, _, _, height, width = recorded["decode_out"].shape
        down = golden.config.vae.ffactor_spatial
        shape = (n, golden.config.vae.latent_channels, 1, height // down, width // down)
        decode_in = golden.given(section, recorded, "decode_in", shape)
        if decode_in is None:
            check.without_input(["decode_out"], "decode_in")
        else:
            decoded = model.vae.decode(decode_in[:, :, 0])
            check.close("decode_out", decoded[:, :, None], recorded["decode_out"])
    return check.finish()


def vit(golden: Golden, section: str) -> Check:
    recorded, model = golden.tensors(section), golden.model
    check, vision = golden.check(section, [*recorded]), golden.cond("images/src0.png").vision
    patches, mask = vision.patches[None].to(model.device), vision.mask[None].to(model.device)
    shapes = torch.tensor([vision.grid], device=model.device)
    tower: Any = model.vision_model
    output = tower(patches, mask, shapes)
    check.close("embeddings", tower.embeddings(patches, shapes), recorded.get("embeddings"))
    check.close("last_hidden_state", output.last_hidden_state, recorded.get("last_hidden_state"))
    check.close("pooler_output", output.pooler_output, recorded.get("pooler_output"))
    check.close("aligned", model.embed_vision(patches, shapes, mask), recorded.get("aligned"))
    return check.finish()


def _embedder(model: HunyuanImage3, name: str) -> torch.nn.Module:
    found = getattr(model, name)
    if found is None:
        raise ValueError(f"{name} was recorded, and this checkpoint has none")
    return found


def embed(golden: Golden, section: str) -> Check:
    recorded, model = golden.tensors(section), golden.model
    check = golden.check(section, [*recorded])
    check.used("t", "patch_in", "patch_t", "final_in")
    embedders = ("timestep_emb", "time_embed", "time_embed_2", "guidance_emb", "timestep_r_emb")
    for name in recorded:
        if name.startswith(GUIDANCE):  # the number behind is the scale times 1000, which the network is given
            value = torch.tensor([float(name.removeprefix(GUIDANCE))], device=model.device)
            check.close(name, _embedder(model, "guidance_emb")(value), recorded[name])
    if "t" in recorded:
        t = recorded["t"].to(model.device)
        check.close("sinusoid", sinusoid(t), recorded.get("sinusoid"))
        for name in embedders:
            if name in recorded:
                check.close(name, _embedder(model, name)(t), recorded[name])
    else:
        check.without_input(["sinusoid", *embedders], "t")
    times = recorded.get("patch_t")
    shape = {name: tuple(recorded[name].shape) for name in ("patch_out", "final_out") if name in recorded}
    patch_in = golden.given(section, recorded, "patch_in", shape.get("final_out"))
    final_in = golden.given(section, recorded, "final_in", shape.get("patch_out"))
    if patch_in is None or times is None:
        check.without_input(["patch_out"], "patch_in or patch_t")
    else:
        check.close("patch_out", model.embed_latents(patch_in, times.to(model.device)), recorded.get("patch_out"))
    if final_in is None or times is None:
        check.without_input(["final_out"], "final_in or patch_t")
    elif "final_out" in recorded:
        rows, columns = shape["final_out"][-2:]
        final = model.velocity(final_in, times.to(model.device), rows, columns)
        check.close("final_out", final, recorded["final_out"])
    return check.finish()


def moe(golden: Golden, section: str) -> Check:
    recorded, model = golden.tensors(section), golden.model
    check = golden.check(section, [*recorded])
    block = next(layer.mlp for layer in model.model.layers if isinstance(layer.mlp, MoE))
    check.used("x")
    outputs = [recorded[name] for name in recorded if name.startswith("out_") or name == "shared_out"]
    x = golden.given(section, recorded, "x", outputs[0].shape if outputs else None)
    if x is None:
        check.without_input(recorded, "x")
        return check.finish()
    flat = x.flatten(0, 1)
    weights, index = PLAIN.route(flat, block.gate.wg.weight, block.topk)
    combine = torch.zeros(len(flat), block.gate.wg.out_features, device=x.device).scatter_(1, index, weights)
    check.close("router_logits", block.gate.wg(flat.float()), recorded.get("router_logits"))
    check.close("easy_weights", weights, recorded.get("easy_weights"))
    check.exact("easy_index", index, recorded.get("easy_index"))
    check.close("combine_drop0", combine, recorded.get("combine_drop0"))
    if block.shared_mlp is not None:
        check.close("shared_out", block.shared_mlp(x), recorded.get("shared_out"))
    check.close("out_easy_topk", block(x), recorded.get("out_easy_topk"))
    check.close("out_eager_drop0", block(x), recorded.get("out_eager_drop0"))
    check.leave_out((name for name in recorded if name.endswith("_drop1")), DROPPING)
    return check.finish()


class _Spy:
    """Stands in for a layer's module and keeps what it returned."""

    def __init__(self, modules: list[Any]) -> None:
        self.outputs: dict[int, Tensor] = {}
        self.handles = [m.register_forward_hook(self._keep(i)) for i, m in enumerate(modules)]

    def _keep(self, index: int):
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            self.outputs[index] = output[0].clone()

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def backbone(golden: Golden, section: str) -> Check:
    """Prefill of the recorded prompt: residual stream after each layer, attention output, logits."""
    recorded, model = golden.tensors(section), golden.model
    check = golden.check(section, [*recorded])
    case = next((c for c in golden.values("tokens")["cases"] if c["name"] == "edit1_gen_text_think"), None)
    if case is None:
        check.without_input(recorded, "case edit1_gen_text_think of the token section")
        return check.finish()
    layout = case_layout(golden, case)
    rows = recorded.get("positions", torch.arange(len(layout)))
    random = RequestRandom(golden.sections[section]["seeds"]["cond VAE"], model.device, noise_on_cpu=True)
    conditions = encode_conditions(model, [golden.cond("images/src0.png")], random)
    x = embed_prompt(model, layout, layout.ids, conditions, 0, len(layout))
    kv = KVCache.allocate(golden.config, 1, len(layout), model.dtype, model.device)
    layers, attention = _Spy(list(model.model.layers)), _Spy([layer.self_attn for layer in model.model.layers])
    hidden = run_tokens(model, layout, x[None], 0, kv)[0]
    layers.remove()
    attention.remove()

    check.used("positions")
    ours = {
        "inputs_embeds_full": x,
        "inputs_embeds": x[rows],
        "cond_latents": conditions.latents[0],
        "logits_last4": model.logits(hidden[-4:]),
        "ln_f": model.model.ln_f(hidden)[rows],
        **{f"layer{i}": output[rows] for i, output in layers.outputs.items()},
        **{f"attn{i}": output[rows] for i, output in attention.outputs.items()},
    }
    if "input_ids" in recorded:
        check.exact("input_ids", torch.tensor([layout.ids]), recorded["input_ids"])
    dropped = section == "backbone"
    routed = {"logits_last4", "ln_f", *(n for n in ours if n.startswith(("layer", "attn")) and n != "attn0")}
    if "positions" not in recorded:
        partial = [n for n in ours if n in recorded and len(recorded[n]) != len(ours[n])]
        check.without_input(partial, "positions")
    for name, value in ours.items():
        if not (dropped and name in routed) and name not in check.left_out:
            check.close(name, value, recorded.get(name))
    if dropped:
        _check_head(check, golden, recorded)
        check.leave_out((n for n in recorded if n in routed), DROPPING)
    return check.finish()


def _check_head(check: Check, golden: Golden, recorded: dict[str, Tensor]) -> None:
    """What comes after the last layer, from that layer's recorded output."""
    model, last = golden.model, recorded.get(f"layer{golden.config.num_hidden_layers - 1}")
    if last is None:
        return
    stream = last.to(model.device)
    check.close("ln_f", model.model.ln_f(stream), recorded.get("ln_f"))
    check.close("logits_last4", model.logits(stream[-4:]), recorded.get("logits_last4"))  # the last rows are recorded
