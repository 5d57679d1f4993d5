"""Methods that run with weights of their own, or beside a reference with its own control, on small random networks of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")
EASY = "LodestarEasyControl"


@pytest.fixture(scope="module")
def lab(host):
    """A Flux, prompts, two conditions with weights of their own."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.host = tiny, attach, engine, wrappers(), host
    with torch.inference_mode():
        lab.unet = tiny.unet()
        lab.flux = tiny.flux() if lab.modern else None
    lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    g = torch.Generator().manual_seed(9)
    lab.latent = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.small = {"samples": torch.randn(1, 4, 4, 6, generator=g)}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **{"steps": 2, **k})

    lab.run = run
    if lab.modern:
        lab.weights = [weights_for(lab.flux, seed) for seed in (1, 2)]
        lab.base = run(lab.flux, batch=3)
    return lab


def weights_for(patcher, seed):
    """Random tensors of a condition LoRA, strong enough to be seen."""
    from lodestar.demo.condition import fresh
    g = torch.Generator().manual_seed(seed)
    return {k: v if "down" in k else torch.randn(v.shape, generator=g) * 0.3 for k, v in fresh(patcher.model.diffusion_model, rank=3, seed=seed).items()}


def easy(lab, which=0, **values):
    from lodestar.guidance.attention.condition_lora import parse
    from lodestar.guidance.attention.easycontrol import EasyControl
    lora = parse(lab.weights[which], EasyControl.title, "lora", "test")
    return EasyControl(**{"condition": lab.latent, "lora": lora, **values})


def usable(lab):
    if not lab.modern:
        pytest.skip("this host has no Flux")


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.method(EASY)
def test_a_condition_branch_is_the_papers_one_sequence(lab):
    """One network call with two conditions (one smaller, one beside the picture) equals one masked sequence of text, picture and conditions, written out."""
    usable(lab)
    from lodestar.demo.condition import forward
    network = lab.flux.model.diffusion_model
    model = lab.attach(lab.attach(lab.flux, easy(lab, condition=lab.small)), easy(lab, 1, mode="subject", offset=5))
    seen = {}

    def after(args):
        seen["x"], seen["denoised"], seen["sigma"] = args["input"], args["cond_denoised"], args["sigma"]
        return args["denoised"]
    model.set_model_sampler_post_cfg_function(after)
    lab.run(model, cfg=1.0, steps=1)
    x, sigma = seen["x"], seen["sigma"]
    tokens, extra = lab.positive[0]
    scale = lambda latent: lab.flux.model.process_latent_in(latent["samples"])
    with torch.inference_mode():
        t = lab.flux.model.model_sampling.timestep(sigma).float()
        out = forward(network, x, t, tokens, extra["pooled_output"], [(lab.weights[0], scale(lab.small), None), (lab.weights[1], scale(lab.latent), 5)])
    close(seen["denoised"], x - out * sigma.view(-1, 1, 1, 1), 1e-4)


@pytest.mark.method(EASY)
def test_a_condition_acts_alone_in_batches_and_again(lab):
    usable(lab)
    for off in ({"strength": 0.0}, {"start_percent": 1.0}):
        assert torch.equal(lab.run(lab.attach(lab.flux, easy(lab, **off)), batch=3), lab.base)
    model = lab.attach(lab.flux, easy(lab))
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base).abs().max() > 1e-3
    report = lab.engine.REPORTS[-1]
    assert report.by_kind["condition"] == 2 and report.network_calls == 2 + 2       # once for each prompt's pooled vector
    assert torch.equal(lab.run(model, batch=3), first)
    close(lab.run(model, seed=1), first[1:2], 1e-4)
    again = lab.run(lab.attach(lab.flux, easy(lab, cache=False)), batch=3)
    assert torch.equal(again, first) and lab.engine.REPORTS[-1].by_kind["condition"] == 4
    alone = lab.run(lab.attach(lab.flux, easy(lab, negative_rows="off")), batch=3)
    assert (alone - first).abs().max() > 1e-3
    assert torch.equal(lab.run(lab.flux, batch=3), lab.base)      # nothing is left in the network
    assert not any("forward" in vars(m) for m in lab.flux.model.diffusion_model.modules())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            half = lab.tiny.flux()
            half.model.diffusion_model.to(dtype)
            half.model.diffusion_model.dtype = dtype
        assert torch.isfinite(lab.run(lab.attach(half, easy(lab)))).all()


@pytest.mark.method(EASY)
@pytest.mark.parametrize("route", ("network", "checkpoint"))
def test_gradients_pass_beside_a_condition(lab, route):
    usable(lab)
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    steered = lab.attach(lab.attach(lab.flux, easy(lab)), UniversalGuidance(loss=TargetImage(target=torch.ones(1, 4, 8, 8)), scale=1.0, route=route))
    out, plain = lab.run(steered, batch=2, steps=4), lab.run(lab.attach(lab.flux, easy(lab)), batch=2, steps=4)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-2


@pytest.mark.method(EASY)
def test_conditions_and_batches_of_conditions(lab):
    """Order does not matter, entries have conditions of their own, and a LoRA of factor 0 is none."""
    usable(lab)
    one, two = easy(lab, condition=lab.small), easy(lab, 1)
    a, b = (lab.run(lab.attach(lab.attach(lab.flux, p), q), batch=2) for p, q in ((one, two), (two, one)))
    close(a, b, 1e-4)
    three = {"samples": torch.cat([lab.latent["samples"] + i for i in range(3)])}
    out = lab.run(lab.attach(lab.flux, easy(lab, condition=three)), batch=3)
    own = {"samples": three["samples"][2:]}
    close(lab.run(lab.attach(lab.flux, easy(lab, condition=own)), seed=2), out[2:], 1e-4)
    with pytest.raises(ValueError, match="3 pictures.*batch has 2"):
        lab.run(lab.attach(lab.flux, easy(lab, condition=three)), batch=2)
    bare = lab.run(lab.attach(lab.flux, easy(lab, lora=None)))
    assert torch.equal(lab.run(lab.attach(lab.flux, easy(lab, lora_strength=0.0))), bare)
    assert (bare - lab.base[:1]).abs().max() > 1e-4


@pytest.mark.method(EASY)
def test_other_methods_beside_a_condition(lab):
    """A second text in shadow rows, a branch, a reference, a split batch: finite, and the condition still acts."""
    usable(lab)
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.attention.reference_attention import ReferenceAttention
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    others = (NormalizedAttentionGuidance(negative=lab.tiny.prompt(5)), PerturbedAttentionGuidance(), ReferenceAttention(reference=lab.latent))
    model = lab.flux
    for other in others:
        model = lab.attach(model, other)
    base = lab.run(model, batch=2)
    both = lab.attach(model, easy(lab))
    out = lab.run(both, batch=2)
    assert torch.isfinite(out).all() and (out - base).abs().max() > 1e-3
    close(lab.run(both, seed=1), out[1:2], 1e-4)


@pytest.mark.method(EASY)
def test_other_networks_and_wrong_weights_are_refused_by_name(lab):
    from lodestar.guidance.attention.easycontrol import EasyControl
    with pytest.raises(ValueError, match="EasyControl: model = 'UNetModel'.*Flux"):
        lab.attach(lab.unet, EasyControl(condition=lab.latent))
    if lab.modern:
        from lodestar.demo.condition import fresh
        from lodestar.guidance.attention.condition_lora import parse
        from types import SimpleNamespace
        other = fresh(SimpleNamespace(hidden_size=48, double_blocks=[0], single_blocks=[0]))
        with pytest.raises(ValueError, match=r"EasyControl: lora = 'small'.*width 48, 1 double and 1 single.*width 32, 2 double and 2 single"):
            lab.attach(lab.flux, EasyControl(condition=lab.latent, lora=parse(other, "x", "lora", "small")))
        with pytest.raises(ValueError, match="EasyControl: condition = .*16 channels"):
            lab.run(lab.attach(lab.flux, EasyControl(condition={"samples": torch.randn(1, 16, 8, 8)})))


@pytest.mark.method(EASY)
@pytest.mark.parametrize("name", ("chroma", "flux2"))
def test_the_other_networks_of_the_flux_type(lab, name):
    """A condition acts, and its keys in the first block are those that the network itself gives the same picture without noise."""
    usable(lab)
    from lodestar.guidance.attention.easycontrol import ConditionKeys, Stream
    from lodestar.guidance.attention.sources import Held
    from lodestar.guidance.method import POSITIVE
    from lodestar.tests import architectures
    if name == "flux2":
        from comfy.ldm.flux import model
        values = {**architectures._FLUX, "global_modulation": True, "mlp_silu_act": True, "vec_in_dim": None}
        if "global_modulation" not in architectures._known(model.FluxParams, values):
            pytest.skip("this host has no Flux 2")
        net = model.Flux(**architectures._known(model.FluxParams, values), **architectures._operations())
        specimen = architectures._finish(net, (4, 7, 6), {"double": 3, "single": 2})
    else:
        specimen = architectures.build(name)
    bench = architectures.Lab(specimen)
    chunk, session = bench.inputs(1), bench.session()
    session.model.get_dtype, session.model.manual_cast_dtype = (lambda: torch.float32), None
    held = Held({"samples": None})
    picture = session.references["condition", held, "cpu"] = torch.randn(1, *specimen.shape, generator=torch.Generator().manual_seed(3))
    edit = ConditionKeys(stream=Stream(held))
    out, _ = bench.run((POSITIVE,), (chunk,), session, (edit,))
    assert torch.isfinite(out).all() and (out - bench.plain((chunk,))).abs().max() > 1e-3
    bank, = session.streams.values()
    assert len(bank) == len(session.geometry.layers)
    seen = []

    def override(func, q, k, v, *args, **kwargs):
        seen.append((k, v))
        return func(q, k, v, *args, **kwargs)
    with torch.inference_mode():
        specimen.forward(picture, torch.zeros(1), None, chunk[1], None, {"optimized_attention_override": override}, **specimen.extra(1, specimen.tokens))
    for own, found in zip(seen[0], bank[session.geometry.layers[0]]):
        close(found, own[:, :, specimen.tokens:])


GLYPH = "LodestarGlyphAdaptiveAttention"


class TinyVAE:
    """Enough of a VAE for the decoder of the clean estimate: latents of 4 channels to pictures of 3."""

    def __init__(self):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 0.3, requires_grad=False)

            def decode(self, latent):
                picture = torch.einsum("oc,bchw->bohw", self.mix.to(latent), latent)
                return torch.nn.functional.interpolate(picture, scale_factor=4)
        self.first_stage_model, self.vae_dtype = Network(), torch.float32


@pytest.mark.method(GLYPH)
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_glyph_adaptive_attention_reads_each_picture_for_itself(lab, kind):
    usable(lab)
    from lodestar.tests import readers
    from lodestar.guidance.attention.glyph_adaptive import GlyphAdaptiveAttention
    from lodestar.guidance.attention.glyph_reader import TextScore
    scores = []

    class Noted(TextScore):
        def __call__(self, pictures, texts):
            scores.append(super().__call__(pictures, texts))
            return scores[-1]
    model = getattr(lab, kind)
    given = dict(recogniser=Noted(readers.fresh(3)), vae=TinyVAE(), text="ab1\nxy\nq", reference=lab.latent, start_percent=0.0, every=2, scale=2.0)
    guided = lab.attach(model, GlyphAdaptiveAttention(**given))
    out, base = lab.run(guided, batch=3, steps=4), lab.run(model, batch=3, steps=4)
    assert torch.isfinite(out).all() and (out - base).abs().max() > 1e-3
    assert len(scores) == 2 and all(s.shape == (3,) for s in scores)
    assert torch.equal(lab.run(guided, batch=3, steps=4), out)      # a second run starts without an alpha
    assert lab.engine.REPORTS[-1].by_kind["reference"] == 4          # two prompts, in the two steps behind the first reading
    close(lab.run(lab.attach(model, GlyphAdaptiveAttention(**{**given, "text": "xy"})), seed=1, steps=4), out[1:2], 1e-3)
    assert torch.equal(lab.run(lab.attach(model, GlyphAdaptiveAttention(**{**given, "scale": 0.0})), batch=3, steps=4), base)
    with pytest.raises(ValueError, match="text = '3 lines'.*2 pictures"):
        lab.run(guided, batch=2, steps=4)


DEPTH = "LodestarDepthGuidedInjection"


def a_control(kind, seen, value):
    """Stands for a ControlNet: adds a constant pattern, and notes how many prompts it is given."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, *rest):
            seen.append(batched_number)
            if kind == "flux":
                return {"input": [value * torch.linspace(-1, 1, 32).expand(x.shape[0], 16, 32)], "output": []}
            return {"middle": [value * torch.linspace(-1, 1, 64)[:, None, None].expand(x.shape[0], 64, 4, 4)], "output": [], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass
    return Control()


@pytest.mark.method(DEPTH)
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_depth_of_the_reference_acts_on_the_reference_alone(lab, kind):
    usable(lab)
    from lodestar.guidance.attention.depth_injection import DepthGuidedInjection
    from lodestar.guidance.attention.mutual import MutualSelfAttention
    model, text = getattr(lab, kind), lab.tiny.prompt(3)
    base = lab.run(model, batch=2)
    given = dict(reference=lab.latent, reference_prompt=text, start_percent=0.0)
    assert torch.equal(lab.run(lab.attach(model, DepthGuidedInjection(**given, alpha=0.0)), batch=2), base)
    plain = lab.run(lab.attach(model, DepthGuidedInjection(**given)), batch=2)
    assert torch.isfinite(plain).all() and (plain - base).abs().max() > 1e-3
    assert torch.equal(plain, lab.run(lab.attach(model, MutualSelfAttention(**given, negative_rows="same")), batch=2))      # without depth they are one method

    front, back = [], []
    controlled = [[text[0][0], {**text[0][1], "control": a_control(kind, front, 1.0), "control_apply_to_uncond": True}]]
    guided = lab.attach(model, DepthGuidedInjection(**{**given, "reference_prompt": controlled}))
    out = lab.run(guided, batch=2)
    assert len(front) == 3 and set(front) == {1} and (out - plain).abs().max() > 1e-3      # the reference's rows alone, in the first step once for nothing
    assert torch.equal(lab.run(guided, batch=2), out)
    close(lab.run(guided, seed=1), out[1:], 1e-4)
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": a_control(kind, back, -1.0), "control_apply_to_uncond": True}]]
    both = lab.run(guided, positive=positive, batch=2)
    assert back and torch.isfinite(both).all() and (both - out).abs().max() > 1e-3
    depth = torch.linspace(0, 1, 8).expand(1, 8, 8).contiguous()
    masked = lab.run(lab.attach(model, DepthGuidedInjection(**given, reference_depth=depth, depth=depth.flip(-1), threshold=0.5)), batch=2)
    assert torch.isfinite(masked).all() and (masked - plain).abs().max() > 1e-3
    other = lab.run(lab.attach(model, DepthGuidedInjection(**given, reference_negative=lab.negative)), batch=2)
    assert (other - plain).abs().max() > 1e-4


@pytest.mark.method(EASY)
def test_weight_files_are_found_and_wrong_ones_named(lab, tmp_path, monkeypatch):
    from lodestar.guidance.host import weight_files
    from lodestar.nodes.weights import NODES
    from safetensors.torch import save_file
    folders = weight_files._folders()
    if hasattr(folders.folder_names_and_paths, "get"):
        monkeypatch.setitem(folders.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
        monkeypatch.setattr(folders, "filename_list_cache", {})      # what is found here is not found by the tests behind it
    else:      # the table of the host from PyPI cannot be put back
        monkeypatch.setattr(folders, "get_filename_list", lambda folder: [p.name for p in tmp_path.iterdir()])
        monkeypatch.setattr(folders, "get_full_path", lambda folder, name: str(tmp_path / name) if (tmp_path / name).is_file() else None)
    save_file({"lora_unet.down": torch.zeros(2)}, str(tmp_path / "ordinary.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"version https://git-lfs")
    load = NODES[0].run
    assert {"ordinary.safetensors", "broken.safetensors"} <= set(NODES[0].inputs[0].options)
    for name, what in (("ordinary.safetensors", "no condition LoRA.*lora_unet"), ("broken.safetensors", "not a complete safetensors file"), ("absent.safetensors", "Put a safetensors file into models/loras")):
        with pytest.raises(ValueError, match=f"Load Condition LoRA: file = '{name}'.*{what}"):
            load(name, 0)


@pytest.mark.method(DEPTH)
@pytest.mark.method(GLYPH)
def test_old_hosts_say_so(lab):
    if lab.modern:
        pytest.skip("this host evaluates references beside the prompts")
    from lodestar.guidance.attention.depth_injection import DepthGuidedInjection
    from lodestar.guidance.attention.glyph_adaptive import GlyphAdaptiveAttention
    from lodestar.guidance.attention.glyph_reader import TextScore
    from lodestar.tests import readers
    glyph = GlyphAdaptiveAttention(recogniser=TextScore(readers.fresh(3)), vae=TinyVAE(), text="q", reference=lab.latent, start_percent=0.0, every=1)
    for method in (DepthGuidedInjection(reference=lab.latent, reference_prompt=lab.tiny.prompt(3), start_percent=0.0), glyph):
        with pytest.raises(ValueError, match="December 2024"):
            lab.run(lab.attach(lab.unet, method), steps=3)
