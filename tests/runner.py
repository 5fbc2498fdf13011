"""Runs the command line in this process."""

import sys

import pytest


class Run:
    """Runs the command line in this process; returns its exit code and keeps what it printed in ``out`` and ``err``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        from normalcy.cli.app import main  # not needed by most tests

        self.monkeypatch.setattr(sys, "argv", ["normalcy", *map(str, words)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = self.capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        assert "Traceback" not in self.err
        assert isinstance(code, int)
        return code

    def good(self, *words: object) -> str:
        """Run a command that must succeed; returns what it printed to stdout."""
        assert self(*words) == 0, self.err
        return self.out

    def said(self, *words: object) -> str:
        """All that a command printed, also one that fails."""
        self(*words)
        return self.out + self.err
