"""The tokenizer: special tokens by name, ratio tokens, decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.processors import TemplateProcessing

from hunyuan.errors import CheckpointError
from hunyuan.prompt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def checkpoint(golden) -> Path:
    return golden / "checkpoint"


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint, 256)


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    return json.loads((golden / "tokens.json").read_text())


def without(checkpoint: Path, out: Path, *names: str) -> Path:
    """A folder whose tokenizer lacks some special tokens."""
    raw = json.loads((checkpoint / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] not in names]
    raw["model"]["vocab"] = {k: v for k, v in raw["model"]["vocab"].items() if k not in names}
    (out / "tokenizer.json").write_text(json.dumps(raw))
    return out


# --- special tokens


def test_special_ids_are_the_recorded_ones(tokenizer, recorded):
    assert {name: tokenizer.id(name) for name in recorded["special_ids"]} == recorded["special_ids"]


def test_each_attribute_is_the_token_it_says(tokenizer):
    names = {
        "bos": "<|startoftext|>",
        "cfg": "<cfg>",
        "boi": "<boi>",
        "eoi": "<eoi>",
        "img": "<img>",
        "timestep": "<timestep>",
        "joint_sep": "<joint_img_sep>",
        "think": "<think>",
        "end_think": "</think>",
        "recaption": "<recaption>",
        "end_recaption": "</recaption>",
        "answer": "<answer>",
        "size": "<img_size_256>",
    }
    assert {name: getattr(tokenizer, name) for name in names} == {k: tokenizer.id(v) for k, v in names.items()}
    assert len({tokenizer.id(token) for token in names.values()}) == len(names)


def test_base_size_picks_the_size_token(checkpoint, tokenizer):
    large = Tokenizer(checkpoint, 1024)
    assert (large.size_text, large.size) == ("<img_size_1024>", large.id("<img_size_1024>"))
    assert large.size != tokenizer.size


def test_vocabulary_counts_every_id(tokenizer):
    assert tokenizer._bpe.get_vocab_size() == 1 + max(tokenizer.id("<timestep_r>"), *tokenizer.ratios)


def test_an_unknown_special_token_is_named(tokenizer):
    with pytest.raises(CheckpointError, match="special token <nothing> is missing"):
        tokenizer.id("<nothing>")


def test_missing_special_tokens_are_named_all_at_once(checkpoint, tmp_path):
    folder = without(checkpoint, tmp_path, "<cfg>", "<img_ratio_34>", "<img_size_256>", "<timestep_r>", "<guidance>")
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(folder, 256, needed=["<guidance>", "<timestep_r>"])
    told = str(caught.value).partition("missing: ")[2].split(", ")
    assert sorted(told) == sorted(["<cfg>", "<img_size_256>", "<img_ratio_34>", "<guidance>", "<timestep_r>"])


def test_a_variants_own_tokens_are_needed_by_it_alone(checkpoint, tmp_path):
    folder = without(checkpoint, tmp_path, "<guidance>", "<timestep_r>")
    Tokenizer(folder, 256)
    with pytest.raises(CheckpointError, match=r"missing: <guidance>$"):
        Tokenizer(folder, 256, needed=["<guidance>"])


def test_a_base_size_without_a_token_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"missing: <img_size_300>$"):
        Tokenizer(checkpoint, 300)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"^tokenizer\.json is missing"):
        Tokenizer(tmp_path, 256)


# --- ratio tokens


@pytest.mark.trap(4)
def test_ratio_ids_leave_a_gap_before_the_last_four(tokenizer, recorded):
    ids = recorded["special_ids"]
    assert len(tokenizer.ratios) == 37
    assert tokenizer.ratios[:33] == tuple(range(ids["<img_ratio_0>"], ids["<img_ratio_32>"] + 1))
    assert tokenizer.ratios[33:] == tuple(range(ids["<img_ratio_33>"], ids["<img_ratio_36>"] + 1))
    assert tokenizer.ratios[33] > tokenizer.ratios[32] + 1


@pytest.mark.trap(4)
def test_every_ratio_token_finds_back_to_its_index(tokenizer):
    found = [tokenizer.ratio_index(tokenizer.id(f"<img_ratio_{i}>")) for i in range(37)]
    assert found == list(range(37))


@pytest.mark.trap(4)
def test_no_other_token_is_a_ratio(tokenizer):
    others = set(range(-1, tokenizer._bpe.get_vocab_size() + 1)) - set(tokenizer.ratios)
    assert {tokenizer.ratio_index(token) for token in others} == {None}
    after_32 = tokenizer.id("<img_ratio_32>") + 1
    assert tokenizer.ratio_index(after_32) is None


@pytest.mark.trap(4)
def test_the_base_model_has_33_ratios(checkpoint, tmp_path):
    base = Tokenizer(checkpoint, 256, extra_ratios=False)
    assert len(base.ratios) == 33
    assert base.ratio_index(base.id("<img_ratio_32>")) == 32
    assert base.ratio_index(base.id("<img_ratio_33>")) is None
    folder = without(checkpoint, tmp_path, *(f"<img_ratio_{i}>" for i in range(33, 37)))
    assert len(Tokenizer(folder, 256, extra_ratios=False).ratios) == 33
    with pytest.raises(CheckpointError, match="<img_ratio_33>, <img_ratio_34>, <img_ratio_35>, <img_ratio_36>"):
        Tokenizer(folder, 256)


# --- text


def test_encoding_adds_no_tokens_of_its_own(checkpoint, tokenizer, tmp_path):
    """Not even where the file says that a text starts with one."""
    raw = BpeTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    start = ("<|startoftext|>", tokenizer.bos)
    raw.post_processor = TemplateProcessing(single="<|startoftext|> $A", special_tokens=[start])
    raw.save(str(tmp_path / "tokenizer.json"))
    assert raw.encode("hello").ids[0] == tokenizer.bos
    assert Tokenizer(tmp_path, 256).encode("hello") == tokenizer.encode("hello")
    assert Tokenizer(tmp_path, 256).encode("") == []


def test_special_tokens_spelled_in_text_become_tokens(tokenizer):
    ids = tokenizer.encode("a<think>b</think>")
    assert ids[1] == tokenizer.think
    assert ids[-1] == tokenizer.end_think
    assert len(ids) == 4


@pytest.mark.parametrize(
    "text", ["Make the sky orange", "Ein Bär auf der Straße", "天空变成橙色", "two  spaces\n\nand 🎨"]
)
def test_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoded_texts_are_the_recorded_ones(tokenizer, recorded):
    assert [tokenizer.decode(d["ids"]) for d in recorded["decode"]] == [d["text"] for d in recorded["decode"]]


def test_decoding_keeps_special_tokens(tokenizer):
    ids = [tokenizer.think, *tokenizer.encode("a b"), tokenizer.end_think, tokenizer.id("<|endoftext|>")]
    assert tokenizer.decode(ids) == "<think>a b</think><|endoftext|>"


@pytest.mark.parametrize(
    ("spaced", "clean"),
    [
        ("a .", "a."),
        ("a ?", "a?"),
        ("a !", "a!"),
        ("a , b", "a, b"),
        ("a ' b", "a'b"),
        ("do n't", "don't"),
        ("I 'm", "I'm"),
        ("it 's", "it's"),
        ("I 've", "I've"),
        ("we 're", "we're"),
        ("I 'd , we 'll", "I 'd, we 'll"),
        ("a ; b : c ( d )", "a ; b : c ( d )"),
        ("wait . . .", "wait..."),
    ],
)
def test_spaces_that_decoding_takes_out(tokenizer, spaced, clean):
    assert tokenizer.decode(tokenizer.encode(spaced)) == clean


@pytest.mark.parametrize(
    ("spaced", "clean"),
    [
        ("a ' . b", "a '. b"),  # the full stop first: no quote with a space on both sides is left
        ("a ' 's", "a''s"),  # the quote before the 's
        ("a  .b", "a .b"),  # one pass a rule
    ],
)
def test_spaces_are_taken_out_in_the_official_order(tokenizer, spaced, clean):
    assert tokenizer.decode(tokenizer.encode(spaced)) == clean
