"""scripts/benchmarks/measure_mxfp4.py at a small size: what docs/weights.md says of the methods holds."""

from __future__ import annotations

import pytest

from scripts.benchmarks import measure_mxfp4


def test_the_table_says_what_the_documentation_concludes(monkeypatch, capsys):
    for name, value in (("ROWS", 48), ("COLUMNS", 128), ("TOKENS", 512)):
        monkeypatch.setattr(measure_mxfp4, name, value)
    assert measure_mxfp4.main([]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    table = {(row[0], row[1].split(" (")[0]): [float(cell) for cell in row[2:]] for row in rows}
    for kind in ("Gaussian", "Student t, 5 degrees", "Gaussian, 2% of columns x6"):
        ours = table[kind, "best of the two"]
        assert ours == pytest.approx(table[kind, "best of three, one less too"], abs=2e-4)
        assert ours[0] < table[kind, "OCP rule"][0]
        assert table[kind, "GPTQ-style compensation"][2] < 0.85 * ours[2]
        assert table[kind, "fp8, one scale"][0] < 0.03
    heavy = "Student t, 5 degrees"
    assert table[heavy, "Hadamard rotation"][0] < 0.95 * table[heavy, "best of the two"][0]
