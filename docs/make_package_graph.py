"""Draws the packages and who imports whom, from the imports in the code, as a Mermaid diagram.

python docs/make_package_graph.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("tuner", "models")
Graph = dict[str, set[str]]


def main() -> None:
    """Prints the diagram."""
    print(diagram())


def diagram() -> str:
    """Returns the diagram; an arrow that follows from others is left out."""
    edges = reduced(imports())
    lines = ["```mermaid", "flowchart TD"]
    for top in TOP:
        lines += [f"  subgraph {top}", *(f"    {_node(name)}" for name in edges if name.startswith(top)), "  end"]
    lines += [f"  {name} --> {other}" for name, others in edges.items() for other in sorted(others)]
    return "\n".join([*lines, "```"])


def imports() -> Graph:
    """Returns the packages that each package imports, at once or later; a module beside them counts as one."""
    graph: Graph = {}
    for path in sorted(path for top in TOP for path in (ROOT / top).glob("**/*.py")):
        name = _package(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if name is not None:
            found = {_package(one) for one in imported(path)}
            graph.setdefault(name, set()).update(one for one in found if one not in (None, name))
    return graph


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports: `from tuner.results import queries` is `tuner.results.queries`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reduced(graph: Graph) -> Graph:
    """Returns the graph without the edges that a longer path replaces; it must have no cycles."""
    return {
        name: {one for one in others if not any(one in reachable(graph, other) for other in others - {one})}
        for name, others in graph.items()
    }


def reachable(graph: Graph, name: str) -> set[str]:
    """Returns the packages that a package imports, directly or through others."""
    return graph[name].union(*(reachable(graph, other) for other in graph[name]))


def _package(name: str) -> str | None:
    """`tuner.storage` for `tuner.storage.leases.Leases`, None for what is not ours or has no place of its own."""
    parts = name.split(".")
    if parts[0] not in TOP or len(parts) < 2 or parts[:2] == ["tuner", "__main__"]:
        return None
    place = ROOT / parts[0] / parts[1]
    is_module = place.with_suffix(".py").exists() and parts[1] != "__init__"
    return ".".join(parts[:2]) if is_module or place.is_dir() else None


def _node(name: str) -> str:
    return f'{name}["{name.partition(".")[2]}"]'


if __name__ == "__main__":
    main()
