"""System prompts, read from the checkpoint's `system_prompt.py` without running it (docs/model.md, section 16).

Knows the constants of the official file and which choice uses which of them. Holds no prompt text itself.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from hunyuan.checkpoint.folder import read_file
from hunyuan.checkpoint.untrusted import what_it_is
from hunyuan.errors import CheckpointError, InvalidRequest
from hunyuan.requests import SystemPromptChoice

FILE_NAME = "system_prompt.py"
MOST_SOURCE = 256 << 10  # bytes; a syntax tree takes a thousand times its source
MOST_TEXT = 256 << 10  # characters
CHOICES = get_args(SystemPromptChoice)
UNIFIED_CONSTANT = "unified_system_prompt_en"
PRESET_DICT = "t2i_system_prompts"
_PRESETS = ("en_vanilla", "en_recaption", "en_think_recaption")
_DYNAMIC = {"think": "en_think_recaption", "recaption": "en_recaption", "image": "en_vanilla"}


class TextTooLong(Exception):
    """The file's `+` make a text that no prompt could be."""


class MissingPreset(CheckpointError):
    """The checkpoint's file does not hold a preset, or is not there itself."""

    def __init__(self, choice: str, file_is_missing: bool = False) -> None:
        if file_is_missing:
            super().__init__(f"{FILE_NAME} is missing in the checkpoint folder; system prompt {choice} is read from it")
            return
        constant = UNIFIED_CONSTANT if choice == "en_unified" else f'{PRESET_DICT}["{choice}"]'
        super().__init__(f"system prompt {choice}: {FILE_NAME} of the checkpoint folder has no constant {constant}")


class SystemPrompts:
    """The presets of one checkpoint."""

    def __init__(self, presets: Mapping[str, str], file_is_missing: bool = False) -> None:
        self._presets, self._file_is_missing = dict(presets), file_is_missing

    @classmethod
    def read(cls, folder: Path) -> SystemPrompts:
        """Reads the constants by parsing the file. A missing file gives no presets.

        Raises:
            CheckpointError: the file is not Python, or its size or that of its texts is beyond all bounds.
        """
        if not os.path.lexists(Path(folder) / FILE_NAME):
            return cls({}, file_is_missing=True)
        source = read_file(Path(folder), FILE_NAME, MOST_SOURCE)
        if known := what_it_is(source):
            raise CheckpointError(f"{FILE_NAME}: {known}")
        try:
            constants = module_constants(source.decode("utf-8-sig"))
        except TextTooLong as error:
            raise CheckpointError(f"{FILE_NAME}: {error}") from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last: too many nested brackets
            raise CheckpointError(f"{FILE_NAME}: cannot be parsed ({type(error).__name__})") from error
        presets = {}
        if isinstance(constants.get(UNIFIED_CONSTANT), str):
            presets["en_unified"] = constants[UNIFIED_CONSTANT]
        table = constants.get(PRESET_DICT)
        for name in _PRESETS:
            value = table.get(name) if isinstance(table, dict) else None
            if isinstance(value, list) and value and isinstance(value[0], str):
                presets[name] = value[0]
        return cls(presets)

    def preset(self, name: str) -> str:
        """A preset as it stands in the file, not stripped. Raises `MissingPreset`."""
        if name not in self._presets:
            raise MissingPreset(name, self._file_is_missing)
        return self._presets[name]

    def resolve(self, choice: str, bot_task: str, custom: str | None) -> str:
        """The system text of a request, stripped; empty for none.

        Raises:
            InvalidRequest: an unknown choice, or one whose preset the checkpoint does not hold.
        """
        if choice not in CHOICES:
            raise InvalidRequest("use_system_prompt", f"got {choice!r}; allowed are {', '.join(CHOICES)}")
        return self._select(choice, bot_task, custom).strip()

    def request_preset(self, name: str) -> str:
        """A preset that a request asks for, not stripped. Raises `InvalidRequest` when it is not there."""
        try:
            return self.preset(name)
        except MissingPreset as error:
            raise InvalidRequest("use_system_prompt", str(error)) from error

    def _select(self, choice: str, bot_task: str, custom: str | None) -> str:
        if choice == "None":
            return ""
        if choice == "custom":
            return custom or ""
        if choice == "dynamic":
            if bot_task not in _DYNAMIC:
                return custom or ""
            text = self.request_preset(_DYNAMIC[bot_task])
            return text.strip("\n") if bot_task == "image" else text
        return self.request_preset(choice)


def module_constants(source: str) -> dict[str, Any]:
    """Module-level names whose values are strings, lists or dicts of them, names and `+` included.

    Values of any other kind are left out, names that get such a value later too; nothing is executed.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: no Python.
        TextTooLong: a `+` whose text is longer than `MOST_TEXT`.
    """
    constants: dict[str, Any] = {}
    for node in ast.parse(source).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        value = None if isinstance(node, ast.AugAssign) else getattr(node, "value", None)
        for name in (target.id for target in targets if isinstance(target, ast.Name)):
            try:
                constants[name] = _evaluate(value, constants)
            except (ValueError, TypeError, RecursionError):
                constants.pop(name, None)
    return constants


def _evaluate(node: ast.expr | None, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _evaluate(node.left, names), _evaluate(node.right, names)
        if isinstance(left, str) and isinstance(right, str):
            if len(left) + len(right) > MOST_TEXT:
                raise TextTooLong(f"a text of {len(left) + len(right)} characters; at most {MOST_TEXT} are allowed")
            return left + right
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(item, names) for item in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        return {_evaluate(k, names): _evaluate(v, names) for k, v in zip(node.keys, node.values, strict=True) if k}
    raise ValueError("not a constant")
