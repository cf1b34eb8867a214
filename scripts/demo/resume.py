"""Makes a state to train on from a checkpoint folder: `python -m scripts.demo.resume FOLDER --state STATE`.

For going on with the demo that the package ships, whose training state is not kept. Knows which official name belongs
to which trained tensor; does not train.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from hunyuan.checkpoint.folder import SINGLE_FILE, read_config
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig
from scripts.demo import state
from scripts.demo.transformer import build


def take_weights(
    config: CheckpointConfig, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official weights in training form: the transformer's and the planar autoencoder's. `export`, backwards."""
    model, _ = build(config, seed=0)
    own: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    for key, spec in expected_tensors(config).items():
        value = weights[key].float()
        target = own[spec.param] if spec.slot is None else own[spec.param][spec.slot]
        target.copy_(value[:, :, value.shape[2] // 2] if value.dim() == 5 else value)
    transformer = {name: p for name, p in own.items() if not name.startswith("vae.")}
    return transformer, model.vae.state_dict()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a training state from a demo checkpoint folder.")
    parser.add_argument("folder", type=Path, help="official layout, one weight file")
    parser.add_argument("--state", type=Path, default=Path("demo_work/state"))
    args = parser.parse_args(argv)
    config = read_config(args.folder)
    with torch.no_grad():
        transformer, autoencoder = take_weights(config, load_file(args.folder / SINGLE_FILE))
    scale = {"scaling": config.vae.scaling_factor, "shift": config.vae.shift_factor}
    state.save(args.state, "autoencoder_average", {"weights": autoencoder, **scale})
    state.save(args.state, "transformer", {"step": 0, "parameters": transformer, "average": transformer})
    print(f"wrote {args.state}: {sum(v.numel() for v in transformer.values()) / 1e6:.1f} M values of the transformer")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
