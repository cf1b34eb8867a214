"""Who reads the environment variables that the deployment files set: a name that nobody reads is a mistake."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from hunyuan.settings import known_variables

READ_BY_OTHERS = {  # the installed file that holds the name
    "TRITON_CACHE_DIR": "triton/knobs.py",
    "TORCHINDUCTOR_CACHE_DIR": "torch/_inductor/runtime/cache_dir_utils.py",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer/jit/env.py",
    "FLASHINFER_DISABLE_JIT": "flashinfer/jit/core.py",
    "FLASHINFER_CUDA_ARCH_LIST": "flashinfer/compilation_context.py",
    "HF_HUB_OFFLINE": "huggingface_hub/constants.py",
    "BENTOML_DO_NOT_TRACK": "bentoml/_internal/utils/analytics/usage_stats.py",
    "BENTOML_HOME": "bentoml/_internal/configuration/containers.py",
}
BY_THE_IMAGE_S_BUILD = {"PIP_BREAK_SYSTEM_PACKAGES", "PIP_NO_CACHE_DIR", "UV_NO_CACHE"}  # pip and uv
BY_THE_SYSTEM = {"TMPDIR"}


def assert_read(names: Iterable[str]) -> None:
    site = Path(yaml.__file__).parents[1]
    for name in set(names) - set(known_variables()) - BY_THE_IMAGE_S_BUILD - BY_THE_SYSTEM:
        assert name in READ_BY_OTHERS, f"nobody is known to read {name}"
        assert name in (site / READ_BY_OTHERS[name]).read_text(), f"{READ_BY_OTHERS[name]} does not read {name}"
