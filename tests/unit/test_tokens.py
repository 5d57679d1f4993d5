"""Finding a phrase's tokens: CLIP's chunks, T5's tail, a language model's template, several streams; and errors that name the phrase."""
import pytest
import torch

from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.attention.tokens import Words, aligned, content, ids_of, layout, located
from lodestar.guidance.method import BadInput


class Vocabulary(dict):
    def __missing__(self, word):
        self[word] = 100 + len(self)
        return self[word]


VOCABULARY = Vocabulary()


def pieces(text, leading=False):
    """Words, each cut into pieces of four letters; with `leading` a word after a space is another token than one at the start, as in byte-level vocabularies."""
    found, after_space = [], False
    for part in text.replace(",", " , ").replace("(", "").replace(":1.5)", "").split(" "):
        if not part:
            after_space = True
            continue
        for i in range(0, len(part), 4):
            found.append(VOCABULARY[(" " if leading and (after_space or found) and i == 0 else "") + part[i:i + 4].lower()])
        after_space = True
    return found


class Clip:
    """A tokenizer with the streams that are asked for."""

    def __init__(self, *streams):
        self.streams = streams

    def tokenize(self, text):
        out = {}
        for name in self.streams:
            if name in ("l", "g"):
                ids, pad = pieces(text), 2 if name == "l" else 0
                chunks = [ids[i:i + 8] for i in range(0, max(1, len(ids)), 8)]
                chunks = [[1, *c, 2, *[pad] * (8 - len(c))] for c in chunks]
            elif name == "t5":
                ids = pieces(text) + [3]
                chunks = [ids + [0] * (16 - len(ids))]
            else:
                chunks = [[50, 51, 52, *pieces(text, True), 60, 61]]
            out[name] = [[(i, 1.0) for i in c] for c in chunks]
        return out


PROMPT = "a red ball above, a red cube"


# its tokens: a red ball abov e , a red cube; a CLIP chunk takes the first eight between its begin and end
@pytest.mark.parametrize("streams,length,red,ball", (
    (("l",), 20, (2, 8), (3,)),
    (("l", "g"), 20, (2, 8), (3,)),
    (("t5",), 16, (1, 7), (2,)),
    (("l", "t5"), 16, (1, 7), (2,)),
    (("l", "g", "t5"), 36, (2, 8, 21, 27), (3, 22)),
    (("llm",), 14, (4, 10), (5,)),
    (("llm",), 11, (1, 7), (2,))))
def test_positions_by_encoder(streams, length, red, ball):
    words = Words(Clip(*streams), PROMPT, length)
    assert words.find("red") == red and words.find("ball") == ball
    assert words.find("red[1]") == red[::2] and words.find("red[2]") == red[1::2]


def test_phrases_of_several_words_and_pieces():
    words = Words(Clip("t5"), "a gigantic purple elephant, and a mouse", 16)
    assert words.find("gigantic purple") == (1, 2, 3, 4)
    assert words.find("elephant") == (5, 6)
    assert words.find("Elephant") == (5, 6)
    assert words.spans == [(0, 12)]


def test_weights_do_not_hide_a_phrase():
    assert Words(Clip("l"), "a (red:1.5) ball", 10).find("red ball") == (2, 3)


def test_content_without_begin_end_and_template():
    for clip, ids in ((Clip("l"), pieces("red ball")), (Clip("t5"), pieces("red ball")), (Clip("llm"), pieces("red ball", True))):
        (name, full), = ids_of(clip, "red ball").items()
        first, stop = content(full, ids_of(clip, "")[name])
        assert full[first:stop] == ids


def test_a_phrase_that_is_not_there_is_named():
    words = Words(Clip("l"), "a red ball", 10)
    with pytest.raises(BadInput, match="words of region 2 = 'blue ball'.*does not contain.*a red ball"):
        located(Regions((Region(boxes=((0, 0, 1, 1),), words="red"), Region(boxes=((0, 0, 1, 1),), words="blue ball"))), words)
    with pytest.raises(BadInput, match=r"red\[2\].*1 time\."):
        words.find("red[2]")


def test_an_encoder_that_cannot_be_read_is_an_error():
    with pytest.raises(BadInput, match="77 tokens.*cannot be told"):
        layout({"l": list(range(10))}, {"l": list(range(5))}, 77)


def test_located_keeps_order_and_regions_without_words():
    regions = located(Regions((Region(boxes=((0, 0, 1, 1),), words="ball, red[2]"), Region(boxes=((0, 0, 1, 1),)))), Words(Clip("t5"), PROMPT, 16))
    assert regions.items[0].tokens == (2, 7) and regions.items[1].tokens == () and regions.length == 16 and regions.text == PROMPT


def test_aligned_replaces_the_phrase_alone():
    clip = Clip("l")
    words = Words(clip, "a red ball", 10)

    def encode(text):
        ids = torch.tensor(ids_of(clip, text)["l"], dtype=torch.float32)
        return (ids + 1000 * len(text))[None, :, None]
    full = encode("a red ball")
    out = aligned(full, words, "red ball", encode)
    assert torch.equal(out[0, 2:4, 0], torch.tensor([float(i) for i in pieces("red ball")]) + 8000)
    assert torch.equal(out[0, :2], full[0, :2]) and torch.equal(out[0, 4:], full[0, 4:])
