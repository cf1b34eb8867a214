"""The demo's training on a GPU: attention in tiles beside the rule as one mask."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import Tensor

from scripts.demo.operations import Rule, TrainingOperations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]

DEVICE = torch.device("cuda")
ROOM, STRETCH, LENGTHS = 383, 257, [300, 340, 383]
KINDS = {"square": ([(9, 283), (0, 0)], 256), "small": ([(9, 200), (0, 0)], 11 * 22)}


@pytest.mark.parametrize("kinds", [["square"], ["square", "small", "square"]], ids=len)
def test_attention_in_tiles_and_its_gradients(kinds: list[str]) -> None:
    """Compiled once, for all kinds of batches of one length."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rule, fast, plain = Rule.create(3, ROOM, STRETCH, 1, DEVICE), TrainingOperations(), TrainingOperations()
    masks = {name: rule.tiles(torch.tensor(conds), area) for name, (conds, area) in KINDS.items()}
    attend = torch.compile(lambda q, k, v: fast.attend(q, k, v, []), dynamic=False)
    random = torch.Generator(DEVICE).manual_seed(1)
    for name in kinds:
        conds, area = KINDS[name]
        rule.set(torch.tensor(LENGTHS, device=DEVICE), torch.tensor(conds, device=DEVICE), area, masks[name])
        shapes = [(3, rule.tokens, heads, 128) for heads in (4, 2, 2)]
        draws = [torch.randn(shape, generator=random, device=DEVICE, dtype=torch.bfloat16) for shape in shapes]
        fast.use(rule, flex=True)
        plain.use(rule, flex=False)
        ours = run(attend, draws)
        with torch.autocast("cuda", enabled=False):
            exact = run(lambda q, k, v: plain.attend(q, k, v, []), [draw.float() for draw in draws])
        real = 1 + area  # what fills up a stretch sees too, but nothing is made of it
        for mine, wanted in zip(ours, exact, strict=True):
            error = (mine.float() - wanted)[:, : ROOM + real]
            assert error.norm() < 1e-2 * wanted.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def run(attend, draws: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of its squares where all kinds have real tokens."""
    leaves = [draw.clone().requires_grad_() for draw in draws]
    out = attend(*leaves)
    out[:, : ROOM + 1 + 11 * 22].float().square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]
