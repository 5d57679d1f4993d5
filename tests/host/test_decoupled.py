"""Decoupled guidance on small random networks of a real ComfyUI, with an adapter that acts on conditional rows as other packs' do."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarDecoupledGuidance")
KINDS = ("unet", "flux")


@pytest.fixture(scope="module")
def lab(host):
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.rules.decoupled import DecoupledGuidance

    class Lab:
        pass

    lab = Lab()
    lab.attach, lab.engine, lab.modern = attach, engine, wrappers()
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative, lab.empty = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)
    lab.method = lambda **k: DecoupledGuidance(**{"text_free": lab.empty, "adapter": "1.5, 2", "text": "3, 2", "rescale": 0.75, **k})

    def run(patcher, positive=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, lab.negative, **k)
    lab.run = run
    return lab


def usable(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_strengths(lab, kind):
    usable(lab, kind)
    model = lab.models[kind]
    close(lab.run(lab.attach(model, lab.method(adapter="1", text="1")), cfg=4.0), lab.run(model, cfg=1.0))
    close(lab.run(lab.attach(model, lab.method(adapter="4", text="4", rescale=0.0)), cfg=1.0), lab.run(model, cfg=4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_acts_and_batch_equals_singles(lab, kind):
    usable(lab, kind)
    model = lab.attach(lab.models[kind], lab.method())
    out = lab.run(model, batch=3)
    counted = lab.engine.REPORTS[-1]
    assert counted.evaluations == 12 and counted.by_kind["branch"] == counted.by_kind["positive"] == counted.by_kind["negative"] == 4
    assert torch.isfinite(out).all() and torch.equal(lab.run(model, batch=3), out)
    assert (out - lab.run(lab.models[kind], batch=3)).abs().max() > 1e-3
    close(lab.run(model, batch=3, cfg=1.0), out)          # the sampler's scale does not matter
    for i in (0, 2):
        close(lab.run(model, seed=i), out[i:i + 1])


def test_the_text_free_prompt_is_conditional_for_adapters(lab):
    """An adapter that changes conditional rows alone reaches the text-free branch, and not the negative's."""
    seen = []

    def adapter(q, k, v, extra):
        seen.append(tuple(extra["cond_or_uncond"]))
        from comfy.ldm.modules.attention import optimized_attention
        out = optimized_attention(q, k, v, extra["n_heads"])
        size = q.shape[0] // len(extra["cond_or_uncond"])
        for i, chunk in enumerate(extra["cond_or_uncond"]):
            if chunk == 0:
                out[i * size:(i + 1) * size] += 0.5
        return out
    model = lab.models["unet"].clone()
    model.set_model_attn2_replace(adapter, "middle", 0)
    lab.run(lab.attach(model, lab.method()), steps=2)
    assert seen and {0, 1} <= set(sum(seen, ())) <= {0, 1}
    if lab.modern:
        assert all(sorted(s) == [0, 0, 1] for s in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_other_methods_and_in_half_precision(lab, kind):
    usable(lab, kind)
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance
    alone, pag = lab.method(), PerturbedAttentionGuidance(scale=1.0)
    one = lab.run(lab.attach(lab.attach(lab.models[kind], alone), pag))
    close(lab.run(lab.attach(lab.attach(lab.models[kind], pag), alone)), one)
    with pytest.raises(lab.engine.RuleConflict, match="Decoupled Guidance"):
        lab.attach(lab.attach(lab.models[kind], alone), AdaptiveProjectedGuidance(norm_threshold=1.0))
    if kind == "unet":
        import lodestar.tests.tiny as tiny
        for dtype in (torch.bfloat16, torch.float16):
            with torch.inference_mode():
                model = lab.attach(tiny.unet(dtype=dtype), alone)
            assert torch.isfinite(lab.run(model)).all()
