"""Fail where the code is hard to find or to read; prints each place.

Limits of size, tests in the mirrored folder that keep to public names, and no dialect (`DIALECT`) in code or docs.
Import directions and cycles are import-linter's. An exception is the comment `# house: RULE because …` on the line of
the `def` or `class`, on the first line of a module, or on the first line of a folder's `__init__.py`.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("listing_vision", "listing_vision_client", "serving", "training", "vision")
GENERATED = ("_pb2.py", "_pb2_grpc.py")
MAX_MODULES, MAX_LINES, MAX_BODY, MAX_CLASS, MAX_PARAMETERS = 16, 400, 50, 260, 12
MAX_EXCEPTIONS = 10
FOREIGN = "triton_python_backend_utils"
"""A module that imports this runs in Triton's own Python alone; no test can import it."""
OF_NAMED_TUPLES = ("_asdict", "_fields", "_make", "_replace")
DIALECT = {
    r'"""Of ': "begin with a noun or a verb",
    r"\b_?(told|asked|decided|assembled)\(": "a verb in the imperative",
    r"\bnurser(y|ies)\b": "fork server",
    r"\bunwell\b": "unhealthy",
    r"\bst(an|oo)ds? still\b": "freezes, is frozen",
    r"\banew\b": "again, or overwrite",
    r"\b(gone|goes|go|going) on with\b": "resume, continue",
    r"\b(all|everything) is well\b": "healthy, recovered",
    r"\bnobody pays\b": "say what the cost is",
    r"\bsaid a word\b": "say which message is missing",
    r"\bwhy_not\b(?!\")": "uncertified_reason",
    r"\bjudged?_model\b": "evaluated_model",
    r"\bwithout a word\b": "silently",
}
DIALECT_FILES = ("*.py", "*.md", "*.proto", "*.toml", "*.yaml", "*.yml", "*.js", "*.html", "Makefile", "Dockerfile.gpu")


@dataclass(frozen=True)
class Finding:
    rule: str
    path: Path
    line: int
    what: str


def find_all(root: Path) -> Iterator[Finding]:
    modules = {
        p: ast.parse(p.read_text(encoding="utf-8")) for name in PACKAGES for p in sorted((root / name).rglob("*.py"))
    }
    modules = {path: tree for path, tree in modules.items() if not path.name.endswith(GENERATED)}
    tests = {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted((root / "tests").rglob("*.py"))}
    for folder, num in Counter(path.parent for path in modules if path.name != "__init__.py").items():
        if num > MAX_MODULES:
            yield Finding("modules in a folder", folder / "__init__.py", 1, str(num))
    for path, tree in modules.items():
        yield from find_long(path, tree)
        is_testable = path.name not in ("__init__.py", "__main__.py") and FOREIGN not in path.read_text(
            encoding="utf-8"
        )
        if is_testable and not is_tested(root, path, tests):
            yield Finding("module that no test of its folder imports", path, 1, path.name)
    for path, tree in tests.items():
        yield from find_private(path, tree)
    yield from find_dialect(root)


def parse_all(folder: Path) -> dict[Path, ast.Module]:
    paths = (path for path in sorted(folder.rglob("*.py")) if not path.name.endswith(GENERATED))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def find_long(path: Path, tree: ast.Module) -> Iterator[Finding]:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    if num_lines > MAX_LINES:
        yield Finding("lines in a module", path, 1, str(num_lines))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > MAX_CLASS:
            yield Finding("lines in a class", path, node.lineno, node.name)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > MAX_BODY:
            yield Finding("lines in a function", path, node.lineno, node.name)
        num = len(node.args.args) + len(node.args.kwonlyargs) + len(node.args.posonlyargs)
        is_verb = any("command" in ast.unparse(d) or "callback" in ast.unparse(d) for d in node.decorator_list)
        if num > MAX_PARAMETERS and not is_verb:
            yield Finding("parameters of a function", path, node.lineno, f"{node.name} has {num}")


def is_tested(root: Path, path: Path, tests: dict[Path, ast.Module]) -> bool:
    """Return whether a test file in the mirrored folder bears the module's name or imports it."""
    part = path.relative_to(root)
    module, package = ".".join(part.with_suffix("").parts), ".".join(part.parent.parts)
    for test, tree in tests.items():
        if test.parent != root / "tests" / part.parent:
            continue
        if test.name == f"test_{path.name}":
            return True
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (
                node.module == module or (node.module == package and any(a.name == path.stem for a in node.names))
            ):
                return True
    return False


def find_private(path: Path, tree: ast.Module) -> Iterator[Finding]:
    """Find private names of the packages in a test, imports of other tests, and reads of source text."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if is_private(node.attr) and owner not in ("self", "cls", "os", "sys"):
                yield Finding("private name used by a test", path, line, ast.unparse(node))
            if node.attr == "getsource":
                yield Finding("test reads source text", path, line, ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if re.search(r"(^|\.)test_\w+$", node.module):
                yield Finding("test imports a test", path, line, node.module)
            if node.module.split(".")[0] in PACKAGES:
                for alias in node.names:
                    if is_private(alias.name):
                        yield Finding("private name used by a test", path, line, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            for argument in node.args:
                value = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(value, str) and is_private(value.split(".")[-1]):
                    yield Finding("private name used by a test", path, line, value)


def is_private(name: str) -> bool:
    return (
        name.startswith("_") and not name.startswith("__") and name not in ("_replace", "_asdict", "_fields", "_make")
    )


def find_dialect(root: Path) -> Iterator[Finding]:
    listed = subprocess.run(["git", "ls-files", *DIALECT_FILES], cwd=root, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = root / name
        if path == Path(__file__).resolve() or name.endswith(GENERATED) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if name == "CHANGELOG.md":
                line = re.sub(r"`[^`]*`", "", line)  # quotes old names
            for pattern, standard in DIALECT.items():
                if found := re.search(pattern, line):
                    yield Finding("dialect", path, number, f"{found.group(0)!r}: {standard}")


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    left, num_exceptions = [], 0
    for finding in find_all(root):
        lines = finding.path.read_text(encoding="utf-8").splitlines()
        if finding.line <= len(lines) and f"# house: {finding.rule} because" in lines[finding.line - 1]:
            num_exceptions += 1
        else:
            left.append(finding)
            print(f"{finding.rule}: {finding.path.relative_to(root)}:{finding.line}: {finding.what}")
    if num_exceptions > MAX_EXCEPTIONS:
        sys.exit(f"{num_exceptions} exceptions, at most {MAX_EXCEPTIONS}")
    if left:
        sys.exit(f"{len(left)} places are hard to find or to read")
    print(f"readability: ok, {num_exceptions} exceptions")


if __name__ == "__main__":
    main()
