"""deploy/prometheus.yml, alerts.yml and grafana.json: sound, and about figures that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hunyuan.serving.metrics import metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool (Debian's prometheus package)"
)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana.json").read_text()))


def expressions() -> list[str]:
    return [rule["expr"] for rule in alerts()] + [
        target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]
    ]


def named(prefix: str) -> set[str]:
    return {name for text in expressions() for name in re.findall(rf"\b{prefix}_\w+", text)}


def samples() -> dict[str, set[str]]:
    """Every name that the service can show, with its labels."""
    found: dict[str, set[str]] = {}
    for figure in vars(metrics()).values():
        labels = set(figure._labelnames)
        for kind in figure.describe():
            base = kind.name
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(kind.type, [""])
            for end in ends:
                found[base + end] = labels | ({"le"} if end == "_bucket" else set())
    return found


def test_every_figure_of_ours_exists_with_its_labels() -> None:
    known = samples()
    assert named("hunyuan")
    assert named("hunyuan") <= known.keys()
    for text in expressions():
        for name, inside in re.findall(r"\b(hunyuan_\w+)\{([^}]*)\}", text):
            used = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", inside)) - {"instance", "job"}
            assert used <= known[name], (name, used)


def test_the_dashboard_shows_every_figure_of_ours() -> None:
    shown = {
        name
        for panel in dashboard()["panels"]
        for t in panel["targets"]
        for name in re.findall(r"\bhunyuan_\w+", t["expr"])
    }
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples()}
    without = {"hunyuan_decoders", "hunyuan_jobs_kept"}  # an alert's, and a number beside the bytes that are shown
    assert bases - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} - without == set()


def test_the_dashboard_is_one() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + n) for n in range(len(panel["targets"]))]
    names = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval", "__all"}
    assert used == names


def promtool(*arguments: str, folder: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@needs_promtool
def test_promtool_takes_the_rules_and_the_configuration(tmp_path: Path) -> None:
    done = promtool("check", "rules", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout
    key = tmp_path / "key"
    key.write_text("3f9a-not-a-real-key-0217")
    text = (DEPLOY / "prometheus.yml").read_text().replace("/run/secrets/prometheus_key", str(key))
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    done = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    filled = [text.replace("$__rate_interval", "1m").replace("$replica", ".*") for text in asked]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "rules.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.slow
def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    shutil.copy(ROOT / "tests/data/alerts_test.yml", tmp_path)
    tested = (tmp_path / "alerts_test.yml").read_text()
    for rule in alerts():
        assert f"alertname: {rule['alert']}\n" in tested.replace("}", "\n"), rule["alert"]
    done = promtool("test", "rules", "alerts_test.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    changed = (tmp_path / "alerts.yml").read_text()
    for old, new in (("> 81e9", "> 83e9"), ("> 0.02", "> 0.2"), ("hunyuan_ready == 0", "hunyuan_ready == 2")):
        assert old in changed
        (tmp_path / "alerts.yml").write_text(changed.replace(old, new))
        assert promtool("test", "rules", "alerts_test.yml", folder=tmp_path).returncode != 0, new


def test_it_asks_the_replicas_and_the_proxy_of_the_compose_file() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    jobs = {job["job_name"]: job for job in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    (replicas,) = jobs["hunyuan"]["static_configs"]
    assert replicas["targets"] == [f"{name}:8000" for name in services if name.startswith("gpu")]
    (proxy,) = jobs["hunyuan-proxy"]["static_configs"]
    assert proxy["targets"] == ["proxy:8404"]
    assert "bind :8404" in (DEPLOY / "haproxy.cfg").read_text()
    key = jobs["hunyuan"]["authorization"]["credentials_file"]
    assert Path(key).name in services["prometheus"]["secrets"]
