"""Errors of users are one line and exit code 2; errors of ours keep their stack trace."""

from __future__ import annotations

import argparse

import pytest

from segclip.console import UserError, cli, nearest, one_line


def _fail_with(error: Exception) -> None:
    def main(arguments: argparse.Namespace) -> int:
        raise error

    cli(main, argparse.ArgumentParser(), [])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x is 3\nallowed: 4"),
        UserError("disk full"),
        FileNotFoundError(2, "no such file", "a.yaml"),
    ],
)
def test_a_users_error_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        _fail_with(error)
    assert leaving.value.code == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("error: ")


def test_debug_keeps_the_stack_trace() -> None:
    def main(arguments: argparse.Namespace) -> int:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        cli(main, argparse.ArgumentParser(), ["--debug"])


def test_our_own_faults_are_not_hidden() -> None:
    with pytest.raises(KeyError):
        _fail_with(KeyError("x"))


def test_exit_code_of_a_clean_end() -> None:
    with pytest.raises(SystemExit) as leaving:
        cli(lambda arguments: None, argparse.ArgumentParser(), [])
    assert leaving.value.code == 0


def test_nearest_name() -> None:
    assert nearest("centres", ["centers", "width"]) == " (did you mean 'centers'?)"
    assert nearest("zzz", ["centers", "width"]) == ""


def test_one_line_names_errors_that_say_little() -> None:
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(ValueError("a\n  b")) == "a b"
