"""The options of a training, each written down once: for the trainer and for the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

import torch

from ganfast.functional.losses import GAN_LOSSES
from ganfast.training.checkpoints import KEPT

__all__ = [
    "CAPTURES",
    "PRECISIONS",
    "Option",
    "Range",
    "TrainingOptions",
    "check_options",
    "option",
    "options_of",
]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPTURES = ("auto", "always", "never")


class Range(NamedTuple):
    """The numbers that an option may be: their type, a test, and the test in words."""

    type: type[int] | type[float]
    contains: Callable[[float], bool]
    must: str


POSITIVE = Range(int, lambda value: 1 <= value < 2**31, "must be a positive integer below 2^31")
NOT_NEGATIVE = Range(
    int, lambda value: 0 <= value < 2**31, "must be 0 or a positive integer below 2^31"
)
SEED = Range(int, lambda value: 0 <= value < 2**63, "must be an integer from 0 to 2^63 - 1")
RATE = Range(float, lambda value: 0 < value < math.inf, "must be a positive number")
WEIGHT = Range(float, lambda value: 0 <= value < math.inf, "must not be negative or infinite")
DECAY = Range(float, lambda value: 0 <= value < 1, "must be at least 0 and below 1")


@dataclass(frozen=True)
class Option:
    """What the command line and the checks know of a field, besides its name and default.

    Attributes:
        help: for ``--help``, without the default; empty for a field that is not on the command
            line.
        range: of a number, or of each number of a tuple.
        choices: that the value must be one of.
        metavar: one word for each value.
        flag: on the command line; by default the field's name.
        group: of the help text.
        default_help: the default in words, if the value does not say it.
        switch: the values that the flag and its ``--no-`` form stand for.
        changeable: whether a resumed run may change it.
    """

    help: str = ""
    range: Range | None = None
    choices: Collection[Any] = ()
    metavar: str | tuple[str, ...] | None = None
    flag: str = ""
    group: str = ""
    default_help: str = ""
    switch: tuple[Any, Any] | None = None
    changeable: bool = False


def option(default: Any, help: str = "", range: Range | None = None, **others: Any) -> Any:
    """Declare a field of a dataclass, with what an :class:`Option` says of it."""
    return field(default=default, metadata={"option": Option(help, range, **others)})


def options_of(cls: Any) -> Iterator[tuple[str, Any, Option]]:
    """Yield name, default and :class:`Option` of each field of a dataclass that has one."""
    for each in fields(cls):
        if "option" in each.metadata:
            yield each.name, each.default, each.metadata["option"]


def check_options(cls: Any, **values: Any) -> None:
    """Check values against the ranges and choices of a dataclass's fields.

    A value equal to the field's default is not checked: None is allowed if it is the default.

    Raises:
        ValueError: a value that its field does not allow.
    """
    for name, default, known in options_of(cls):
        if name not in values or values[name] == default:
            continue
        value = values[name]
        if not _has_type(value, default, known):
            raise ValueError(f"{name} cannot be {value!r}")
        if known.choices and value not in known.choices:
            allowed = ", ".join(map(str, known.choices))
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        numbers = value if isinstance(value, tuple | list) else [value]
        if known.range and not all(map(known.range.contains, numbers)):
            raise ValueError(f"{name} {known.range.must}, got {value!r}")


def _has_type(value: Any, default: Any, known: Option) -> bool:
    if known.range:
        numbers = value if isinstance(default, tuple) else [value]
        types = (int,) if known.range.type is int else (int, float)
        count = len(default) if isinstance(default, tuple) else 1
        sized = isinstance(numbers, tuple | list) and len(numbers) == count
        return sized and all(type(n) in types for n in numbers)
    if known.choices:
        return isinstance(value, str | int)
    return isinstance(value, bool if isinstance(default, bool) or known.switch else str)


_training = partial(option, group="training")
_writing = partial(option, group="what is written, and when", changeable=True)


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train, how fast, and how often to write.

    Learning rate and betas are Adam's, in both networks; their defaults are those of Radford et al.
    2015, section 3. ``loss`` is a kind of :class:`ganfast.nn.GANLoss`; precision, ema, penalty, r1,
    n_critic, accumulate, clip_norm, diff_augment, compile, paired, capture and channels_last are
    those of :class:`GANStep`. The ``_every`` options count steps; ``quality_every`` 0 measures no
    quality, else the images need labels. With ``keep_memory``, training on a CPU calls
    ``keep_freed_memory``, which holds for the rest of the process.

    The metadata of a field hold its range, choices and help text (:class:`Option`): ``ganfast
    train`` makes its options from them, and they are checked here.

    Raises:
        ValueError: an option that is out of its range or none of its choices.

    Examples:
        >>> from ganfast.training import TrainingOptions
        >>> TrainingOptions(steps=100, loss="hinge").batch_size
        64
    """

    steps: int = _training(2000, "updates of each network", POSITIVE, changeable=True)
    batch_size: int = _training(64, "images, of all processes together", POSITIVE)
    learning_rate: float = _training(2e-4, "Adam's learning rate", RATE, flag="--lr")
    betas: tuple[float, float] = _training(
        (0.5, 0.999), "Adam's decay rates", DECAY, metavar=("B1", "B2")
    )
    loss: str = _training("bce", "loss of both networks", choices=tuple(GAN_LOSSES))
    precision: str = _training(
        "fp32",
        "bf16, fp16: by torch.autocast, where the device has instructions for them; auto: the best "
        "that it has",
        choices=(*PRECISIONS, "auto"),
    )
    ema: float | None = _training(
        None, "sample from an average of the weights", DECAY, metavar="DECAY"
    )
    penalty: float = _training(0.0, "weight of the gradient penalty", WEIGHT, metavar="WEIGHT")
    r1: float = _training(0.0, "weight of the R1 penalty", WEIGHT, metavar="GAMMA")
    n_critic: int = _training(
        1, "updates of the discriminator in a step, each with its part of the batch", POSITIVE
    )
    accumulate: int = _training(
        1, "parts of a batch whose gradients are averaged, one in memory at a time", POSITIVE
    )
    clip_norm: float | None = _training(
        None, "largest norm of either network's gradient", RATE, metavar="NORM"
    )
    diff_augment: bool = _training(
        False,
        "differentiable augmentation: change colours, translate and cut out in all that the "
        "discriminator sees; for few images",
    )
    compile: bool = _training(
        False, "compile both networks by torch.compile with ganfast's backend", changeable=True
    )
    seed: int = _training(0, "seed of every random number", SEED)
    log_every: int = _writing(50, "steps between metrics", POSITIVE, metavar="STEPS")
    sample_every: int = _writing(500, "steps between samples", POSITIVE, metavar="STEPS")
    checkpoint_every: int = _writing(500, "steps between checkpoints", POSITIVE, metavar="STEPS")
    quality_every: int = _writing(
        0,
        "steps between Frechet distances to real images, in the features of a small classifier; "
        "best.safetensors is the best checkpoint; 0 for none",
        NOT_NEGATIVE,
        metavar="STEPS",
    )
    keep_checkpoints: int = _writing(KEPT, "checkpoints to keep", POSITIVE, metavar="COUNT")
    tensorboard: bool = _writing(False, "write events for TensorBoard below --out too")
    keep_memory: bool = option(True)
    on_nan: str = _writing(
        "stop",
        "if a loss is not finite: stop, or go back to the last checkpoint with half the learning "
        "rate, three times at most",
        choices=("stop", "rollback"),
    )
    paired: bool | None = _training(
        None,
        "judge real and generated images in one batch, each half with its own statistics",
        switch=(True, False),
        default_help="on GPUs",
        changeable=True,
    )
    capture: str = _training(
        "auto",
        "replay each step as one CUDA graph",
        choices=CAPTURES,
        switch=("always", "never"),
        default_help="if possible",
        changeable=True,
    )
    channels_last: bool | None = _training(
        None,
        "lay weights and images out channels-last",
        switch=(True, False),
        default_help="what is faster: measured on CPUs; on GPUs with bf16 and fp16",
        changeable=True,
    )

    def __post_init__(self) -> None:
        check_options(type(self), **vars(self))
