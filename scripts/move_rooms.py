"""Move modules into their packages and rewrite every import path that names them.

    python scripts/move_rooms.py move STEP          move the modules of one step, and rewrite the whole tree
    python scripts/move_rooms.py rewrite PATH...    only rewrite these files or directories, for all steps

It rewrites import statements, dotted names in strings, comments and documents, and paths of files; nothing else.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

STEPS: dict[str, dict[str, str]] = {}
PUBLIC = {"rollout.trainer.samples", "rollout.trainer.staleness"}
"""Functions of a package, which have the name of the module that they came from."""


def _read_table() -> None:
    step = ""
    for line in Path(__file__).with_name("move_rooms.tsv").read_text().splitlines():
        if line.startswith("# "):
            step = line[2:].strip()
            STEPS[step] = {}
        elif line.strip():
            old, new = line.split("\t")
            STEPS[step][old] = new


def _is_module(name: str) -> bool:
    return "/" not in name and ":" not in name


class Rewriter:
    def __init__(self, table: dict[str, str]) -> None:
        self.modules = {old: new for old, new in table.items() if _is_module(old)}
        self.names = {old: new for old, new in table.items() if ":" in old}
        self.paths = {old: new for old, new in table.items() if "/" in old}
        for old, new in self.modules.items():
            self.paths[old.replace(".", "/") + ".py"] = new.replace(".", "/") + ".py"
        for old, new in list(self.paths.items()):
            if old.startswith("tests/"):
                self.modules[old.removesuffix(".py").replace("/", ".")] = new.removesuffix(".py").replace("/", ".")
        self._dotted = _pattern(self.modules, r"(?<![\w./-])", r"(?!\w)")
        self._path = _pattern(self.paths, r"(?<![\w-])", r"(?![\w])")

    def text(self, text: str) -> str:
        text = self._dotted.sub(lambda found: self.modules[found[0]], text)
        return self._path.sub(lambda found: self.paths[found[0]], text)

    def python(self, source: str) -> str:
        """Rewrite import statements, strings and comments."""
        lines = source.splitlines(keepends=True)
        edits: list[tuple[int, int, int, int, str]] = []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                before = ast.unparse(node)
                if "\n".join(self._import(node, wrap=False)) != before:
                    end_line, end_col = node.end_lineno or node.lineno, node.end_col_offset or 0
                    new = f"\n{' ' * node.col_offset}".join(self._import(node, wrap=True))
                    edits.append((node.lineno, node.col_offset, end_line, end_col, new))
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT):
                new = self.text(token.string)
                if new != token.string:
                    edits.append((*token.start, *token.end, new))
        for top, left, bottom, right, new in sorted(edits, reverse=True):
            head, tail = lines[top - 1][:left], lines[bottom - 1][right:]
            lines[top - 1 : bottom] = [head + new + tail]
        result = "".join(lines)
        for old in self.modules:
            if re.search(rf"^\s*import {re.escape(old)}\b", source, re.MULTILINE):
                result = re.sub(rf"(?<![\w.]){re.escape(old)}(?=\.\w)", self.modules[old], result)
        return result

    def _import(self, node: ast.Import | ast.ImportFrom, *, wrap: bool) -> list[str]:
        if isinstance(node, ast.Import):
            imported = [
                self._dotted.sub(lambda found: self.modules[found[0]], alias.name)
                + (f" as {alias.asname}" if alias.asname else "")
                for alias in node.names
            ]
            return ["import " + ", ".join(imported)]
        prefix = "." * node.level + (node.module or "")
        kept, moved = [], []
        elsewhere: dict[str, list[str]] = {}
        for alias in node.names:
            name_target = self.names.get(f"{node.module}:{alias.name}") if node.level == 0 else None
            if name_target is not None:
                home, _, name = name_target.partition(":")
                elsewhere.setdefault(home, []).append(name + (f" as {alias.asname}" if alias.asname else ""))
                continue
            full = f"{node.module}.{alias.name}"
            target = self.modules.get(full) if node.level == 0 and full not in PUBLIC else None
            if target is None:
                kept.append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
                continue
            package, _, name = target.rpartition(".")
            local = alias.asname or alias.name
            moved.append(f"from {package} import {name}" + (f" as {local}" if local != name else ""))
        if kept:
            module = self._dotted.sub(lambda found: self.modules[found[0]], prefix)
            names = ", ".join(kept)
            moved.append(f"from {module} import {f'({names})' if wrap and len(names) > 60 else names}")
        moved += [f"from {home} import {', '.join(found)}" for home, found in elsewhere.items()]
        return moved

    def file(self, path: Path) -> None:
        try:
            old = path.read_text("utf-8")
        except UnicodeDecodeError:
            return
        new = self.python(old) if path.suffix == ".py" else self.text(old)
        if new != old:
            path.write_text(new, "utf-8")


def _pattern(names: dict[str, str], before: str, after: str) -> "re.Pattern[str]":
    if not names:
        return re.compile(r"(?!)")
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first))}){after}")


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines()
    kept = (".py", ".md", ".toml", ".yaml", ".yml", ".sh", "")
    mine = ("scripts/move_rooms.py", "scripts/move_rooms.tsv")
    paths = [Path(name) for name in listed if name not in mine]
    return [path for path in paths if path.suffix in kept and path.is_file() and not path.is_symlink()]


def _move(table: dict[str, str]) -> None:
    moves = [(Path(_file(old)), Path(_file(new))) for old, new in table.items() if Path(_file(old)).exists()]
    # Parked first: a module may become the package of its own name.
    parked = [Path(f".parked-{number}") for number in range(len(moves))]
    for (source, _), park in zip(moves, parked, strict=True):
        subprocess.run(["git", "mv", str(source), str(park)], check=True)
    for (_, target), park in zip(moves, parked, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "mv", str(park), str(target)], check=True)


def _file(name: str) -> str:
    return name.replace(".", "/") + ".py" if _is_module(name) else name


def main() -> None:
    _read_table()
    command, *arguments = sys.argv[1:]
    if command == "move":
        for step in arguments:
            _move(STEPS[step])
            rewriter = Rewriter(STEPS[step])
            for path in _tracked():
                rewriter.file(path)
        return
    roots = [Path(argument) for argument in arguments]
    files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    for table in STEPS.values():
        for path in files:
            if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".sh"):
                Rewriter(table).file(path)


if __name__ == "__main__":
    main()
