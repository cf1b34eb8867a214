"""Sets of the operations that the transformer is made of: the eager one, and a fast one for Hopper GPUs.

A model computes with `EAGER` until `use_kernels(model, HopperKernels())` gives it another set; nothing else about
it changes. Whoever holds the key-value buffers meets this contract (`KeyValueBuffers`):

- `write(layer, start, k, v)` serves the eager set, `buffers(layer)` the fast one, which writes in place;
- `Transformer.forward(x, rope, kv, segments)` runs stretches of tokens whose positions the host knows;
- `Transformer.decode(x, rope, kv, position)` runs one token a row (`x` `[rows, 1, hidden]`, cosines and sines
  `[1, head_dim]`) at `position`, an int32 tensor `[1]` on the device: it writes at `position` and attends to the
  keys [0, position]. With the fast set nothing waits for the host, every tensor's shape is fixed, and the call can
  live in a CUDA graph (run it once before the capture: kernels are compiled and weights rearranged then).

`hopper.py` and the files with Triton kernels import Triton; nothing here does. Knows no checkpoint and no request.
"""

from __future__ import annotations

from torch import nn

from hunyuan.model.kernels.eager import HeadNorms, HeadShape, Kernels, KeyValueBuffers

EAGER = Kernels()


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Makes every part of `model` that computes with a set of operations use this one."""
    kernels.prepare(model)
    for module in model.modules():
        if isinstance(getattr(module, "kernels", None), Kernels):
            setattr(module, "kernels", kernels)  # noqa: B010 - a module declares its attributes as tensors or modules


__all__ = ["EAGER", "HeadNorms", "HeadShape", "Kernels", "KeyValueBuffers", "use_kernels"]
