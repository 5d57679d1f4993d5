"""Frozen dataclasses whose functions are shared, not generated: @dataclass(frozen=True) compiles five functions for each class, which is most of what importing some hundred classes takes."""
from __future__ import annotations

import dataclasses
import functools
import operator
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
    """(names in order, {name: default}, the names without one, {name: what makes the default}) of a class."""
    fields = dataclasses.fields(cls)
    return (tuple(f.name for f in fields), {f.name: f.default for f in fields},
            tuple(f.name for f in fields if f.default is MISSING and f.default_factory is MISSING),
            {f.name: f.default_factory for f in fields if f.default_factory is not MISSING})


@functools.cache
def _compared(cls):
    """A function that gives the values which say whether two are equal; every layer of a network asks for them, so that it is one of C where it can be."""
    names = tuple(f.name for f in dataclasses.fields(cls) if f.compare)
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda self: tuple([getattr(self, name) for name in names])


def _init(self, *args, **given):
    cls = type(self)
    names, defaults, needed, made = _fields(cls)
    place = vars(self)
    place.update(defaults)
    if args:
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}() takes {len(names)} values, {len(args)} were given")
        place.update(zip(names, args))
        twice = given.keys() & names[:len(args)]
        if twice:
            raise TypeError(f"{cls.__name__}() got two values for {min(twice)!r}")
    if not given.keys() <= defaults.keys():
        unknown = ", ".join(repr(k) for k in given if k not in defaults)
        raise TypeError(f"{cls.__name__}() knows no {unknown}")
    place.update(given)
    for name in needed:
        if place[name] is MISSING:
            raise TypeError(f"{cls.__name__}() needs a value for {name!r}")
    for name, make in made.items():
        if place[name] is MISSING:
            place[name] = make()
    after = getattr(self, "__post_init__", None)
    if after is not None:
        after()


def changed(value, /, **given):
    """dataclasses.replace for a value of a @frozen class, in a fraction of its time."""
    names, defaults, _, _ = _fields(value.__class__)
    old = vars(value)
    out = object.__new__(value.__class__)
    place = vars(out)
    place.update(old if len(old) == len(names) else {name: old[name] for name in names})      # without what was cached in it
    if not given.keys() <= defaults.keys():
        unknown = ", ".join(repr(k) for k in given if k not in defaults)
        raise TypeError(f"{value.__class__.__name__}() knows no {unknown}")
    place.update(given)
    after = getattr(out, "__post_init__", None)
    if after is not None:
        after()
    return out


def _repr(self):
    return f"{type(self).__qualname__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in dataclasses.fields(self) if f.repr)})"


def _equal(self, other):
    if other.__class__ is not self.__class__:
        return NotImplemented
    values = _compared(self.__class__)
    return values(self) == values(other)


def _hash(self):
    return hash(_compared(self.__class__)(self))


def _set(self, name, value):
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self, name):
    raise FrozenInstanceError(f"cannot delete field {name!r}")
