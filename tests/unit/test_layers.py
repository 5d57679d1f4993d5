"""Selectors of layers, on geometries made by hand."""
import pytest

from lodestar.guidance.layers import Geometry, Layer, LayerError, select


def names(geometry, selector):
    return " ".join(str(x) for x in select(geometry, selector))


def stack(stage, count, kinds=("joint",)):
    return tuple(Layer(stage, i, None, kinds, (stage, i)) for i in range(count))


SDXL = Geometry("unet", tuple(
    [Layer("input", i, d, ("self", "cross"), ("input", i, d)) for i, n in ((4, 2), (5, 2), (7, 10), (8, 10)) for d in range(n)]
    + [Layer("middle", 0, d, ("self", "cross"), ("middle", 0, d)) for d in range(10)]
    + [Layer("output", i, d, ("self", "cross"), ("output", i, d)) for i, n in ((0, 10), (1, 10), (2, 10), (3, 2), (4, 2), (5, 2)) for d in range(n)]))
SD15 = Geometry("unet", tuple([Layer("input", i) for i in (1, 2, 4, 5, 7, 8)] + [Layer("middle", 0)] + [Layer("output", i) for i in range(3, 12)]))
FLUX = Geometry("flux", stack("double", 19) + stack("single", 38))
WAN = Geometry("wan", stack("block", 30, ("self", "cross")))


@pytest.mark.parametrize("geometry,selector,expected", [
    (SD15, "middle", "middle.0"),
    (SD15, "mid", "middle.0"),
    (SD15, "input.4-7", "input.4 input.5 input.7"),
    (SD15, "down.1", "input.1"),
    (SD15, "up.9-11, middle", "middle.0 output.9 output.10 output.11"),
    (SD15, "output.* -output.5-11", "output.3 output.4"),
    (SD15, "all -input -output", "middle.0"),
    (SD15, "none", ""),
    (SD15, "OUTPUT.3", "output.3"),
    (SDXL, "output.5", "output.5.0 output.5.1"),
    (SDXL, "middle.0.3-4", "middle.0.3 middle.0.4"),
    (SDXL, "input.4-5.1", "input.4.1 input.5.1"),
    (SDXL, "input.4.*", "input.4.0 input.4.1"),
    (FLUX, "double.0-1,single.37", "double.0 double.1 single.37"),
    (FLUX, "double.25%-50%", "double.5 double.6 double.7 double.8 double.9"),
    (FLUX, "double.0%-100% -double.1-18", "double.0"),
    (FLUX, "middle", " ".join(f"double.{i}" for i in range(6, 13))),
    (WAN, "middle", " ".join(f"block.{i}" for i in range(10, 20))),
    (WAN, "blocks.29", "block.29"),
    (Geometry("wan", stack("block", 2)), "middle", "block.0 block.1"),
    (Geometry("wan", stack("block", 1)), "middle", "block.0"),
])
def test_selectors(geometry, selector, expected):
    assert names(geometry, selector) == expected


def test_shares_cover_a_stage_once():
    """Neighbouring shares meet without a gap or an overlap, whatever the depth."""
    for count in range(3, 40):
        geometry = Geometry("flux", stack("double", count))
        parts = [select(geometry, f"double.{a}%-{b}%") for a, b in ((0, 33.3), (33.3, 66.6), (66.6, 100))]
        assert sum(parts, ()) == geometry.layers


@pytest.mark.parametrize("geometry,selector", [(SD15, "input.3"), (SD15, "double.1"), (SD15, "middle.1"), (FLUX, "double.19"), (FLUX, "output.3"), (FLUX, "double.5-3"),
                                               (FLUX, "double.x"), (FLUX, "double.1.2"), (FLUX, ""), (FLUX, "all -block.3"), (SDXL, "middle.0.10"), (FLUX, "double.1-2-3")])
def test_a_selector_that_names_nothing_lists_the_layers(geometry, selector):
    with pytest.raises(LayerError) as error:
        select(geometry, selector, "Some Node")
    assert "Some Node" in str(error.value) and str(geometry.layers[-1]) in str(error.value)


def test_description():
    text = FLUX.describe()
    assert "57 transformer blocks" in text and "double: double.0" in text and "(joint attention)" in text
    assert "unknown attention" in Geometry("blocks", stack("block", 2, ())).describe()
    assert FLUX.stages() == ["double", "single"]
