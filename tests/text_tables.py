"""Texts on tables instead of a network: vocabularies, rules and the loop that asks after every token."""

from __future__ import annotations

import torch
from text_reference import decode_text
from torch import Tensor

from hunyuan.generation.sampling import MAX_TOP_K, Sampling, uniforms
from hunyuan.generation.text import TextPlan

VOCAB, CAPACITY = 3000, 200
END_THINK, RECAPTION, END_RECAPTION, ANSWER, BOI, SIZE = range(10, 16)
RATIOS = tuple(range(100, 133)) + tuple(range(140, 144))
AUTO = TextPlan(
    ((END_THINK, (RECAPTION,)), (END_RECAPTION, (ANSWER, BOI, SIZE))), frozenset(RATIOS), SIZE, RATIOS, END_RECAPTION
)
FIXED = TextPlan(((END_THINK, (RECAPTION,)),), frozenset([END_RECAPTION]), None, RATIOS, END_RECAPTION)
THINK = TextPlan((), frozenset([END_THINK, END_RECAPTION]), None, RATIOS, END_THINK)
GREEDY, USUAL = Sampling(False), Sampling(True, 0.6, MAX_TOP_K, 0.95)
CPU = torch.device("cpu")


def table(seed: int, scale: float = 3.0, special: float = 8.0) -> Tensor:
    """Logits after each token, `[vocab, vocab]` in two small factors; the special tokens come up often."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(VOCAB, 8, generator=generator)
    right = torch.randn(8, VOCAB, generator=generator) * scale / 8**0.5
    logits = left @ right
    logits[:, 10:16] += special * torch.rand(VOCAB, 6, generator=generator)
    return logits.bfloat16().float()


def quiet(done: int) -> None:
    pass


def plain(logits: Tensor, plan: TextPlan, sampling: Sampling, uniform: Tensor, last: int = 1) -> list[int]:
    most = len(uniform)
    return decode_text(logits[last], last, plan, sampling, uniform, most, logits.__getitem__, quiet)


def draws(seed: int, count: int = 120) -> Tensor:
    return uniforms(torch.Generator().manual_seed(seed), count)


def scripted(script: dict[int, int], default: int = 70) -> Tensor:
    """Logits that want `script[token]` after a token."""
    logits = torch.zeros(VOCAB, VOCAB)
    for token in range(VOCAB):
        logits[token, script.get(token, default)] = 30.0
    return logits
