"""Restorers with weights of their own on small random U-Nets of a real ComfyUI: Degradation-Guided LoRA, Pixel-Aware Attention, and Restoration Start."""
import pytest
import torch

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lab(host):
    """A U-Net, prompts, latents, and weights for it."""
    import lodestar.tests.tiny as tiny
    from lodestar.demo.degradation_lora import fresh
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.inverse.degradation_lora import parse

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.modern = tiny, attach, wrappers()
    with torch.inference_mode():
        lab.unet = tiny.unet()
    lab.network = lab.unet.model.diffusion_model
    lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    lab.noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    lab.latent = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(10))
    g = torch.Generator().manual_seed(4)
    lab.file = {k: torch.randn(v.shape, generator=g) * 0.2 if "lora_B" in k else v for k, v in fresh(lab.network, 4).items()}
    lab.lora = parse(lab.file, "test", "file")

    def run(patcher, n=3, rows=None, **k):
        with torch.inference_mode():
            rows = list(range(n)) if rows is None else rows
            return tiny.sample(patcher, k.pop("positive", lab.positive), lab.negative, latent=k.pop("latent", lab.latent)[rows], noise=lab.noise[rows], **{"steps": 3, **k})
    lab.run = run
    return lab


def close(a, b, part=2e-5):
    assert (a - b).abs().max() <= part * b.abs().max()


def guided(lab, model=None, **values):
    from lodestar.guidance.inverse.degradation_lora import DegradationGuidedLora
    return lab.attach(model or lab.unet, DegradationGuidedLora(**{"lora": lab.lora, **values}))


@pytest.mark.method("LodestarDegradationGuidedLora")
def test_the_lora_is_in_the_networks_layers(lab):
    """One score for all: the same pictures as by a network whose matrices hold the LoRA's product."""
    from lodestar.guidance.attention.module_edits import diffusers_names, host_name
    from lodestar.guidance.inverse.degradation_lora import ALPHA
    out, plain = lab.run(guided(lab, blur=0.3, noise=0.8)), lab.run(lab.unet)
    assert (out - plain).abs().max() > 1e-2
    cores, table = lab.lora.cores(torch.tensor([[0.3, 0.8]]))[0], diffusers_names(lab.network)
    with torch.inference_mode():
        merged = lab.tiny.unet()
        for name, (down, up) in lab.lora.layers.items():
            module = merged.model.diffusion_model.get_submodule(host_name(table, name))
            module.weight.add_(ALPHA / 4 * torch.einsum("or,kr,k...->o...", up.flatten(1), cores[lab.lora.block(name)], down).view_as(module.weight))
    close(lab.run(merged), out, 2e-4)
    assert not any("forward" in m.__dict__ for m in lab.network.modules())


@pytest.mark.method("LodestarDegradationGuidedLora")
def test_no_strength_and_no_b_leave_every_bit(lab):
    from lodestar.demo.degradation_lora import fresh
    from lodestar.guidance.inverse.degradation_lora import parse
    plain = lab.run(lab.unet)
    assert torch.equal(lab.run(guided(lab, strength=0.0)), plain)
    assert torch.equal(lab.run(guided(lab, lora=parse(fresh(lab.network, 4), "test", "file"))), plain)


@pytest.mark.method("LodestarDegradationGuidedLora")
def test_each_picture_has_its_own_scores(lab):
    from lodestar.guidance.inverse.degradation import Degradation
    scores = ((0.1, 0.2), (0.9, 0.1), (0.4, 1.0))
    out = lab.run(guided(lab, degradation=Degradation(scores)))
    for i, pair in enumerate(scores):
        close(lab.run(guided(lab, blur=pair[0], noise=pair[1]), rows=[i]), out[i:i + 1], 1e-4)


@pytest.mark.newest
@pytest.mark.method("LodestarDegradationGuidedLora")
def test_gradients_pass_the_lora_by_both_routes(lab):
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    model, loss = guided(lab), TargetImage(target=lab.latent[:1], reduction="mean")
    steered = [lab.run(lab.attach(model, UniversalGuidance(loss=loss, route=r, start_percent=0.0, end_percent=1.0)), n=1, steps=2) for r in ("network", "checkpoint")]
    close(steered[1], steered[0], 1e-4)
    assert (steered[0] - lab.run(model, n=1, steps=2)).abs().max() > 1e-4


@pytest.mark.newest
@pytest.mark.method("LodestarDegradationGuidedLora")
def test_other_methods_and_dtypes(lab):
    from lodestar.guidance.method import BadInput
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    both = lab.run(lab.attach(guided(lab), PerturbedAttentionGuidance()))
    assert torch.isfinite(both).all() and (both - lab.run(guided(lab))).abs().max() > 1e-3
    with torch.inference_mode():
        half, wide, flux = lab.tiny.unet(dtype=torch.bfloat16), lab.tiny.unet(channels=64), lab.tiny.flux()
    assert torch.isfinite(lab.run(guided(lab, half))).all()
    with pytest.raises(BadInput, match="another model"):
        guided(lab, wide)
    with pytest.raises(BadInput, match="Use a U-Net"):
        guided(lab, flux)


class Inputs:
    """What the network is given at first."""

    def __init__(self, network):
        self.seen = []
        self.handle = network.register_forward_pre_hook(lambda m, args, kwargs: self.seen.append((args[0] if args else kwargs["x"]).clone()), with_kwargs=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.method("LodestarRestorationStart")
@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_the_network_is_given_the_picture_itself(lab, kind):
    from lodestar.guidance.host.features import is_flow
    from lodestar.guidance.samplers.restoration_start import share
    if kind == "flux" and not lab.modern:
        pytest.skip("this host has no small Flux; the U-Net is tested")
    with torch.inference_mode():
        model = lab.unet if kind == "unet" else lab.tiny.flux()
    sampling, inward = model.get_model_object("model_sampling"), model.model.process_latent_in
    z = inward(lab.latent)
    for sigma in (None, 0.7):
        with Inputs(model.model.diffusion_model) as found:
            out = _sample(lab, model, sigma, 0.0)
        size = 1.0 if not is_flow(sampling) else (1.0 if sigma is None else ((1 - sigma) ** 2 + sigma ** 2) ** 0.5)
        close(found.seen[0][:3], size * z, 1e-4)      # a variance-preserving network gets z itself
        assert torch.isfinite(out).all()
    with Inputs(model.model.diffusion_model) as found:
        _sample(lab, model, None, 0.5)
    kept = share(float(sampling.percent_to_sigma(0.5)), is_flow(sampling))
    close(found.seen[0][:3], kept ** 0.5 * z + (1 - kept) ** 0.5 * lab.noise, 1e-4)


def _sample(lab, model, sigma, noise, mask=None, latent=None, inner=None):
    import comfy.samplers
    from lodestar.guidance.host.sampler_start import sampler
    from lodestar.guidance.samplers.restoration_start import RestorationStart
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    sigmas = sigmas if sigma is None else torch.tensor([sigma, 0.0])
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(lab.positive, lab.negative)
        guider.set_cfg(1.0)
        return guider.sample(lab.noise, lab.latent if latent is None else latent, sampler(RestorationStart(noise=noise, sampler=inner)), sigmas, denoise_mask=mask, disable_pbar=True, seed=1)


@pytest.mark.method("LodestarRestorationStart")
def test_a_noise_mask_keeps_what_it_keeps(lab):
    import comfy.samplers
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., 4:] = 1.0
    out = _sample(lab, lab.unet, None, 0.3, mask)
    close(out[..., :4], lab.latent[..., :4])
    assert (out[..., 4:] - lab.latent[..., 4:]).abs().max() > 1e-2
    first = _sample(lab, lab.unet, None, 0.9)
    assert torch.equal(_sample(lab, lab.unet, None, 0.9, inner=comfy.samplers.sampler_object("euler")), first)
    assert not torch.equal(_sample(lab, lab.unet, None, 0.9, inner=comfy.samplers.sampler_object("heun")), first)


@pytest.mark.method("LodestarRestorationStart")
def test_an_empty_latent_is_no_start(lab):
    from lodestar.guidance.method import BadInput
    with pytest.raises(BadInput, match="begins at a picture"):
        _sample(lab, lab.unet, None, 0.5, latent=torch.zeros(3, 4, 8, 8))
    with pytest.raises(BadInput, match="Connect a sampler"):
        _sample(lab, lab.unet, None, 0.5, inner=3)


def aware(lab, model=None, encoder=True, **values):
    from lodestar.guidance.inverse.pixel_aware import PixelAwareAttention, parse
    from lodestar.tests.pairs import pixel_file
    weights = parse(pixel_file(lab.network, encoder=encoder), "test", "file")
    return lab.attach(model or lab.unet, PixelAwareAttention(**{"weights": weights, "latent": {"samples": lab.latent} if encoder else None, **values}))


@pytest.mark.method("LodestarPixelAwareAttention")
def test_a_layers_transformer_is_the_hosts_own(lab):
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from lodestar.guidance.inverse.pixel_aware import looked, parse
    from lodestar.tests.pairs import pixel_file
    w = parse(pixel_file(lab.network, encoder=False), "test", "file").layers[1, 0]
    seen = w["transformer_blocks.0.attn2.to_k.weight"].shape[1]
    with torch.inference_mode(False), torch.no_grad():
        own = SpatialTransformer(32, 2, 16, depth=1, context_dim=seen, use_linear=True, use_checkpoint=False, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        own.load_state_dict(w)
        h, f = torch.randn(2, 32, 6, 4, generator=torch.Generator().manual_seed(1)), torch.randn(2, seen, 6, 4, generator=torch.Generator().manual_seed(2))
        close(looked(w, h, f, 2), own(h, f.flatten(2).transpose(1, 2)) - h)


@pytest.mark.method("LodestarPixelAwareAttention")
def test_the_decoder_looks_at_the_picture(lab):
    plain, out = lab.run(lab.unet), lab.run(aware(lab))
    assert (out - plain).abs().max() > 1e-2
    assert torch.equal(lab.run(aware(lab, strength=0.0, control=0.0)), plain)
    apart = [lab.run(aware(lab, **v)) for v in ({"strength": 0.0}, {"control": 0.0}, {"negative_rows": "off"}, {"start_percent": 0.5})]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate([out, plain, *apart]) for b in apart[:max(0, i - 2)])
    for i in range(3):      # a batch is its pictures
        close(lab.run(aware(lab, latent={"samples": lab.latent[i:i + 1]}), rows=[i]), out[i:i + 1], 1e-4)
    assert not any("forward" in m.__dict__ for m in lab.network.modules())


class Residuals:
    """Stands for a ControlNet of the host: residuals of every skip connection."""

    def __init__(self, seed=3):
        g = torch.Generator().manual_seed(seed)
        self.previous_controlnet = self.extra_hooks = None
        self.multigpu_clones = {}
        self.made = [torch.randn(1, c, s, s, generator=g) for c, s in ((32, 8), (32, 8), (32, 4), (64, 4))]

    def get_control(self, x, *args, **kwargs):
        return {"output": [t.expand(x.shape[0], -1, -1, -1).clone() for t in self.made]}

    def get_models(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0

    def pre_run(self, *args):
        pass

    def cleanup(self):
        pass

    def copy(self):
        return self

    def get_extra_hooks(self):
        return []


@pytest.mark.newest
@pytest.mark.method("LodestarPixelAwareAttention")
def test_a_controlnets_features_are_looked_at(lab):
    """The file's own encoder gives what a ControlNet of the same residuals gives."""
    import dataclasses
    from lodestar.guidance.inverse import pixel_aware
    residuals = Residuals()
    controlled = [[lab.positive[0][0], {**lab.positive[0][1], "control": residuals, "control_apply_to_uncond": True}]]
    model = aware(lab, encoder=False)
    out, without = lab.run(model, n=1, positive=controlled), lab.run(lab.unet, n=1, positive=controlled)
    assert (out - without).abs().max() > 1e-2
    given = model.model_options["lodestar"].methods[-1]
    own = dataclasses.replace(given.weights.weights, encoder={"enter.weight": torch.zeros(1)})

    class Fixed(pixel_aware.LooksAtPixels):
        def features(self, site, number, like):
            return residuals.made[len(residuals.made) - 1 - number].expand(site.entry.shape[0], -1, -1, -1)

    class Method(pixel_aware.PixelAwareAttention):
        def fitted(self, facts):
            return self

        def edits(self, step):
            return (Fixed("", own, None, given.weights.places, 1.0, 1.0, self.title, "all"),)
    same = lab.attach(lab.unet, Method(weights=dataclasses.replace(given.weights, weights=own)))
    close(lab.run(same, n=1), out, 1e-4)
    with pytest.raises(ValueError, match="no prompt has a ControlNet"):
        lab.run(model, n=1)


@pytest.mark.newest
@pytest.mark.method("LodestarPixelAwareAttention")
def test_pixel_aware_attention_beside_others(lab):
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    both = lab.run(guided(lab, aware(lab)))
    assert torch.isfinite(both).all() and (both - lab.run(aware(lab))).abs().max() > 1e-3
    one, loss = {"samples": lab.latent[:1]}, TargetImage(target=lab.latent[:1], reduction="mean")
    steered = [lab.run(lab.attach(aware(lab, latent=one), UniversalGuidance(loss=loss, route=r, start_percent=0.0, end_percent=1.0)), n=1, steps=2) for r in ("network", "checkpoint")]
    close(steered[1], steered[0], 1e-4)
    with torch.inference_mode():
        half = lab.tiny.unet(dtype=torch.bfloat16)
    assert torch.isfinite(lab.run(aware(lab, half, latent=one), n=1)).all()
