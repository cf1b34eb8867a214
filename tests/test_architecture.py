"""Every import in the package goes the way that docs/architecture.md allows, and no files form a circle."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\w+) \| (`[^|]*) \| ([\w ]*)\|$", re.MULTILINE)
FORBIDDEN_IN_MODEL = re.compile(r"fp8|float8|mxfp4|triton|flashinfer|hopper|\bh100\b|cuda graph", re.IGNORECASE)
FAST_PACKAGES = {"triton", "flashinfer"}


class Table:
    """Which part a file belongs to, and which parts each may import."""

    def __init__(self, text: str) -> None:
        rows = ROW.findall(text)
        self.files = {name: re.findall(r"`([\w/.*]+)`", files) for name, files, _ in rows}
        self.allowed = {name: set(allowed.split()) | {name} for name, _, allowed in rows}

    def part(self, file: str) -> str:
        found = [part for part, owned in self.files.items() if file.startswith(tuple(owned))]
        if not found and Path(file).parent == Path("hunyuan"):
            return "base"
        assert len(found) == 1, f"{file} belongs to {found or 'no part'} in docs/architecture.md"
        return found[0]


def package() -> dict[str, str]:
    """All source files by their path in the repository."""
    files = [ROOT / "service.py", *(ROOT / "hunyuan").rglob("*.py")]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def file_of(module: str, sources: dict[str, str]) -> str | None:
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in sources), None)


def modules_of(source: str) -> set[str]:
    """The dotted names that a source imports, wherever in it; for `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed: write the whole name"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The files that each file imports; a package's empty `__init__.py` is none."""
    imports = {}
    for file, source in sources.items():
        found = {file_of(module, sources) for module in modules_of(source)}
        imports[file] = {f for f in found if f and f != file and sources[f].strip()}
    return imports


def problems(imports: dict[str, set[str]], table: Table) -> list[str]:
    wrong = [
        f"{file} imports {target}"
        for file, targets in imports.items()
        for target in sorted(targets)
        if table.part(target) not in table.allowed[table.part(file)]
    ]
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        wrong.append(f"circle: {' -> '.join(error.args[1])}")
    return wrong


@pytest.fixture(scope="module")
def table() -> Table:
    return Table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))


def test_all_imports_go_the_allowed_way(table: Table):
    assert problems(graph(package()), table) == []


def test_the_table_itself_goes_one_way(table: Table):
    TopologicalSorter({part: allowed - {part} for part, allowed in table.allowed.items()}).prepare()
    assert set().union(*table.allowed.values()) == set(table.files)


def test_an_import_turned_round_is_found(table: Table):
    """Whichever of the package's imports is turned round, somebody notices."""
    for file, targets in graph(package()).items():
        for target in targets:
            turned = {file: {target}, target: {file}}
            assert problems(turned, table), f"{target} may import {file}, which imports it"


def test_an_import_inside_a_function_is_found(table: Table):
    sources = package()
    sources["hunyuan/model/rope.py"] += "\n\ndef late():\n    from hunyuan.accel import prepare\n"
    assert problems(graph(sources), table)[0] == "hunyuan/model/rope.py imports hunyuan/accel/prepare.py"


def test_only_accel_imports_what_makes_it_fast(table: Table):
    roots = {file: {m.split(".")[0] for m in modules_of(source)} for file, source in package().items()}
    assert {table.part(file) for file, names in roots.items() if names & FAST_PACKAGES} == {"accel"}


def test_the_plain_network_never_names_hardware_or_formats():
    for file, source in package().items():
        if file.startswith("hunyuan/model/"):
            found = FORBIDDEN_IN_MODEL.findall(source)
            assert not found, f"{file}: {found}"


@pytest.mark.parametrize("file", sorted(package()))
def test_files_and_functions_are_short(file: str) -> None:
    """At most 350 lines per file and 45 per function, decorators aside."""
    source = package()[file]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > 45]
    assert (source.count("\n") <= 350, long) == (True, [])


def test_every_folder_of_the_package_has_one_of_tests() -> None:
    folders = {file.parent.name for file in (ROOT / "hunyuan").glob("*/__init__.py")}
    assert folders - {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")} == set()
