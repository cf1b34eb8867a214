"""The errors this project raises on purpose.

Each class knows the HTTP status and the short code that the service answers with. The file does not
know HTTP itself: `service.py` turns an error into a response.
"""

from __future__ import annotations


class HunyuanError(Exception):
    """Base of all errors of this project. Its message is written for the person who caused it."""

    status = 500
    code = "inference_failed"


class SettingsError(HunyuanError):
    """A setting is unknown, malformed or asks for what this build or machine cannot do."""


class CheckpointError(HunyuanError):
    """The checkpoint folder is incomplete, of another format, or does not match its own config."""


class InvalidRequest(HunyuanError):
    """A request field is out of bounds.

    Args:
        field: the name of the field at fault.
        message: what came and what is allowed.
    """

    status = 400
    code = "invalid_field"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidPrompt(InvalidRequest):
    code = "invalid_prompt"

    def __init__(self, message: str) -> None:
        super().__init__("prompt", message)


class InvalidImage(InvalidRequest):
    code = "invalid_image"

    def __init__(self, message: str, field: str = "image") -> None:
        super().__init__(field, message)


class UnknownField(InvalidRequest):
    code = "unknown_field"


class SequenceTooLong(InvalidRequest):
    """The token sequence would exceed the checkpoint's `max_position_embeddings`."""

    def __init__(self, length: int, limit: int, stage: str) -> None:
        super().__init__(
            "prompt",
            f"the {stage} needs {length} tokens, and this checkpoint's max_position_embeddings is {limit}; "
            "shorten the prompt (or cot_text, system_prompt), send fewer images or lower max_new_tokens",
        )
        self.length = length
        self.limit = limit


class Cancelled(HunyuanError):
    """The caller gave up on the request; the work stopped before its next token or step."""

    status = 499
    code = "cancelled"


class DeadlineExceeded(HunyuanError):
    """The request's deadline passed; the work stopped before its next token or step."""

    status = 504
    code = "timeout"


class InferenceFailed(HunyuanError):
    """The engine failed on a valid request."""

    status = 503
    code = "inference_failed"


class OutOfMemory(HunyuanError):
    """The device ran out of memory on this request; the next one may well fit."""

    status = 503
    code = "out_of_memory"
