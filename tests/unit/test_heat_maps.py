"""Attention Heat Maps: from what was read to pictures of words."""
import pytest
import torch

from lodestar.guidance.attention.capture import MapRecord
from lodestar.guidance.inspection.heat_maps import drawn, heat, phrase_maps, tokens_of
from lodestar.guidance.method import BadInput
from lodestar.nodes import definitions

pytestmark = pytest.mark.method("LodestarCaptureAttention")
WINDOW = (0.0, 0.0, 1.0, 1.0)


class Clip:
    """One token for each word; begin 0, end and padding 99; eight tokens in all."""

    known = {w: i + 1 for i, w in enumerate("a red circle and blue square".split())}

    def tokenize(self, text):
        ids = [0, *(self.known[w] for w in text.split() if w in self.known), 99]
        return {"l": [[(i, 1.0) for i in ids + [99] * (8 - len(ids))]]}


def record(batch=2, frames=1):
    """Token t of picture b has the value t + 10 b in the upper half of the fine grid, 0 below; the coarse grid has 1 everywhere."""
    values = torch.arange(8.0).view(1, 8, 1, 1, 1) + 10 * torch.arange(batch).view(-1, 1, 1, 1, 1)
    fine = values.expand(batch, 8, frames, 4, 4).clone()
    fine[..., 2:, :] = 0
    return MapRecord({(frames, 4, 4, WINDOW): [3 * fine, 3], (frames, 2, 2, WINDOW): [torch.ones(batch, 8, frames, 2, 2), 1]}, 3)


def words(text="red circle and a blue square"):
    from lodestar.guidance.attention.tokens import Words
    return Words(Clip(), text, 8, "Attention Heat Maps")


def test_words_of_a_prompt():
    assert tokens_of(words("red circle and blue square"), ["red circle", "square"]) == [("red circle", (1, 2)), ("square", (5,))]
    assert tokens_of(words("red tree blue red"), []) == [("red", (1, 3)), ("blue", (2,))]      # each once, unknown ones left out
    with pytest.raises(BadInput, match="Attention Heat Maps: words = 'tree'"):
        tokens_of(words(), ["tree"])


def test_a_phrase_is_the_mean_of_its_tokens_and_coarse_grids_can_be_left_out():
    groups = [(2, 3), (5,)]
    fine = phrase_maps(record(), groups, least=5)
    assert fine.shape == (2, 2, 1, 4, 4)
    assert fine[0, :, 0, 0, 0].tolist() == [2.5, 5.0] and fine[1, :, 0, 0, 0].tolist() == [12.5, 15.0] and float(fine[..., 2:, :].abs().max()) == 0
    both = phrase_maps(record(), groups)
    torch.testing.assert_close(both, (3 * fine + 1) / 4)      # every layer counts alike
    assert phrase_maps(MapRecord(), groups) is None


def test_scales():
    maps = phrase_maps(record(), [(2,), (4,)], least=5)
    each, common = heat(maps, (8, 8)), heat(maps, (8, 8), "common")
    assert each.shape == common.shape == (2, 1, 2, 8, 8)
    assert float(each.amin()) == 0 and torch.equal(each.amax((-2, -1)), torch.ones(2, 1, 2))
    torch.testing.assert_close(common[0, 0, 0], common[0, 0, 1] / 2)
    assert common.amax((2, 3, 4)).flatten().tolist() == [1.0, 1.0]
    assert float(heat(torch.zeros(1, 1, 1, 2, 2), (4, 4), "common").abs().max()) == 0


def test_pictures_belong_to_their_maps():
    heats = torch.zeros(2, 1, 3, 4, 4)
    pictures = torch.stack((torch.zeros(4, 4, 3), torch.ones(4, 4, 3)))
    assert [float(p.mean()) for p in drawn(heats, pictures)] == [0, 0, 0, 1, 1, 1]      # no heat: the picture
    assert [float(p.mean()) for p in drawn(torch.zeros(1, 4, 1, 4, 4), pictures)] == [0, 0, 1, 1]      # the frames of a video
    assert drawn(heats).shape == (6, 4, 4, 3) and torch.equal(drawn(torch.ones(2, 1, 3, 4, 4), pictures, 0.0)[3:], torch.ones(3, 4, 4, 3))


def test_memory_is_that_of_one_map_a_grid():
    """What is kept does not grow with layers and steps: tokens x side^2 x 4 bytes per picture and grid."""
    r = MapRecord()
    for _ in range(5):
        r.add({(1, 4, 4, WINDOW): [torch.ones(2, 8, 1, 4, 4), 7]})
    assert sum(t.nbytes for t, _ in r.grids.values()) == 2 * 8 * 4 * 4 * 4 and r.grids[1, 4, 4, WINDOW][1] == 35


def test_the_node():
    node = definitions()["LodestarAttentionHeatMaps"]
    given = dict(latent={"samples": torch.zeros(2, 4, 4, 4)}, clip=Clip(), prompt="red circle and a blue square", words="red circle, blue square", scale="each", strength=0.5)
    (images, masks, names), text = node.call({**given, "maps": record()})
    assert images.shape == (4, 32, 32, 3) and masks.shape == (4, 32, 32) and names == text == "red circle, blue square"
    picture = torch.rand(2, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    (images, masks, _), _ = node.call({**given, "maps": record(), "image": picture})
    assert images.shape == (4, 24, 40, 3) and float((images[2, -1] - picture[1, -1]).abs().max()) < 0.3
    with pytest.raises(BadInput, match="Attention Heat Maps: maps"):
        node.call({**given, "maps": MapRecord()})
    with pytest.raises(BadInput, match="Attention Heat Maps: words = 'tree'"):
        node.call({**given, "maps": record(), "words": "tree"})
    with pytest.raises(BadInput, match="Attention Heat Maps: prompt"):
        node.call({**given, "maps": record(), "prompt": "", "words": ""})
