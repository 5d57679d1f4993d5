"""Frozen dataclasses whose functions are shared, not generated: @dataclass(frozen=True) compiles five functions for each class, which is most of what importing some hundred classes takes."""
from __future__ import annotations

import dataclasses
import functools
from dataclasses import MISSING, FrozenInstanceError


def frozen(cls=None, /, *, eq=True):
    """A frozen dataclass, as @dataclass(frozen=True, eq=eq) makes it; without `eq` instances are compared by identity."""
    if cls is None:
        return lambda c: frozen(c, eq=eq)
    own = set(vars(cls))
    cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    found = {"__init__": _init, "__repr__": _repr, "__setattr__": _set, "__delattr__": _delete,
             "__eq__": _equal if eq else object.__eq__, "__hash__": _hash if eq else object.__hash__}
    if "__eq__" in own and "__hash__" not in vars(cls):
        found.pop("__hash__")
    for name, function in found.items():
        if name not in own or (name == "__hash__" and vars(cls)[name] is None):
            setattr(cls, name, function)
    return cls


@functools.cache
def _fields(cls):
    return dataclasses.fields(cls)


@functools.cache
def _compared(cls):
    """The names of the fields that say whether two are equal; every layer of a network asks for them."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.compare)


def _init(self, *args, **given):
    cls = type(self)
    names = _fields(cls)
    if len(args) > len(names):
        raise TypeError(f"{cls.__name__}() takes {len(names)} values, {len(args)} were given")
    place = vars(self)
    for i, f in enumerate(names):
        if i < len(args):
            if f.name in given:
                raise TypeError(f"{cls.__name__}() got two values for {f.name!r}")
            place[f.name] = args[i]
        elif f.name in given:
            place[f.name] = given.pop(f.name)
        elif f.default is not MISSING:
            place[f.name] = f.default
        elif f.default_factory is not MISSING:
            place[f.name] = f.default_factory()
        else:
            raise TypeError(f"{cls.__name__}() needs a value for {f.name!r}")
    if given:
        unknown = ", ".join(repr(k) for k in given)
        raise TypeError(f"{cls.__name__}() knows no {unknown}")
    after = getattr(self, "__post_init__", None)
    if after is not None:
        after()


def _values(self):
    return tuple([getattr(self, name) for name in _compared(type(self))])


def _repr(self):
    return f"{type(self).__qualname__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in dataclasses.fields(self) if f.repr)})"


def _equal(self, other):
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self):
    return hash(_values(self))


def _set(self, name, value):
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self, name):
    raise FrozenInstanceError(f"cannot delete field {name!r}")
