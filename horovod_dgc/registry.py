"""Methods by name, for command lines and configuration files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, fields, replace
from typing import Any, TypeVar

from horovod_dgc import _checks
from horovod_dgc.methods.adacomp import AdaComp
from horovod_dgc.methods.base import Method, checked, checked_class
from horovod_dgc.methods.casts import BF16, FP16, Int8
from horovod_dgc.methods.countsketch import CountSketch
from horovod_dgc.methods.dgc import DGC
from horovod_dgc.methods.dorefa import DoReFa
from horovod_dgc.methods.dryden import FixedProportion
from horovod_dgc.methods.efsignsgd import EFSignSGD
from horovod_dgc.methods.gradient_dropping import GradientDropping
from horovod_dgc.methods.natural import NaturalCompression
from horovod_dgc.methods.onebit import OneBitSGD
from horovod_dgc.methods.powersgd import PowerSGD
from horovod_dgc.methods.qsgd import QSGD
from horovod_dgc.methods.randomk import RandomK
from horovod_dgc.methods.signsgd import SignSGD
from horovod_dgc.methods.signum import Signum
from horovod_dgc.methods.strom import ThresholdQuantization
from horovod_dgc.methods.terngrad import TernGrad
from horovod_dgc.methods.topk import TopK
from horovod_dgc.methods.vgc import VarianceBased

METHODS: dict[str, type[Method]] = {
    "dgc": DGC,
    "topk": TopK,
    "gradient-dropping": GradientDropping,
    "randomk": RandomK,
    "signsgd": SignSGD,
    "signum": Signum,
    "efsignsgd": EFSignSGD,
    "1bit": OneBitSGD,
    "qsgd": QSGD,
    "terngrad": TernGrad,
    "dorefa": DoReFa,
    "natural": NaturalCompression,
    "strom": ThresholdQuantization,
    "dryden": FixedProportion,
    "adacomp": AdaComp,
    "vgc": VarianceBased,
    "powersgd": PowerSGD,
    "countsketch": CountSketch,
    "fp16": FP16,
    "bf16": BF16,
    "int8": Int8,
}

# What commands call an exchange without a method.
_RESERVED = ("dense", "none")

Kind = TypeVar("Kind", bound=type[Method])


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a class of methods known by ``name``, to :func:`method`, :func:`parse` and every command::

        @register("sparse-signs")
        @dataclass(frozen=True)
        class SparseSigns(Method): ...

    Every process of a job must do so, as it must import the class. A class that is defined anew, as in a notebook,
    takes the place of the one before.

    Args:
        name: lower-case letters and digits, with hyphens between them.

    Raises:
        ValueError: a name that is taken, or not written like that; or a class that is no frozen dataclass derived from
            :class:`Method`, or that has a setting without a default.
    """
    if not isinstance(name, str) or not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) or name in _RESERVED:
        raise ValueError(
            "name of a method must be lower-case letters and digits with hyphens between them, and neither 'dense' nor "
            f"'none', got {name!r}"
        )

    def registered(kind: Kind) -> Kind:
        checked_class(kind)
        before = METHODS.get(name)
        if before and (before.__module__, before.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"name of {kind.__name__} must be a new one, got {name!r}, which is {before.__name__}")
        METHODS[name] = kind
        return kind

    return registered


def name_of(method: Method) -> str | None:
    """The name that the class of ``method`` is registered under; None without one."""
    return next((name for name, kind in METHODS.items() if type(method) is kind), None)


def method(name: str, **settings: Any) -> Method:
    """The method of this name: ``method("dgc", density=0.01)``, or as text, ``method("dgc:density=0.01")``.

    Args:
        name: one of :data:`METHODS`, with or without settings as for :func:`parse`.
        **settings: attributes of the method's class; they win over those in ``name``.

    Raises:
        ValueError: an unknown name, with the known ones and the nearest match; an unknown setting; a setting out of
            range; or text that :func:`parse` refuses.
    """
    stem = name.partition(":")[0] if isinstance(name, str) else name
    kind = METHODS[_checks.one_of("method", stem, METHODS)]
    known = _settings(kind)
    for setting in settings:
        _known(stem, setting, known)
    return kind(**settings) if stem == name else replace(parse(name), **settings)  # type: ignore[type-var]


def parse(text: str) -> Method:
    """The method that a command line describes: ``qsgd`` or ``dgc:density=0.01,values=int8``.

    The name, then settings in any order. Whole numbers, numbers and words are written as they are, true and false as
    such, and "none" for None where a setting may be that.

    Raises:
        ValueError: as for :func:`method`; or a setting without a value, given twice, or of another type.
    """
    if not isinstance(text, str):
        raise ValueError(f"text must describe a method, such as 'dgc:density=0.01', got {text!r}")
    name, colon, rest = text.partition(":")
    known = _settings(METHODS[_checks.one_of("method", name, METHODS)])
    settings: dict[str, object] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, word = part.partition("=")
        if not equals or not word:
            raise ValueError(f"a setting of {name!r} must be written as setting=value, got {part!r}")
        _known(name, setting, known)
        if setting in settings:
            raise ValueError(f"{setting} of {name!r} must be given once, got {text!r}")
        settings[setting] = _value(setting, word, known[setting])
    return method(name, **settings)


def text(method: Method) -> str:
    """What :func:`parse` makes ``method`` from: its name and the settings that are not at their defaults.

    Raises:
        ValueError: a method that is not registered, or a setting that text cannot say, such as a
            :class:`~horovod_dgc.Warmup`.
    """
    name = name_of(checked(method))
    if name is None:
        raise ValueError(f"method must be a registered one to have a name, got {method!r}")
    values = {setting: getattr(method, setting) for setting, field in _settings(type(method)).items() if field.init}
    default = METHODS[name]()
    settings = ",".join(f"{key}={value}" for key, value in values.items() if value != getattr(default, key))
    made = f"{name}:{settings}" if settings else name
    if any(not isinstance(value, (str, int, float, type(None))) for value in values.values()) or parse(made) != method:
        raise ValueError(f"settings of a method must be numbers, words, true, false or none in text, got {method!r}")
    return made


def _settings(kind: type[Method]) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(kind)}  # type: ignore[arg-type]


def _known(name: str, setting: str, known: dict[str, Field[Any]]) -> None:
    if not known:
        raise ValueError(f"{name!r} has no settings, got {setting!r}")
    _checks.one_of(f"setting of {name!r}", setting, known)


_FLAGS = {"true": True, "false": False}


def _value(setting: str, word: str, field: Field[Any]) -> object:
    """``word`` in the type of the setting's default, or, where that is None, in the first type that it is one of."""
    if "None" in str(field.type) and word.lower() == "none":
        return None
    if isinstance(field.default, bool):
        return _FLAGS[_checks.one_of(setting, word.lower(), _FLAGS)]
    if isinstance(field.default, str):
        return word
    readings: tuple[type, ...] = (int,) if isinstance(field.default, int) else (int, float)
    for reading in readings:
        try:
            return reading(word)
        except ValueError:
            continue
    if field.default is None:
        return word
    raise ValueError(f"{setting} must be a {'whole ' if readings == (int,) else ''}number, got {word!r}")
