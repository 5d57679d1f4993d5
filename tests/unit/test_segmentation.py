"""Cross-Attention Segmentation: from maps to masks; pictures of maps."""
import pytest
import torch

from lodestar.guidance.attention.capture import MapRecord
from lodestar.guidance.attention.words import PromptWords
from lodestar.guidance.method import BadInput
from lodestar.guidance.reading.pictures import coloured, enlarged, labelled_picture, overlaid, resized, spectrum, stretched
from lodestar.guidance.reading.segmentation import CrossAttentionSegmentation, Seen, labelled, refined

WINDOW = (0.0, 0.0, 1.0, 1.0)


def words(order=(1, 2)):
    return PromptWords("a b", ("a", "b"), tuple((t,) for t in order), (1, 2), 4)


def halves():
    """A record in which token 1 has the left half, token 2 the right one, with noise; and the self-attention of each half to itself."""
    g = torch.Generator().manual_seed(0)
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    maps = 0.05 * torch.rand(1, 4, 1, 8, 8, generator=g)
    maps[0, 1, 0] += left
    maps[0, 2, 0] += 1 - left
    maps[0, 1, 0, 2, 1] = 0.0       # a hole
    same = (left.flatten()[:, None] == left.flatten()[None]).float() / 32
    return MapRecord({(1, 8, 8, WINDOW): [2 * maps, 2]}, 2), MapRecord({(1, 8, 8, WINDOW): [same.view(1, 64, 1, 8, 8), 1]}, 1), left


def test_masks_of_the_classes():
    record, own, left = halves()
    method = CrossAttentionSegmentation(refine=0)
    maps = method.maps(record, None, words(), 8, 8)
    assert maps.shape == (1, 2, 8, 8) and float(maps.min()) == 0 and float(maps.max()) == 1
    masks, labels = labelled(maps, 0.5)
    wanted = left.bool()
    wanted[2, 1] = False
    assert torch.equal(masks[0, 0], wanted) and torch.equal(masks[0, 1], ~left.bool()) and int(labels[0, 2, 1]) == -1
    filled, _ = labelled(CrossAttentionSegmentation(refine=1).maps(record, own, words(), 8, 8), 0.5)
    assert torch.equal(filled[0, 0], left.bool())      # self-attention closes the hole
    swapped, _ = labelled(method.maps(record, None, words((2, 1)), 8, 8), 0.5)
    assert torch.equal(swapped[0, [1, 0]], masks[0])
    none, labels = labelled(maps, 1.0)
    assert not none.any() and (labels == -1).all()
    with pytest.raises(BadInput, match="layers"):
        method.maps(MapRecord(), None, words(), 8, 8)


def test_refining_is_a_mean_over_what_a_cell_attends_to():
    g = torch.Generator().manual_seed(0)
    maps, own = torch.rand(2, 3, 4, 4, generator=g), torch.rand(2, 16, 4, 4, generator=g).flatten(2).softmax(-1).view(2, 16, 4, 4)
    torch.testing.assert_close(refined(maps, own, 1)[1, 2].flatten(), own[1].flatten(1) @ maps[1, 2].flatten())
    assert torch.equal(refined(maps, own, 0), maps)
    flat = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(refined(flat, own, 5), flat)


def test_pictures():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    assert enlarged(maps, (8, 12)).shape == (2, 8, 12) and enlarged(maps, (2, 2)).shape == (2, 2, 2)
    torch.testing.assert_close(enlarged(maps, (2, 2))[0, 0, 0], maps[0, :2, :2].mean())
    s = stretched(maps)
    assert float(s.min()) == 0 and float(s.max()) == 1 and stretched(torch.ones(1, 3, 3)).abs().max() == 0
    assert spectrum(torch.tensor([0.0, 1.0])).shape == (2, 3) and float(spectrum(torch.tensor(0.0)).sum()) < 0.1 < 2 < float(spectrum(torch.tensor(1.0)).sum())
    signed = coloured(torch.tensor([[[1.0, -1.0, 0.0]]]), (1, 3), signed=True)[0, 0]
    assert signed[0, 0] > signed[0, 2] and signed[1, 2] > signed[1, 0] and torch.equal(signed[2], torch.ones(3))
    spike = torch.tensor([[[1.0] * 9 + [100.0]]])
    assert torch.equal(coloured(spike, (1, 10), full=0.9)[0, 0, 0], coloured(spike, (1, 10), full=0.9)[0, 0, 9]) and coloured(spike, (1, 10))[0, 0, 0].sum() < 0.2
    picture = torch.full((1, 2, 2, 3), 0.5)
    assert torch.equal(overlaid(picture, torch.zeros(1, 2, 2)), picture)


def test_classes_in_colours():
    labels = torch.tensor([[[-1, 0], [1, -1]]])
    picture = torch.full((1, 2, 2, 3), 0.5)
    shown = labelled_picture(labels, picture)
    assert torch.equal(shown[0, 0, 0], picture[0, 0, 0]) and (shown[0, 0, 1] - shown[0, 1, 0]).abs().max() > 0.1
    assert labelled_picture(labels).shape == (1, 2, 2, 3) and torch.equal(resized(picture, (2, 2)), picture) and resized(picture, (5, 3)).shape == (1, 5, 3, 3)


def test_what_is_seen_is_kept_by_observer():
    seen = Seen()
    for value in (1.0, 3.0):
        seen.take("x", {(1, 2, 2, WINDOW): [torch.full((1, 1, 1, 2, 2), value), 1]})
    assert float(seen["x"].picture(2, 2).mean()) == 2.0 and not seen["y"].grids


def test_what_is_read():
    from lodestar.guidance.layers import Geometry, Layer
    unet, flux = Geometry("unet", (Layer("middle", 0),)), Geometry("flux", (Layer("double", 0),))
    maps, own = CrossAttentionSegmentation(layers="middle", side=9).observers(words(), unet)
    assert (maps.length, maps.side, maps.layers, own.layers, own.most) == (4, 9, "middle", "middle", 1024)
    assert CrossAttentionSegmentation().observers(words(), flux)[1].most == 4096 and len(CrossAttentionSegmentation(refine=0).observers(words(), unet)) == 1
