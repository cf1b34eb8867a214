"""How often a router in bf16 chooses other experts than one in fp32, on the tokens of real edits.

Runs edits with a router in fp32 and asks the one in bf16 about the same tokens, so that one other choice does not make
the next. Counts choices; what they do to a picture, `HUNYUAN_ROUTER=bf16` and the same seed show. Everything in its
plain form: slow with a large model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan import Editor, EditRequest, Settings
from hunyuan.compare.sample_photos import photo
from hunyuan.engines.native import NativeEngine
from hunyuan.model.operations import Operations, use_operations

PROMPTS = ("Make the background blue", "Make it black and white", "Mirror it")


class BothRouters(Operations):
    """Routes in fp32 and counts what bf16 would have chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Operations(torch.bfloat16)
        self.tokens = self.changed_tokens = self.choices = self.changed = 0

    def route(self, x: Tensor, router: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        weights, index = super().route(x, router, topk)
        other = self.other.route(x, router, topk)[1]
        kept = (index[:, :, None] == other[:, None, :]).any(dim=-1)  # [tokens, topk]
        self.tokens, self.choices = self.tokens + len(x), self.choices + kept.numel()
        self.changed_tokens += int((~kept).any(dim=-1).sum())
        self.changed += int((~kept).sum())
        return weights, index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="demo", help="checkpoint folder; the built-in demo when absent")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the source picture")
    args = parser.parse_args()
    model_id = args.folder if args.folder in ("demo", "tiny") else Path(args.folder)
    editor = Editor.load(Settings(model_id=model_id, device=args.device, dtype=args.dtype, moe_impl="eager"))
    assert isinstance(editor.engine, NativeEngine)
    model, both = editor.engine.checkpoint.model, BothRouters()
    use_operations(model, both)
    for prompt in PROMPTS:
        picture = photo(args.size, args.size, grain=60.0)
        editor.run(EditRequest(prompt, images=[picture], seed=3, steps=args.steps))
    print(f"{editor.model_name}: {len(PROMPTS)} edits at {args.size}x{args.size}, {args.steps} steps, seed 3")
    print(f"{model.config.num_experts[0]} experts, {model.config.moe_topk[0]} a token; {model.dtype} on {model.device}")
    print(f"tokens times layers: {both.tokens:,}; with another expert: {both.changed_tokens / both.tokens:.2%}")
    print(f"choices: {both.choices:,}; others: {both.changed / both.choices:.2%}")


if __name__ == "__main__":
    main()
