"""The demo's transformer in training: the product's network, the losses, and one batch through it.

A sample is a whole edit: source pictures, request, thoughts, and several noisy copies of the answer at times of their
own behind one prefix, which costs much less than as many samples. Knows latents and tokens; where pictures and
wordings come from is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunyuan.model.attention import Segment
from hunyuan.model.config import ModelConfig
from hunyuan.model.embeddings import sinusoid
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import use_operations
from hunyuan.model.vae import Vae
from hunyuan.prompt.layout import CondBlock
from scripts.demo.autoencoder import planar
from scripts.demo.operations import DenseExperts, Rule, TrainingOperations
from scripts.demo.places import Places, pixel_scale
from scripts.demo.sequences import Batch

FLOW_SHIFT = 3.0
TEXT_WEIGHT, BALANCE_WEIGHT = 0.75, 0.025
SMALL_ERROR = 1e-3
"""Of a sample, squared: what is smaller hardly counts."""
START_SHARE = 0.5
"""How many noisy answers stand at time 1, where the sampler begins and sees nothing of the answer."""
LEAST_TIME = 0.02


def build(config: ModelConfig, seed: int) -> tuple[HunyuanImage3, TrainingOperations]:
    """The network at its start, trainable, with the operations of training; the autoencoder is planar and frozen."""
    torch.manual_seed(seed)
    model = HunyuanImage3(config)
    for layer in cast(Iterable[Any], model.model.layers):
        layer.mlp.experts = DenseExperts(layer.mlp.experts)
        layer.layer = 0  # all layers alike, so that one compiled form serves them all
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vae."):
                _initialise(name, parameter, config.num_hidden_layers)
        for block in cast(Iterable[Any], (model.patch_embed.model[1], model.final_layer.model[0])):
            block.emb_layers[1].weight.mul_(0.1)
    planar(model.vae)
    model.vae.requires_grad_(False)
    if getattr(model.vision_model, "head", None) is not None:
        model.vision_model.head.requires_grad_(False)  # nothing uses it
    operations = TrainingOperations()
    use_operations(model, operations)
    return model, operations


def _initialise(name: str, parameter: nn.Parameter, layers: int) -> None:
    """Starts at which no branch drowns another; what is written last starts at zero."""
    fan_in = parameter[0].numel() if parameter.dim() in (2, 4) else parameter.shape[-1]
    if name.startswith("vision_model.head"):
        parameter.zero_()
    elif name in ("lm_head.weight", "model.wte.weight"):
        # Words that never come up keep equal rows this way, and equal rows take no room in a compressed file.
        parameter.zero_() if name.startswith("lm_head") else parameter.normal_(0, 0.5)
    elif name.startswith("final_layer.model.1.2"):
        parameter.zero_()
    elif "position_embedding" in name:
        parameter.normal_(0, 0.5)
    elif name.endswith("mlp.gate.wg.weight"):
        parameter.normal_(0, 0.02)
    elif name.startswith("model.layers") and name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
        parameter.normal_(0, 1 / math.sqrt(fan_in * 2 * layers))
    elif parameter.dim() >= 2:
        parameter.normal_(0, 1 / math.sqrt(fan_in))
    elif name.endswith("bias"):
        parameter.zero_()


def matrices_and_others(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What Muon steps, and tables, heads, norms and biases for AdamW; frozen parameters in neither."""
    tables = ("wte", "lm_head", "position_embedding", "gate.wg", "final_layer.model.1.2", "patch_embed.model.0")
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = parameter.dim() >= 2 and not any(table in name for table in tables)
            (matrices if inner else others).append(parameter)
    return matrices, others


@dataclass
class Losses:
    """Of one batch.

    Attributes:
        velocity: fp32 `[n * copies]`, mean squared error of each noisy copy, channels by what they do to the picture.
        weight: fp32 `[n * copies]`, how much each of these counts.
        text: cross entropy over the words that the model has to say, a scalar.
        balance: of the routers, a scalar; 1 is even.
        predicted: fp32 `[n * copies, channels, h, w]`, the velocity.
    """

    velocity: Tensor
    weight: Tensor
    text: Tensor
    balance: Tensor
    predicted: Tensor

    @property
    def picture(self) -> Tensor:
        """fp32 `[n * copies]`, mean squared error of the answer that each velocity leads to."""
        return self.weight * self.velocity

    @property
    def root(self) -> Tensor:
        """fp32, a scalar: the mean over samples of about the root of `picture`.

        Some samples cannot be answered: the prompt was left out, or nothing tells what hides behind a figure. Of
        plain squares these made up most of the loss, and the many that come close to the right answer hardly counted.
        Pseudo-Huber, as in Song and Dhariwal, 2023 (arXiv 2310.14189).
        """
        return (self.picture + SMALL_ERROR).sqrt().mean()

    @property
    def total(self) -> Tensor:
        return self.root + TEXT_WEIGHT * self.text + BALANCE_WEIGHT * self.balance


@dataclass
class Noisy:
    """Noisy answers: latents `[n * copies, channels, h, w]`, their times 0 to 1, and the velocity that is wanted."""

    latents: Tensor
    sigma: Tensor
    wanted: Tensor

    @classmethod
    def draw(cls, clean: Tensor, copies: int, guess: Tensor | None = None) -> Noisy:
        """Half at time 1, half where the sampler comes by: at later times, on the way to a guess.

        An edit has one right answer. Trained on noisy copies of that answer, the network learns to read it off them,
        which the sampler never lets it do: its first guess stayed as it was through all steps. So a later time's
        latents hold the network's own guess, and what is wanted leads from there to the right answer.

        Args:
            clean: latents of the exact answers, `[n, channels, h, w]`.
            guess: the network's earlier answers to the same samples, as `answer` gives them; without them all are at
                time 1.
        """
        clean = clean.repeat_interleave(copies, dim=0)
        count, device = len(clean), clean.device
        even = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
        sigma = (FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)).clamp(min=LEAST_TIME)
        at_start = torch.rand(count, device=device) < (1.0 if guess is None else START_SHARE)
        sigma = torch.where(at_start, 1.0, sigma)
        met = clean if guess is None else guess.repeat_interleave(copies, dim=0)  # at time 1 nothing of it is seen
        s = sigma[:, None, None, None]
        mixed = s * torch.randn_like(clean) + (1 - s) * met
        return cls(mixed, sigma, (mixed - clean) / s)

    @property
    def weight(self) -> Tensor:
        """fp32 `[n * copies]`: an error e of the velocity at time t is one of t * e of the answer it leads to."""
        return self.sigma.square()

    def answer(self, predicted: Tensor, copies: int) -> Tensor:
        """Where a velocity leads, without its gradient: of each sample's first copy, `[n, channels, h, w]`."""
        return (self.latents - self.sigma[:, None, None, None] * predicted).detach()[::copies]


@dataclass
class Times:
    """What the network makes of times: of 0, where sources stand, and of the noisy copies'.

    Attributes:
        stamp, stamps: as tokens, `[1, hidden]` and `[n * copies, hidden]`.
        start, latents: for the latents' embedding, of the same shapes.
        final: for the velocity, `[n * copies, hidden]`.
    """

    stamp: Tensor
    stamps: Tensor
    start: Tensor
    latents: Tensor
    final: Tensor

    @classmethod
    def create(cls, model: HunyuanImage3, sigma: Tensor) -> Times:
        waves = sinusoid(F.pad(sigma * 1000, (1, 0)))  # [1 + n * copies, size]
        both = [1, len(sigma)]
        stamp, stamps = model.timestep_emb.mlp(waves).split(both)
        start, latents = model.time_embed.mlp(waves).split(both)
        return cls(stamp, stamps, start, latents, model.time_embed_2.mlp(waves[1:]))


class Trainee:
    """The network with what a batch's pass through it needs.

    Args:
        copies: noisy answers per sample.
        compiled: compile the layers, which then attend in tiles; for GPUs.
        weighing: fp32 `[channels, channels]`, what an error is multiplied by before it counts, as `sensitivity.root`
            gives it; without it all channels count alike.
    """

    def __init__(
        self,
        model: HunyuanImage3,
        operations: TrainingOperations,
        count: int,
        copies: int,
        compiled: bool = False,
        weighing: Tensor | None = None,
    ) -> None:
        self.model, self.operations, self.count, self.copies, self.compiled = model, operations, count, copies, compiled
        self.device, self.weighing = model.device, weighing
        self.rules: dict[int, Rule] = {}
        self.kinds: dict[tuple[int, tuple[CondBlock, ...], tuple[int, int]], Places] = {}
        self.layer = torch.compile(self._layer, dynamic=False) if compiled else self._layer

    def rule(self, batch: Batch) -> tuple[Rule, Places]:
        """The attention rule for this batch, one object for all batches of equal length, and its places."""
        area = (self.model.config.image_base_size // 16) ** 2
        if batch.room not in self.rules:
            self.rules[batch.room] = Rule.create(self.count, batch.room, 1 + area, self.copies, self.device)
        rule, kind = self.rules[batch.room], (batch.room, tuple(batch.conds), batch.grid)
        if kind not in self.kinds:
            self.kinds[kind] = Places.create(batch, rule, self.model.config)
        height, width = batch.grid
        places = self.kinds[kind]
        rule.set(batch.length, places.bounds, height * width, places.tiles)
        return rule, places

    def losses(self, batch: Batch, sources: list[Tensor], conds: list[Tensor], noisy: Noisy) -> Losses:
        """One pass.

        Args:
            sources: pictures in 0..1, one stack per source of a sample, for the vision tower, which shrinks them.
            conds: their scaled latents.
        """
        (rule, places), (height, width), model = self.rule(batch), batch.grid, self.model
        times = Times.create(model, noisy.sigma)
        vision = self._vision(sources, batch, places)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latent = self._latents(conds, noisy.latents, times)
            x = self._sequence(batch, latent, vision, times, rule, places)
            rope = places.rope(batch.length)
            self.operations.use(rule, flex=self.compiled)
            balances = []
            for layer in model.model.layers:
                x, balance = self.layer(layer, x, *rope)
                balances.append(balance)
            tokens = x[:, rule.room :].unflatten(1, (self.copies, rule.stretch))[:, :, 1 : 1 + height * width]
            predicted = model.final_layer(tokens.flatten(0, 1), times.final, height, width).float()
            # As places in all sequences. `index_select` has a gradient in one operation, unlike `x[...]`.
            spoken = batch.spoken + batch.spoken // rule.room * (rule.tokens - rule.room)
            logits = model.logits(x.flatten(0, 1).index_select(0, spoken))
        error = predicted - noisy.wanted  # [n * copies, channels, h, w]
        if self.weighing is not None:
            error = torch.einsum("cd,ndhw->nchw", self.weighing, error)
        velocity = error.square().mean((1, 2, 3))
        text = F.cross_entropy(logits, batch.words, reduction="sum") / max(len(batch.words), 1)
        return Losses(velocity, noisy.weight, text, torch.stack(balances).mean(), predicted)

    def _layer(self, layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(x, (cos, sin), None, [Segment(0, x.shape[1], causal=False)])
        return out, self.operations.balance

    def _latents(self, conds: list[Tensor], latents: Tensor, times: Times) -> list[Tensor]:
        """Tokens `[n, h * w, hidden]` of each source's latents, and last those `[n * copies, h * w, hidden]` to paint.

        What has one shape goes through in one piece: sources are alike, and mostly the answer too.
        """
        parts = [*conds, latents]
        embedded = [times.start.expand(len(c), -1) for c in conds] + [times.latents]
        one_shape = not conds or conds[0].shape[2:] == latents.shape[2:]
        made: list[Tensor] = []
        for some in (slice(None),) if one_shape else (slice(-1), slice(-1, None)):
            tokens = self.model.patch_embed(torch.cat(parts[some]), torch.cat(embedded[some]))
            made += tokens.float().split([len(part) for part in parts[some]])
        return made

    def _sequence(
        self, batch: Batch, latent: list[Tensor], vision: list[Tensor], times: Times, rule: Rule, places: Places
    ) -> Tensor:
        """Embeddings fp32 `[n, tokens, hidden]` of all tokens, put together in one operation."""
        count = len(batch.prefix)
        words = self.model.embed_tokens(batch.prefix.index_select(1, places.text))  # [n, texts, hidden]
        first, *pieces = words.split(places.pieces, dim=1)
        taken = []
        for embedded, seen in zip(latent, vision, strict=False):
            taken += [times.stamp.expand(count, 1, -1), embedded, seen]
        parts = [first, *(part for pair in zip(taken, pieces, strict=True) for part in pair)]
        image = latent[-1].unflatten(0, (count, self.copies))  # [n, copies, h * w, hidden]
        stamps = times.stamps.unflatten(0, (count, self.copies))  # [n, copies, hidden]
        fill = image.new_zeros(1).expand(count, rule.stretch - 1 - image.shape[2], image.shape[3])
        for copy in range(self.copies):
            parts += [stamps[:, copy : copy + 1], image[:, copy], fill]
        return torch.cat(parts, dim=1)

    def _vision(self, sources: list[Tensor], batch: Batch, places: Places) -> list[Tensor]:
        """The vision tower's tokens fp32 `[n, patches, hidden]` of each source, all in one pass.

        transformers' tower, but for its table of positions and its head, which nothing uses. In fp32: so small a
        network takes longer to be cast than to be computed.
        """
        if places.resized is None:
            return []
        block, tower = batch.conds[0].vit, cast(Any, self.model.vision_model)
        patches = vision_patches(torch.cat(sources), (block.height, block.width), self.model.config)
        table = tower.embeddings.position_embedding.weight  # [positions, vision]
        x = tower.embeddings.patch_embedding(patches) + places.resized @ table
        x = tower.encoder(inputs_embeds=x, attention_mask=places.mask).last_hidden_state
        x = self.model.vision_aligner(tower.post_layernorm(x))  # [sources * n, patches, hidden]
        return list(x.chunk(len(sources)))


@torch.no_grad()
def latents(vae: Vae, pictures: Tensor, draw: bool) -> Tensor:
    """Pictures `[n, 3, h, w]` in 0..1 to scaled latents; `draw` from the posterior as for a source, or its mean."""
    pixels = (pictures * 2 - 1)[:, :, None].to(vae.dtype)
    mean, logvar = vae.encoder(pixels).float().chunk(2, dim=1)
    if draw:
        mean = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)
    return vae.scale(mean)[:, :, 0]


def vision_patches(pictures: Tensor, grid: tuple[int, int], config: ModelConfig) -> Tensor:
    """Pictures in 0..1 as the product's `vision_input` cuts them: `[n, patches, values]`, filled up with zeros."""
    (rows, columns), patch, processor = grid, config.vit.patch_size, config.vit_processor
    size = rows * patch, columns * patch
    if pictures.shape[2:] != size:
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
    factor, summand = pixel_scale(processor, pictures.device)
    values = torch.addcmul(summand, (pictures * 255).round(), factor)
    cut = values.unflatten(2, (rows, patch)).unflatten(4, (columns, patch)).permute(0, 2, 4, 3, 5, 1)
    cut = cut.reshape(len(pictures), rows * columns, -1)
    missing = processor.max_num_patches - rows * columns
    return F.pad(cut, (0, 0, 0, missing)) if missing else cut
