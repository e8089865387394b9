"""The names that users import, with their signatures, as lines of text.

``python tests/package/public_names.py > tests/public_names.txt`` records a change that is meant.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MODULES = (
    "ganfast",
    "ganfast.backend",
    "ganfast.functional",
    "ganfast.fusion",
    "ganfast.models",
    "ganfast.nn",
    "ganfast.training",
)


def lines() -> Iterator[str]:
    """Yield one line for each public name, and one for each public method of a class."""
    for module in MODULES:
        found = importlib.import_module(module)
        for name in sorted(found.__all__):
            value = getattr(found, name)
            yield f"{module}.{name}{signature(value)}"
            if inspect.isclass(value):
                for method, function in sorted(own_methods(value).items()):
                    yield f"{module}.{name}.{method}{signature(function)}"


def signature(value: Any) -> str:
    """Return a callable's parameters and defaults; nothing for what torch or Python defines."""
    made_by = value
    if inspect.isclass(value):
        made_by = value.__new__ if value.__init__ is object.__init__ else value.__init__
    defined_in = str(getattr(made_by, "__module__", None))
    if not callable(value) or defined_in.startswith(("torch", "None")):
        return ""
    found = inspect.signature(value)
    plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


def own_methods(cls: type) -> dict[str, Any]:
    """Return the public attributes that a class of ganfast or a base of ganfast's defines."""
    return {
        name: value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        for base in reversed(cls.__mro__)
        if base.__module__.partition(".")[0] == "ganfast"
        for name, value in vars(base).items()
        if not name.startswith("_")
    }


if __name__ == "__main__":
    print(*lines(), sep="\n")
