"""Guidance on two copies of the network: the guided row on one, the unguided row on the other, at the same time.

What is computed is `Denoiser`'s with both rows in one pass; rows never meet inside the network, so only the sums in
matrix products of another height may round differently. One thread gives both devices their work: it launches the
unguided row, then the guided one, and waits for neither. Knows the order in which that overlaps; does not know what a
step computes, nor whether the two devices are GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.kv_cache import KVCache, buffers
from hunyuan.generation.prefill import Conditions
from hunyuan.generation.prefix import fill_unguided
from hunyuan.generation.step_cache import StepCache
from hunyuan.model.network import HunyuanImage3
from hunyuan.placement import current, transfer


@dataclass(frozen=True, kw_only=True)
class TwoCopiesDenoiser(Denoiser):
    """The image stage of a guided request; itself the guided row, with `kv` of one row on its model's device.

    Attributes:
        unguided: the same stage for the other row, with a model, keys and values and a step cache of its own.
        fill_unguided: fills `unguided.kv` with all before the timestep token.
    """

    unguided: Denoiser
    fill_unguided: Callable[[], None]

    def predict(self, latents: Tensor, index: int) -> Tensor:
        """Both velocities on the guided row's device: fp32 `[2, channels, h, w]`, the guided row first."""
        here, there = latents.device, self.unguided.model.device
        # A copy between devices makes each wait for what the other was given before. So the latents go first, ahead of
        # everything that the other device has to do in this step, and its velocity comes back last.
        sent = transfer(latents, there)
        with current(there):
            if index == 0:
                self.fill_unguided()
            unguided = self.unguided.predict(sent, index)
        guided = super().predict(latents, index)
        return torch.cat([guided, transfer(unguided, here)])


def on_two_copies(
    denoiser: Denoiser, second: HunyuanImage3, conditions: Conditions, lent: KVCache | None, cache: StepCache | None
) -> TwoCopiesDenoiser:
    """`denoiser`, which has the guided row alone, with the unguided one on the second copy.

    Args:
        lent: buffers for the unguided row; None, or too small ones: new ones.
        cache: the unguided row's own.
    """
    layout, block = denoiser.layout, denoiser.block
    kv = buffers(second, 1, block.image.stop, lent)
    fill = partial(fill_unguided, second, layout, conditions, block.timestep, kv, denoiser.kv)
    unguided = replace(denoiser, model=second, kv=kv, cache=cache)
    unguided.upload()  # the host waits for that: now, before there is anything to wait for
    parts = {each.name: getattr(denoiser, each.name) for each in fields(denoiser)}
    return TwoCopiesDenoiser(**parts, unguided=unguided, fill_unguided=fill)
