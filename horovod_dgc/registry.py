"""Methods by name, for command lines and configuration files."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from typing import Any

from horovod_dgc import _checks
from horovod_dgc.methods.adacomp import AdaComp
from horovod_dgc.methods.base import Method
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
