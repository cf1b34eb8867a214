"""What an engine keeps on the device between requests: key-value buffers and a decoder on them.

Made once, after the weights and the backends are in their final place; a request borrows it. Knows the network's
`decode` and how much memory a token costs. Holds no request's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hunyuan.generation.company import LanesForward, LaneSteps, TextCompany, one_by_one
from hunyuan.generation.decoding import DecodeStep, Forward, TextDecoder, TextRun
from hunyuan.generation.kv_cache import KVCache, KVPool, buffers, layer_devices
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import KeyValueBuffers
from hunyuan.model.rope import positions_2d, rope_table

StepMaker = Callable[[KVCache], DecodeStep]  # of a one-row cache
Decode = Callable[[Tensor, tuple[Tensor, Tensor], KeyValueBuffers, Tensor], Tensor]  # `Transformer.decode`


@dataclass(frozen=True)
class Workspace:
    """An engine's buffers.

    Attributes:
        decoder: works on the pool's first row; None: text is decoded token by token from the host.
        second: the unguided row on a second copy's device, lent with the pool, which then has one row.
    """

    pool: KVPool
    decoder: TextDecoder | None = None
    second: KVCache | None = None

    @classmethod
    def create(
        cls,
        model: HunyuanImage3,
        capacity: int,
        decoder: Callable[[DecodeStep], TextDecoder] | None,
        second: HunyuanImage3 | None = None,
        step: StepMaker | None = None,
    ) -> Workspace:
        """Allocates, and makes the decoder.

        Args:
            capacity: tokens per row; a request that needs more allocates buffers of its own.
            decoder: makes one from a step that it may capture: no part of the layers' decode path waits for the
                device. None, or a model spread over several devices, whose steps no single graph holds: no decoder.
            second: a copy of the model that runs the unguided row; None: both rows are the model's.
            step: makes the decoder's step; None: `plain_step` does.
        """
        pool = KVPool(zeros(model, rows_needed(model.config) if second is None else 1, capacity))
        other = None if second is None else zeros(second, 1, capacity)
        if decoder is None or len(set(layer_devices(model))) > 1:
            return cls(pool, second=other)
        return cls(pool, decoder((step or partial(plain_step, model))(pool.cache.select(0))), other)


def zeros(model: HunyuanImage3, rows: int, capacity: int) -> KVCache:
    """A kernel may weigh keys and values behind the text's end with 0, and 0 * nan is nan: they begin as zeros."""
    cache = buffers(model, rows, capacity, None)
    for buffer in cache.keys + cache.values:
        buffer.zero_()
    return cache


def rows_needed(config: ModelConfig) -> int:
    """A distilled checkpoint has no unguided row."""
    return 1 if config.cfg_distilled else 2


def text_rope(model: HunyuanImage3, capacity: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of generated text by position, fp32 `[capacity, head_dim]`.

    It stands on the diagonal at its own index, whatever images came before it.
    """
    config, positions = model.config, positions_2d(0, capacity, []).to(model.device)
    return rope_table(positions, config.attention_head_dim, config.rope_theta)


def text_forward(
    model: HunyuanImage3, kv: KVCache, decode: Decode | None = None, logits: Callable[[Tensor], Tensor] | None = None
) -> Forward:
    """The network's side of a decode step, on a one-row cache; without a wait for the device.

    Args:
        decode, logits: other forms of the network's own.
    """
    decode, logits = decode or model.model.decode, logits or model.logits
    cos, sin = text_rope(model, kv.capacity)

    def forward(token: Tensor, position: Tensor) -> Tensor:
        x = model.embed_tokens(token)[None]  # [1, 1, hidden]
        rope = (cos.index_select(0, position), sin.index_select(0, position))  # [1, head_dim] each
        hidden = decode(x, rope, kv, position)  # [1, 1, hidden]
        return logits(hidden[0, -1])

    return forward


def plain_step(model: HunyuanImage3, kv: KVCache) -> DecodeStep:
    """A step of the network's own operations on a one-row cache."""
    return DecodeStep(text_forward(model, kv), model.config.vocab_size, kv.capacity, model.device)


def decoder_for(model: HunyuanImage3, kv: KVCache, run: TextRun, workspace: Workspace | None) -> TextDecoder:
    """The workspace's decoder, if the prompt's keys are where it looks for them and it can sample as asked; or one."""
    sampling, vocab = run.sampling, model.config.vocab_size
    lent = None if workspace is None else workspace.decoder
    if workspace is not None and lent is not None and kv.shares(workspace.pool.cache) and lent.supports(sampling):
        return lent
    candidates = sampling.candidates(vocab)
    return TextDecoder(DecodeStep(text_forward(model, kv), vocab, len(run.uniform), model.device, candidates))


def lanes_forward(model: HunyuanImage3, rows: KVCache) -> LanesForward:
    """The network's side of a step of several texts, on a row of `rows` each; without a wait for the device."""
    cos, sin = text_rope(model, rows.capacity)

    def forward(tokens: Tensor, positions: Tensor, lanes: Tensor) -> Tensor:
        x = model.embed_tokens(tokens)[:, None]  # [n, 1, hidden]
        rope = (cos.index_select(0, positions), sin.index_select(0, positions))  # [n, head_dim] each
        hidden = model.model.decode(x, rope, rows.laned(lanes), positions)  # [n, 1, hidden]
        return model.logits(hidden[:, 0])  # [n, vocab]

    return forward


def text_company(
    model: HunyuanImage3, rows: int, capacity: int, captured: Callable[[LaneSteps, KVCache], TextCompany] | None
) -> TextCompany:
    """Buffers and a decoder for up to `rows` texts together, prompt and text of each in at most `capacity` tokens.

    Args:
        captured: makes one of steps that it may capture, on a model whose operations give each row of a call the bits
            that it has alone; None: row by row from the host, which has those bits and gains no time.
    """
    config, kv = model.config, zeros(model, rows, capacity)
    if captured is not None:
        forward, make = lanes_forward(model, kv), captured
    else:
        forward, make = one_by_one([text_forward(model, kv.select(row)) for row in range(rows)]), TextCompany
    return make(LaneSteps(forward, config.vocab_size, rows, capacity, model.device), kv)
