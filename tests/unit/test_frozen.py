"""Frozen dataclasses with shared functions are what @dataclass(frozen=True) makes."""
import dataclasses
from dataclasses import FrozenInstanceError, field

import pytest

from lodestar.guidance.frozen import changed, frozen


def pair(decorate):
    """The same classes by either way: a base, and one that adds a field, a factory and a check."""
    @decorate
    class Base:
        a: int
        b: float = 2.0

    @decorate
    class More(Base):
        c: list = field(default_factory=list, compare=False)
        d: str = field(default="x", repr=False)

        def __post_init__(self):
            object.__setattr__(self, "seen", self.a + self.b)

    return Base, More


OURS, LIBRARY = pair(frozen), pair(dataclasses.dataclass(frozen=True))


def test_values_repr_equality_and_hash():
    for ours, library in zip(OURS, LIBRARY):
        mine, theirs = ours(1, b=3.0), library(1, b=3.0)
        assert repr(mine) == repr(theirs) and hash(mine) == hash(theirs) and dataclasses.asdict(mine) == dataclasses.asdict(theirs)
        assert mine == ours(1, 3.0) and mine != ours(2, 3.0) and mine != theirs and len({mine, ours(1, 3.0)}) == 1
    assert OURS[0](1, 2.0) != OURS[1](1, 2.0)
    first = OURS[1](1)
    assert first.seen == 3.0 and first.c is not OURS[1](1).c and first == OURS[1](1, c=[4])
    assert dataclasses.replace(first, a=5).a == 5 and dataclasses.replace(first, a=5).seen == 7.0


@pytest.mark.parametrize("args, given", [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"e": 1})])
def test_wrong_values_are_errors_as_there(args, given):
    for cls in (OURS[0], LIBRARY[0]):
        with pytest.raises(TypeError):
            cls(*args, **given)


def test_changed_is_replace():
    for value in (OURS[0](1), OURS[1](1, c=[4])):
        vars(value)["cached"] = 1      # as functools.cached_property leaves it
        for given in ({}, {"a": 5}, {"a": 5, "b": 0.5}):
            ours, library = changed(value, **given), dataclasses.replace(value, **given)
            assert type(ours) is type(value) and ours == library and vars(ours) == vars(library)
        assert value.a == 1
    with pytest.raises(TypeError, match="knows no 'e'"):
        changed(OURS[0](1), e=1)


def test_nothing_can_be_changed():
    value = OURS[1](1)
    with pytest.raises(FrozenInstanceError):
        value.a = 2
    with pytest.raises(FrozenInstanceError):
        value.new = 2
    with pytest.raises(FrozenInstanceError):
        del value.a
    assert value.a == 1


def test_without_eq_by_identity():
    @frozen(eq=False)
    class Plain(OURS[0]):
        pass

    one, other = Plain(1), Plain(1)
    assert one == one and one != other and len({one, other}) == 2


def test_own_functions_stay():
    @frozen
    class Own:
        a: int = 1

        def __hash__(self):
            return 7

        def __eq__(self, other):
            return True

    assert hash(Own()) == 7 and Own(1) == Own(2)
