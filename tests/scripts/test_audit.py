"""The audit's verdicts, on reports as pip-audit writes them."""

from __future__ import annotations

import pytest

from scripts.checks import audit

VULNERABLE = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": [{"id": "X-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]},
        {"name": "b", "version": "3", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
}
SKIPPED = {"dependencies": [{"name": "a", "skip_reason": "not found"}]}


def run(monkeypatch: pytest.MonkeyPatch, report: dict | None, *arguments: str) -> int:
    monkeypatch.setattr(audit, "run_pip_audit", lambda _path: (report, "no route"))
    monkeypatch.setattr("sys.argv", ["audit.py", *arguments])
    return audit.main()


def test_a_vulnerability_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, VULNERABLE) == 1
    out = capsys.readouterr().out
    assert "VULNERABLE: a 1 X-1, fixed in 2" in out
    assert "not audited: c: not found" in out
    assert "2 packages audited, 1 not; 1 vulnerabilities, 1 not excepted" in out


def test_an_exception_is_printed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "EXCEPTIONS", {"CVE-1": "that code is never called"})
    assert run(monkeypatch, VULNERABLE) == 0
    assert "excepted: a 1 X-1, fixed in 2: that code is never called" in capsys.readouterr().out


@pytest.mark.parametrize("report", [None, SKIPPED])
def test_an_audit_that_did_not_happen_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], report: dict | None
) -> None:
    assert run(monkeypatch, report) == 0
    assert "NOT AUDITED" in capsys.readouterr().out
    assert run(monkeypatch, report, "--must-reach") == 3
