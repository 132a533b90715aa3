"""One word for one type: a reader who knows a name need not ask which module it is from."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import harness

TYPES = (
    "Annotated",
    "Literal",
    "Callable",
    "Mapping",
    "Sequence",
    "Union",
    "NDArray",
    "dict",
    "list",
    "tuple",
)


def types_of(module: ast.Module) -> dict[str, str]:
    """Classes and aliases of types of a module, by name, with what they are."""
    found = {
        node.name: f"class {node.name} {node.lineno}"
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            (name, *_), what = node.targets, ast.unparse(node.value)
            if isinstance(name, ast.Name) and what.split("[")[0].split(".")[-1] in TYPES:
                found[name.id] = what
    return found


def test_no_name_is_two_types() -> None:
    folder = Path(harness.__file__).parent
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.py")):
        for name, what in types_of(ast.parse(path.read_text(encoding="utf-8"))).items():
            if not name.startswith("_"):
                is_class = what.startswith("class ")
                seen[name][f"{path.relative_to(folder)}: {what}" if is_class else what] = str(path)
    assert len(seen) > 300
    assert {name: sorted(found) for name, found in seen.items() if len(found) > 1} == {}
