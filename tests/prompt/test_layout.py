"""The token sequence: the recorded ones piece by piece, odd thinking texts, variants of the model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from PIL import Image

from hunyuan.checkpoint.folder import read_config
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.prompt.images import prepare_cond_image
from hunyuan.prompt.layout import CondShape, GenBlock, Layout, LayoutBuilder, keep_recaption
from hunyuan.prompt.resolution import parse_resolution, resolution_group
from hunyuan.prompt.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden_a"
CASES = [
    case
    for case in json.loads((GOLDEN / "tokens.json").read_text())["cases"]
    if "message_list" not in case["inputs"] and isinstance(case["inputs"]["prompt"], str)
]
GROUP = resolution_group(256)
SQUARE = GROUP.square
SHAPE = CondShape(GROUP.buckets[12], (6, 10))  # 320x192: 12 by 20 latent cells


@cache
def config() -> CheckpointConfig:
    return read_config(GOLDEN / "checkpoint")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(GOLDEN / "checkpoint", 256)


def layouts(template: str = "instruct", **changes) -> LayoutBuilder:
    return LayoutBuilder(tokenizer(), replace(config(), **changes), template)


@cache
def shape_of(name: str, align: bool) -> CondShape:
    image = prepare_cond_image(Image.open(GOLDEN / name).convert("RGB"), config(), align)
    return CondShape(image.bucket, image.vision.grid)


def wished(size: str | list[int]):
    """The recorded sizes are HEIGHTxWIDTH."""
    height, width = size.split("x") if isinstance(size, str) else size
    return GROUP.nearest(parse_resolution(f"{width}x{height}"))


def lay_out(case: dict) -> Layout:
    inputs = case["inputs"]
    ours = layouts("pretrain" if case["name"].startswith("pretrain") else "instruct")
    names = (inputs.get("image") or [[]])[0]
    images = [shape_of(name, inputs.get("infer_align_image_size", False)) for name in names]
    system, prompt, cot = inputs["system_prompt"], inputs["prompt"], inputs.get("cot_text")
    drop_think = inputs.get("drop_think", False)
    if inputs["mode"] == "gen_text":
        return ours.text_layout(system, prompt, images, inputs["bot_task"], cot, drop_think)
    return ours.image_layout(system, prompt, images, wished(inputs["image_size"]), cot, drop_think)


def texts(layout: Layout) -> list[str]:
    """Every piece, an image block as its kind in brackets."""
    return [f"[{piece.kind}]" if piece.text is None else piece.text for piece in layout.pieces]


def cot_pieces(cot: str, drop_think: bool = False) -> list[str]:
    """What stands between the assistant's prefix and the picture's answer tag."""
    pieces = texts(layouts().image_layout("", "p", [], SQUARE, cot, drop_think))
    return pieces[pieces.index("Assistant: ") + 1 : pieces.index("[gen_image]") - 1]


def guided(layout: Layout) -> list[str]:
    """The text pieces that the unconditional row replaces."""
    cfg = tokenizer().cfg
    return [p.text for p in layout.pieces if p.text and set(layout.uncond_ids[p.start : p.stop]) == {cfg}]


# --- recorded sequences


def test_the_recorded_cases_are_the_ones_this_project_can_make():
    assert len(CASES) == 33
    assert {case["inputs"]["mode"] for case in CASES} == {"gen_text", "gen_image"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_sequence_is_the_recorded_one(case):
    layout = lay_out(case)
    rows = [layout.ids, layout.uncond_ids][: len(case["tokens"])]
    assert rows == case["tokens"]
    assert len(layout) == case["real_pos"][0][0]

    sections = [f"text:{piece.text!r}" if piece.kind == "text" else piece.kind for piece in layout.pieces]
    assert sections == case["sections"][0]
    assert [[p.start, p.stop] for p in layout.pieces if p.kind == "text"] == case["text_slices"][0]

    assert [list(block) for block in layout.full_blocks] == case["full_attn_slices"][0]
    assert [[b.vae.start, b.vae.stop] for b in layout.conds] == case["vae_image_slices"][0]
    assert [[b.vit.start, b.vit_stop] for b in layout.conds] == case["vit_image_slices"][0]
    assert [b.timestep for b in layout.conds] == (case["cond_timestep_scatter_index"] or [[]])[0]

    assert [[g.start, g.height, g.width] for g in layout.grids] == [
        [start, height, width] for start, _, height, width in case["rope_image_info"][0]
    ]
    if case["gen_timestep_scatter_index"] is None:
        assert layout.gen is None
    else:
        block = layout.generated
        assert [block.timestep] == case["gen_timestep_scatter_index"][0]
        assert [[block.image.start, block.image.stop]] == case["gen_image_slices"][0]
        assert (block.guidance, block.timestep_r) == (None, None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_unconditional_row_is_of_equal_length_and_differs_by_cfg_tokens_alone(case):
    layout = lay_out(case)
    assert len(layout.uncond_ids) == len(layout.ids)
    changed = {other for one, other in zip(layout.ids, layout.uncond_ids, strict=True) if one != other}
    assert changed == {tokenizer().cfg}
    assert guided(layout)[0] == case["inputs"]["prompt"]


def test_pieces_and_the_first_token_cover_the_sequence():
    layout = layouts().image_layout("system", "prompt", [SHAPE, SHAPE], SQUARE, "<think>a</think>b")
    assert layout.ids[0] == tokenizer().bos
    ends = [1, *(piece.stop for piece in layout.pieces)]
    assert [piece.start for piece in layout.pieces] == ends[:-1]
    assert ends[-1] == len(layout)


# --- pieces


def test_every_piece_is_tokenized_by_itself():
    """The system text's last word and the separator would merge if they were one text."""
    layout = layouts().text_layout("a ", "b", [], "think")
    assert layout.ids == [
        tokenizer().bos,
        *(
            i
            for piece in ("a ", "\n\n", "User: ", "b", "\n\n", "Assistant: <think>")
            for i in tokenizer().encode(piece)
        ),
    ]


def test_an_empty_system_text_leaves_no_piece():
    assert texts(layouts().text_layout("", "b", [], "think")) == ["User: ", "b", "\n\n", "Assistant: <think>"]


@pytest.mark.parametrize(
    ("task", "last"),
    [
        ("auto", "Assistant: "),
        ("think", "Assistant: <think>"),
        ("recaption", "Assistant: <recaption>"),
        ("img_ratio", "Assistant: <answer><boi><img_size_256>"),
        ("image", ""),
    ],
)
def test_where_the_model_continues(task, last):
    assert texts(layouts().text_layout("", "b", [], task))[-1] == last


def test_images_stand_before_the_prompt_in_their_order():
    other = CondShape(SQUARE, (8, 8))
    layout = layouts().image_layout("s", "p", [SHAPE, other], SQUARE)
    assert texts(layout)[3:7] == ["User: ", "[cond_joint_image]", "[cond_joint_image]", "p"]
    assert [(b.vae.height, b.vae.width) for b in layout.conds] == [(12, 20), (16, 16)]
    assert [(b.vit.height, b.vit.width) for b in layout.conds] == [(6, 10), (8, 8)]


def test_a_condition_image_token_by_token():
    tk = tokenizer()
    layout = layouts().text_layout("", "p", [SHAPE], "think")
    [piece] = [p for p in layout.pieces if p.kind == "cond_joint_image"]
    head = [tk.boi, tk.size, tk.ratios[12], tk.timestep]
    body = [*[tk.img] * 240, tk.joint_sep, *[tk.img] * config().vit_processor.max_num_patches, tk.eoi]
    assert layout.ids[piece.start : piece.stop] == head + body
    block = layout.conds[0]
    assert (block.timestep, block.vae.start) == (piece.start + 3, piece.start + 4)
    assert block.vit.stop - block.vit.start == 60  # the real patches
    assert block.vit_stop == piece.stop - 1  # the padding as well


TYPED = [
    "<img>",
    "<boi>",
    "<eoi>",
    "<timestep>",
    "<joint_img_sep>",
    "<img_size_256>",
    "<img_ratio_3>",
    "<cfg>",
    "<think>",
]


@pytest.mark.parametrize("typed", [*TYPED, "".join(TYPED), "<boi><img_size_256><img_ratio_3><timestep><img>"])
def test_no_control_token_that_a_user_types_moves_a_picture(typed):
    """Typed tokens become those tokens, as in the authors' code; where pictures lie is counted, not looked up."""
    ours, shapes, prompt = layouts(), [SHAPE, CondShape(SQUARE, (8, 8)), SHAPE], f"{typed}make it {typed} blue{typed}"
    plain = ours.image_layout(typed, "make it blue", shapes, SQUARE, f"<think>{typed}</think>")
    layout = ours.image_layout(typed, prompt, shapes, SQUARE, f"<think>{typed}</think>")
    more = len(tokenizer().encode(prompt)) - len(tokenizer().encode("make it blue"))
    assert more >= 3
    assert layout.conds == plain.conds
    assert layout.ids[: layout.conds[-1].vit_stop] == plain.ids[: layout.conds[-1].vit_stop]
    assert layout.generated.image.start == plain.generated.image.start + more
    assert layout.full_blocks[:3] == plain.full_blocks[:3]
    tk = tokenizer()
    for block in layout.conds:
        grid = block.vae
        assert layout.ids[block.timestep] == tk.timestep
        assert set(layout.ids[grid.start : grid.stop]) == {tk.img}
        assert layout.ids[grid.stop] == tk.joint_sep
        assert layout.ids[block.vit_stop] == tk.eoi


@pytest.mark.parametrize(
    "prompt", ["<boi><img></answer>", "<|startoftext|>", "<cfg>", "say <think> aloud", "<img_ratio_3>"]
)
def test_a_prompt_that_spells_special_tokens_is_text_still(prompt):
    """It becomes those tokens, as in the official code, but no block, and the unconditional row hides it."""
    layout = layouts().image_layout("", prompt, [SHAPE], SQUARE)
    plain = layouts().image_layout("", "p", [SHAPE], SQUARE)
    [piece] = [p for p in layout.pieces if p.text == prompt]
    assert layout.ids[piece.start : piece.stop] == tokenizer().encode(prompt)
    assert set(layout.uncond_ids[piece.start : piece.stop]) == {tokenizer().cfg}
    assert len(layout.uncond_ids) == len(layout.ids)
    assert [piece.kind for piece in layout.pieces] == [piece.kind for piece in plain.pieces]
    shift = len(layout) - len(plain)
    assert layout.full_blocks == [plain.full_blocks[0], tuple(edge + shift for edge in plain.full_blocks[1])]


def test_an_empty_prompt_and_a_long_one():
    assert texts(layouts().text_layout("", "", [], "think"))[:3] == ["User: ", "", "\n\n"]
    long = "word " * 3000
    layout = layouts().image_layout("", long, [], SQUARE)
    assert guided(layout) == [long]


def test_a_text_layout_has_no_picture():
    layout = layouts().text_layout("", "p", [SHAPE], "think")
    assert layout.gen is None
    with pytest.raises(ValueError, match="no picture to paint"):
        _ = layout.generated


# --- thinking texts


@pytest.mark.parametrize(
    ("cot", "pieces"),
    [
        ("plain words", ["<answer>plain words</answer>"]),
        ("<think>a</think>", ["<think>", "a", "</think>"]),
        ("<recaption>b</recaption>", ["<recaption>", "b", "</recaption>"]),
        (
            "<think>a</think><recaption>b</recaption>",
            ["<think>", "a", "</think>", "<recaption>", "b", "</recaption>"],
        ),
        # Tags that are not complete are words like others.
        ("<think>a", ["<answer><think>a</answer>"]),
        ("a</think>", ["<answer>a</think></answer>"]),
        ("<recaption>b", ["<answer><recaption>b</answer>"]),
        ("<think>a</think><recaption>b", ["<think>", "a", "</think>", "<answer><recaption>b</answer>"]),
        ("<think>a<recaption>b</recaption>", ["<answer><think>a</answer>", "<recaption>", "b", "</recaption>"]),
        # Text around the tags.
        ("before<think>a</think>", ["<answer>before</answer>", "<think>", "a", "</think>"]),
        ("<think>a</think>after", ["<think>", "a", "</think>", "<answer>after</answer>"]),
        (
            "x<think>a</think>y<recaption>b</recaption>z",
            [
                *("<answer>x</answer>", "<think>", "a", "</think>"),
                *("<answer>y</answer>", "<recaption>", "b", "</recaption>", "<answer>z</answer>"),
            ],
        ),
        (
            "<recaption>b</recaption><think>a</think>",
            ["<recaption>", "b", "</recaption>", "<think>", "a", "</think>"],
        ),
        # Nothing inside.
        ("<think></think>", ["<think>", "", "</think>"]),
        ("<think></think><recaption></recaption>", ["<think>", "", "</think>", "<recaption>", "", "</recaption>"]),
        # Repeated tags: the first opening and what follows the first closing, up to the next tag.
        ("<think>a</think><think>b</think>", ["<think>", "a", "</think>", "<answer><think>b</answer>"]),
        ("<think>a<think>b</think>c", ["<think>", "a", "</think>", "<answer>c</answer>"]),
        ("<think>a</think>b</think>c", ["<think>", "a", "</think>", "<answer>b</answer>"]),
        # The wrong way round.
        ("</think>a<think>", ["<answer></think>a</answer>", "<think>", "", "</think>", "<answer>a<think></answer>"]),
        # One tag inside another.
        ("<think>a<recaption>b</recaption>c</think>", ["<think>", "a<recaption>b</recaption>c", "</think>"]),
    ],
)
def test_pieces_of_a_thinking_text(cot, pieces):
    assert cot_pieces(cot) == pieces


@pytest.mark.parametrize(
    ("cot", "pieces"),
    [
        ("<think>a</think><recaption>b</recaption>", ["<recaption>", "b", "</recaption>"]),
        ("x<think>a</think>y", ["<answer>x</answer>", "<answer>y</answer>"]),
        ("<think>a</think>", []),
        ("<think>a", ["<answer><think>a</answer>"]),
        ("<recaption>b</recaption>", ["<recaption>", "b", "</recaption>"]),
    ],
)
def test_drop_think_leaves_the_thought_out(cot, pieces):
    assert cot_pieces(cot, drop_think=True) == pieces


@pytest.mark.parametrize("cot", [None, ""])
def test_no_thinking_text_leaves_no_piece(cot):
    layout = layouts().image_layout("", "p", [], SQUARE, cot)
    assert texts(layout) == ["User: ", "p", "\n\n", "Assistant: ", "<answer>", "[gen_image]", "</answer>", "\n\n"]
    assert texts(layouts().text_layout("", "p", [], "img_ratio", cot))[-1] == "Assistant: <answer><boi><img_size_256>"


def test_tags_stay_in_the_unconditional_row_and_words_do_not():
    layout = layouts().image_layout("s", "p", [], SQUARE, "x<think>a</think><recaption>b</recaption>")
    assert guided(layout) == ["p", "<answer>x</answer>", "a", "b"]


def test_a_given_text_before_the_ratio_keeps_the_marker_a_piece_of_its_own():
    layout = layouts().text_layout("", "p", [], "img_ratio", "<recaption>b</recaption>")
    assert texts(layout)[-5:] == ["Assistant: ", "<recaption>", "b", "</recaption>", "<answer><boi><img_size_256>"]
    dropped = layouts().text_layout("", "p", [], "img_ratio", "<think>a</think><recaption>b</recaption>", True)
    assert dropped.ids == layout.ids


@pytest.mark.trap(7)
@pytest.mark.parametrize(
    ("cot", "kept"),
    [
        ("<think>a</think><recaption>b</recaption>", "<recaption>b</recaption>"),
        ("<recaption>b</recaption>", "<recaption>b</recaption>"),
        ("<think>a</think><recaption>b", "<recaption>b</recaption>"),
        ("<recaption>b</recaption>c", "<recaption>b</recaption>"),
        ("<recaption>b</recaption><recaption>c</recaption>", "<recaption>b</recaption>"),
        ("<recaption></recaption>", "<recaption></recaption>"),
        ("<think>a</think>", "<think>a</think>"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_keeping_the_recaption_alone(cot, kept):
    assert keep_recaption(cot) == kept


# --- variants of the model


@pytest.mark.trap(13)
def test_distil_has_two_more_tokens_right_before_the_picture():
    tk = tokenizer()
    layout = layouts(cfg_distilled=True, use_meanflow=True).image_layout("", "p", [SHAPE], SQUARE)
    block = layout.generated
    at = block.timestep
    assert block == GenBlock(at, at + 1, at + 2, block.image)
    assert block.image.start == at + 3
    assert layout.ids[at - 3 : at + 4] == [
        *(tk.boi, tk.size, tk.ratios[16]),
        *(tk.timestep, tk.id("<guidance>"), tk.id("<timestep_r>"), tk.img),
    ]
    # The condition image has neither.
    assert layout.ids.count(tk.id("<guidance>")) == layout.ids.count(tk.id("<timestep_r>")) == 1


@pytest.mark.trap(13)
@pytest.mark.parametrize(
    ("changes", "token"), [({"cfg_distilled": True}, "<guidance>"), ({"use_meanflow": True}, "<timestep_r>")]
)
def test_each_distil_token_has_its_own_switch(changes, token):
    layout = layouts(**changes).image_layout("", "p", [], SQUARE)
    block = layout.generated
    assert [i for i in (block.guidance, block.timestep_r) if i is not None] == [block.timestep + 1]
    assert layout.ids[block.timestep + 1] == tokenizer().id(token)
    assert block.image.start == block.timestep + 2


def test_every_attention_type_is_covered_here():
    known = get_args(get_type_hints(CheckpointConfig)["cond_token_attn_type"])
    assert known == ("joint_full", "full", "full_causal", "causal")


@pytest.mark.parametrize(
    ("attention", "grids", "blocks"),
    [
        ("joint_full", ["vae", "vit"], ["joint"]),
        ("full", ["vae", "vit"], ["vae", "vit"]),
        ("full_causal", ["vae"], ["vae"]),
        ("causal", [], []),
    ],
)
def test_what_each_attention_type_makes_of_condition_images(attention, grids, blocks):
    layout = layouts(cond_token_attn_type=attention).image_layout("", "p", [SHAPE, SHAPE], SQUARE)
    expected_grids, expected_blocks = [], []
    for cond in layout.conds:
        ranges = {
            "joint": (cond.vae.start, cond.vit_stop),
            "vae": (cond.vae.start, cond.vae.stop),
            "vit": (cond.vit.start, cond.vit_stop),
        }
        expected_grids += [getattr(cond, name) for name in grids]
        expected_blocks += [ranges[name] for name in blocks]
    picture = layout.generated.image
    assert layout.grids == [*expected_grids, picture]
    assert layout.full_blocks == [*expected_blocks, (picture.start, picture.stop)]
    assert layout.ids == layouts().image_layout("", "p", [SHAPE, SHAPE], SQUARE).ids


def test_the_grid_follows_the_autoencoders_own_factor():
    layout = layouts(vae_downsample_factor=(32, 8)).image_layout("", "p", [], SQUARE)
    assert (layout.generated.image.height, layout.generated.image.width) == (8, 32)


def test_pretrain_has_no_roles_separators_or_answer_tags():
    ours = layouts("pretrain")
    layout = ours.image_layout("s", "p", [SHAPE], SQUARE, "x<recaption>b</recaption>")
    assert "".join(texts(layout)) == "s[cond_joint_image]px<recaption>b</recaption>[gen_image]"
    assert guided(layout) == ["p", "x", "b"]
    assert texts(ours.text_layout("", "p", [], "img_ratio"))[-1] == "<boi><img_size_256>"


@pytest.mark.parametrize("template", ["", "Instruct", "chat"])
def test_an_unknown_template_is_refused(template):
    with pytest.raises(CheckpointError, match=f"sequence_template='{template}', accepted: instruct, pretrain"):
        layouts(template)


@pytest.mark.trap(4)
def test_all_buckets_have_their_own_ratio_token():
    for bucket in GROUP.buckets:
        layout = layouts().image_layout("", "p", [], bucket)
        assert layout.ids[layout.generated.timestep - 1] == tokenizer().id(f"<img_ratio_{bucket.index}>")


@pytest.mark.trap(4)
@pytest.mark.parametrize("index", [33, 36])
def test_a_bucket_beyond_the_base_models_ratio_tokens_is_refused(index):
    base = Tokenizer(GOLDEN / "checkpoint", 256, extra_ratios=False)
    ours = LayoutBuilder(base, config(), "pretrain")
    ours.image_layout("", "p", [], GROUP.buckets[32])
    with pytest.raises(CheckpointError, match=f"no token <img_ratio_{index}>"):
        ours.image_layout("", "p", [], GROUP.buckets[index])
    with pytest.raises(CheckpointError, match=f"no token <img_ratio_{index}>"):
        ours.text_layout("", "p", [CondShape(GROUP.buckets[index], (8, 8))], "think")
