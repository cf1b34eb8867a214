"""Background jobs of a real server, by BentoML's own clients and by hand: every way that a job can go.

The editor is the scripted one of the fault tests; the queue, the disk and the processes are real. A checkpoint does a
job in `test_server_process.py`.
"""

from __future__ import annotations

import asyncio
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bentoml
import httpx
import psutil
import pytest
from bad_requests import BODIES, FIELDS, IMAGES, UPLOAD_LIMIT_MB, send
from bentoml.exceptions import BentoMLException, NotFound
from server_process import Server, assert_envelope, photo_bytes, running, start

from hunyuan.serving.jobs.routes import ACTIONS

# BentoML's client with Pydantic 2.11 and later; neither concerns what it does.
OLD_PYDANTIC = (
    "ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning",
    "ignore:Accessing the 'model_fields' attribute on the instance:DeprecationWarning",
)
pytestmark = [pytest.mark.server, *(pytest.mark.filterwarnings(line) for line in OLD_PYDANTIC)]

FAULTY = Path(__file__).parent / "faulty"
TARGET = "faulty_service:HunyuanImage"
STEP_S = 0.05
QUEUE_SIZE = 2
CASES = FIELDS | IMAGES | BODIES
END = ("completed", "failed", "canceled")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with scripted(tmp_path_factory.mktemp("jobs")) as shared:
        yield shared


@contextmanager
def scripted(folder: Path, **extra: str) -> Iterator[Server]:
    with running(folder, TARGET, FAULTY, **settings(folder), **extra) as started:
        yield started


def settings(folder: Path) -> dict[str, str]:
    limits = {"HUNYUAN_QUEUE_SIZE": str(QUEUE_SIZE), "HUNYUAN_MAX_UPLOAD_MB": str(UPLOAD_LIMIT_MB)}
    return {"FAULTS_RECORD": str(folder / "record"), "HUNYUAN_REPLICA": "gpu3", **limits}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    path.write_bytes(photo_bytes())
    return path


@contextmanager
def sync_client(server: Server) -> Iterator[bentoml.SyncHTTPClient]:
    with bentoml.SyncHTTPClient(server.url, timeout=300) as client:
        # BentoML 1.4.39 reads this name after each submit() and sets it nowhere (its pull request 5706).
        client._opened_files = client._file_manager._opened_files
        yield client
    client._temp_dir.cleanup()


def submit(server: Server, prompt: str, steps: int = 2, **more: Any) -> httpx.Response:
    files, data = {"image": ("a.jpg", photo_bytes())}, {"prompt": prompt, "steps": str(steps), "seed": "7"}
    return httpx.post(f"{server.url}/edit/submit", files=files, data=data, timeout=30, **more)


def submitted(server: Server, prompt: str, steps: int = 2, **more: Any) -> str:
    answer = submit(server, prompt, steps, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task_id"])


def ask(server: Server, action: str, job_id: str) -> httpx.Response:
    return httpx.request(ACTIONS[action], f"{server.url}/edit/{action}", params={"task_id": job_id}, timeout=30)


def status(server: Server, job_id: str) -> dict[str, Any]:
    answer = ask(server, "status", job_id)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def until_state(server: Server, job_id: str, *states: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        told = status(server, job_id)
        return told if told["status"] in states else None

    return dict(until(reached))


def events(server: Server) -> list[tuple[float, str]]:
    path = server.folder / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def when(server: Server, event: str) -> float:
    return float(until(lambda: [at for at, what in events(server) if what == event])[0])


def job_line(server: Server, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        lines = [line for line in server.lines() if line.get("event") == "job"]
        return [line for line in lines if line["request_id"] == request_id]

    (line,) = until(found)
    return dict(line)


# --- BentoML's own clients


def test_the_sync_client_submits_asks_and_gets(server: Server, photo: Path) -> None:
    with sync_client(server) as client:
        task = client.edit.submit(image=photo, prompt="good a", seed=7, steps=3)
        assert re.fullmatch("gpu3-[0-9a-f]{32}", task.id)
        until(lambda: task.get_status().value == "completed")
        png = task.get()
        again = client.edit(image=photo, prompt="good a", seed=7, steps=3)
    assert bytes(png) == bytes(again), "a job's picture is the one of POST /edit"
    assert bytes(png).startswith(b"\x89PNG")


def test_the_sync_client_cancels_and_retries(server: Server, photo: Path) -> None:
    with sync_client(server) as client:
        task = client.edit.submit(image=photo, prompt="good b", steps=90)
        until(lambda: task.get_status().value == "in_progress")
        with pytest.raises(BentoMLException, match="job_not_finished"):
            task.get()
        with pytest.raises(BentoMLException, match="job_not_finished"):
            task.retry()
        task.cancel()
        assert task.get_status().value == "canceled"
        with pytest.raises(BentoMLException, match="job_cancelled"):
            task.get()
        other = task.retry()
        assert other.id != task.id
        other.cancel()
        unknown = type(task)("gpu3-" + "0" * 32, task.endpoint, client)
        with pytest.raises(NotFound, match="job_not_found"):
            unknown.get_status()


def test_the_async_client_does_the_same(server: Server, photo: Path) -> None:
    async def story() -> bytes:
        async with bentoml.AsyncHTTPClient(server.url, timeout=30) as client:
            task = await client.edit.submit(image=photo, prompt="good c", steps=2)
            while (await task.get_status()).value not in END:
                await asyncio.sleep(0.02)
            other = await task.retry()
            await other.cancel()
            assert (await other.get_status()).value in ("canceled", "completed")
            png = bytes(await task.get())
        client._temp_dir.cleanup()
        return png

    assert asyncio.run(story()).startswith(b"\x89PNG")


# --- a job that ends well


def test_what_is_told_of_a_job(server: Server) -> None:
    answer = submit(server, "good told", steps=20, headers={"X-Request-ID": "told"})
    told = answer.json()
    assert set(told) == {
        *("task_id", "status", "created_at", "executed_at", "completed_at", "expires_at"),
        *("request_id", "progress", "error"),
    }
    assert (told["request_id"], told["completed_at"], told["expires_at"]) == ("told", None, None)
    running = until_state(server, told["task_id"], "in_progress")
    until(lambda: status(server, told["task_id"])["progress"]["steps_done"] > 0)
    assert running["executed_at"] >= told["created_at"]
    done = until_state(server, told["task_id"], *END)
    assert (done["status"], done["error"], done["progress"]) == ("completed", None, None)
    assert done["created_at"] < done["completed_at"] < done["expires_at"]
    got = ask(server, "get", told["task_id"])
    assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
    names = ("x-seed", "x-image-size", "x-steps", "x-model", "server-timing")
    assert {name: got.headers[name] for name in names[:4]} == dict(
        zip(names[:4], ("7", "64x48", "20", "faulty"), strict=True)
    )
    assert re.search(r"\btotal;dur=", got.headers["server-timing"])
    assert ask(server, "get", told["task_id"]).content == got.content


def test_the_log_has_one_line_for_the_request_and_one_for_the_job(server: Server) -> None:
    job_id = submitted(server, "good logged", headers={"X-Request-ID": "logged"})
    until_state(server, job_id, *END)
    asked = server.request_line("logged")
    assert (asked["path"], asked["status"], asked["prompt_chars"]) == ("/edit/submit", 200, len("good logged"))
    ended = job_line(server, "logged")
    assert (ended["state"], ended["status"], ended["error"], ended["steps"]) == ("completed", 200, None, 2)
    assert ended["bytes_out"] == len(ask(server, "get", job_id).content)
    assert ended["queue_s"] is not None
    log = server.log.read_text()
    assert job_id not in log
    assert "good logged" not in log


def test_the_figures_count_jobs_and_their_edits(server: Server) -> None:
    def figure(name: str) -> float:
        found = re.findall(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M)
        return float(found[0]) if found else 0.0

    names = (
        'hunyuan_jobs_total{error="",state="completed"}',
        'hunyuan_stage_seconds_count{stage="denoise"}',
        "hunyuan_queue_wait_seconds_count",
        "hunyuan_jobs_kept",
    )
    before = [figure(name) for name in names]
    until_state(server, submitted(server, "good counted"), "completed")
    until(lambda: [figure(name) for name in names] == [value + 1 for value in before])
    assert figure("hunyuan_jobs_bytes") > 0


def test_files_are_for_their_owner_only(server: Server) -> None:
    job_id = submitted(server, "good private")
    until_state(server, job_id, "completed")
    folder = server.folder / "jobs"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.glob(f"{job_id}*"))
    assert {path.suffix for path in files} == {".json", ".source", ".png"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


# --- cancelling


def test_a_running_job_stops_within_a_step(server: Server) -> None:
    job_id = submitted(server, "good runner", steps=90, headers={"X-Request-ID": "runner"})
    when(server, "step runner")
    cancelled = time.time()
    answer = ask(server, "cancel", job_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert answer.json()["error"]["error"] == "job_cancelled"
    assert when(server, "end runner") - cancelled < 2 * STEP_S + 0.2
    assert ask(server, "cancel", job_id).status_code == 200
    assert_envelope(ask(server, "get", job_id), 409, "job_cancelled")
    line = job_line(server, "runner")
    assert (line["state"], line["error"]) == ("canceled", "job_cancelled")
    assert 0 < line["steps_done"] < 90


def test_a_waiting_job_that_is_cancelled_is_never_worked_for(server: Server) -> None:
    first = submitted(server, "good in-front", steps=20)
    second = submitted(server, "good waiter")
    assert status(server, second)["status"] == "pending"
    assert ask(server, "cancel", second).json()["status"] == "canceled"
    until_state(server, first, "completed")
    third = submitted(server, "good behind")
    until_state(server, third, "completed")
    assert not [what for _, what in events(server) if what == "start waiter"]


def test_a_finished_job_is_not_cancelled(server: Server) -> None:
    job_id = submitted(server, "good finished")
    until_state(server, job_id, "completed")
    assert "completed already" in assert_envelope(ask(server, "cancel", job_id), 409, "job_finished")
    assert ask(server, "get", job_id).status_code == 200


# --- failing


@pytest.mark.parametrize(
    ("prompt", "http_status", "code"),
    [("oom-step x", 503, "out_of_memory"), ("error-step x", 503, "inference_failed")],
)
def test_a_job_that_fails_has_the_edits_error(server: Server, prompt: str, http_status: int, code: str) -> None:
    job_id = submitted(server, prompt, headers={"X-Request-ID": f"fails-{code}"})
    told = until_state(server, job_id, *END)
    assert (told["status"], told["error"]["error"]) == ("failed", code)
    message = assert_envelope(ask(server, "get", job_id), http_status, code)
    assert told["error"]["message"] == message
    assert "shapes" not in message
    assert job_line(server, f"fails-{code}")["error"] == code
    retried = ask(server, "retry", job_id)
    assert retried.status_code == 200
    assert until_state(server, retried.json()["task_id"], *END)["error"]["error"] == code


def test_a_retry_is_the_same_edit_again(server: Server) -> None:
    first = submitted(server, "good repeated", steps=3)
    until_state(server, first, "completed")
    answer = ask(server, "retry", first)
    second = answer.json()["task_id"]
    assert second != first
    until_state(server, second, "completed")
    assert ask(server, "get", second).content == ask(server, "get", first).content
    assert (ask(server, "get", second).headers["x-steps"], ask(server, "get", second).headers["x-seed"]) == ("3", "7")


def test_a_full_queue_refuses_a_job_and_a_retry_at_once(server: Server) -> None:
    done = submitted(server, "good first")
    until_state(server, done, "completed")
    jobs = [submitted(server, f"good full-{number}", steps=90) for number in range(QUEUE_SIZE + 1)]
    refused = submit(server, "good too-many")
    assert_envelope(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    assert_envelope(ask(server, "retry", done), 429, "queue_full")
    files = {"image": ("a.jpg", photo_bytes())}
    edit = httpx.post(f"{server.url}/edit", files=files, data={"prompt": "good x"}, timeout=30)
    assert_envelope(edit, 429, "queue_full")
    for job_id in jobs:
        ask(server, "cancel", job_id)
    until(lambda: submit(server, "good after-all").status_code == 200)


def test_a_job_has_the_time_of_a_request(tmp_path: Path) -> None:
    with scripted(tmp_path, HUNYUAN_REQUEST_TIMEOUT_S="1") as impatient:
        running, waiting = (submitted(impatient, f"good late-{number}", steps=90) for number in range(2))
        for job_id in (running, waiting):
            assert until_state(impatient, job_id, *END)["status"] == "failed"
            assert_envelope(ask(impatient, "get", job_id), 504, "timeout")
        when(impatient, "end late-0")


# --- bad requests


@pytest.mark.parametrize("name", CASES)
def test_submit_refuses_what_an_edit_refuses(server: Server, name: str) -> None:
    bad = CASES[name]._replace(path="/edit/submit")
    kept = len(list((server.folder / "jobs").iterdir()))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        message = assert_envelope(send(client, bad, "bad-job"), bad.status, bad.code)
    assert bad.says in message
    assert len(list((server.folder / "jobs").iterdir())) == kept


WRONG_IDS = ("", "x", "../../etc/passwd", "%2e%2e%2f", "gpu3-" + "0" * 32, "0" * 32, "a" * 5000, "蓝", "\x00", "*")


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "submit"])
@pytest.mark.parametrize("job_id", WRONG_IDS)
def test_an_unknown_id_is_not_found(server: Server, action: str, job_id: str) -> None:
    assert_envelope(ask(server, action, job_id), 404, "job_not_found")


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "submit"])
@pytest.mark.parametrize("query", ["", "?task_id=a&task_id=b"])
def test_an_id_comes_once(server: Server, action: str, query: str) -> None:
    answer = httpx.request(ACTIONS[action], f"{server.url}/edit/{action}{query}", timeout=30)
    assert "task_id" in assert_envelope(answer, 400, "invalid_field")


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "submit"])
def test_nothing_but_an_id_is_taken_and_none_of_it_dropped_silently(server: Server, action: str) -> None:
    def sent(query: str, **more: Any) -> httpx.Response:
        return httpx.request(ACTIONS[action], f"{server.url}/edit/{action}?{query}", timeout=30, **more)

    job_id = submitted(server, "good alone")
    until_state(server, job_id, "completed")
    assert "seed" in assert_envelope(sent(f"task_id={job_id}&seed=3"), 400, "unknown_field")
    assert "id" in assert_envelope(sent("id=x"), 400, "unknown_field")
    assert "body" in assert_envelope(sent(f"task_id={job_id}", data={"seed": "3"}), 400, "invalid_field")
    assert "body" in assert_envelope(sent(f"task_id={job_id}", content=iter([b"x"])), 400, "invalid_field")


@pytest.mark.parametrize("action", ACTIONS)
def test_other_methods_and_paths_below_are_refused(server: Server, action: str) -> None:
    wrong = "DELETE" if action != "cancel" else "POST"
    answer = httpx.request(wrong, f"{server.url}/edit/{action}", timeout=30)
    assert_envelope(answer, 405, "method_not_allowed")
    assert ACTIONS[action] in answer.headers["allow"]
    assert_envelope(httpx.get(f"{server.url}/edit/{action}/", timeout=30), 404, "not_found")


# --- bounds


def test_a_job_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path) -> None:
    with scripted(tmp_path, HUNYUAN_JOBS_MB="0.1") as small:
        files = {"image": ("a.png", photo_bytes(300, 300, "PNG"))}
        answer = httpx.post(f"{small.url}/edit/submit", files=files, data={"prompt": "good large"}, timeout=30)
        assert "more than is left" in assert_envelope(answer, 507, "no_storage")
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"]
        kept = []
        for number in range(9):  # one after the other: on a quick machine all at once are more than may wait
            kept.append(submitted(small, f"good small-{number}"))
            until_state(small, kept[-1], "completed")
        assert_envelope(ask(small, "status", kept[0]), 404, "job_not_found")
        size = sum(path.stat().st_size for path in (tmp_path / "jobs").iterdir())
        assert size <= 0.1 * 2**20


def test_jobs_expire(tmp_path: Path) -> None:
    with scripted(tmp_path, HUNYUAN_JOBS_KEEP_S="1", HUNYUAN_JOBS_KEPT="2") as forgetful:
        jobs = [submitted(forgetful, f"good brief-{number}", steps=1) for number in range(3)]
        until_state(forgetful, jobs[2], "completed")
        assert_envelope(ask(forgetful, "get", jobs[0]), 404, "job_not_found")
        until(lambda: ask(forgetful, "get", jobs[2]).status_code == 404)
        until(lambda: [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"])


# --- ends and restarts


def kill_all_of(server: Server) -> None:
    """Its master alone would not do: the worker goes on until the running edit is over."""
    master = psutil.Process(server.process.pid)
    for process in [*master.children(recursive=True), master]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.process.wait(10)


@contextmanager
def restarted(folder: Path) -> Iterator[Server]:
    """The next server in the same folder; the record and the log are new."""
    (folder / "record").unlink(missing_ok=True)
    with scripted(folder) as started:
        yield started


def test_results_survive_a_restart_and_waiting_jobs_say_what_became_of_them(tmp_path: Path) -> None:
    first = start(tmp_path, TARGET, FAULTY, **settings(tmp_path))
    try:
        first.wait_until()
        done = submitted(first, "good done")
        until_state(first, done, "completed")
        before = ask(first, "get", done)
        running = submitted(first, "good running", steps=40)
        waiting = submitted(first, "good waiting")
        until_state(first, running, "in_progress")
        first.process.send_signal(signal.SIGTERM)
        assert until_state(first, waiting, *END)["error"]["error"] == "interrupted"
        assert_envelope(submit(first, "good too-late"), 503, "shutting_down")
        first.process.wait(20)
    finally:
        first.stop()
    with restarted(tmp_path) as second:
        after = ask(second, "get", done)
        assert after.content == before.content
        changed = {"date", "x-request-id"}
        assert {n: v for n, v in after.headers.items() if n not in changed} == {
            n: v for n, v in before.headers.items() if n not in changed
        }
        assert status(second, running)["status"] == "completed", "the running one was waited for"
        assert ask(second, "get", running).status_code == 200
        assert_envelope(ask(second, "get", waiting), 503, "interrupted")
        again = ask(second, "retry", waiting).json()["task_id"]
        until_state(second, again, "completed")


def test_what_a_killed_process_had_in_hand_was_interrupted(tmp_path: Path) -> None:
    first = start(tmp_path, TARGET, FAULTY, **settings(tmp_path))
    try:
        first.wait_until()
        running, waiting = submitted(first, "good running", steps=90), submitted(first, "good waiting")
        until_state(first, running, "in_progress")
        time.sleep(0.2)  # until the record says so, too
    finally:
        kill_all_of(first)
    with restarted(tmp_path) as second:
        for job_id, word in ((running, "running"), (waiting, "waiting")):
            told = status(second, job_id)
            assert (told["status"], told["error"]["error"]) == ("failed", "interrupted")
            assert f"while the job was {word}" in assert_envelope(ask(second, "get", job_id), 503, "interrupted")
        (line,) = [line for line in second.lines() if "jobs are kept" in line.get("message", "")]
        assert "2 were interrupted" in line["message"]
        again = ask(second, "retry", running).json()["task_id"]
        ask(second, "cancel", again)


def test_a_graceful_limit_of_the_web_server_ends_a_job_in_a_known_state(tmp_path: Path) -> None:
    """`--timeout-graceful-shutdown 1`: the running job has that long, and then says what became of it."""
    extra = settings(tmp_path) | {"BENTOML_CONFIG_OPTIONS": ""}
    first = start(tmp_path, TARGET, FAULTY, arguments=("--timeout-graceful-shutdown", "1"), **extra)
    try:
        first.wait_until()
        job_id = submitted(first, "good long", steps=90)
        until_state(first, job_id, "in_progress")
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(20)
    finally:
        first.stop()
    steps = [at for at, what in events(first) if what == "step long"]
    assert steps[-1] - steps[0] > 0.5, "it was not cut short at once"
    with restarted(tmp_path) as second:
        assert status(second, job_id)["error"]["error"] == "interrupted"


def test_two_servers_do_not_share_a_folder(tmp_path: Path, server: Server) -> None:
    taken = str(server.folder / "jobs")
    second = start(tmp_path, TARGET, FAULTY, **settings(tmp_path), HUNYUAN_JOBS_DIR=taken)
    try:
        assert second.process.wait(60) != 0
    finally:
        second.stop()
    assert "another process keeps its jobs there" in second.log.read_text()
