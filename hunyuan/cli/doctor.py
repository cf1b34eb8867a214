"""`hunyuan doctor`: what this machine has, and what that allows.

Knows where to look and how the table reads. Every look is short and on its own: one that fails is a row of the table,
not the end. What fits a GPU is `hunyuan.plan`'s; which kernels are wanted `hunyuan.accel`'s.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hunyuan.errors import HunyuanError

if TYPE_CHECKING:
    from hunyuan.settings import Settings

DESCRIPTION = """\
Says in a table what this machine has (settings, packages, driver, GPU, compiled kernels, disk) and what that allows.
Exit status: 0 the service can run, if slowly; 1 something is broken."""
EXAMPLES = """\
  hunyuan doctor
  MODEL_ID=/models/HunyuanImage-3-Instruct hunyuan doctor"""

DISTRIBUTION = "hunyuan-image-bento"
CHECKPOINT_GB = 170  # of one checkpoint in bf16, and a little
HOPPER = (9, 0)
State = Literal["ok", "--", "BAD"]


@dataclass(frozen=True)
class Row:
    """`state`: ok; -- for what is missing and not needed everywhere; BAD for what stops the service."""

    state: State
    name: str
    found: str


@dataclass(frozen=True)
class Card:
    """One GPU as torch sees it: name, compute capability, bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    found = list(examine())
    width = max(len(row.name) for row in found)
    for row in found:
        print(f"{row.state:<4} {row.name:<{width}}  {row.found}")
    return 1 if any(row.state == "BAD" for row in found) else 0


def examine() -> Iterator[Row]:
    yield python()
    yield packages()
    setting, values = settings()
    folder = values.folder if values else None
    yield setting
    yield checkpoint(values)
    yield driver()
    cards, gpu = gpus()
    yield gpu
    yield kernels(cards)
    yield compiler(cards)
    yield disk(folder)
    yield weights(cards, folder)
    yield speed(cards)


def python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Row("ok" if good else "BAD", "Python", version if good else f"{version}; 3.11 or 3.12 is wanted")


def packages() -> Row:
    """Missing ones are bad; other versions than the pinned ones may work and were not tried."""
    missing, other, same = [], [], 0
    for name, wanted in requirements().items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        same += version.split("+")[0] == wanted
        if version.split("+")[0] != wanted:
            other.append(f"{name} {version} ({wanted} is pinned)")
    if missing:
        return Row("BAD", "packages", f"missing: {', '.join(missing)}")
    told = f"; not as pinned: {', '.join(other)}" if other else ""
    return Row("ok" if not other else "--", "packages", f"{same} of {same + len(other)} as pinned{told}")


def requirements() -> dict[str, str]:
    """Package -> pinned version: of the installed distribution, or of the checkout's own file."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parents[2] / "requirements.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def settings() -> tuple[Row, Settings | None]:
    """Whether the environment's settings are valid, and they themselves where they are."""
    try:
        from hunyuan.settings import Settings

        values = Settings()
    except ImportError as error:
        return Row("BAD", "settings", f"cannot be read: {error}"), None
    except HunyuanError as error:
        return Row("BAD", "settings", str(error)), None
    given = sorted(values.model_fields_set)
    return Row("ok", "settings", f"set: {', '.join(given)}" if given else "all at their defaults"), values


def checkpoint(values: Settings | None) -> Row:
    from hunyuan.checkpoint import identity
    from hunyuan.checkpoint.builtin import KINDS
    from hunyuan.checkpoint.verify import problems

    if values is None:
        return Row("--", "checkpoint", "not looked at, as the settings are not valid")
    folder = values.folder
    if folder is None:
        why = "MODEL_ID is unset" if values.model_id is None else f"MODEL_ID={values.model_id}"
        return Row("ok", "checkpoint", f"{KINDS[values.builtin or 'demo'].about} ({why})")
    contents = identity.look(folder)
    found = problems(folder, contents)
    more = f" (and {len(found) - 1} more; hunyuan verify {folder})" if len(found) > 1 else ""
    if found:
        return Row("BAD", "checkpoint", f"{found[0]}{more}")
    return Row("ok", "checkpoint", f"{folder} is complete: {identity.describe(contents)}")


def driver() -> Row:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Row("--", "driver", "none: nvidia-smi is not there")
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row("--", "driver", f"nvidia-smi does not answer: {error}")
    lines = sorted(set(result.stdout.split()))
    return (
        Row("ok", "driver", ", ".join(lines)) if result.returncode == 0 else Row("--", "driver", result.stdout.strip())
    )


def gpus() -> tuple[list[Card], Row]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [], Row("BAD", "GPU", f"torch cannot be imported: {error}")
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        return [], Row("--", "GPU", f"none that torch {torch.__version__} (for {built}) can use; it runs on the CPU")
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cards = [Card(p.name, (p.major, p.minor), p.total_memory) for p in every]
    told = ", ".join(f"{card.name} {card.memory / 2**30:.1f} GiB" for card in cards)
    return cards, Row("ok", "GPU", f"{told}; torch {torch.__version__}")


def kernels(cards: list[Card]) -> Row:
    """Only Hopper uses them."""
    from hunyuan.accel import flashinfer_modules

    missing = flashinfer_modules.missing_modules()
    if not missing:
        return Row(
            "ok", "compiled kernels", f"all {len(flashinfer_modules.ENGINE_MODULES)} of FlashInfer's that are called"
        )
    wanted = any(card.capability == HOPPER for card in cards)
    told = (
        "FlashInfer is not installed"
        if flashinfer_modules.aot_folder() is None
        else f"missing: {len(missing)} of FlashInfer's"
    )
    return Row("--", "compiled kernels", f"{told}{'; run `hunyuan kernels`' if wanted else ''}")


def compiler(cards: list[Card]) -> Row:
    """Triton compiles a small program against Python.h when it is first used on a GPU."""
    lacks = [name for name, there in (("a C compiler", c_compiler()), ("Python.h", python_header())) if not there]
    if not lacks:
        return Row("ok", "compiler", f"{c_compiler()} and Python.h")
    return Row("BAD" if cards else "--", "compiler", f"missing: {' and '.join(lacks)} (gcc, python3-dev)")


def c_compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def python_header() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def disk(folder: Path | None) -> Row:
    where = folder or next((path for path in (Path("/models"), Path.cwd()) if path.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(where).free / 1e9
    except OSError as error:
        return Row("--", "disk", f"{where}: {error.strerror}")
    room = "" if folder else f", {'enough' if free >= CHECKPOINT_GB else 'too little'} for the {CHECKPOINT_GB} GB model"
    return Row("ok" if folder or free >= CHECKPOINT_GB else "--", "disk", f"{free:.0f} GB free in {where}{room}")


def weights(cards: list[Card], folder: Path | None) -> Row:
    """What the memory plan makes of these GPUs, for the checkpoint that is set or the published one."""
    if not cards:
        return Row("--", "allows: weights", "no GPU: small checkpoints only, in fp32 on the CPU")
    try:
        from hunyuan.checkpoint.folder import read_config
        from hunyuan.checkpoint.full_size import full_size_config
        from hunyuan.formats.config import CheckpointConfig
        from hunyuan.plan.choice import Gpu, choose

        config = read_config(folder) if folder else CheckpointConfig.from_dict(full_size_config(experts="bf16"))
        choice = choose(config, "auto", "bf16", [Gpu(card.name, card.memory) for card in cards])
    except HunyuanError as error:
        return Row("BAD" if folder else "--", "allows: weights", str(error))
    of = folder.name if folder else "the published model"
    reason = f"{choice.reason}; {choice.option}" if choice.option else choice.reason
    return Row("ok", "allows: weights", f"{of} in {choice.weights}: {reason}")


def speed(cards: list[Card]) -> Row:
    from hunyuan.accel import flashinfer_modules

    lacks = []
    if not any(card.capability == HOPPER for card in cards):
        lacks.append("a Hopper GPU (H100, H200)")
    if importlib.util.find_spec("triton") is None:
        lacks.append("Triton")
    if flashinfer_modules.missing_modules():
        lacks.append("FlashInfer's compiled kernels")
    if lacks:
        return Row("--", "allows: speed", f"the plain or a slower path; the fast one lacks {', '.join(lacks)}")
    return Row("ok", "allows: speed", "the fast path for Hopper")
