"""Bad input is one line on stderr and exit code 2."""

from __future__ import annotations

from typing import Any

import click


class InputError(click.ClickException):
    """What the user gave cannot be used; the message says what would be valid."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


class OneLineErrors(click.Group):
    """A command group that prints errors without the usage text around them."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as exit_:
            raise SystemExit(exit_.exit_code) from None
        except click.Abort:
            raise SystemExit(130) from None
        except click.ClickException as error:
            click.echo(f"Error: {error.format_message()}", err=True)
            raise SystemExit(error.exit_code) from None
