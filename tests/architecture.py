"""Draw the tree of docs/architecture.md from the first line of every module's docstring.

python -m tests.architecture          # writes it
python -m tests.architecture --check  # exits with 1 where the page is out of date
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: begin -->", "<!-- tree: end -->"


def summary(source: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    first = (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").split("\n")[0]
    return first.rstrip(".").replace("``", "")


def tree() -> str:
    """A line a file: rooms with what they are for, then their files."""
    lines = []
    for package in ("maskkernels", "maskft"):
        folder = ROOT / package
        lines.append(f"{package + '/':<22} {summary(folder / '__init__.py')}")
        loose = [p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
        lines += [f"  {p.name:<20} {summary(p)}" for p in loose]
        for room in sorted(p.parent for p in folder.glob("*/__init__.py")):
            lines.append(f"  {room.name + '/':<20} {summary(room / '__init__.py')}")
            files = [p for p in sorted(room.glob("*.py")) if p.stem != "__init__"]
            lines += [f"    {p.name:<18} {summary(p)}" for p in files]
    return "\n".join(lines)


def page() -> str:
    """The page with the tree as it is now."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n```\n{tree()}\n```\n{END}{rest.split(END)[1]}"


def main(argv: list[str]) -> int:
    if "--check" in argv:
        return int(page() != PAGE.read_text("utf-8"))
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
