"""Sections that need no network: sizes, pictures, token sequences, schedule."""

from __future__ import annotations

from typing import Any

import torch

from hunyuan.generation.scheduler import Schedule, classifier_free_guidance
from hunyuan.prompt.layout import Layout
from hunyuan.prompt.resolution import ResolutionGroup, Size, resolution_group
from hunyuan.prompt.tokenizer import Tokenizer
from scripts.goldens.folder import Golden, official_size
from scripts.goldens.report import EXACT, Check, Tolerance

_HARD_CODED_STOP = 127957  # <|endoftext|> of the real tokenizer, which the official code writes out


def resolution(golden: Golden, section: str) -> Check:
    recorded = golden.values(section)
    check = golden.check(section, [*recorded])
    tables = {base: _sizes_hw(resolution_group(int(base))) for base in recorded["tables_hw"]}
    check.exact("tables_hw", tables, recorded["tables_hw"])
    picks = {b: [_pick(resolution_group(int(b)), p) for p in rows] for b, rows in recorded["picks"].items()}
    check.exact("picks", picks, recorded["picks"])
    infos = [_gen_info(golden, info["image_size"], info["base_size"]) for info in recorded["gen_image_info"]]
    check.exact("gen_image_info", infos, recorded["gen_image_info"])
    check.exact("extra_resolutions_hw", _sizes_hw(resolution_group(1024))[33:], recorded["extra_resolutions_hw"])
    return check.finish()


def _sizes_hw(group: ResolutionGroup) -> list[list[int]]:
    return [[bucket.size.height, bucket.size.width] for bucket in group.buckets]


def _pick(group: ResolutionGroup, pick: dict[str, Any]) -> dict[str, Any]:
    bucket = group.nearest(Size(pick["width"], pick["height"]))
    target = [bucket.size.width, bucket.size.height]
    return {"width": pick["width"], "height": pick["height"], "target_wh": target, "ratio_index": bucket.index}


def _gen_info(golden: Golden, wish: Any, base: int) -> dict[str, Any]:
    group = resolution_group(base)
    if isinstance(wish, str) and wish.startswith("<img_ratio_"):
        bucket = group.buckets[int(wish.removeprefix("<img_ratio_").rstrip(">"))]
    else:
        bucket = group.nearest(official_size(wish))
    down_h, down_w = golden.config.vae_downsample_factor
    rows, columns = bucket.size.height // down_h, bucket.size.width // down_w
    return {
        "image_size": wish,
        "height": bucket.size.height,
        "width": bucket.size.width,
        "token_height": rows,
        "token_width": columns,
        "base_size": base,
        "ratio_index": bucket.index,
        "image_token_length": rows * columns,
    }


def preprocess(golden: Golden, section: str) -> Check:
    recorded, meta = golden.tensors(section), golden.sections[section]["meta"]
    check = golden.check(section, [*recorded, *(f"meta {m['name']}" for m in meta)])
    for m in meta:
        image, name = golden.cond(m["png"], m["align"]), m["name"]
        u8 = ((image.pixels + 1) / 2 * 255).round().to(torch.uint8)
        outputs = {
            "vit_pixel_values": (image.vision.patches, Tolerance(atol=1e-4)),
            "vit_spatial_shapes": (torch.tensor(image.vision.grid), EXACT),
            "vit_attention_mask": (image.vision.mask, EXACT),
            "vae_input_u8": (u8, EXACT),
        }
        for key, (ours, tolerance) in outputs.items():
            if f"{name}.{key}" in recorded:
                check.close(f"{name}.{key}", ours, recorded[f"{name}.{key}"], tolerance)
        down_h, down_w = golden.config.vae_downsample_factor
        size = image.bucket.size
        facts = {
            "vae_hw": [size.height, size.width],
            "vae_tokens_hw": [size.height // down_h, size.width // down_w],
            "base_size": golden.config.image_base_size,
            "ratio_index": image.bucket.index,
            "ori_wh": [image.source.width, image.source.height],
            "vit_tokens_hw": list(image.vision.grid),
            "vit_token_length": len(image.vision.mask),
        }
        check.exact(f"meta {name}", facts, {key: m[key] for key in facts})
    return check.finish()


def tokens(golden: Golden, section: str) -> Check:
    recorded = golden.values(section)
    cases = recorded.get("cases", [])
    names = [f"{c['name']}.{key}" for c in cases for key in c if key not in ("name", "inputs")]
    check = golden.check(section, [*(key for key in recorded if key != "cases"), *names])
    tk = golden.checkpoint.tokenizer
    ids, texts = recorded.get("special_ids", {}), recorded.get("decode", [])
    check.exact("special_ids", {t: tk.id(t) for t in ids}, ids)
    check.exact("decode", [tk.decode(d["ids"]) for d in texts], [d["text"] for d in texts])
    for case in cases:
        name, inputs = case["name"], case["inputs"]
        keys = [k for k in case if k not in ("name", "inputs")]
        if "message_list" in inputs:
            check.leave_out((f"{name}.{k}" for k in keys), "message list: this API has none")
        else:
            ours = describe(golden, case_layout(golden, case), inputs)
            for key in keys:
                check.exact(f"{name}.{key}", ours.get(key), case[key])
    return check.finish()


def case_layout(golden: Golden, case: dict[str, Any]) -> Layout:
    inputs = case["inputs"]
    if isinstance(inputs["prompt"], list):  # of a batch the authors' code lays out the first prompt
        inputs = {**inputs, "prompt": inputs["prompt"][0], "system_prompt": inputs["system_prompt"][0]}
    layouts = golden.layouts("pretrain" if case["name"].startswith("pretrain") else None)
    images = golden.shapes((inputs.get("image") or [[]])[0], inputs.get("infer_align_image_size", False))
    system, cot, drop = inputs["system_prompt"], inputs.get("cot_text"), inputs.get("drop_think", False)
    if inputs["mode"] == "gen_text":
        return layouts.text_layout(system, inputs["prompt"], images, inputs["bot_task"], cot, drop)
    output = golden.group.nearest(official_size(inputs["image_size"]))
    return layouts.image_layout(system, inputs["prompt"], images, output, cot, drop)


def describe(golden: Golden, layout: Layout, inputs: dict[str, Any]) -> dict[str, Any]:
    """A layout in the official code's terms, one entry a row."""
    rows = inputs.get("cfg_factor", 1)
    vae = [[b.vae.start, b.vae.stop] for b in layout.conds]
    vit = [[b.vit.start, b.vit_stop] for b in layout.conds]
    joint = [[b.vae.start, b.vit_stop] for b in layout.conds]
    gen = [[layout.gen.image.start, layout.gen.image.stop]] if layout.gen else []
    stops = {g.start: g.stop for g in layout.grids} | {b.vit.start: b.vit_stop for b in layout.conds}
    block = layout.gen

    def index(value: int | None) -> list[list[int]] | None:
        return None if value is None else [[value]] * rows

    return {
        "tokens": [layout.ids, layout.uncond_ids][:rows],
        "text_slices": [[[p.start, p.stop] for p in layout.pieces if p.kind == "text"]] * rows,
        "sections": [[f"text:{p.text!r}" if p.kind == "text" else p.kind for p in layout.pieces]] * rows,
        "gen_image_slices": [gen] * rows,
        "vae_image_slices": [vae] * rows,
        "vit_image_slices": [vit] * rows,
        "joint_image_slices": [joint] * rows,
        "all_image_slices": [sorted(vae + vit + gen)] * rows,
        "gen_image_mask_runs": [gen] * rows if gen else None,
        "vae_image_mask_runs": [vae] * rows if vae else None,
        "vit_image_mask_runs": [vit] * rows if vit else None,
        "cond_timestep_scatter_index": [[b.timestep for b in layout.conds]] * rows if layout.conds else None,
        "gen_timestep_scatter_index": index(block.timestep if block else None),
        "guidance_scatter_index": index(block.guidance if block else None),
        "gen_timestep_r_scatter_index": index(block.timestep_r if block else None),
        "real_pos": [[len(layout)]] * rows,
        "rope_image_info": [[[g.start, stops[g.start], g.height, g.width] for g in layout.grids]] * rows,
        "full_attn_slices": [[list(b) for b in layout.full_blocks]] * rows,
        "stop_token_id": _stops(golden.checkpoint.tokenizer, inputs),
    }


def _stops(tk: Tokenizer, inputs: dict[str, Any]) -> dict[str, list[int]]:
    if inputs["mode"] == "gen_image" or inputs["bot_task"] == "auto":
        return {"auto": [_HARD_CODED_STOP]}
    extra = list(tk.ratios[:33]) if inputs.get("image_size", "auto") == "auto" else [tk.boi]
    return {
        "auto": [_HARD_CODED_STOP, *extra],
        "recaption": [tk.end_recaption],
        "think": [tk.end_think, tk.end_recaption],
        "img_ratio": extra,
    }


def scheduler(golden: Golden, section: str) -> Check:
    recorded = golden.values(section)
    names = [f"{t['steps']} steps, shift {t['shift']}" for t in recorded["tables"]]
    check = golden.check(section, [*names, *(k for k in recorded if k != "tables")])
    for name, table in zip(names, recorded["tables"], strict=True):
        schedule = Schedule.create(table["steps"], table["shift"])
        ours = torch.cat([schedule.sigmas, schedule.timesteps[:-1], schedule.timesteps])
        check.close(name, ours, torch.tensor(table["sigmas"] + table["timesteps"] + table["timesteps_full"]))
    walk = recorded["euler_walk"]
    check.close("euler_walk", *_walk(walk))
    cfg = {key: torch.tensor(value) for key, value in recorded["cfg"].items()}
    check.close(
        "cfg",
        classifier_free_guidance(cfg["cond"], cfg["uncond"], recorded["cfg"]["scale"]),
        cfg["out"],
        Tolerance(1e-6, 1e-6),
    )
    return check.finish()


def _walk(walk: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Euler steps under a constant velocity, times included."""
    generators = [torch.Generator().manual_seed(walk[key]) for key in ("x0_seed", "v_seed")]
    x, v = (torch.randn(walk["shape"], generator=generator) for generator in generators)
    schedule, ours, theirs = Schedule.create(walk["steps"], walk["shift"]), [], []
    for i, entry in enumerate(walk["trace"]):
        x = schedule.step(x, v, i)
        ours += [schedule.timesteps[i : i + 2], x.flatten()]
        theirs += [torch.tensor([entry["t"], entry["r"]]), torch.tensor(entry["x"])]
    return torch.cat(ours), torch.cat(theirs)
