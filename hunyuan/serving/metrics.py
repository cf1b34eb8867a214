"""Prometheus figures of the service, on BentoML's own /metrics.

Every label value comes from a fixed set: a client cannot make new series by what it sends. The figures are fed from
`RequestRecord` and `EditRecord` once a request is over, so the way to an answer does not pass through here.
"""

from __future__ import annotations

import functools

from hunyuan.errors import Cancelled, DeadlineExceeded
from hunyuan.requests import STAGES
from hunyuan.serving.connections import REASONS as CLOSED
from hunyuan.serving.decoders import KILL_REASONS
from hunyuan.serving.http_errors import Interrupted, JobCancelled, ShuttingDown
from hunyuan.serving.jobs.job import JobState
from hunyuan.serving.records import EditRecord, RequestRecord

EDIT_PATHS = ("/edit", "/v1/images/edits", "/v1/images/generations")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 7.5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 90, 120, 180, 300, 600)
_TOKENS_A_SECOND = (1, 3, 10, 20, 40, 80, 120, 160, 200, 240, 280, 400, 1000)
_STEPS_A_SECOND = (0.1, 0.3, 0.5, 1, 2, 3, 4, 5, 7, 10, 20, 50)
_REASONS = {
    Cancelled: "disconnect",
    DeadlineExceeded: "deadline",
    ShuttingDown: "shutdown",
    Interrupted: "shutdown",
    JobCancelled: "cancel",
}


class Metrics:
    """One object a process: a second one would register the same names again."""

    def __init__(self) -> None:
        # Imported here, in the process that serves: the library decides at its import whether it shares its figures
        # through PROMETHEUS_MULTIPROC_DIR, and the framework sets that for its worker processes only.
        # `bentoml.metrics` is the same library behind a deprecation warning.
        from prometheus_client import Counter, Gauge, Histogram

        newest = functools.partial(Gauge, multiprocess_mode="mostrecent")  # one process serves; dead ones do not count
        self.requests = Counter("hunyuan_requests_total", "Answers by status and error code", ["status", "error"])
        self.by_caller = Counter(
            "hunyuan_caller_requests_total", "Answers by the name of the caller's key and status", ["caller", "status"]
        )
        self.cancellations = Counter("hunyuan_cancellations_total", "Admitted edits not finished, by why", ["reason"])
        self.ready = newest("hunyuan_ready", "1 where edits are served: what GET /readyz says, once a second")
        self.depth = newest("hunyuan_queue_depth", "Edits that wait for the model")
        self.queue_wait = Histogram("hunyuan_queue_wait_seconds", "Seconds an edit waited", buckets=_SECONDS)
        self.proxy_wait = Histogram(
            "hunyuan_proxy_wait_seconds", "Seconds an edit waited in a trusted proxy before it came", buckets=_SECONDS
        )
        self.whole = Histogram(
            "hunyuan_request_seconds",
            "Seconds from a request's first byte to its answer's last",
            ["status"],
            buckets=_SECONDS,
        )
        self.stage = Histogram("hunyuan_stage_seconds", "Seconds by stage of an edit", ["stage"], buckets=_SECONDS)
        self.tokens = Histogram("hunyuan_tokens_per_second", "Decoding speed of an edit", buckets=_TOKENS_A_SECOND)
        self.steps = Histogram("hunyuan_steps_per_second", "Denoising speed of an edit", buckets=_STEPS_A_SECOND)
        self.connections = newest("hunyuan_connections", "Open connections")
        self.closed = Counter(
            "hunyuan_connections_closed_total", "Connections that the server ended, by why", ["reason"]
        )
        self.gpu_memory = newest(
            "hunyuan_gpu_memory_bytes", "GPU memory of tensors around the last edit", ["gpu", "when"]
        )
        self.decoding = Histogram("hunyuan_decoding_seconds", "Seconds to decode an upload", buckets=_SECONDS)
        self.decoders = newest("hunyuan_decoders", "Processes that can decode uploads")
        self.decoders_killed = Counter("hunyuan_decoders_killed_total", "Decoders replaced, by why", ["reason"])
        self.jobs = Counter("hunyuan_jobs_total", "Jobs that ended, by state and error code", ["state", "error"])
        self.jobs_kept = newest("hunyuan_jobs_kept", "Jobs that are kept, unfinished ones too")
        self.jobs_bytes = newest("hunyuan_jobs_bytes", "Bytes of the jobs that are kept")
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """So that a rate is known from the first event on."""
        self.jobs_kept.set(0)
        self.jobs_bytes.set(0)
        self.jobs.labels("completed", "")
        self.ready.set(0)
        self.depth.set(0)
        self.connections.set(0)
        for reason in CLOSED:
            self.closed.labels(reason)
        for kill_reason in KILL_REASONS:
            self.decoders_killed.labels(kill_reason)
        self.whole.labels("200")
        for stage in (*STAGES, "total"):
            self.stage.labels(stage)
        for reason in _REASONS.values():
            self.cancellations.labels(reason)

    def request(self, record: RequestRecord) -> None:
        """Counts a request that is over."""
        self.requests.labels(str(record.status or 0), record.error.code if record.error else "").inc()
        if record.caller is not None:  # a name from the settings, never a caller's own words
            self.by_caller.labels(record.caller, str(record.status or 0)).inc()
        if record.path in EDIT_PATHS:
            self.whole.labels(str(record.status or 0)).observe(record.seconds)
        self._about_edit(record)

    def job(self, state: JobState, record: RequestRecord) -> None:
        """Counts a job that has ended; the request that submitted it was counted by itself."""
        self.jobs.labels(state, record.error.code if record.error else "").inc()
        self._about_edit(record)

    def _about_edit(self, record: RequestRecord) -> None:
        if record.edit is not None:
            self.proxy_wait.observe(record.proxy_s)
            self._edit(record.edit)
            if record.error is None:
                self._speeds(record.edit)
            for kind, reason in _REASONS.items():
                if record.edit.admitted and isinstance(record.error, kind):
                    self.cancellations.labels(reason).inc()

    def _edit(self, edit: EditRecord) -> None:
        if edit.queue_s is not None:
            self.queue_wait.observe(edit.queue_s)
        for memory in edit.gpu_memory:
            for when, size in (("before", memory.before), ("after", memory.after), ("peak", memory.peak)):
                self.gpu_memory.labels(str(memory.gpu), when).set(size)

    def _speeds(self, edit: EditRecord) -> None:
        """Of finished edits only: a stage that was cut short says nothing of how long that stage takes."""
        for stage in (*STAGES, "total"):
            for _ in range(edit.pictures if stage in edit.stages else 0):
                self.stage.labels(stage).observe(edit.stages[stage] / edit.pictures)
        think, denoise = edit.stages.get("think", 0.0), edit.stages.get("denoise", 0.0)
        if edit.tokens and think > 0:
            self.tokens.observe(edit.tokens / think)
        if edit.steps_done > edit.pictures and denoise > 0:
            self.steps.observe((edit.steps_done - edit.pictures) / denoise)  # the first step has a stage of its own


@functools.cache
def metrics() -> Metrics:
    return Metrics()
