"""Rename classes, functions, attributes and variables in a whole checkout, type by type, with a language server.

    pip install basedpyright
    python scripts/rename_names.py [CHECKOUT]

The table beside it has one row for each name: file, qualified name, new name. The server finds every use by its type,
in sources and tests alike. What no type tells is said here: names in strings, in scripts within tests, and keywords of
`dataclasses.replace`. Nothing but names changes.
"""

import ast
import json
import re
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

STRINGS = (
    ("tests/programs/test_programs.py", '"moved"', '"shift_placeholder"'),
    ("tests/programs/test_programs.py", '"tools_identity"', '"digest_tools"'),
    ("tests/engine/test_conversation.py", "request.expanded.", "request.expanded_prompt."),
    ("tests/engine/plugin/test_parity.py", "import compare\n", "import compare_pixels\n"),
    ("tests/engine/plugin/test_parity.py", "await compare(", "await compare_pixels("),
    ("tests/engine/plugin/test_parity.py", "parity.proven, parity.told()", "parity.matching_backend, parity.summary()"),
    ("tests/services/test_assets_elsewhere.py", "import gc_command", "import gc as gc_command"),
    ("tests/services/test_redis.py", "Renewal.cover", "LeaseRenewer.set_leases"),
    (
        "tests/services/test_redis_disown.py",
        "assert_a_disowned_handle_has_lost_its_leases",
        "assert_a_handle_loses_its_leases_when_they_are_expired",
    ),
    ("tests/services/test_zmq.py", "_Beat.begin", "_HeartbeatSender.start"),
    ("tests/services/test_zmq.py", "_HELLO_SECONDS", "_HELLO_INTERVAL"),
    ("tests/services/test_zmq.py", "PATIENCE_SECONDS", "HUB_TIMEOUT"),
)
"""Names that a test gives as text: file, old text, new text."""


class LanguageServer:
    """basedpyright over its standard streams."""

    def __init__(self, root: Path) -> None:
        self._root = root
        command = ["basedpyright-langserver", "--stdio"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = threading.Condition()
        self._lock = threading.Lock()
        self._ids = count(1)
        threading.Thread(target=self._read, daemon=True).start()
        capabilities = {"workspace": {"configuration": True, "workspaceEdit": {"documentChanges": True}}}
        folders = [{"uri": root.as_uri(), "name": "checkout"}]
        options = {"processId": None, "rootUri": root.as_uri(), "workspaceFolders": folders}
        self.ask("initialize", {**options, "capabilities": capabilities})
        self.tell("initialized", {})
        self.tell("workspace/didChangeConfiguration", {"settings": {}})
        self._open: str | None = None

    def open(self, path: str) -> None:
        if self._open == path:
            return
        self.close()
        text = (self._root / path).read_text("utf-8")
        document = {"uri": self._uri(path), "languageId": "python", "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": document})
        self._open = path

    def close(self) -> None:
        if self._open is not None:
            self.tell("textDocument/didClose", {"textDocument": {"uri": self._uri(self._open)}})
            self._open = None

    def rename(self, path: str, line: int, character: int, name: str) -> dict[Path, list[dict[str, Any]]]:
        """The edits by file."""
        self.open(path)
        document = {"uri": self._uri(path)}
        position = {"line": line, "character": character}
        answer = self.ask("textDocument/rename", {"textDocument": document, "position": position, "newName": name})
        edits: dict[Path, list[dict[str, Any]]] = {}
        for change in (answer.get("result") or {}).get("documentChanges") or []:
            edits.setdefault(Path(unquote(urlparse(change["textDocument"]["uri"]).path)), []).extend(change["edits"])
        return edits

    def changed(self, paths: list[Path], version: int) -> None:
        for path in paths:
            name = str(path.relative_to(self._root))
            if name == self._open:
                document = {"uri": self._uri(name), "version": version}
                content = [{"text": path.read_text("utf-8")}]
                self.tell("textDocument/didChange", {"textDocument": document, "contentChanges": content})
            else:
                changes = {"changes": [{"uri": path.as_uri(), "type": 2}]}
                self.tell("workspace/didChangeWatchedFiles", changes)

    def ask(self, method: str, params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._send({"id": number, "method": method, "params": params})
        with self._answered:
            if not self._answered.wait_for(lambda: number in self._answers, 300):
                raise TimeoutError(method)
            return self._answers.pop(number)

    def tell(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _uri(self, path: str) -> str:
        return (self._root / path).as_uri()

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
            self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            length = 0
            while (line := stream.readline()).strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if not line:
                return
            message = json.loads(stream.read(length))
            if "method" in message and "id" in message:
                items = message["params"].get("items", ()) if message["method"] == "workspace/configuration" else ()
                self._send({"id": message["id"], "result": [{"typeCheckingMode": "off"} for _ in items]})
            elif "id" in message:
                with self._answered:
                    self._answers[message["id"]] = message
                    self._answered.notify_all()


def find(tree: ast.Module, lines: list[str], qualified: str) -> tuple[int, int] | None:
    """Where a name is bound: line, and UTF-16 column."""
    scope: Scope = tree
    *parents, name = qualified.split(".")
    for parent in parents:
        inner = next((n for n in _own(scope) if isinstance(n, Function | ast.ClassDef) and n.name == parent), None)
        if inner is None:
            return None
        scope = inner
    for node in _own(scope):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            start = lines[node.lineno - 1].index("class " if isinstance(node, ast.ClassDef) else "def ")
            return _utf16(lines, node.lineno, lines[node.lineno - 1].index(name, start + 4))
    places: list[tuple[int, int]] = []
    if isinstance(scope, Function):
        arguments = scope.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        places += [_at(lines, arg.lineno, arg.col_offset) for arg in every if arg is not None and arg.arg == name]
        if places:
            return places[0]
    for node in _own(scope):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            places.append(_at(lines, node.lineno, node.col_offset))
        elif isinstance(node, ast.ExceptHandler | ast.alias) and name in (node.name, getattr(node, "asname", "")):
            if (found := re.search(rf"\bas\s+({re.escape(name)})\b", lines[node.lineno - 1])) is not None:
                places.append(_utf16(lines, node.lineno, found.start(1)))
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name == name:
            places.append(_at(lines, node.end_lineno or 0, (node.end_col_offset or 0) - len(name.encode())))
        elif isinstance(node, ast.Lambda):
            places += [_at(lines, arg.lineno, arg.col_offset) for arg in node.args.args if arg.arg == name]
    if not places and isinstance(scope, ast.ClassDef):
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store):
                places.append(_at(lines, node.end_lineno or 0, (node.end_col_offset or 0) - len(name.encode())))
    return min(places, default=None)


def _own(scope: ast.AST) -> list[ast.AST]:
    found, waiting = [], list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop(0)
        found.append(node)
        if not isinstance(node, Function | ast.ClassDef):
            waiting = list(ast.iter_child_nodes(node)) + waiting
    return found


def _at(lines: list[str], number: int, column: int) -> tuple[int, int]:
    return _utf16(lines, number, len(lines[number - 1].encode()[:column].decode()))


def _utf16(lines: list[str], number: int, column: int) -> tuple[int, int]:
    return number - 1, len(lines[number - 1][:column].encode("utf-16-le")) // 2


def edit(path: Path, edits: list[dict[str, Any]]) -> None:
    lines = [line.encode("utf-16-le") for line in path.read_text("utf-8").split("\n")]
    unique = {json.dumps(change, sort_keys=True): change for change in edits}.values()
    for change in sorted(unique, key=lambda change: -change["range"]["start"]["character"]):
        start, end = change["range"]["start"], change["range"]["end"]
        line = lines[start["line"]]
        new = change["newText"].encode("utf-16-le")
        lines[start["line"]] = line[: 2 * start["character"]] + new + line[2 * end["character"] :]
    path.write_text("\n".join(line.decode("utf-16-le") for line in lines), "utf-8")


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    settings = {"include": ["rollout", "transports", "renderers_adapter", "tests", "benchmarks", "examples", "plugins"]}
    (root / "pyrightconfig.json").write_text(json.dumps({**settings, "extraPaths": ["plugins/vllm/src"]}))
    rows = [line.split("\t") for line in Path(__file__).with_suffix(".tsv").read_text().splitlines()]
    server = LanguageServer(root)
    # The innermost first: a scope is found by the name that it has in the table.
    for number, (name, qualified, new) in enumerate(sorted(rows, key=lambda row: (-row[1].count("."), row[0]))):
        text = (root / name).read_text("utf-8")
        place = find(ast.parse(text), text.split("\n"), qualified)
        edits = server.rename(name, *place, new) if place is not None else {}
        if not edits:
            sys.stderr.write(f"{name}: {qualified} is not there\n")
        for path, changes in edits.items():
            edit(path, changes)
        server.changed(list(edits), number + 2)
        if number % 100 == 0:
            sys.stderr.write(f"{number} of {len(rows)}\n")
    for pattern, old, new in STRINGS:
        for path in root.glob(pattern):
            path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    (root / "pyrightconfig.json").unlink()


if __name__ == "__main__":
    main()
