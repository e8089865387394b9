"""Types of command line options: each turns a word into a value or says what it must be."""

import argparse
import math

__all__ = [
    "add_data_options",
    "finite_positive",
    "not_negative",
    "positive",
    "probability",
    "seed",
    "shape",
]


def add_data_options(parser: argparse.ArgumentParser, *, data: str = "digits") -> None:
    """Declare where images come from, for commands that need labels."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        metavar="SOURCE",
        default=data,
        help="digits, mnist, fashion-mnist, cifar10, folder:PATH (one subfolder a class) or "
        f"npz:PATH (default: {data})",
    )
    add("--root", metavar="PATH", help="where mnist, fashion-mnist, cifar10 lie (default: data)")
    add("--download", action="store_true", help="fetch them into --root if missing")


def positive(word: str) -> int:
    """Read a positive integer."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {word!r}")
    return int(word)


def not_negative(word: str) -> int:
    """Read 0 or a positive integer."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive integer, got {word!r}")
    return int(word)


def finite_positive(word: str) -> float:
    """Read a positive, finite number."""
    value = _number(word)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {word!r}")
    return value


def probability(word: str) -> float:
    """Read a number from 0 up to, not including, 1."""
    value = _number(word)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {word!r}")
    return value


def seed(word: str) -> int:
    """Read a seed that torch's generators accept."""
    if not word.isdecimal() or int(word) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2^63 - 1, got {word!r}")
    return int(word)


def shape(word: str) -> tuple[int, ...]:
    """Read a shape such as 64x128x8x8."""
    sizes = word.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"must be sizes such as 64x128x8x8, got {word!r}")
    return tuple(map(int, sizes))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan  # no comparison accepts it
