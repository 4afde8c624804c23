"""Runs `make demo` and draws what it prints as docs/demo.svg."""

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["run", "configs/color_codeword.yaml", "--set", "engine.sampling.temperature=0"]


def main() -> None:
    """Draw the picture."""
    environment = {"FORCE_COLOR": "1", "COLUMNS": "104", "PATH": "/usr/bin:/bin", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "rollout", *COMMAND]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=104, file=io.StringIO())
    console.print(Text("$ make demo"))
    console.print(Text.from_ansi(printed.replace(str(ROOT), ".").rstrip()))
    drawing = console.export_svg(title="rollout")
    # Without web fonts, which a viewer would download; every viewer has a monospaced font.
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL).replace("Fira Code, ", "")
    drawing = drawing.replace("<svg ", '<svg xml:space="preserve" ', 1)
    (ROOT / "docs" / "demo.svg").write_text(drawing, "utf-8")


if __name__ == "__main__":
    main()
