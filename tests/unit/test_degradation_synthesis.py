"""Degradation Synthesis (GenDeg) on tensors: levels and their bins, the conditioning, the scales of text and picture, files, and the scenes' degradations."""
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lodestar.demo import degrading
from lodestar.demo.weights_file import read
from lodestar.guidance.inverse.degradation_synthesis import (AS_TEXT, BINS, HIGHEST, KEYS, KINDS, NEGATIVE, PHRASES, DegradationLevel, DegradationSynthesis, ImageScale, conditioned, level_of, one_hot, parse)
from lodestar.guidance.method import BadInput, Branch, Prompt
from lodestar.nodes import definitions

pytestmark = pytest.mark.method("LodestarDegradationSynthesis")
TOKENS, WIDTH = 7, 5


def file(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g) for k, s in zip(KEYS, ((TOKENS, BINS + 1), (TOKENS,), (WIDTH, WIDTH + 2), (WIDTH,)))}


def random_states(n=1, tokens=TOKENS, seed=1):
    return torch.randn(n, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def made(**values):
    given = dict(clip="clip", vae="vae", generator=parse(file(), "test", "file"), image=torch.zeros(2, 8, 8, 3))
    return DegradationSynthesis(**{**given, **values})


def test_the_level_of_a_known_difference():
    clean = torch.full((2, 3, 4, 4), 0.5)
    degraded = clean.clone()
    degraded[0] += 0.2                      # everywhere alike: no deviation
    degraded[1, :, :2] -= 0.4               # half of it: mean and deviation 0.2
    assert torch.allclose(level_of(clean, degraded), torch.tensor([[0.2, 0.0], [0.2, 0.2]]), atol=1e-6)


def test_bins_are_the_authors():
    """128 equal bins from 0 to 0.7 and 0.4, the last one open above; place 128 where no level is wanted."""
    edge = HIGHEST[0] / BINS
    found = one_hot(torch.tensor([[0.0, 0.0], [edge * 1.5, HIGHEST[1] / 2 + 1e-4], [0.9, 0.39999], [float("nan"), 0.1]]))
    assert found.shape == (4, 2, BINS + 1) and torch.equal(found.sum(-1), torch.ones(4, 2))
    assert found.argmax(-1).tolist() == [[0, 0], [1, 64], [127, 127], [128, 32]]


def test_the_conditioning_is_the_released_one():
    """Written out as in the released code: both numbers behind each token's state, then one linear layer."""
    w, states, wanted = file(), random_states(2), one_hot(torch.tensor([[0.1, 0.2], [0.3, 0.05]]))
    out = conditioned(w, states, wanted)
    for n in range(2):
        for t in range(TOKENS):
            numbers = torch.stack([w[KEYS[0]][t, wanted[n, k].argmax()] + w[KEYS[1]][t] for k in range(2)])
            assert torch.allclose(out[n, t], w[KEYS[2]] @ torch.cat((states[n, t], numbers)) + w[KEYS[3]], atol=1e-5)
    longer = random_states(1, 2 * TOKENS + 3)
    again = conditioned(w, longer, wanted[:1])
    assert torch.allclose(again[:, TOKENS:2 * TOKENS], conditioned(w, longer[:, TOKENS:2 * TOKENS], wanted[:1]), atol=1e-6) and again.shape == longer.shape


def test_an_identity_projection_leaves_the_text():
    w = file()
    w[KEYS[2]], w[KEYS[3]] = torch.cat((torch.eye(WIDTH), torch.zeros(WIDTH, 2)), 1), torch.zeros(WIDTH)
    states = random_states()
    assert torch.equal(conditioned(w, states, one_hot(torch.tensor([[0.3, 0.1]]))), states)


def test_each_picture_has_its_level():
    method = made(level=DegradationLevel(((0.1, 0.05), (0.4, 0.2))))
    text, empty = random_states(), random_states(seed=2)
    both, none = method.contexts(text, empty, 2)
    for i, (mean, deviation) in enumerate(method.level.levels):
        alone, _ = made(mean=mean, deviation=deviation).contexts(text, empty, 1)
        assert torch.allclose(alone[0], both[i], atol=1e-6)
    assert none.shape == (1, TOKENS, WIDTH) and (both[0] - both[1]).abs().max() > 0.1
    free, _ = replace(method, any_level=True).contexts(empty, empty, 2)
    assert torch.allclose(free, none.expand_as(free), atol=1e-6)


def test_prompts_name_the_kind():
    assert made(text="a street", degradation="rain").prompt() == "a street in rainy conditions"
    assert made(text="a street in snowy and hazy conditions", degradation=AS_TEXT).prompt() == "a street in snowy and hazy conditions"
    assert set(PHRASES) == set(degrading.PHRASES) == set(KINDS)


def test_the_scales_are_those_of_text_and_picture():
    """CFG by the negative prompt with the picture, and this term, are u + s_text (c - i) + s_image (i - u)."""
    c, i, u = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(s)) for s in range(3))
    unseen, s_text, s_image = [[torch.zeros(1), {}]], 3.0, 1.7
    term = ImageScale(unseen=unseen, scale=s_image)
    assert term.branches(None) == (NEGATIVE, Branch(Prompt(unseen)))
    guided = i + s_text * (c - i)
    assert torch.allclose(guided + term.delta(None, guided, {NEGATIVE: i, term.branch: u}, {}), u + s_text * (c - i) + s_image * (i - u), atol=1e-5)
    assert ImageScale(unseen=unseen, scale=1.0).neutral() and not term.neutral()


def test_what_cannot_be_is_said():
    bad = lambda **values: pytest.raises(BadInput, match=values.pop("says"))
    with bad(says="Load Degradation Generator"):
        made(generator=None).checked()
    with bad(says="Measure Degradation Level"):
        made(level=(0.1, 0.1)).checked()
    with bad(says="Clean pictures"):
        made(image=torch.zeros(8, 8)).checked()
    with bad(says="mean"):
        made(mean=0.8).checked()
    with bad(says="width 5"):
        made().contexts(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), 1)
    for change, says in (({KEYS[0]: torch.zeros(TOKENS, 128)}, "stats_proj.weight has the shape"), ({KEYS[2]: torch.zeros(WIDTH, WIDTH)}, "cc_projection.weight has the shape")):
        with bad(says=says):
            parse({**file(), **change}, "test", "file")
    with bad(says="stats_proj.bias missing"):
        parse({k: v for k, v in file().items() if k != KEYS[1]}, "test", "file")
    with bad(says="of the size"):
        definitions()["LodestarMeasureDegradationLevel"].run(torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 9, 3))


def test_measuring_a_pair_gives_what_the_synthesis_takes():
    clean = torch.zeros(1, 8, 8, 3)
    shown = definitions()["LodestarMeasureDegradationLevel"].run(clean, torch.cat((clean + 0.25, clean + 0.5)))
    level, mean, deviation, text = shown.outputs
    assert level.levels == ((0.25, 0.0), (0.5, 0.0)) and (mean, deviation) == (0.25, 0.0) and len(text.splitlines()) == 2
    assert torch.allclose(made(level=level).wanted(2), torch.tensor([[0.25, 0.0], [0.5, 0.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_more_of_a_degradation_is_further_away(kind):
    """Means over eight scenes rise with the amount; pictures stay in [0, 1]."""
    from lodestar.demo.scenes import random_scene, render
    pictures = torch.stack([render(random_scene(random.Random(i))) for i in range(8)])
    levels = []
    for amount in (0.1, 0.9):
        bad = torch.stack([degrading.degrade(u, kind, amount, random.Random(i)) for i, u in enumerate(pictures)])
        assert bad.shape == pictures.shape and bad.min() >= -1e-6 and bad.max() <= 1 + 1e-6
        levels.append(level_of(pictures, bad).mean(0))
    assert levels[1][0] > 1.5 * levels[0][0]


def test_the_bundled_file_is_whole():
    w, base = read(degrading.NAME), read("unet")
    generator = parse(w, "test", "file", phrases=degrading.PHRASES)
    full = degrading.whole(w)
    assert generator.width == 128 and full.keys() == base.keys() and full["input_blocks.0.0.weight"].shape == (64, 32, 3, 3)
    untouched = degrading.whole(degrading.fresh(base))
    assert all(torch.equal(untouched[k], base[k]) for k in base if k != degrading.FIRST)
    assert torch.equal(untouched[degrading.FIRST][:, :16], base[degrading.FIRST])
    levels = torch.tensor([[0.05, 0.05], [0.3, 0.05]])
    told = F.linear(one_hot(levels), generator.weights[KEYS[0]])
    assert (told[0, 0] - told[1, 0]).abs().max() > 0.1      # the level is told
