"""The scripted service that the examples of the documents call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_process import ROOT, Server, running

FAULTY = ROOT / "tests/faulty"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("snippets")
    with running(folder, "faulty_service:HunyuanImage", FAULTY, FAULTS_RECORD=str(folder / "record")) as shared:
        yield shared
