"""Text Super-Resolution (TextSR): the guidance, the line's way out of the picture and back, the network's text, the bundled font and its reader."""
import json
import os
import random
from dataclasses import replace

import pytest
import torch

from lodestar.demo import lines as demo
from lodestar.guidance.inverse.text_network import END, PAD, TextNetwork, encode, parse
from lodestar.guidance.inverse.text_super_resolution import TextSuperResolution, boxes_of, low_pass, sample
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarTextSuperResolution")


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Towards:
    """A network whose velocity leads straight to what it is told: the text's first byte, else the picture, else black."""

    size, length = (16, 64), 32

    def __init__(self):
        self.calls = []

    def to(self, device):
        return self

    def __call__(self, x, level, low, ids, at):
        said = ids[:, 0] != END
        self.calls.append((float(level[0]), bool(said[0]), bool(low.any())))
        goal = torch.where(said[:, None, None, None], (ids[:, :1, None, None] / 128.0 - 1).expand_as(x), low)
        return (x - goal) / level[:, None, None, None]


def made(n=1, **values):
    mask = torch.zeros(64, 96)
    mask[20:44, 8:88] = 1
    return TextSuperResolution(**{"mask": mask, "network": Towards(), "steps": 4, **values}), rand(n, 3, 64, 96, seed=3)


def test_scales_weigh_text_and_picture():
    """v(0, 0) + p (v(low, 0) - v(0, 0)) + t (v(low, text) - v(low, 0)): where the goals are constants the result is the same sum of goals, whatever the noise."""
    low, noise = 2 * rand(2, 3, 16, 64) - 1, torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(1))
    goal = ord("z") / 128.0 - 1
    for text, picture in ((0, 1), (1, 1), (2.5, 1), (1, 1.5), (0, 0), (0.5, 2)):
        found = sample(Towards(), low, ["z", "z"], noise, 5, text, picture)
        torch.testing.assert_close(found, picture * low + text * (goal - low), atol=1e-5, rtol=1e-5)
    network = Towards()
    sample(network, low, ["z", "z"], noise, 5, 0.0)
    assert len(network.calls) == 5 and not any(said for _, said, _ in network.calls)      # no text, no pass for it
    stops = []
    with pytest.raises(KeyError):
        sample(Towards(), low, ["z", "z"], noise, 5, check=lambda: stops.append(1) if len(stops) < 2 else {}[0])


def test_a_line_goes_back_where_it_was():
    method, pictures = made(text="z")
    out, used = method.restored(pictures)
    assert used == [["z"]] and torch.equal(out[..., :8], pictures[..., :8]) and torch.equal(out[:, :, :20], pictures[:, :, :20]) and torch.equal(out[:, :, 44:], pictures[:, :, 44:])
    assert not torch.equal(out, pictures)
    flat = replace(method, blend=0.0).restored(pictures)[0][:, :, 20:44, 8:88]
    torch.testing.assert_close(flat, torch.full_like(flat, ord("z") / 256), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[:, :, 20:44, 8:88], low_pass(pictures[:, :, 20:44, 8:88], 6.0).clamp(0, 1), atol=1e-4, rtol=0)      # what was drawn has no detail: the picture's own colours are left
    assert torch.equal(replace(method, mask=torch.zeros(64, 96)).restored(pictures)[0], pictures)


def test_a_picture_does_not_depend_on_its_batch():
    method, pictures = made(3, network=torch.nn.Module(), text="z")

    class Noisy(Towards):
        def __call__(self, x, level, low, ids, at):
            return x
    method = replace(method, network=Noisy())
    whole, first = method.restored(pictures)[0], method.restored(pictures[:1])[0]
    assert torch.equal(whole[:1], first) and not torch.equal(replace(method, seed=1).restored(pictures)[0], whole)


class Reader:
    """Reads z, and what it has read before with an x behind it."""

    def __init__(self):
        self.seen = []

    def read(self, pictures):
        self.seen.append(pictures.clone())
        return ["z" + "x" * (len(self.seen) - 1)]


def test_readings_in_rounds():
    """Before each round what was drawn is read; a text that is given is not read."""
    method, pictures = made(recogniser=Reader(), rounds=3, blend=0.0)
    out, used = method.restored(pictures)
    first, second, _ = method.recogniser.seen
    assert used == [["zxx"]] and torch.equal(first, pictures[:, :, 20:44, 8:88])
    torch.testing.assert_close(second, torch.full_like(second, ord("z") / 256), atol=1e-4, rtol=0)
    for quiet in ({"text": "a"}, {"text_scale": 0.0}):
        reader = Reader()
        _, used = replace(method, recogniser=reader, **quiet).restored(pictures)
        assert not reader.seen and used == [[quiet.get("text", "")]]


def test_lines_and_masks():
    masks = torch.zeros(3, 32, 48)
    masks[0, 2:8, 4:20] = masks[1, 20:28, 30:47] = 1
    assert boxes_of(masks, (64, 96)) == [(4, 16, 8, 40), (40, 56, 60, 94), None]
    method, pictures = made(mask=masks, text="a\n\nb", blend=0.0)
    out, used = method.restored(pictures)
    assert used == [["a", "", ""]]
    torch.testing.assert_close(out[:, :, 4:16, 8:40], torch.full((1, 3, 12, 32), ord("a") / 256), atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match="It has 4 lines, there are 3 masks"):
        replace(method, text="a\nb\nc\nd").restored(pictures)
    with pytest.raises(BadInput, match="A mask for each line"):
        replace(method, mask=None).restored(pictures)


def test_the_text_is_bytes():
    """Each byte of a character stands where the character does; an empty text is one end."""
    ids, at = encode(["aé", ""], 8)
    assert ids.tolist() == [[97, 0xC3, 0xA9, END, PAD, PAD, PAD, PAD], [END] + 7 * [PAD]]
    assert at[0, :4].tolist() == [0.25, 0.75, 0.75, 0.0]
    assert encode(["é" * 40], 8)[0][0, -1] == END
    network = TextNetwork((16, 32), 16, 16, 1, (8, 32)).eval()
    x, level, low = rand(2, 3, 8, 32), torch.tensor([0.3, 0.9]), rand(2, 3, 8, 32, seed=1)
    with torch.no_grad():
        out = network(x, level, low, *encode(["ab", "ba"], 8))
        assert out.shape == x.shape
        torch.testing.assert_close(network(x, level, low, *encode(["ab", "ba"], 16)), out, atol=1e-5, rtol=1e-5)      # what is behind the end is not seen
        assert (network(x, level, low, *encode(["ab", "ab"], 8))[1] - out[1]).abs().max() > 1e-5
        torch.testing.assert_close(network(x[1:], level[1:], low[1:], *encode(["ba"], 8)), out[1:], atol=1e-5, rtol=1e-5)


def test_files():
    network = TextNetwork((16, 32), 16, 16, 2, (8, 32)).eval()
    w = network.state_dict()
    found = parse(w)
    given = rand(1, 3, 8, 32), torch.tensor([0.5]), rand(1, 3, 8, 32, seed=1), *encode(["ab"], 8)
    assert found.size == (8, 32) and torch.equal(found(*given), network(*given).detach()) and not any(p.requires_grad for p in found.parameters())
    for change, message in ((lambda w: {"a": torch.zeros(1)}, "holds no network of lines of text: line"), (lambda w: {**w, "line": torch.tensor([9.0, 32.0])}, "multiples of 4"),
                            (lambda w: {k: v for k, v in w.items() if k != "up.0.attend.to_q.weight"}, "not complete"), (lambda w: {**w, "leave.weight": torch.zeros(3, 16, 3, 3)}, "not complete")):
        with pytest.raises(ValueError, match=message):
            parse(change(w))


def test_the_reader_reads_its_font():
    rng = random.Random(0)
    texts = [demo.drawn(rng) for _ in range(40)]
    reader, pictures = demo.LineReader(), torch.stack([demo.picture(rng, t) for t in texts])
    assert reader.read(pictures) == texts and reader.read(torch.nn.functional.interpolate(pictures, (48, 200), mode="bicubic")) == texts
    assert float(reader(pictures[:1], texts[:1])) > 0.9
    small = demo.degrade(pictures, demo.SMALL, 0.05, torch.Generator().manual_seed(0))
    assert sum(a == b for a, b in zip(reader.read(small), texts)) < 20
    assert torch.equal(demo.ink("ab0"), demo.ink("AB0"))
    assert all(len({tuple(demo.glyph(c).flatten().tolist()) for c in reader.reader.characters}) == n for n in (36,))


def test_a_line_in_a_picture():
    good, bad, mask = demo.placed("abc1", (64, 128), (10, 20), 96, 0.25, 0.05, 3)
    assert good.shape == bad.shape == (3, 64, 128) and mask[10:34, 20:116].all() and mask.sum() == 24 * 96
    assert torch.equal(good[:, mask == 0], bad[:, mask == 0]) and demo.LineReader().read(good[None, :, 10:34, 20:116]) == ["abc1"]
    for wrong, message in ((dict(text="a-b1"), "not '-'"), (dict(text="ab"), "4 to 5"), (dict(at=(60, 20)), "does not fit")):
        with pytest.raises(ValueError, match=message):
            demo.placed(**{"text": "abc1", "size": (64, 128), "at": (10, 20), "width": 96, "share": 0.25, "noise": 0.05, "seed": 3, **wrong})


def test_the_bundled_network():
    """Told the text, more characters are read rightly than in what is left of the lines, and than drawn by the picture alone; capital letters are told like small ones."""
    from lodestar.demo.train_text_lines import edit_share, examples
    from lodestar.demo.weights_file import FOLDER
    network, reader = demo.network(), demo.LineReader()
    texts, _, low = examples(random.Random(77), 24, torch.Generator().manual_seed(77), demo.SMALL, 0.05)
    noise = torch.randn(low.shape, generator=torch.Generator().manual_seed(78))
    read = lambda x: sum(1 - min(1.0, edit_share(a, b)) for a, b in zip(reader.read(((x + 1) / 2).clamp(0, 1)), texts)) / len(texts)
    with torch.no_grad():
        right = {scale: read(sample(network, low, texts, noise, 6, scale)) for scale in (0.0, 2.0)}
        capital = sample(network, low[:4], [t.upper() for t in texts[:4]], noise[:4], 2)
        torch.testing.assert_close(capital, sample(network, low[:4], texts[:4], noise[:4], 2), atol=0.05, rtol=0.05)
    assert right[2.0] > right[0.0] + 0.03 and right[0.0] > read(low) + 0.05
    assert os.path.getsize(os.path.join(FOLDER, f"{demo.NAME}.safetensors")) < 2_000_000
    with open(os.path.join(FOLDER, f"{demo.NAME}.json"), encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["0.25: right text"]["characters"] > figures["0.25: picture alone"]["characters"] > figures["0.25: as it is"]["characters"]
