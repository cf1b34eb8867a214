"""System prompts: reading the checkpoint's file without running it, and which choice gives which text."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from hunyuan.errors import CheckpointError, InvalidRequest
from hunyuan.prompt.system_prompt import CHOICES, MissingPreset, SystemPrompts, module_constants

PRESETS = ("en_unified", "en_vanilla", "en_recaption", "en_think_recaption")
PROMPTS = SystemPrompts({name: f"\n {name} \n\n" for name in PRESETS})


def write(folder: Path, source: str | bytes) -> Path:
    path = folder / "system_prompt.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return folder


def read(folder: Path, source: str | bytes) -> SystemPrompts:
    return SystemPrompts.read(write(folder, source))


# --- reading the file


def test_presets_are_those_that_running_the_file_gives(golden):
    folder = golden / "checkpoint"
    module = types.ModuleType("system_prompt")
    exec((folder / "system_prompt.py").read_text(), vars(module))  # ours, and harmless
    prompts = SystemPrompts.read(folder)
    assert prompts.preset("en_unified") == module.unified_system_prompt_en
    for name in PRESETS[1:]:
        assert prompts.preset(name) == module.t2i_system_prompts[name][0]
    assert prompts.preset("en_vanilla") == "\nPaint what the user asks for.\n"


def test_the_file_is_not_executed(tmp_path):
    trace = tmp_path / "was_here"
    prompts = read(
        tmp_path,
        f"""
import package_that_does_not_exist
from pathlib import Path
Path({str(trace)!r}).write_text("executed")
unified_system_prompt_en = "text"
executed = Path({str(trace)!r}).write_text("executed")
def f():
    unified_system_prompt_en = "a local name"
class C:
    unified_system_prompt_en = "an attribute"
raise SystemExit("executed")
""",
    )
    assert not trace.exists()
    assert prompts.preset("en_unified") == "text"


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x = 'a'", "a"),
        ("x = 'a' 'b'\n", "ab"),
        ("x = ('a\\n'\n     'b')", "a\nb"),
        ("x = 'a' + 'b' + 'c'", "abc"),
        ("x = '''a\nb'''", "a\nb"),
        ("x: str = 'a'", "a"),
        ("y = 'a'\nx = y", "a"),
        ("y = 'a'\nx = y + 'b' + y", "aba"),
        ("x = 'a'\nx = x + 'b'", "ab"),
        ("x = y = 'a'", "a"),
        ("y = x = 'a'", "a"),
        ("x = 'a'\nx = 'b'", "b"),
        ("y = 'a'\nx = [y, 'b']", ["a", "b"]),
        ("x = ('a', 'b')", ["a", "b"]),
        ("y = 'a'\nx = {'k': [y], y: 'v'}", {"k": ["a"], "a": "v"}),
        ("x = {'k': {'l': 'a'}}", {"k": {"l": "a"}}),
        ("x = 7", 7),
    ],
)
def test_values_that_are_read(source, value):
    assert module_constants(source)["x"] == value


@pytest.mark.parametrize(
    "value",
    [
        "f'a'",
        "f'a{1}'",
        "'a' + f'b'",
        "'a %s' % 'b'",
        "'a' * 3",
        "'a' + 1",
        "['a'] + ['b']",
        "str('a')",
        "'a'.strip()",
        "open('a').read()",
        "unknown",
        "unknown + 'a'",
        "{**{'a': 'b'}}",
        "['a', f()]",
        "{'a': f()}",
        "'a' if True else 'b'",
        "lambda: 'a'",
        "[c for c in 'ab']",
        "{'a'}",
        "-1",
    ],
)
def test_values_that_are_left_out(value):
    assert module_constants(f"before = 'a'\nx = {value}\nafter = 'b'") == {"before": "a", "after": "b"}


@pytest.mark.parametrize(
    "source", ["x: str", "a.x = 'a'", "a['x'] = 'a'", "if True:\n    x = 'a'", "x, y = 'a', 'b'", ""]
)
def test_statements_that_name_no_constant(source):
    assert module_constants(source) == {}


def test_a_preset_is_the_first_of_its_list(tmp_path):
    prompts = read(tmp_path, "t2i_system_prompts = {'en_vanilla': ['one', 'two']}")
    assert prompts.preset("en_vanilla") == "one"


@pytest.mark.parametrize(
    "value", ["'a'", "['en_vanilla']", "{'en_vanilla': []}", "{'en_vanilla': [1]}", "{}", "{1: ['a']}"]
)
def test_a_table_of_another_kind_gives_no_presets(tmp_path, value):
    with pytest.raises(MissingPreset):
        read(tmp_path, f"t2i_system_prompts = {value}").preset("en_vanilla")


@pytest.mark.parametrize("value", ["['a']", "1", "None"])
def test_a_unified_prompt_of_another_kind_is_missing(tmp_path, value):
    with pytest.raises(MissingPreset):
        read(tmp_path, f"unified_system_prompt_en = {value}").preset("en_unified")


def test_other_names_in_the_table_are_no_presets(tmp_path):
    prompts = read(tmp_path, "t2i_system_prompts = {'en_other': ['a'], 'en_unified': ['b']}")
    for name in ("en_other", "en_unified"):
        with pytest.raises(MissingPreset):
            prompts.preset(name)


def test_a_missing_file_gives_no_presets(tmp_path):
    prompts = SystemPrompts.read(tmp_path)
    with pytest.raises(MissingPreset, match=r"^system_prompt\.py is missing in the checkpoint folder"):
        prompts.preset("en_unified")
    assert prompts.resolve("None", "think", None) == ""


@pytest.mark.parametrize(
    ("source", "kind"), [("x = (", "SyntaxError"), ("print 'a'", "SyntaxError"), (b"x = '\xff'", "UnicodeDecodeError")]
)
def test_a_file_that_is_no_python_is_told(tmp_path, source, kind):
    write(tmp_path, source)
    with pytest.raises(CheckpointError, match=rf"^system_prompt\.py: cannot be parsed \({kind}\)$"):
        SystemPrompts.read(tmp_path)


# --- missing presets


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("en_unified", "unified_system_prompt_en"),
        ("en_vanilla", 't2i_system_prompts["en_vanilla"]'),
        ("en_recaption", 't2i_system_prompts["en_recaption"]'),
        ("en_think_recaption", 't2i_system_prompts["en_think_recaption"]'),
    ],
)
def test_a_missing_preset_names_the_file_and_the_constant(name, constant):
    prompts = SystemPrompts({other: "text" for other in PRESETS if other != name})
    with pytest.raises(MissingPreset) as caught:
        prompts.preset(name)
    assert isinstance(caught.value, CheckpointError)
    assert str(caught.value).endswith(f"system_prompt.py of the checkpoint folder has no constant {constant}")

    for ask in (lambda: prompts.resolve(name, "image", None), lambda: prompts.request_preset(name)):
        with pytest.raises(InvalidRequest) as refused:
            ask()
        assert (refused.value.field, refused.value.status) == ("use_system_prompt", 400)
        assert f"has no constant {constant}" in str(refused.value)


# --- choices


def test_the_choices_are_the_official_ones():
    assert list(CHOICES) == ["None", *PRESETS, "dynamic", "custom"]


@pytest.mark.parametrize("task", ["image", "think", "recaption", "think_recaption"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_named_preset_does_not_depend_on_task_or_custom_text(name, task):
    assert PROMPTS.resolve(name, task, "custom text") == name


@pytest.mark.parametrize("task", ["image", "think", "recaption", "think_recaption"])
def test_none_is_empty_even_with_a_custom_text(task):
    assert PROMPTS.resolve("None", task, "custom text") == ""


@pytest.mark.parametrize("task", ["image", "think", "recaption", "think_recaption"])
@pytest.mark.parametrize(("custom", "text"), [(" mine\n", "mine"), ("a\nb", "a\nb"), ("", ""), (None, ""), (" \n", "")])
def test_custom_gives_the_requests_own_text_stripped(task, custom, text):
    assert PROMPTS.resolve("custom", task, custom) == text


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("think", "en_think_recaption"),
        ("recaption", "en_recaption"),
        ("image", "en_vanilla"),
        ("think_recaption", "mine"),
    ],
)
def test_dynamic_goes_by_the_task(task, text):
    assert PROMPTS.resolve("dynamic", task, " mine ") == text


def test_dynamic_without_a_preset_or_a_text_is_empty():
    assert PROMPTS.resolve("dynamic", "think_recaption", None) == ""


def test_dynamic_asks_for_the_one_preset_it_needs():
    prompts = SystemPrompts({"en_recaption": "a"})
    assert prompts.resolve("dynamic", "recaption", None) == "a"
    with pytest.raises(InvalidRequest, match="en_vanilla"):
        prompts.resolve("dynamic", "image", None)


@pytest.mark.parametrize("choice", ["", "none", "en_Unified", "auto"])
def test_another_choice_is_refused_with_what_is_allowed(choice):
    with pytest.raises(InvalidRequest) as caught:
        PROMPTS.resolve(choice, "image", None)
    assert caught.value.field == "use_system_prompt"
    assert f"got {choice!r}; allowed are None, en_unified, " in str(caught.value)


@pytest.mark.trap(7)
def test_the_preset_that_drop_think_swaps_in_is_not_stripped():
    assert PROMPTS.request_preset("en_recaption") == "\n en_recaption \n\n"
    assert PROMPTS.preset("en_recaption") == "\n en_recaption \n\n"
    assert PROMPTS.resolve("en_recaption", "image", None) == "en_recaption"


# --- files and tags that are not as they should be


@pytest.mark.parametrize("line", ["other = {('a', 'b'): 'c'}", "other = {}\nmore = {other: 'a'}"])
def test_a_dict_with_odd_keys_is_left_out(tmp_path, line):
    assert read(tmp_path, f"{line}\nunified_system_prompt_en = 'a'").preset("en_unified") == "a"


@pytest.mark.parametrize("change", ["+= 'b'", "= f()"])
def test_a_constant_that_is_changed_later_is_none(tmp_path, change):
    prompts = read(tmp_path, f"unified_system_prompt_en = 'a'\nunified_system_prompt_en {change}")
    with pytest.raises(MissingPreset):
        prompts.preset("en_unified")
