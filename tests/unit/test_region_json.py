"""Regions as text: what is understood, what is refused by name; and their picture."""
import json

import pytest
import torch

from lodestar.guidance.attention.region_json import dump, parse, polygon, stroke
from lodestar.guidance.attention.region_picture import COLOURS, draw
from lodestar.guidance.method import BadInput


def test_all_kinds_of_places():
    regions = parse('''[{"box": [0, 0.25, 0.5, 0.5], "words": "red ball, cube[2]", "weight": 1.5},
                        {"boxes": [[0, 0, 0.3, 1], [0.7, 0, 0.3, 1]], "prompt": "a car"},
                        {"polygon": [[0.5, 0], [1, 1], [0, 1]]}, {"scribble": [[0.1, 0.5], [0.9, 0.5]], "thickness": 0.1}]''')
    a, b, c, d = regions
    assert a.boxes == ((0, 0.25, 0.5, 0.5),) and a.phrases == ("red ball", "cube[2]") and a.weight == 1.5
    assert len(b.boxes) == 2 and b.prompt == "a car" and not b.scribble
    assert c.mask.mean().item() == pytest.approx(0.5, abs=0.01) and not c.scribble
    assert d.scribble and d.mask.mean().item() == pytest.approx(0.8 * 0.1 + 3.14 * 0.05 ** 2, abs=0.003)


def test_dump_is_read_back():
    regions = parse('[{"box": [0.1, 0.2, 0.3, 0.4], "words": "w", "prompt": "p", "weight": 2.0}, {"boxes": [[0, 0, 0.5, 1], [0.5, 0, 0.5, 1]]}]')
    again = parse(dump(regions))
    assert [(r.boxes, r.words, r.prompt, r.weight) for r in again] == [(r.boxes, r.words, r.prompt, r.weight) for r in regions]


def test_rasters():
    square = polygon(torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]))[0]
    assert square.mean().item() == pytest.approx(0.25, abs=0.005) and square[256, 256] == 1 and square[10, 10] == 0
    dot = stroke(torch.tensor([[0.5, 0.5]]), 0.2)[0]
    assert dot.mean().item() == pytest.approx(3.1416 * 0.01, rel=0.02)


@pytest.mark.parametrize("text,words", (
    ("[", "line 1, column 2.*No valid JSON"),
    ("{}", "list of at least one"),
    ("[]", "list of at least one"),
    ("[3]", r"regions\[0\].*object"),
    ('[{"box": [0, 0, 1, 1], "colour": 1}]', r"regions\[0\] = 'colour'.*no such key.*box, boxes, polygon"),
    ('[{"words": "a"}]', r"exactly one of: box"),
    ('[{"box": [0, 0, 1, 1], "polygon": [[0,0],[1,0],[1,1]]}]', r"exactly one of: box"),
    ('[{"box": [0, 0, 1, 1]}, {"box": [0.5, 0, 1, 1]}]', r"regions\[1\]\.box.*inside the picture"),
    ('[{"box": [0, 0, true, 1]}]', r"regions\[0\]\.box.*four numbers"),
    ('[{"boxes": []}]', r"regions\[0\]\.boxes.*list of boxes"),
    ('[{"boxes": [[0, 0, 1, 1], [0, 0, 0, 1]]}]', r"regions\[0\]\.boxes\[1\].*greater than 0"),
    ('[{"polygon": [[0, 0], [1, 1]]}]', r"regions\[0\]\.polygon.*at least 3 points"),
    ('[{"polygon": [[0, 0], [1, 1], [0.5, 0.5]]}]', "no area"),
    ('[{"scribble": [[0, 2]]}]', r"regions\[0\]\.scribble.*0 to 1"),
    ('[{"scribble": [[0, 0]], "thickness": 0}]', r"regions\[0\]\.thickness"),
    ('[{"box": [0, 0, 1, 1], "thickness": 1}]', "Only a scribble"),
    ('[{"box": [0, 0, 1, 1], "words": 3}]', r"regions\[0\]\.words = 3.*text"),
    ('[{"box": [0, 0, 1, 1], "weight": "2"}]', r"regions\[0\]\.weight")))
def test_refusals(text, words):
    with pytest.raises(BadInput, match=words):
        parse(text)


def test_picture():
    regions = parse(json.dumps([{"box": [0, 0, 0.5, 0.5], "words": "sch\u00f6n \u4e2d"}, {"boxes": [[0, 0.5, 0.25, 0.5], [0.75, 0.5, 0.25, 0.5]]}]))
    sheets = draw(regions, 64, 96, frames=3)
    assert sheets.shape == (3, 64, 96, 3) and sheets.min() >= 0 and sheets.max() <= 1
    colour = torch.tensor(COLOURS[1]) / 255

    def near(pixel):
        return (pixel - colour).abs().sum() < (pixel - 0.12).abs().sum() or pixel.std() > 0.02
    assert near(sheets[0, 56, 12]) and not near(sheets[0, 56, 84]) and near(sheets[2, 56, 84]) and not near(sheets[2, 56, 12])
    still = draw(parse('[{"box": [0, 0, 1, 1]}]'), 32, 32, torch.ones(32, 32, 3))
    assert still.shape == (1, 32, 32, 3) and still[0, 25, 25, 2] < 0.95
