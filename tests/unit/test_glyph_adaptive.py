"""Glyph-adaptive attention: the recogniser's layout, the score, when alpha is measured and what it does."""
import random

import pytest
import torch

from lodestar.guidance.attention import glyph_reader
from lodestar.guidance.attention.glyph_adaptive import GlyphAdaptiveAttention, cropped
from lodestar.guidance.attention.glyph_reader import TextScore, load
from lodestar.guidance.method import BadInput, Step
from lodestar.tests import readers
from lodestar.tests.toys import percent_to_sigma

pytestmark = pytest.mark.method("LodestarGlyphAdaptiveAttention")


@pytest.fixture(scope="module")
def weights():
    network = readers.fresh(0)
    return {k: v for k, v in network.state_dict().items()} | {"attention.pos_encoder.pe": glyph_reader.positions(readers.LENGTH, readers.WIDTHS[-1])}


def test_the_layout_of_abinet(weights):
    """Any width and depth, under the prefixes of published files; what is missing or does not fit is named."""
    a = load(weights)
    b = load({f"module.vision.{k}": v for k, v in weights.items()} | {"module.language.x": torch.zeros(1)})
    x = torch.rand(2, 3, 32, 128)
    assert a(x).shape == (2, readers.LENGTH, 37) and torch.equal(a(x), b(x))
    with pytest.raises(ValueError, match="cls.weight missing"):
        load({k: v for k, v in weights.items() if k != "cls.weight"})
    with pytest.raises(ValueError, match="do not fit"):
        load(weights | {"attention.project.weight": torch.zeros(3, 3)})


def test_the_published_size():
    """ABINet's own: 5 stages of 3, 4, 6, 6, 3 blocks up to 512 channels, 3 transformer layers, 26 positions."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(WIDTHS=(32, 64, 128, 256, 512), DEPTHS=(3, 4, 6, 6, 3), INNER=64, DOWN=64, LENGTH=26).items():
            patch.setattr(readers, name, value)
        network = readers.fresh(0)
    names = network.state_dict()
    assert names["backbone.resnet.layer5.2.conv2.weight"].shape == (512, 512, 3, 3) and names["cls.weight"].shape == (37, 512)
    assert network(torch.rand(1, 3, 32, 128)).shape == (1, 26, 37)


def test_the_bundled_reader_reads():
    """The demo scenes' shapes from left to right: the right text scores high, in another order lower, and a picture of nothing says nothing."""
    from lodestar.demo.reader import ShapeScore, letters
    from lodestar.demo.scenes import random_scene, render
    score, rng = ShapeScore(), random.Random(7)
    scenes = [random_scene(rng, 2) for _ in range(24)]
    texts, pictures = [letters(s) for s in scenes], torch.stack([render(s) for s in scenes])
    right, wrong = score(pictures, texts), score(pictures, [t[::-1] if t[0] != t[1] else "aax" for t in texts])
    assert right.mean() > 0.95 and wrong.mean() < 0.7 and right.max() <= 1 + 1e-6
    empty = score.probabilities(torch.full((1, 3, 128, 128), 0.5))
    assert empty.shape == (1, 4, 5) and bool((empty[..., 0] == 1).all())
    torch.testing.assert_close(score.probabilities(pictures).sum(-1), torch.ones(24, 4))
    assert score(pictures * 0.1 + 0.45, texts).mean() < right.mean()      # hardly visible: less legible


def test_the_score(weights):
    """The mean over positions of the cosine to the one-hot class, padding included: 1 for certain and right, low for another text."""
    score = TextScore(load(weights))
    label = score.labels("Ab 1")
    assert label.shape == (readers.LENGTH, 37) and label.argmax(1)[:4].tolist() == [1, 2, 27, 0]
    score.reader = type("Certain", (), {"to": lambda s, d: s, "__call__": lambda s, x: torch.stack([50 * label] * len(x)), "length": readers.LENGTH, "characters": glyph_reader.CHARACTERS})()
    pictures = torch.rand(2, 3, 20, 50)
    torch.testing.assert_close(score(pictures, ["ab1", "ab1"]), torch.ones(2))
    torch.testing.assert_close(score(pictures, ["ab1", "xy"]), torch.tensor([1.0, 1 / 4]))
    for text, why in (("ü", "cannot read"), ("abcd", "up to 3")):
        with pytest.raises(ValueError, match=why):
            score.labels(text)


def test_the_marked_part_is_read():
    pictures = torch.rand(2, 3, 16, 32)
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:4, 1:5] = 1
    assert torch.equal(cropped(pictures, mask), pictures[:, :, 4:8, 4:20]) and cropped(pictures, None) is pictures
    assert cropped(pictures, torch.zeros(1, 8, 8)) is pictures


class Reader:
    """Stands for a TextScore: legibility as given."""

    reader = type("R", (), {"characters": "ab"})()

    def __init__(self, *values):
        self.values, self.seen = values, []

    def labels(self, text):
        if set(text) - set("ab"):
            raise ValueError("it cannot read that")

    def __call__(self, pictures, texts):
        self.seen.append((tuple(pictures.shape), tuple(texts)))
        return torch.tensor(self.values[:len(texts)])


def method(reader, **k):
    made = GlyphAdaptiveAttention(**{"recogniser": reader, "text": "ab", "reference": {"samples": torch.zeros(1, 4, 2, 2)}, "start_percent": 0.0, "every": 2, **k})
    object.__setattr__(made, "decoder", lambda d: d[:, :3])
    return made.validate()


def a_step(index, batch=2, call=0):
    return Step(torch.zeros(batch, 4, 2, 2), torch.full((batch,), 5.0), index=index, call=call, percent_to_sigma=percent_to_sigma())


def test_alpha_is_measured_every_few_steps_for_each_picture():
    reader = Reader(0.25, 0.75)
    m, state = method(reader), {}
    for index in range(4):
        edits = m.edits(a_step(index), state)
        if index < 2:
            assert edits == ()
        else:
            assert [e.alpha for e in edits] == [(0.25, 0.75)] * 2 and [e.reach for e in edits] == ["positive", "negative"]
        x = torch.rand(2, 4, 2, 2)
        assert m.finish(a_step(index), x, {}, state) is x
        m.finish(a_step(index, call=1), x, {}, state)
    assert reader.seen == [((2, 3, 2, 2), ("ab", "ab"))] * 2
    doubled, state = method(Reader(0.25, 0.75), scale=2.0), {}
    doubled.finish(a_step(1), torch.rand(2, 4, 2, 2), {}, state)
    assert state["alpha"] == (0.5, 1.0)
    late = method(Reader(0.5, 0.5), start_percent=0.9)
    assert late.active(a_step(0)) and late.edits(a_step(0), {"alpha": (0.5, 0.5)}) == ()


def test_lines_serve_the_pictures_and_wrong_inputs_are_named():
    reader = Reader(0.1, 0.9)
    two, state = method(reader, text="ab\nb"), {}
    two.finish(a_step(1), torch.rand(2, 4, 2, 2), {}, state)
    assert reader.seen[-1][1] == ("ab", "b") and state["alpha"] == (0.1, 0.9)
    with pytest.raises(BadInput, match="2 lines.*3 pictures"):
        two.finish(a_step(1, 3), torch.rand(3, 4, 2, 2), {}, {})
    for given, what in (({"text": " "}, "text"), ({"text": "xyz"}, "cannot read"), ({"reference": None}, "reference")):
        with pytest.raises(BadInput, match=what):
            method(reader, **given)
    assert GlyphAdaptiveAttention(scale=0.0).validate().neutral()
