"""The `rllib` command."""


def main() -> None:
    """Entry point."""
