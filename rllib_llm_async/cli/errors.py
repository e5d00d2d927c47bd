"""Bad input is one line on stderr and exit code 2; any other failure one line and 1."""

from __future__ import annotations

import tempfile
import traceback
from typing import Any

import click

from rllib_llm_async.settings.names import unknown

#: Of a message that somebody else wrote, so much is shown.
_MAX_MESSAGE = 500


class InputError(click.ClickException):
    """What the user gave cannot be used; the message says what would be valid."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


class OneLineErrors(click.Group):
    """A command group that prints errors without the text around them."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise InputError(f"{ctx.command_path}: {unknown(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as exit_:
            raise SystemExit(exit_.exit_code) from None
        except click.Abort:
            click.echo("interrupted", err=True)
            raise SystemExit(130) from None
        except click.NoSuchOption as error:
            click.echo(f"Error: {_no_such_option(error)}", err=True)
            raise SystemExit(error.exit_code) from None
        except click.ClickException as error:
            click.echo(f"Error: {error.format_message()}", err=True)
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            click.echo(f"Error: {_unforeseen(error)}", err=True)
            raise SystemExit(1) from None


def _no_such_option(error: click.NoSuchOption) -> str:
    from rllib_llm_async.settings.check import SETTINGS

    setting = error.option_name.lstrip("-").replace("-", "_")
    if setting in SETTINGS:
        return f"{error.option_name}: a setting, write --set {setting}=VALUE"
    return error.format_message()


def _unforeseen(error: Exception) -> str:
    """What an error says that nobody has put into words, and where its stack is."""
    message = " ".join(str(error).split())[:_MAX_MESSAGE]
    with tempfile.NamedTemporaryFile(
        "w", prefix="rllib_traceback_", suffix=".txt", delete=False, errors="replace"
    ) as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}: {message} (traceback: {file.name})"
