"""Masked Subject Attention on a small random U-Net of a real ComfyUI, and with the bundled adapter."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarMaskedSubjectAttention")
KINDS = ("embedding", "grounded", "pairs")


@pytest.fixture(scope="module")
def lab(host):
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.image_adapter import Subject, Subjects, parse
    from lodestar.guidance.attention.regions import Region
    from lodestar.guidance.attention.subject_attention import MaskedSubjectAttention
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.tests.adapters import adapter_file, widths_of

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.method = tiny, attach, engine, wrappers(), MaskedSubjectAttention
    with torch.inference_mode():
        lab.unet = tiny.unet()
        lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    widths = widths_of(lab.unet.model.diffusion_model)

    def subjects(kind="embedding", pictures=(1, 2), places=True, tokens=32):
        adapter = parse(adapter_file(kind, widths, tokens=tokens, seed=5), "test")
        regions = [Region(boxes=(b,), tokens=t) if places else None for b, t in (((0, 0, 0.5, 1), (1, 2)), ((0.5, 0.25, 0.5, 0.5), (4,)))]
        seen = lambda s: torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(s))
        return Subjects(adapter, tuple(Subject(seen(s)[:, 0] if kind == "embedding" else seen(s), r, length=6) for s, r in zip(pictures, regions)))

    def run(patcher, positive=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, lab.negative, **{"steps": 2, **k})

    lab.subjects, lab.run = subjects, run
    lab.base = run(lab.unet, batch=3)
    return lab


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_acts_by_entry_and_leaves_nothing(lab, kind):
    import comfy.sample
    off = lab.attach(lab.unet, lab.method(subjects=lab.subjects(kind), scale=0.0))
    assert torch.equal(lab.run(off, batch=3), lab.base)
    model = lab.attach(lab.unet, lab.method(subjects=lab.subjects(kind)))
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base).abs().max() > 1e-3
    for i in range(3):
        close(lab.run(model, seed=i), first[i:i + 1])

    class Stop(Exception):
        pass

    def stop(*state):
        raise Stop
    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, 8, 8), 3, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, 8, 8), callback=stop, disable_pbar=True, seed=0)
    assert torch.equal(lab.run(model, batch=3), first) and torch.equal(lab.run(lab.unet, batch=3), lab.base)


def test_equals_the_adapter_written_into_the_network(lab):
    """One prediction of the positive prompt, with the adapter's attention put by hand into every attention to text, in the files' order of layers."""
    given = lab.subjects(places=False)
    seen = {}

    def note(args):
        seen.update(x=args["input"], d=args["cond_denoised"])
        return args["denoised"]
    for name in ("method", "hand"):
        model = lab.attach(lab.unet, lab.method(subjects=given, scale=0.8)) if name == "method" else lab.unet.clone()
        if name == "hand":
            network, tokens = model.model.diffusion_model, given.tokens()
            modules = [m.attn2 for part in (network.input_blocks, network.output_blocks, network.middle_block) for m in part.modules() if getattr(m, "attn2", None) is not None]
            number = {id(m): i for i, m in enumerate(modules)}
            blocks = [("input", i, b) for i, b in enumerate(network.input_blocks)] + [("output", i, b) for i, b in enumerate(network.output_blocks)] + [("middle", 0, network.middle_block)]
            for stage, i, block in blocks:
                for depth, module in enumerate(m.attn2 for m in block.modules() if getattr(m, "attn2", None) is not None):
                    keys, values = (tokens @ w.T for w in given.adapter.layers[number[id(module)]])

                    def both(q, k, v, extra, keys=keys, values=values):
                        heads = lambda t: t.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2)
                        own = lambda k, v: torch.nn.functional.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
                        return own(k, v) + 0.8 * own(keys.expand(len(q), -1, -1), values.expand(len(q), -1, -1))
                    model.set_model_attn2_replace(both, stage, i, depth)
        model.set_model_sampler_post_cfg_function(note)
        lab.run(model, steps=1, cfg=1.0)
        seen[name] = seen["d"]
    close(seen["method"], seen["hand"], 1e-5)
    assert len(modules) == len(given.adapter.layers) == 8


def test_among_other_methods_areas_and_a_layout_from_the_prompt(lab):
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    area = [[lab.positive[0][0], {**lab.positive[0][1], "area": (8, 4, 0, 4), "strength": 1.0}], lab.positive[0]]
    model = lab.unet
    for method in (lab.method(subjects=lab.subjects("grounded")), PerturbedAttentionGuidance(scale=1.0), NormalizedAttentionGuidance(negative=lab.negative, scale=3.0),
                   lab.method(subjects=lab.subjects(), layout="prompt", layout_steps=1)):
        model = lab.attach(model, method)
    area = area if lab.modern else lab.positive      # older hosts do not tell which part of the picture a row is, and say so
    out = lab.run(model, positive=area, batch=2)
    assert torch.isfinite(out).all()
    close(lab.run(model, positive=area, seed=1), out[1:], 1e-3)
    plain, prompted = (lab.run(lab.attach(lab.unet, lab.method(subjects=lab.subjects(), layout=layout, layout_steps=1)), steps=3) for layout in ("regions", "prompt"))
    assert torch.isfinite(prompted).all() and (prompted - plain).abs().max() > 1e-3
    late = lab.run(lab.attach(lab.unet, lab.method(subjects=lab.subjects(), layout="prompt", layout_steps=3)), steps=3)
    close(late, lab.run(lab.unet, steps=3), 1e-5)      # nothing before the places are known


def test_half_precision(lab):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.attach(lab.tiny.unet(dtype=dtype), lab.method(subjects=lab.subjects("grounded")))
        assert torch.isfinite(lab.run(model)).all()


def test_other_models_are_refused_by_name(lab):
    from lodestar.guidance.method import BadInput
    from lodestar.tests.adapters import adapter_file
    from lodestar.guidance.attention.image_adapter import Subject, Subjects, parse
    small = Subjects(parse(adapter_file(widths=(8, 8)), "test"), (Subject(torch.ones(1, 12)),))
    with pytest.raises(BadInput, match="weights for 2 cross-attentions, this model .* has 8"):
        lab.attach(lab.unet, lab.method(subjects=small))
    if lab.modern:
        with torch.inference_mode():
            flux = lab.tiny.flux()
        with pytest.raises(BadInput, match="U-Nets"):
            lab.attach(flux, lab.method(subjects=lab.subjects()))


def test_the_bundled_adapter_gives_things_their_colours(host):
    """Four pictures of two things whose colours only the references say: the measuring network finds most of them, and hardly any without the adapter."""
    import comfy.sample
    from lodestar import nodes
    from lodestar.demo.loader import load_demo_model
    from lodestar.demo.measure import load
    from lodestar.demo.scenes import Scene, Thing, render
    defined = nodes.definitions()

    def call(name, **given):
        node = defined[f"Lodestar{name}"]
        return node.call({**{i.name: i.default for i in node.inputs if i.widget}, **given})[0]
    with torch.inference_mode():
        model, clip, vae = load_demo_model("unet")
        adapter, vision = call("LoadImageAdapter")[0], call("LoadDemoVision")[0]
        encode = lambda text: [[(found := clip.encode_from_tokens(clip.tokenize(text), return_pooled=True))[0], {"pooled_output": found[1]}]]
        subjects = None
        for colour, shape, x in (("red", "circle", 0.05), ("blue", "square", 0.55)):
            picture = render(Scene("white", (Thing(colour, shape, "large", 32, 32, 12),)))
            region, = call("Region", x=x, y=0.3, width=0.4, height=0.4)
            seen = vision.encode_image(picture.movedim(0, -1)[None])
            subjects, = call("AdapterSubject", adapter=adapter, vision=seen, weight=1.0, region=region, phrase=encode(f"a {shape}"), subjects=subjects)
        guided, = call("MaskedSubjectAttention", model=model, subjects=subjects, scale=1.0)
        counts = []
        for patcher in (guided, model):
            noise = torch.cat([torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(4)])
            found = comfy.sample.sample(patcher, noise, 8, 3.0, "euler", "simple", encode("a circle and a square"), encode(""), torch.zeros_like(noise), disable_pbar=True, seed=0)
            readings = load().decode(vae.decode(found).movedim(-1, 1))
            counts.append(sum((c, s) in {(t.colour, t.shape) for t in r.things} for r in readings for c, s in (("red", "circle"), ("blue", "square"))))
    assert counts[0] >= 5 > 3 >= counts[1], counts
