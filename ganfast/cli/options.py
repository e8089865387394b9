"""Options of the command line, made from the fields of dataclasses and from ranges of numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ganfast.training.options import POSITIVE, SEED, Option, Range, option, options_of

__all__ = [
    "Source",
    "add_option",
    "add_options",
    "chosen",
    "flag",
    "positive",
    "seed",
    "shape",
]


@dataclass(frozen=True)
class Source:
    """Where images come from."""

    data: str = option(
        "digits",
        "digits, mnist, fashion-mnist, cifar10, folder:PATH (for labels, one subfolder a class) or "
        "npz:PATH",
        metavar="SOURCE",
        group="data",
    )
    root: str | None = option(
        None,
        "where mnist, fashion-mnist, cifar10 lie",
        metavar="PATH",
        group="data",
        default_help="data",
        changeable=True,
    )
    download: bool = option(
        False, "fetch them into --root if missing", group="data", changeable=True
    )


class _Switch(argparse.BooleanOptionalAction):
    """Set one value by --name and another by --no-name."""

    def __init__(self, switch: tuple[Any, Any], **others: Any) -> None:
        super().__init__(**others)
        self._switch = switch

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        off = str(option_string).startswith("--no-")
        setattr(namespace, self.dest, self._switch[off])


def flag(name: str, known: Option) -> str:
    """Return how an option is written on the command line."""
    return known.flag or f"--{name.replace('_', '-')}"


def add_option(
    container: argparse._ActionsContainer,
    name: str,
    default: Any,
    known: Option,
    *,
    absent: Any = argparse.SUPPRESS,
) -> None:
    """Declare one option; left out, the parsed arguments have ``absent``, or nothing."""
    shown = known.default_help or _as_words(default)
    words: dict[str, Any] = {
        "dest": _dest(name, known),
        "default": absent,
        "help": f"{known.help} (default: {shown})" if shown else known.help,
    }
    if known.switch:
        words |= {"action": _Switch, "switch": known.switch}
    elif default is False:
        words["action"] = "store_true"
    else:
        if known.range:
            words["type"] = reader(known.range)
        if known.choices:
            words |= {"choices": known.choices, "type": type(next(iter(known.choices)))}
        if isinstance(default, tuple):
            words["nargs"] = len(default)
        words["metavar"] = known.metavar
    container.add_argument(flag(name, known), **words)


def add_options(container: argparse._ActionsContainer, options: Any) -> None:
    """Declare the options of a dataclass, with their defaults."""
    for name, default, known in options_of(options):
        if known.help:
            add_option(container, name, default, known, absent=default)


def chosen(args: argparse.Namespace, options: Any) -> dict[str, Any]:
    """Return those parsed arguments that are fields of a dataclass, by the names of the fields."""
    values = {}
    for name, default, known in options_of(options):
        if _dest(name, known) in args:
            value = getattr(args, _dest(name, known))
            values[name] = tuple(value) if isinstance(default, tuple) else value
    return values


def reader(range: Range) -> Callable[[str], Any]:
    """Return a function that turns a word into a number of a range, or says what it must be."""

    def read(word: str) -> Any:
        try:
            value = range.type(word) if range.type is float or word.isdecimal() else math.nan
        except ValueError:
            value = math.nan  # no range contains it
        if not range.contains(value):
            raise argparse.ArgumentTypeError(f"{range.must}, got {word!r}")
        return value

    return read


positive, seed = reader(POSITIVE), reader(SEED)


def shape(word: str) -> tuple[int, ...]:
    """Read a shape such as 64x128x8x8."""
    sizes = word.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"must be sizes such as 64x128x8x8, got {word!r}")
    return tuple(map(int, sizes))


def _dest(name: str, known: Option) -> str:
    return flag(name, known).removeprefix("--").replace("-", "_")


def _as_words(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(_as_words, default))
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default is None or default is False else str(default)
