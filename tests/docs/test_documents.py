"""What the documents say about the code and each other: links, files, settings, codes, and the README's length."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hunyuan import errors, settings
from hunyuan.serving import http_errors

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in dict.fromkeys(DOCUMENTS)]
TOP = r"(?:hunyuan|scripts|tests|docs|deploy)"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def links(text: str) -> list[str]:
    """Targets of relative links, without their anchors."""
    found = re.findall(r"\]\(([^)#\s]+)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def named_files(text: str) -> list[str]:
    """Files of the tree that stand in backticks, as a path from the top."""
    return re.findall(rf"`({TOP}/[\w./-]*\w\.(?:py|sh|md|yaml|toml|json))`", text)


def table_rows(text: str) -> dict[str, str]:
    """First column (a setting's name) to second (its default) of a settings table."""
    return dict(re.findall(r"^\| `((?:HUNYUAN_|MODEL_)\w+)` \| ([^|]*?) \|", text, re.M))


def every_code(module: object) -> set[str]:
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return {kind.code for kind in classes if issubclass(kind, errors.HunyuanError)}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    assert not [target for target in links(text_of(name)) if not (folder / target).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    assert not [file for file in named_files(text_of(name)) if not (ROOT / file).exists()]


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached = {
        target for target in links(text_of("README.md")) if target.startswith("docs/") and target.endswith(".md")
    }
    assert reached == {name for name in NAMES if name.startswith("docs/")}


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = table_rows(text_of("docs/settings.md"))
    assert sorted(rows) == sorted(settings.known_variables())
    for name, field in settings.Settings.model_fields.items():
        shown = rows[settings.variable(name)].strip("`")
        if field.default is not None:
            assert shown == str(int(field.default) if isinstance(field.default, bool) else field.default), name


def test_every_error_code_is_described() -> None:
    told = set(re.findall(r"`([a-z_]+)`", text_of("docs/http.md")))
    nobody_reads = {"cancelled"}  # the caller has gone
    assert not (every_code(errors) | every_code(http_errors)) - told - nobody_reads


def test_a_dead_link_and_a_missing_file_would_be_seen() -> None:
    assert links("[a](docs/no.md#there) [b](https://example.org) [c](#here)") == ["docs/no.md"]
    assert named_files("`scripts/no_such.py` and `hunyuan.editor` and `docs/x.md`") == [
        "scripts/no_such.py",
        "docs/x.md",
    ]


def test_nothing_points_outside_the_repository() -> None:
    """No document or source names a folder beside the repository or a specification that readers do not have."""
    outside = re.compile(r"\.\./shared|\bspec sections? \d|\(spec \d")
    files = [path for top in ("hunyuan", "scripts", "docs", "tests") for path in (ROOT / top).rglob("*")]
    sources = [path for path in files if path.suffix in {".py", ".md", ".sh"} and "data" not in path.parts]
    found = [str(path.relative_to(ROOT)) for path in sources if outside.search(path.read_text(encoding="utf-8"))]
    assert [name for name in found if name != "tests/docs/test_documents.py"] == []
