"""The command that makes a tiny checkpoint, without the libraries that it needs."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rollout.serving.tiny_model.__main__ import main


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_the_error_names_the_missing_library_and_the_command_that_installs_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, missing, None)  # importing it raises ModuleNotFoundError
    monkeypatch.setattr(sys, "argv", ["tiny_model", str(tmp_path / "model")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert f"tiny_model: {missing} cannot be imported" in message
    assert "pip install 'rollout-rl[trainer]'" in message
    assert not (tmp_path / "model").exists()
