"""Trains the demo's decoder once more, on what the finished transformer answers.

At work the decoder never gets what the encoder makes of a picture: it gets the transformer's answer, whose errors have
a pattern that it can learn to undo. The encoder stays as it is, and so do the latents that the transformer knows.
Knows one step; does not know where pictures come from or how long a training is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hunyuan.model.vae import Vae
from scripts.demo.autoencoder import picture_loss, pixel_error
from scripts.demo.drawing import Drawn
from scripts.demo.sequences import Batch
from scripts.demo.transformer import Noisy, Trainee

FAR = 0.35
"""An answer whose mean squared error is larger (latents are of about unit variance) is another picture: the prompt was
left out, or a figure hid what was asked for. From these nothing can be learned."""
RIGHT_SHARE = 0.25
"""How often the right latents are decoded, so that a picture which comes back unchanged does not become worse."""


@torch.no_grad()
def answers(trainee: Trainee, drawn: Drawn, batch: Batch) -> Tensor:
    """What the network answers at time 1, scaled latents fp32 `[n, channels, h, w]`; later steps change little."""
    noisy = Noisy.draw(drawn.clean, trainee.copies)
    predicted = trainee.losses(batch, drawn.sources, drawn.conds, noisy).predicted
    return noisy.answer(predicted, trainee.copies)


def lesson(answered: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """What to decode, and which answers are far off, bool `[n]`.

    Args:
        answered, right: fp32 `[n, channels, h, w]`; the right latents are for a share, and where an answer is far off.
    """
    far = (answered - right).square().mean((1, 2, 3)) > FAR
    shown = torch.rand(len(right), device=right.device) < RIGHT_SHARE
    return torch.where((far | shown)[:, None, None, None], right, answered), far


def loss(vae: Vae, latents: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error of pixels in 0..1 for the log.

    Args:
        latents: scaled, fp32 `[n, channels, h, w]`.
        exact: uint8 `[n, 3, rows, columns]`, the pictures that these should be.
    """
    wanted = exact.float() / 127.5 - 1
    made = vae.decode(vae.unscale(latents)).float()
    return picture_loss(made, wanted), pixel_error(made, wanted)
