"""deploy/compose.yaml: valid by the Compose specification, like the documents' `docker run`, at one with HAProxy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment_names import assert_read
from document_commands import BLOCKS, COMMANDS

from hunyuan.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy/compose.yaml"
PROXY = (ROOT / "deploy/haproxy.cfg").read_text()
MIB = 1 << 20


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


@pytest.fixture(scope="module")
def replicas(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name.startswith("gpu")}


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).parent / "check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_the_file_is_valid_and_a_wrong_key_would_be_seen(tmp_path: Path) -> None:
    assert check(FILE).returncode == 0, check(FILE).stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("stop_grace_period", "stop_grace_time"))
    assert check(wrong).returncode == 1


def test_a_container_for_each_gpu(replicas: dict[str, dict[str, Any]]) -> None:
    assert list(replicas) == [f"gpu{number}" for number in range(8)]
    for number, (name, service) in enumerate(replicas.items()):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}
        assert service["environment"]["HUNYUAN_REPLICA"] == name
        assert f"jobs{number}:/jobs" in service["volumes"]  # two must not share them


def test_every_volume_network_and_secret_is_declared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        named = {volume.partition(":")[0] for volume in service.get("volumes", ()) if re.match(r"\w+:", volume)}
        assert named <= compose["volumes"].keys()
        assert set(service["networks"]) <= compose["networks"].keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (FILE.parent / source).is_file(), source


def test_a_replica_has_what_docker_run_gives(replicas: dict[str, dict[str, Any]]) -> None:
    (run,) = (command for command in COMMANDS if command.startswith("docker run"))
    for service in replicas.values():
        assert service["image"] in run
        assert service["read_only"] is True
        assert f"--tmpfs {service['tmpfs'][0]}" in run
        assert service["healthcheck"]["test"][-1] in run.replace('\\"', '"')
        assert f"--memory {service['mem_limit']}" in run
        assert f"--shm-size {service['shm_size']}" in run
        assert f"--pids-limit {service['pids_limit']}" in run
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert f"--stop-timeout {service['stop_grace_period'].removesuffix('s')}" in run


def test_variables_are_read_and_valid(
    replicas: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {**replicas["gpu0"]["environment"], "HUNYUAN_API_KEYS_FILE": str(ROOT / "tests/data/api_keys.txt")}
    assert given["HUNYUAN_CORS_ORIGINS"] == "${CORS_ORIGINS:-}"
    given["HUNYUAN_CORS_ORIGINS"] = ""  # which Compose makes of it where nobody has set it
    assert_read(given)
    for name, value in given.items():
        if name.startswith("HUNYUAN_"):
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.replica == "gpu0"
    assert [key.name for key in settings.keys] == ["team-a", "team-b"]


def test_the_proxy_knows_the_same_names_addresses_and_limits(
    compose: dict[str, Any], replicas: dict[str, dict[str, Any]]
) -> None:
    proxy, settings = compose["services"]["proxy"], Settings()
    assert set(re.findall(r"server \w+ (\w+):8000", PROXY)) == set(replicas)
    own = proxy["networks"]["inside"]["ipv4_address"]
    assert {service["environment"]["HUNYUAN_TRUSTED_PROXIES"] for service in replicas.values()} == {own}
    (network,) = set(re.findall(r"\bsrc (\S+) \}", PROXY))
    addresses = [ip_address(service["networks"]["inside"]["ipv4_address"]) for service in replicas.values()]
    assert all(address in ip_network(network) for address in addresses)
    assert len(set(addresses)) == 8
    assert ip_address(own) not in ip_network(network)
    subnet = ip_network(compose["networks"]["inside"]["ipam"]["config"][0]["subnet"])
    assert ip_network(network).subnet_of(subnet)
    pages = "HUNYUAN_CORS_ORIGINS"  # which haproxy.sh reads
    assert set(re.findall(r"\$\{(\w+)\}", PROXY)) == set(proxy["environment"]) - {pages}
    assert {service["environment"][pages] for service in replicas.values()} == {proxy["environment"][pages]}
    largest = int(proxy["environment"]["MAX_UPLOAD_BYTES"])
    assert largest == settings.max_upload_mb * MIB
    assert number("tune.bufsize") >= largest + MIB
    assert number("maxconn") * number("tune.bufsize") * 2 <= int(proxy["mem_limit"].removesuffix("g")) * 2**30 * 1.1


def test_there_is_time_for_everything(replicas: dict[str, dict[str, Any]], compose: dict[str, Any]) -> None:
    limit = float(replicas["gpu0"]["environment"]["HUNYUAN_REQUEST_TIMEOUT_S"])
    replica = seconds(replicas["gpu0"]["stop_grace_period"])
    proxy = seconds(compose["services"]["proxy"]["stop_grace_period"])
    assert replica >= limit + 30
    assert limit < seconds(word("timeout queue")) < seconds(word("timeout server")) <= seconds(word("hard-stop-after"))
    assert proxy > seconds(word("hard-stop-after"))
    assert compose["services"]["proxy"]["stop_signal"] == "SIGUSR1"


def word(name: str) -> str:
    found = re.findall(rf"^    {name} (\S+)$", PROXY, re.M)
    assert len(found) == 1, name
    return str(found[0])


def number(name: str) -> int:
    return int(word(name))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_digests_are_those_that_the_service_keeps(tmp_path: Path) -> None:
    from hunyuan.api_keys import keys_of

    text = (
        "# mine\n a : 3f9a-not-a-real-key-0217\r\n\n  # no:comment-0123456789abcdef\n"
        "b:71cc-not-a-real-key-5580==,c:0123456789abcdef0123\n"
    )
    keys, digests = tmp_path / "keys", tmp_path / "digests.txt"
    keys.write_bytes(text.encode())
    script = [str(ROOT / "deploy/haproxy.sh"), str(keys), str(tmp_path), "true"]
    pages = {"HUNYUAN_CORS_ORIGINS": "https://a.example, http://b:81"}
    subprocess.run(script, env=os.environ | pages, check=True, timeout=10)
    assert (tmp_path / "origins.txt").read_text().split() == ["https://a.example", "http://b:81"]
    assert digests.read_text().split() == [key.digest.hex() for key in keys_of(text)]
    assert digests.stat().st_mode & 0o777 == 0o600
    keys.write_text("# nobody\n")
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 1
    assert "no keys" in done.stderr


def test_the_documents_way_to_the_keys_gives_what_the_file_mounts(compose: dict[str, Any], tmp_path: Path) -> None:
    (block,) = (text for text in BLOCKS.values() if text.startswith("install --directory"))
    *make, start = block.strip().splitlines()
    assert start == "docker compose --file deploy/compose.yaml --profile metrics up --detach"
    show = 'cat "$API_KEYS_FILE" "$PROMETHEUS_KEY_FILE"'
    done = subprocess.run(
        ["bash", "-euc", "\n".join([*make, show])], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=10
    )
    team, prometheus, alone = done.stdout.split()
    assert (team.partition(":")[0], prometheus) == ("team-a", f"prometheus:{alone}")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    named = {name for secret in compose["secrets"].values() for name in re.findall(r"\$\{(\w+)", secret["file"])}
    assert named == {"API_KEYS_FILE", "PROMETHEUS_KEY_FILE"}
