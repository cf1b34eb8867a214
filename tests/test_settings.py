"""Settings: their names in the environment, what is refused, and what the log shows of them."""

from __future__ import annotations

import traceback
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hunyuan.adapters import Adapter
from hunyuan.api_keys import ApiKey, digest_of
from hunyuan.errors import SettingsError
from hunyuan.platform_variables import service_links
from hunyuan.settings import Settings, ignored_variables, known_variables, unknown_variables, variable

KEY = "3f9a-not-a-real-key-0217"
LORA_FOLDER = Path(__file__).parent / "data"  # any folder: it is opened when the weights are loaded
KEYS_FILE = Path(__file__).parent / "data" / "api_keys.txt"
PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128"))
# field, variable, text in the environment, value
EXAMPLES: list[tuple[str, str, str, Any]] = [
    ("engine", "HUNYUAN_ENGINE", "official", "official"),
    ("device", "HUNYUAN_DEVICE", "cuda", "cuda"),
    ("dtype", "HUNYUAN_DTYPE", "bfloat16", "bfloat16"),
    ("weights", "HUNYUAN_WEIGHTS", "4bit", "4bit"),
    ("dense", "HUNYUAN_DENSE", "fp8", "fp8"),
    ("attention", "HUNYUAN_ATTENTION", "fp8", "fp8"),
    ("router", "HUNYUAN_ROUTER", "bf16", "bf16"),
    ("moe_impl", "HUNYUAN_MOE_IMPL", "flashinfer", "flashinfer"),
    ("noise_device", "HUNYUAN_NOISE_DEVICE", "cpu", "cpu"),
    ("default_steps", "HUNYUAN_DEFAULT_STEPS", "17", 17),
    ("request_timeout_s", "HUNYUAN_REQUEST_TIMEOUT_S", "1.5", 1.5),
    ("text_batch", "HUNYUAN_TEXT_BATCH", "4", 4),
    ("stuck_s", "HUNYUAN_STUCK_S", "7", 7.0),
    ("queue_size", "HUNYUAN_QUEUE_SIZE", "3", 3),
    ("max_upload_mb", "HUNYUAN_MAX_UPLOAD_MB", "0.5", 0.5),
    ("max_pixels", "HUNYUAN_MAX_PIXELS", "4096", 4096),
    ("max_decode_s", "HUNYUAN_MAX_DECODE_S", "2.5", 2.5),
    ("prompt_max_chars", "HUNYUAN_PROMPT_MAX_CHARS", "10", 10),
    ("png_prompt", "HUNYUAN_PNG_PROMPT", "true", True),
    ("idle_s", "HUNYUAN_IDLE_S", "2.5", 2.5),
    ("min_rate_kb_s", "HUNYUAN_MIN_RATE_KB_S", "0.5", 0.5),
    ("max_connections", "HUNYUAN_MAX_CONNECTIONS", "64", 64),
    ("peer_share", "HUNYUAN_PEER_SHARE", "0.5", 0.5),
    ("trusted_proxies", "HUNYUAN_TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::1", PROXIES),
    ("api_keys", "HUNYUAN_API_KEYS", f"team-a:{KEY}", (ApiKey("team-a", digest_of(KEY.encode())),)),
    ("lora", "HUNYUAN_LORA", f"{LORA_FOLDER}:0.5,{LORA_FOLDER}", (Adapter(LORA_FOLDER, 0.5), Adapter(LORA_FOLDER))),
    ("api_keys_file", "HUNYUAN_API_KEYS_FILE", str(KEYS_FILE), KEYS_FILE),
    ("cors_origins", "HUNYUAN_CORS_ORIGINS", "https://a.example, http://b:81", ("https://a.example", "http://b:81")),
    ("jobs_dir", "HUNYUAN_JOBS_DIR", "some/jobs", Path("some/jobs")),
    ("jobs_keep_s", "HUNYUAN_JOBS_KEEP_S", "60.5", 60.5),
    ("jobs_kept", "HUNYUAN_JOBS_KEPT", "5", 5),
    ("jobs_mb", "HUNYUAN_JOBS_MB", "0.5", 0.5),
    ("jobs_proxy", "HUNYUAN_JOBS_PROXY", "http://proxy:8000", "http://proxy:8000"),
    ("replica", "HUNYUAN_REPLICA", "gpu0", "gpu0"),
    ("log_format", "HUNYUAN_LOG_FORMAT", "text", "text"),
    ("cache_dir", "HUNYUAN_CACHE_DIR", "somewhere/else", Path("somewhere/else")),
]

DEFAULTS = {
    "model_id": None,
    "engine": "native",
    "device": "auto",
    "dtype": "auto",
    "weights": "auto",
    "dense": "bf16",
    "attention": "bf16",
    "router": "fp32",
    "lora": None,
    "moe_impl": "auto",
    "noise_device": "auto",
    "default_steps": None,
    "request_timeout_s": 300,
    "text_batch": 1,
    "stuck_s": 120,
    "queue_size": 8,
    "max_upload_mb": 20,
    "max_pixels": 50_000_000,
    "max_decode_s": 10,
    "prompt_max_chars": 4000,
    "idle_s": 10,
    "min_rate_kb_s": 16,
    "max_connections": 1024,
    "peer_share": 0.25,
    "trusted_proxies": None,
    "api_keys": None,
    "api_keys_file": None,
    "cors_origins": None,
    "jobs_dir": None,
    "jobs_keep_s": 86_400,
    "jobs_kept": 1000,
    "jobs_mb": 2048,
    "jobs_proxy": None,
    "replica": None,
    "png_prompt": False,
    "log_format": "auto",
    "cache_dir": None,
}


def refused(**values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    return str(caught.value)


def test_defaults():
    assert Settings().model_dump() == DEFAULTS


def test_every_setting_has_an_example_here():
    assert {name for name, *_ in EXAMPLES} | {"model_id"} == set(Settings.model_fields)


# --- the environment


@pytest.mark.parametrize(("field", "name", "text", "value"), EXAMPLES)
def test_variable_sets_its_own_field_and_no_other(monkeypatch, field, name, text, value):
    monkeypatch.setenv(name, text)
    assert variable(field) == name
    assert Settings().model_dump() == {**DEFAULTS, field: value}


def test_model_id_is_the_one_without_a_prefix(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    assert variable("model_id") == "MODEL_ID"
    assert Settings().model_dump() == {**DEFAULTS, "model_id": tmp_path}


def test_model_id_with_a_prefix_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("HUNYUAN_MODEL_ID", str(tmp_path))
    assert refused().startswith("unknown settings HUNYUAN_MODEL_ID; known are MODEL_ID, ")


def test_unknown_variables_are_all_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("HUNYUAN_STEPS", "4")
    monkeypatch.setenv("HUNYUAN_DEVISE", "cuda")
    monkeypatch.setenv("hunyuan_lower", "1")
    message = refused()
    assert message.startswith("unknown settings HUNYUAN_DEVISE, HUNYUAN_STEPS, hunyuan_lower; known are ")
    known = message.split("known are ")[1].split(", ")
    assert known == known_variables() == [variable(name) for name in DEFAULTS]


def test_unknown_variable_is_refused_beside_keyword_arguments_and_when_empty(monkeypatch):
    monkeypatch.setenv("HUNYUAN_STEPS", "")
    assert unknown_variables() == ["HUNYUAN_STEPS"]
    assert "HUNYUAN_STEPS" in refused(device="cpu")


def test_variables_of_others_do_not_matter(monkeypatch):
    for name in ("MODEL_IDS", "XHUNYUAN_STEPS", "HUNYUANIMAGE", "DEVICE", "QUEUE_SIZE", "CACHE_DIR"):
        monkeypatch.setenv(name, "1")
    assert Settings().model_dump() == DEFAULTS


def test_case_of_a_variable_does_not_matter(monkeypatch):
    monkeypatch.setenv("hunyuan_queue_size", "5")
    assert Settings().queue_size == 5


def test_empty_variables_count_as_unset_but_for_the_model_and_the_keys(monkeypatch):
    for name in known_variables():
        if name not in ("MODEL_ID", "HUNYUAN_API_KEYS", "HUNYUAN_API_KEYS_FILE"):
            monkeypatch.setenv(name, "")
    assert Settings().model_dump() == DEFAULTS


@pytest.mark.parametrize("name", ["MODEL_ID", "model_id"])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_model_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert refused().startswith(f"MODEL_ID={text!r}: set but empty; name a checkpoint folder, or demo ")


def test_an_empty_keyword_is_refused_too():
    assert refused(model_id="").startswith("MODEL_ID='': set but empty")
    assert refused(device="").startswith("HUNYUAN_DEVICE='': ")


def test_the_built_in_checkpoints_have_names(monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_ID", "demo")
    assert (Settings().model_id, Settings().folder, Settings().builtin) == ("demo", None, "demo")
    assert (Settings(model_id="tiny").folder, Settings(model_id="tiny").builtin) == (None, "tiny")
    assert Settings(model_id="./demo").builtin is None
    assert Settings(model_id="./demo").folder == Path("demo")
    assert Settings(model_id=Path("demo")).folder == Path("demo")


@pytest.mark.parametrize("sign", ["BENTOML_CONTAINERIZED", "BENTOCLOUD_DEPLOYMENT_URL"])
def test_in_an_image_nobody_gets_the_built_in_checkpoint_by_saying_nothing(monkeypatch, tmp_path, sign):
    monkeypatch.setenv(sign, "true")
    assert refused().startswith("MODEL_ID is unset; name the mounted checkpoint folder, or demo ")
    assert Settings(model_id="demo").folder is None
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    assert Settings().folder == tmp_path
    monkeypatch.setenv("MODEL_ID", "demo")
    assert Settings().folder is None


def test_a_folder_behind_a_closed_one_is_a_settings_error(monkeypatch):
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", closed)
    assert "cannot be looked at: Permission denied" in refused(model_id="/closed/folder")


# --- what platforms write

KUBERNETES = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "SERVICE_PORT_HTTP_METRICS": "9000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_53_UDP": "udp://[fd00::1]:53",
    "PORT_53_UDP_ADDR": "fd00::1",
}


@pytest.mark.parametrize("service", ["HUNYUAN_IMAGE", "HUNYUAN", "HUNYUAN_IMAGE_V2", "HUNYUAN_QUEUE_SIZE"])
@pytest.mark.parametrize("name", [None, *KUBERNETES])
def test_kubernetes_own_variables_do_not_matter(monkeypatch, service, name):
    """All together, as the kubelet writes them, and each alone."""
    for end, value in KUBERNETES.items():
        if name in (None, end):
            monkeypatch.setenv(f"{service}_{end}", value)
    assert unknown_variables() == []
    assert len(ignored_variables()) == (len(KUBERNETES) if name is None else 1)
    assert Settings().model_dump() == DEFAULTS


def test_docker_s_links_do_not_matter(monkeypatch):
    link = {"PORT": "tcp://172.17.0.2:8000", "NAME": "/web/hunyuan", "ENV_MODEL_ID": "/models/a", "ENV_CUDA": ""}
    for end, value in link.items():
        monkeypatch.setenv(f"HUNYUAN_IMAGE_{end}", value)
    assert unknown_variables() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HUNYUAN_PORT", "8000"),  # a port that somebody wants, not an address that the kubelet writes
        ("HUNYUAN_IMAGE_PORT", "8000"),
        ("HUNYUAN_SERVICE_PORT", "eighty"),
        ("HUNYUAN_SERVICE_HOST", ""),
        ("HUNYUAN_QUEUE_SIZE_PORT", "3"),
        ("HUNYUAN_PORT_8000", "1"),
        ("HUNYUAN_IMAGE_NAME", "/web/hunyuan"),  # without the link's own address
        ("HUNYUAN_IMAGE_ENV_A", "1"),
        ("HUNYUAN_STEPS", "4"),
        ("HUNYUAN_DEFAULT_STEP", "4"),
    ],
)
def test_what_only_resembles_them_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert refused().startswith(f"unknown settings {name}; known are ")


def test_no_setting_looks_like_a_platform_s_variable():
    for name in known_variables():
        for value in ("8000", "10.0.0.1", "tcp://10.0.0.1:8000", "tcp"):
            assert service_links({name: value}) == set()


# --- malformed values

FLOATS = [variable(name) for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HUNYUAN_ENGINE", "vllm"),
        ("HUNYUAN_DEVICE", "cuda:0"),
        ("HUNYUAN_DTYPE", "float16"),
        ("HUNYUAN_WEIGHTS", "int8"),
        ("HUNYUAN_DENSE", "4bit"),
        ("HUNYUAN_MOE_IMPL", "fast"),
        ("HUNYUAN_NOISE_DEVICE", "cuda"),
        ("HUNYUAN_DEFAULT_STEPS", "0"),
        ("HUNYUAN_DEFAULT_STEPS", "101"),
        ("HUNYUAN_DEFAULT_STEPS", "8.5"),
        ("HUNYUAN_REQUEST_TIMEOUT_S", "0"),
        ("HUNYUAN_REQUEST_TIMEOUT_S", "nan"),
        ("HUNYUAN_STUCK_S", "-1"),
        ("HUNYUAN_TEXT_BATCH", "0"),
        ("HUNYUAN_TEXT_BATCH", "9"),
        ("HUNYUAN_QUEUE_SIZE", "0"),
        ("HUNYUAN_QUEUE_SIZE", "many"),
        ("HUNYUAN_MAX_UPLOAD_MB", "0"),
        *((name, text) for name in FLOATS for text in ("inf", "-inf", "nan", "1e400", "1e300", "Infinity")),
        ("HUNYUAN_MAX_PIXELS", "255"),
        ("HUNYUAN_MAX_DECODE_S", "0"),
        ("HUNYUAN_MAX_DECODE_S", "inf"),
        ("HUNYUAN_PROMPT_MAX_CHARS", "0"),
        ("HUNYUAN_PNG_PROMPT", "perhaps"),
        ("HUNYUAN_LOG_FORMAT", "xml"),
        ("MODEL_ID", "no/such/folder"),
    ],
)
def test_malformed_value_is_named_with_its_variable(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert refused().startswith(f"{name}={text!r}: ")


def test_all_malformed_values_are_named(monkeypatch):
    monkeypatch.setenv("HUNYUAN_QUEUE_SIZE", "x")
    monkeypatch.setenv("HUNYUAN_DEVICE", "tpu")
    parts = refused(stuck_s=-1).split("; ")
    assert sorted(part.split(":")[0] for part in parts) == [
        "HUNYUAN_DEVICE='tpu'",
        "HUNYUAN_QUEUE_SIZE='x'",
        "HUNYUAN_STUCK_S=-1",
    ]


def test_bounds_themselves_are_allowed():
    settings = Settings(default_steps=100, queue_size=1, max_pixels=256, prompt_max_chars=1)
    assert (settings.default_steps, Settings(default_steps=1).default_steps) == (100, 1)


def test_file_is_no_checkpoint_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    message = refused(model_id=tmp_path / "model.safetensors")
    assert message.startswith("MODEL_ID=")
    assert "is a file; a checkpoint folder is meant" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~", "~ stands for the home folder in a shell only"),
        ("~/models", "~ stands for the home folder in a shell only"),
        (" demo", "are the blanks meant?"),
        ("demo ", "are the blanks meant?"),
        ("'/models'", "the quotes are a part of the name here"),
        ('"/models"', "the quotes are a part of the name here"),
        ("gone", "is a link to nowhere, which is not there"),
        ("tencent/HunyuanImage-3.0-Instruct", "nothing is downloaded at start"),
    ],
)
def test_a_model_that_is_no_folder_is_explained(monkeypatch, tmp_path, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.setenv("MODEL_ID", text)
    assert words in refused()


def test_a_cache_folder_is_not_made_in_a_folder_called_tilde(monkeypatch):
    monkeypatch.setenv("HUNYUAN_CACHE_DIR", "~/cache")
    assert "write the whole path" in refused()


@pytest.mark.parametrize("name", ["HUNYUAN_MAX_PIXELS", "HUNYUAN_QUEUE_SIZE", "HUNYUAN_PROMPT_MAX_CHARS"])
def test_no_number_is_without_bounds(monkeypatch, name):
    """Beyond them the system itself would fail, at the first picture."""
    monkeypatch.setenv(name, "99999999999999999999")
    assert refused().startswith(f"{name}='99999999999999999999': Input should be less than")


# --- keyword arguments


@pytest.mark.parametrize(("field", "name", "text", "value"), EXAMPLES)
def test_keyword_wins_over_the_environment(monkeypatch, field, name, text, value):
    monkeypatch.setenv(name, text)
    assert getattr(Settings(**{field: DEFAULTS[field]}), field) == DEFAULTS[field] != value


def test_keyword_wins_for_the_model_too(monkeypatch, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    monkeypatch.setenv("MODEL_ID", str(theirs))
    assert Settings(model_id=ours).model_id == ours
    assert Settings(model_id=None).model_id is None


def test_keyword_wins_over_a_malformed_variable(monkeypatch):
    monkeypatch.setenv("HUNYUAN_QUEUE_SIZE", "many")
    assert Settings(queue_size=2).queue_size == 2


def test_unknown_keyword_is_refused():
    assert refused(steps=4).startswith("steps=4: ")


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.queue_size = 3
    assert settings.queue_size == 8


# --- the log


def test_lines_show_every_setting_under_its_variable(monkeypatch, tmp_path):
    for field, name, text, _ in EXAMPLES:
        if field != "api_keys_file":  # never beside api_keys
            monkeypatch.setenv(name, text)
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    shown = {"model_id": tmp_path, **{field: value for field, _, _, value in EXAMPLES}, "api_keys_file": None}
    shown |= {"trusted_proxies": "10.0.0.0/8,2001:db8::1/128", "api_keys": "team-a"}
    shown |= {"lora": f"{LORA_FOLDER}:0.5,{LORA_FOLDER}"}
    shown |= {"cors_origins": "https://a.example,http://b:81"}
    assert Settings().lines() == [f"{variable(field)}={shown[field]}" for field in DEFAULTS]


def test_a_proxy_s_address_of_both_kinds_is_its_ipv4_address():
    """Connections that a socket for both kinds takes are known by their IPv4 address."""
    networks = Settings(trusted_proxies="::ffff:10.0.0.1, ::ffff:10.1.0.0/112, fd00::/8").trusted_proxies
    assert list(map(str, networks)) == ["10.0.0.1/32", "10.1.0.0/16", "fd00::/8"]


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.0/33", "*", "10.0.0.1 10.0.0.2"])
def test_a_proxy_is_named_by_its_address(monkeypatch, text):
    monkeypatch.setenv("HUNYUAN_TRUSTED_PROXIES", text)
    assert "HUNYUAN_TRUSTED_PROXIES=" in refused()


# --- keys: never shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "HUNYUAN_API_KEYS: it holds no key"),
        (" , ", "HUNYUAN_API_KEYS: it holds no key"),
        (KEY, "HUNYUAN_API_KEYS: entry 1 is not NAME:KEY"),
        (f"a:{KEY},b:short-secret", "HUNYUAN_API_KEYS: the key of b is weak: 20 characters"),
        (f"a:{KEY},b:{KEY}", "HUNYUAN_API_KEYS: a and b have the same key"),
    ],
)
def test_keys_that_are_no_good_stop_the_start_and_are_not_shown(monkeypatch, text, words):
    monkeypatch.setenv("HUNYUAN_API_KEYS", text)
    with pytest.raises(SettingsError) as caught:
        Settings()
    shown = "".join(traceback.format_exception(caught.value))
    assert str(caught.value).startswith(words)
    assert KEY not in shown
    assert "secret" not in shown


def test_a_file_of_keys_that_cannot_be_used_stops_the_start(monkeypatch, tmp_path):
    path = tmp_path / "keys"
    monkeypatch.setenv("HUNYUAN_API_KEYS_FILE", str(path))
    assert refused() == f"HUNYUAN_API_KEYS_FILE='{path}': the file cannot be read: No such file or directory"
    path.write_text("# nobody\n")
    assert "it holds no key" in refused()
    path.write_text("a:short-secret\n")
    assert "the key of a is weak" in refused()
    assert "secret" not in refused()
    monkeypatch.setenv("HUNYUAN_API_KEYS_FILE", "")
    assert "set but empty" in refused()
    monkeypatch.setenv("HUNYUAN_API_KEYS_FILE", str(KEYS_FILE))
    assert [key.name for key in Settings().keys] == ["team-a", "team-b"]
    monkeypatch.setenv("HUNYUAN_API_KEYS", f"a:{KEY}")
    assert refused() == "HUNYUAN_API_KEYS and HUNYUAN_API_KEYS_FILE are both set; keep one"


def test_the_log_names_keys_and_shows_none(monkeypatch):
    monkeypatch.setenv("HUNYUAN_API_KEYS", f"team-a:{KEY},b:{KEY}2")
    settings = Settings()
    assert "HUNYUAN_API_KEYS=team-a,b" in settings.lines()
    assert KEY not in f"{settings!r} {settings.lines()} {settings.model_dump()}"


@pytest.mark.parametrize("name", ["", "GPU0", "gpu-0", "a" * 33, "gpu 0"])
def test_a_replica_s_name_fits_into_the_id_of_a_job(name):
    assert refused(replica=name).startswith("HUNYUAN_REPLICA=")
