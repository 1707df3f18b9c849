"""The house over `ast`: which package imports which, what a method's file holds, no method or suite named elsewhere."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from baselines.registry import methods
from suites.registry import all_suites

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, frozenset[str]] = {
    "gnlorp": frozenset(),
    "results": frozenset(),
    "baselines": frozenset({"gnlorp"}),
    "suites": frozenset({"baselines", "gnlorp", "results"}),
    "reports": frozenset({"results"}),
}
TORCH_FREE = ("results", "reports")
SKIPPED = frozenset({"__pycache__", "build", "dist", "runs"})


def sources(package: str) -> list[Path]:
    """Return the package's Python files."""
    return sorted(path for path in (ROOT / package).rglob("*.py") if not SKIPPED & set(path.parts))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module's first name, wherever the import stands, `import_module("...")` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and _leaf(node.func) in ("import_module", "__import__"):
            first = node.args[0]
            first = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.partition(".")[0]


def choices(tree: ast.AST, known: frozenset[str]) -> Iterator[str]:
    """Yield "line: literal" where something called method, suite or task is compared with a known name.

    Comparisons are `==`, `in` and `match`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            if any(_speaks_of_either(part) for part in parts):
                yield from (f"{node.lineno}: {name}" for part in parts for name in _strings(part) if name in known)
        elif isinstance(node, ast.Match) and _speaks_of_either(node.subject):
            for case in node.cases:
                yield from (f"{case.pattern.lineno}: {name}" for name in _strings(case.pattern) if name in known)


def tables(tree: ast.AST, known: frozenset[str]) -> Iterator[str]:
    """Yield "line: literal" where a known name is a key of a table, or a member of a collection of names alone.

    Tables are `{"x": ...}`, `dict(x=...)`, `dict([("x", ...)])`, `table["x"] = ...` and `dict.fromkeys(["x"])`;
    collections are sets, lists and tuples, that hold nothing but known names, two of them at least or in a set.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from _named([key for key in node.keys if key is not None], known)
        elif isinstance(node, ast.Call) and _leaf(node.func) in ("dict", "fromkeys"):
            yield from (f"{node.lineno}: {word.arg}" for word in node.keywords if word.arg in known)
            inner = [
                part for each in node.args if isinstance(each, (ast.List, ast.Tuple, ast.Set)) for part in each.elts
            ]
            yield from _named([part.elts[0] if isinstance(part, ast.Tuple) else part for part in inner], known)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from _named([each.slice for each in targets if isinstance(each, ast.Subscript)], known)
        elif isinstance(node, (ast.Set, ast.List, ast.Tuple)) and (isinstance(node, ast.Set) or len(node.elts) > 1):
            found = list(_named(node.elts, known))
            yield from found if len(found) == len(node.elts) else ()


def _named(parts: Iterable[ast.AST], known: frozenset[str]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, ast.Constant) and part.value in known:
            yield f"{part.lineno}: {part.value}"


def _leaf(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_leaf(node.value)}.name" if node.attr == "name" else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.id if isinstance(node, ast.Name) else ""


def _speaks_of_either(node: ast.AST) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return any(_speaks_of_either(part) for part in node.elts)
    return bool(re.search(r"(^|_)(method|suite|task)($|_|\.)", _leaf(node).lower()))


def _strings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_the_packages_lie_under_the_root() -> None:
    for package in ALLOWED:
        file = importlib.import_module(package).__file__
        assert file is not None
        assert Path(file).resolve().parent == ROOT / package


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = sources(package)
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} -> {name}"
        for path in files
        for name in imports(ast.parse(path.read_text()))
        if name in ALLOWED.keys() - ALLOWED[package] - {package} or name == "tests"
    }
    assert not wrong


@pytest.mark.parametrize("package", TORCH_FREE)
def test_records_and_reports_never_import_torch(package: str) -> None:
    banned = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "evaluate"}
    wrong = {
        f"{path.relative_to(ROOT)} -> {name}"
        for path in sources(package)
        for name in imports(ast.parse(path.read_text()))
        if name in banned
    }
    assert not wrong


def test_the_import_reader_sees_every_form() -> None:
    code = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h\n"
    code += "importlib.import_module('i.j')\nimport_module(f'k.{x}')\n__import__('l')\n"
    assert set(imports(ast.parse(code))) == {"a", "c", "h", "i", "k", "l"}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("if method == 'lora': pass", True),
        ("if plan.method != 'lora': pass", True),
        ("if 'lora' == plan.method: pass", True),
        ("if method.name == 'lora': pass", True),
        ("if plan.suite == 'glue': pass", True),
        ("if record['method'] == 'lora': pass", True),
        ("if method in ('lora', 'dora'): pass", True),
        ("if (plan.suite, plan.method) == ('glue', 'x'): pass", True),
        ("match plan.method:\n    case 'lora' | 'dora': pass", True),
        ("if method == other: pass", False),
        ("if norm_gradient == 'lora': pass", False),
        ("if method == 'unheard-of': pass", False),
        ("found = {'lora': 1}[method]", False),
    ],
)
def test_the_choice_reader_sees_every_form(code: str, found: bool) -> None:
    assert bool(list(choices(ast.parse(code), frozenset({"lora", "dora", "glue"})))) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("TITLES = {'lora': 'LoRA'}", True),
        ("TITLES: dict[str, str] = {'other': 1, **{'lora': 2}}", True),
        ("dict(lora=1)", True),
        ("dict([('lora', 1)])", True),
        ("dict.fromkeys(['lora', 'x'])", True),
        ("table['lora'] = 1", True),
        ("RANKLESS = frozenset({'lora'})", True),
        ("BOTH = ('lora', 'dora')", True),
        ("BATCHES = {'cola': 32}", True),
        ("row = {'method': 'lora'}", False),
        ("settled = dict(method='lora')", False),
        ("found = table['lora']", False),
        ("pair = ('lora', 3)", False),
        ("names = {'unheard-of': 1}", False),
        ("first = ('lora',)", False),
    ],
)
def test_the_table_reader_sees_every_form(code: str, found: bool) -> None:
    assert bool(list(tables(ast.parse(code), frozenset({"lora", "dora", "cola"})))) == found


def test_no_method_suite_or_task_is_named_in_a_choice_or_table_outside_its_file() -> None:
    suites = all_suites()
    known = frozenset(methods()) | frozenset(suites) | frozenset(t for suite in suites.values() for t in suite.tasks)
    assert known > {"glue", "cola"}
    # A method may be called as a setting of others is (SCALE, a projection's scale): the reader cannot tell them apart.
    known -= {name for method in methods().values() for name in method.config_type.model_fields}
    found = []
    for path in (path for package in ALLOWED for path in sources(package)):
        relative = path.relative_to(ROOT)
        own = {relative.stem, relative.parts[1].removesuffix(".py")}
        own |= {task for name in own & suites.keys() for task in suites[name].tasks}
        tree = ast.parse(path.read_text())
        found += [f"{relative}:{each}" for reader in (choices, tables) for each in reader(tree, known - own)]
    assert not found


def test_every_method_stands_in_the_file_of_its_name() -> None:
    ending = {path.stem for path in sources("baselines") if re.search(r"^METHOD\b", path.read_text(), re.MULTILINE)}
    assert ending == set(methods())


@pytest.mark.parametrize("name", tuple(methods()))
def test_a_method_file_says_what_it_is(name: str) -> None:
    tree = ast.parse((ROOT / "baselines" / f"{name}.py").read_text())
    text = " ".join((ast.get_docstring(tree) or "").split())
    assert re.search(r"arXiv \d{4}\.\d{5}", text) or "yardstick" in text
    assert (methods()[name].arxiv or "yardstick") in text
    assert re.search(r"Bytes of state for an O x I weight(, [^:]*)?: \d", text)
    assert re.search(r"Stated choices?: ", text)
    last = tree.body[-1]
    assert isinstance(last, ast.Assign)
    assert [_leaf(target) for target in last.targets] == ["METHOD"]


@pytest.mark.parametrize("name", tuple(methods()))
def test_every_setting_names_its_source_or_rule(name: str) -> None:
    for field, info in methods()[name].config_type.model_fields.items():
        assert info.description, field
        assert info.default is not None, field


def test_no_file_names_a_home_folder_or_this_checkout() -> None:
    conventional = re.compile(r"(?<![\w.~>-])/(?:home|root|Users)/[A-Za-z]")
    places = [*ALLOWED, "tests", ".ci"]
    files = [path for place in places for path in (ROOT / place).rglob("*") if not SKIPPED & set(path.parts)]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    texts = [path for path in files if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".txt", ".json")]
    assert len(texts) > 50
    wrong = []
    for path in texts:
        text = path.read_text(errors="replace")
        # A checkout right under the root, such as /src, would be found in innocent text.
        if conventional.search(text) or (len(ROOT.parts) > 2 and f"{ROOT}/" in text):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {length} lines"
        for package in ALLOWED
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
        if (length := node.end_lineno - node.lineno + 1) >= 60
    ]
    assert not long
