"""Structured Diffusion Guidance as a pure function: what the embeddings are, and that the cheap form of `values` is the paper's sum."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.structured import StructuredAttention, StructuredDiffusionGuidance, structured
from lodestar.guidance.attention.tokens import Words, ids_of
from lodestar.guidance.method import BadInput, Prompt

from .test_tokens import Clip, pieces

pytestmark = pytest.mark.method("LodestarStructuredDiffusionGuidance")
TEXT = "a red ball and a blue cube"


def encode(text):
    """An embedding that knows its text: the ids, and in a second column the number of the text's words."""
    ids = torch.tensor(ids_of(Clip("l"), text)["l"], dtype=torch.float32)
    return torch.stack((ids, torch.full_like(ids, float(len(pieces(text))))), 1)[None]


def embeddings(mode):
    return structured(Words(Clip("l"), TEXT, 10), encode(TEXT), ["red ball", "blue cube"], encode, mode)


def test_embeddings():
    full = encode(TEXT)
    one, two, every = embeddings("keys")
    for w, changed in ((one, {2, 3}), (two, {6, 7}), (every, {2, 3, 6, 7})):
        for i in range(10):
            assert torch.equal(w[0, i, 0], full[0, i, 0])      # the ids are the same: the rows are the phrase's own
            assert w[0, i, 1] == (2 if i in changed else 7)
    mean, = embeddings("values")
    torch.testing.assert_close(mean, (full + one + two) / 3)


def projected(w, seed):
    g = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 8, generator=g), torch.randn(2, 8, generator=g)
    return tuple((w @ p).view(1, -1, 2, 4).transpose(1, 2) for p in (k * 0.01, v))


def run(mode, texts, full=None):
    q = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(3))
    edit = StructuredAttention("all", tuple(Prompt(object()) for _ in texts), mode)
    k, v = projected(encode(TEXT) if full is None else full, 0)
    site = Site("cross", None, extra={"texts": {edit: tuple(projected(w, 0) for w in texts)}, "plain": F.scaled_dot_product_attention})
    return q, edit.apply(site, q, k, v, lambda a, b, c, bias=None: F.scaled_dot_product_attention(a, b, c))


def test_values_is_the_mean_over_the_phrases_values():
    q, out = run("values", embeddings("values"))
    one, two, _ = embeddings("keys")
    k, _ = projected(encode(TEXT), 0)
    outs = [F.scaled_dot_product_attention(q, k, projected(w, 0)[1]) for w in (encode(TEXT), one, two)]
    torch.testing.assert_close(out, torch.stack(outs).mean(0))


def test_keys_is_the_mean_over_the_phrases_keys():
    texts = embeddings("keys")
    q, out = run("keys", texts)
    values = projected(texts[-1], 0)[1]
    outs = [F.scaled_dot_product_attention(q, projected(w, 0)[0], values) for w in (encode(TEXT), *texts[:-1])]
    torch.testing.assert_close(out, torch.stack(outs).mean(0))


@pytest.mark.parametrize("mode,count", (("values", 1), ("keys", 3)))
def test_equal_embeddings_change_nothing_also_where_the_prompt_is_repeated(mode, count):
    full = encode(TEXT)
    for given in (full, full.repeat(1, 3, 1)):
        q, out = run(mode, [full] * count, given)
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, *projected(given, 0)))


def test_another_prompts_length_is_an_error():
    with pytest.raises(ValueError, match="7 tokens, the structured one 10"):
        run("values", embeddings("values"), torch.zeros(1, 7, 2))


def test_phrases_and_modes():
    make = StructuredDiffusionGuidance
    assert make(text=TEXT).found() == ["red ball", "blue cube"] and make(text=TEXT, phrases="ball\n\n blue   cube ").found() == ["ball", "blue cube"]
    assert make(text=TEXT, mode="automatic").chosen == "keys" and make(text="a red ball", mode="automatic").chosen == "values" and make(text=TEXT).chosen == "values"
    words, full = Words(Clip("l"), TEXT, 10), [[encode(TEXT), {"pooled_output": 1}]]
    assert make(text=TEXT).neutral()
    made = make(text=TEXT, mode="keys").with_texts(words, full, encode, "mark")
    assert len(made.prompts) == 3 and made.prompts[0].cond[0][1] == {"pooled_output": 1} and made.edits(None)[0].mark == "mark" and not made.neutral()
    with pytest.raises(BadInput, match="no noun phrase"):
        make(text="and").with_texts(words, full, encode, "mark")
    with pytest.raises(BadInput, match="green ball.*does not contain"):
        make(text=TEXT, phrases="green ball").with_texts(words, full, encode, "mark")
