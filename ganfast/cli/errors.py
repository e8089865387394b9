"""How a command ends when it cannot go on."""

__all__ = ["INTERRUPTED", "CommandError"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class CommandError(Exception):
    """Bad input: the message goes to standard error in one line, and the exit code is 2."""
