"""Writes the trained demo as a checkpoint folder in the official layout: `python -m scripts.demo.export OUT`.

Weights are bfloat16, the average over the last steps of training. Knows which trained tensor goes under which official
name; knows nothing of how they were trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from hunyuan.checkpoint import tiny
from hunyuan.checkpoint.packed import PACKED_FILES, pack
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.network import HunyuanImage3
from scripts.demo import sizes, state
from scripts.demo.autoencoder import product_weights

# Special tokens that never come up have an embedding of zeros, which takes no room in a compressed file.
_UNUSED = ("<pos_", "<relation_", "</relation_", "<|extra_")


def official_weights(model: HunyuanImage3, config: CheckpointConfig) -> dict[str, Tensor]:
    """The weights of a network in its training form under the checkpoint's keys and in its shapes."""
    own: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    own |= {f"vae.{name}": value for name, value in product_weights(model.vae).items()}
    out = {}
    for key, spec in expected_tensors(config).items():
        value = own[spec.param] if spec.slot is None else own[spec.param][spec.slot]
        if tuple(value.shape) != spec.shape:
            raise ValueError(f"{key}: trained as {tuple(value.shape)}, expected {spec.shape}")
        out[key] = value.contiguous()
    return out


def export(out: Path, tokenizer: Tokenizer, autoencoder: Mapping, average: Mapping[str, Tensor]) -> CheckpointConfig:
    """Writes the folder.

    Args:
        autoencoder: the state `autoencoder_average`: planar weights, `scaling` and `shift`.
        average: the transformer's weights by name; what is not among them was never trained and is zero.
    """
    from scripts.demo.transformer import build

    config = sizes.write_small_files(
        out, tokenizer, sizes.model_config(tokenizer, autoencoder["scaling"], autoencoder["shift"])
    )
    model, _ = build(config, seed=0)
    model.vae.load_state_dict({key: value.float() for key, value in autoencoder["weights"].items()})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vae."):
                parameter.copy_(average[name] if name in average else torch.zeros_like(parameter))
        for token, index in tokenizer.get_vocab().items():
            if token.startswith(_UNUSED):
                model.model.wte.weight[index] = 0
        model.model.wte.weight[tokenizer.get_vocab_size() :] = 0
    tiny.write_weights(out, tiny.as_stored(official_weights(model, config), config, torch.bfloat16))
    return config


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the trained demo as a checkpoint folder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--state", type=Path, default=Path("demo_work/state"))
    parser.add_argument("--tokenizer", type=Path, default=Path("demo_work/tokenizer.json"))
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="pack it, too; hunyuan/demo is the package's")
    args = parser.parse_args(argv)
    autoencoder, transformer = state.load(args.state, "autoencoder_average"), state.load(args.state, "transformer")
    if autoencoder is None or transformer is None:
        parser.error(f"{args.state} does not hold an autoencoder and a transformer")
    export(args.out, Tokenizer.from_file(str(args.tokenizer)), autoencoder, transformer["average"])
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"wrote {args.out}: {size / 1e6:.1f} MB, transformer at step {transformer['step']}")
    if args.packed is not None:
        pack(args.out, args.packed)
        for name in PACKED_FILES:
            print(f"wrote {args.packed / name}: {(args.packed / name).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
