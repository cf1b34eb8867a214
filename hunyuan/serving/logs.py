"""What goes into the log: one JSON object per line, or lines for a person, written by a thread of its own.

`ServiceLog` takes over the loggers of this project ("hunyuan" and below) and gives the lines of the framework and the
web server the same form; `request_record` is the one line about a request. No prompt, no picture and no header value
gets here: the line is built from `RequestRecord` and `EditRecord`, which hold none.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Literal, TextIO

from hunyuan.requests import Stage
from hunyuan.serving.log_text import BAR, TerminalHandler, TextLines
from hunyuan.serving.pages import FILES
from hunyuan.serving.records import EditRecord, RequestRecord

LogForm = Literal["auto", "json", "text"]

ROOT = "hunyuan"
BAR_EVERY_S = 0.1
_JOBS = {f"/edit/{action}" for action in ("submit", "status", "get", "retry", "cancel", "place")}
_V1 = {f"/v1/{route}" for route in ("images/edits", "images/generations", "models")}
KNOWN_PATHS = frozenset({"/edit", *_JOBS, *_V1, *FILES, "/docs.json", "/schema.json"})
_FRAMEWORK_HANDLER = "tracehandler"  # the name of BentoML's own in its logging configuration
_NO_EDIT = EditRecord(0, "", None, None)

requests_logger = logging.getLogger(f"{ROOT}.request")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; a message of several lines stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if fields is None:
            line["message"] = record.getMessage()
        else:
            line |= fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Handover(QueueHandler):
    """Puts the record into the queue as it is: the listener lives in the same process, nothing needs pickling."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


class ServiceLog:
    """Sends this project's log records to `stream`, from `start` to `stop`.

    Args:
        form: `json`, `text`, or `auto`: text where the stream is a terminal.
        stream: standard error, if None.
    """

    def __init__(self, form: LogForm = "auto", stream: TextIO | None = None) -> None:
        stream = sys.stderr if stream is None else stream
        self._is_json = form == "json" or (form == "auto" and not stream.isatty())
        self._has_bar = not self._is_json and stream.isatty()
        self._bar_moved = -BAR_EVERY_S
        # A bounded queue would have to block or drop; records are small and their number is that of the requests.
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        output = TerminalHandler(stream) if self._has_bar else logging.StreamHandler(stream)
        if not self._has_bar:
            output.setFormatter(self._lines())
        self._handover = _Handover(waiting)
        self._listener = QueueListener(waiting, output)
        self._running = False

    def _lines(self) -> logging.Formatter:
        return JsonLines() if self._is_json else TextLines(coloured=self._has_bar)

    def dress_framework(self) -> None:
        """Gives the lines of BentoML, its process manager and uvicorn this form; they stay on standard output.

        Call it once in each process, after BentoML has set up its logging.
        """
        names = ("", "bentoml", "circus", "uvicorn.error")
        for logger in map(logging.getLogger, names):
            for handler in logger.handlers:
                if handler.name == _FRAMEWORK_HANDLER:
                    handler.setFormatter(self._lines())
        if any(handler.name == _FRAMEWORK_HANDLER for handler in logging.getLogger("uvicorn.error").handlers):
            logging.getLogger("uvicorn.error").propagate = False  # or every line would come twice
            logging.captureWarnings(True)

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """Moves the bar on a terminal. Cheap enough to be called for every token."""
        now = time.monotonic()
        if self._running and self._has_bar and (done == total or now - self._bar_moved >= BAR_EVERY_S):
            self._bar_moved = now
            requests_logger.info("progress", extra={BAR: (stage, done, total)})

    def start(self) -> None:
        logger = logging.getLogger(ROOT)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # the framework's handlers on the root logger would print every line again
        logger.addHandler(self._handover)
        self._listener.start()
        self._running = True

    def stop(self) -> None:
        """Writes what is still in the queue, then lets go of the loggers. Does nothing the second time."""
        if not self._running:
            return
        self._running = False
        logger = logging.getLogger(ROOT)
        logger.removeHandler(self._handover)
        logger.propagate = True
        self._listener.stop()


def log_request(record: RequestRecord) -> None:
    requests_logger.info("request", extra={"fields": request_record(record)})


def log_job(state: str, record: RequestRecord) -> None:
    """A job that has ended, under the id of the request that submitted it. Its own id would give the picture away."""
    fields = request_record(record) | {"event": "job", "state": state}
    requests_logger.info("job", extra={"fields": fields})


def request_record(record: RequestRecord) -> dict[str, Any]:
    """The line about one request. Fields that do not apply are null, so that every line has the same ones."""
    edit = record.edit or _NO_EDIT
    fields: dict[str, Any] = {
        "event": "request",
        "request_id": record.request_id,
        "path": record.path if record.path in KNOWN_PATHS else "other",
        "caller": record.caller,
        "status": record.status,
        "error": record.error.code if record.error else None,
        "seconds": round(record.seconds, 4),
        "proxy_s": round(record.proxy_s, 4),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }
    about_edit: dict[str, Any] = {
        "prompt_chars": edit.prompt_chars,
        "seed": edit.seed,
        "images": edit.images,
        "pictures": edit.pictures,
        "input_size": _size(edit.input_size),
        "output_size": _size(edit.output_size),
        "resolution": edit.resolution,
        "steps": edit.steps,
        "steps_done": edit.steps_done,
        "tokens": edit.tokens,
        "queue_s": None if edit.queue_s is None else round(edit.queue_s, 4),
        "stages": {stage: round(seconds, 4) for stage, seconds in edit.stages.items()},
        "gpu_memory": [asdict(memory) for memory in edit.gpu_memory],
    }
    return fields | (about_edit if record.edit else dict.fromkeys(about_edit))


def _size(pixels: tuple[int, int] | None) -> str | None:
    return None if pixels is None else f"{pixels[0]}x{pixels[1]}"
