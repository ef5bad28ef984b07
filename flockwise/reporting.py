"""How commands speak: a line of JSON or a table, and errors as one clear line."""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import click

__all__ = ["one_line_errors", "print_json"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def print_json(value: Mapping[str, Any]) -> None:
    """Writes one JSON object and a newline to standard output."""
    click.echo(json.dumps(value, sort_keys=True))


def one_line_errors(*kinds: type[Exception]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorator: errors of these kinds end the command with their text on standard error and exit code 1."""

    def decorate(command: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(command)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return command(*args, **kwargs)
            except kinds as error:
                click.echo(f"error: {error}", err=True)
                sys.exit(1)

        return run

    return decorate
