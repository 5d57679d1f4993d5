"""Multi-Scale Restoration inside a real ComfyUI, with ControlNets and inpainting, and its bundled ControlNet."""
import random

import pytest
import torch

from lodestar.guidance.host.attach import attach      # noqa: E402
from lodestar.guidance.inverse.multi_scale import MultiScaleRestoration, known, share      # noqa: E402
from lodestar.guidance.method import Windows      # noqa: E402
from lodestar.guidance.perturbation.upsample import enlarged, pooled      # noqa: E402

pytestmark = pytest.mark.method("LodestarMultiScaleRestoration")
KINDS = pytest.mark.parametrize("kind", ("unet", "flux"))


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    return SamplerLab()


def mask_of(batch):
    """The right half is made anew; in the second picture the lower part."""
    free = torch.zeros(batch, 1, 8, 8)
    free[0, :, :, 4:] = 1
    free[1:, :, 4:] = 1
    return free


def latent_of(batch, seed=40):
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)])


def control(lab, kind):
    """(Adds what depends on its picture, place by place, as a ControlNet does; the sizes of latent and picture that it was asked for)."""
    import comfy.controlnet
    import comfy.utils
    seen = []

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, *rest):
            seen.append((x.shape[-1], self.cond_hint_original.shape[-1]))
            hint = comfy.utils.common_upscale(self.cond_hint_original, x.shape[-1], x.shape[-2], "area", "center").mean(1, keepdim=True).to(x)
            hint = hint.repeat(x.shape[0] // hint.shape[0], 1, 1, 1)
            if kind == "flux":
                return {"input": [torch.nn.functional.avg_pool2d(hint, 2).flatten(2).mT.expand(-1, -1, 32)], "output": []}
            return {"middle": [torch.nn.functional.avg_pool2d(hint, 2).expand(-1, 64, -1, -1)], "output": [], "input": []}

        def copy(self):
            made = Control()
            self.copy_to(made)
            return made

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass

    made = Control()
    made.set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(9)))
    return made, seen


def led(lab, kind):
    """The lab's prompts, the positive one with a ControlNet; and the sizes it was asked for."""
    made, seen = control(lab, kind)
    return [[lab.positive[0][0], {**lab.positive[0][1], "control": made, "control_apply_to_uncond": False}]], seen


def sampled(lab, kind, model, batch=2, positive=None, first=0, mask=None, latent=None):
    kept = lab.positive
    lab.positive = positive or kept
    try:
        return lab.sample(lab.samplers.sampler_object("euler"), kind, batch, model, first, mask, latent)
    finally:
        lab.positive = kept


@KINDS
def test_every_scale_has_its_control(lab, kind):
    """The picture, the small one and the crops each with the ControlNet's picture for it; entry by entry; nothing happens where the mask keeps the picture."""
    if not lab.modern:
        with pytest.raises(ValueError, match="Multi-Scale Restoration needs a newer ComfyUI"):
            sampled(lab, "unet", attach(lab.models["unet"], MultiScaleRestoration()))
        return
    model = attach(lab.models[kind], MultiScaleRestoration())
    positive, seen = led(lab, kind)
    latent, free = latent_of(2), mask_of(2)
    out = sampled(lab, kind, model, 2, positive, 0, free, latent)
    assert set(seen) == {(8, 64), (4, 64), (4, 32)}
    plain = sampled(lab, kind, lab.models[kind], 2, positive, 0, free, latent)
    assert (out - plain)[free.expand_as(out) == 1].abs().max() > 1e-3 and (out - latent)[free.expand_as(out) == 0].abs().max() < 1e-5
    one = sampled(lab, kind, model, 1, positive, 1, free[1:], latent[1:])
    assert (one - out[1:]).abs().max() < 1e-3 * out.abs().max()
    assert torch.equal(sampled(lab, kind, attach(lab.models[kind], MultiScaleRestoration(coarse=0.0, fine=0.0)), 2, positive, 0, free, latent), plain)


@KINDS
def test_it_equals_the_procedure_by_the_hosts_own_functions(lab, kind):
    """By a post-CFG function: the small picture at its own level, the crops by areas, with CFG; the shares by the picture that is kept."""
    if not lab.modern:
        pytest.skip("refused on this host")
    import comfy.samplers
    latent, free, flow, method = latent_of(1), mask_of(1), kind == "flux", MultiScaleRestoration(agreement=2.0)
    base = lab.models[kind]
    count = [0]

    def post(args):
        x, sigma, model, conds = args["input"], args["sigma"], args["model"], [args["cond"], args["uncond"]]
        given, options = args["denoised"], args["model_options"]
        u, count[0] = count[0] / 2, count[0] + 1
        s = sigma.view(-1, 1, 1, 1)
        guided = lambda c, n: n + 3.0 * (c - n)
        y, k = model.process_latent_in(latent), 1 - free
        P, U = lambda t: pooled(t, 2), lambda t: enlarged(t, 2, x.shape)
        out, whole = given, (P(k) == 1).float()
        if u < 1:
            low = guided(*comfy.samplers.calc_cond_batch(model, conds, P(x) / ((1 - s) + s / 2 if flow else 1.0), sigma / (2 * (1 - sigma) + sigma) if flow else sigma / 2, options))
            out = out + U(share(1 - u, low - P(y), P(given - y), whole, 1, 2.0) * (low - P(given + k * (y - given))))
        if u > 0:
            cut = [[{**e, "area": part, "mask": torch.ones(1, 8, 8)} for e in c for part in Windows(0.5, 3).of(x.shape)] for c in conds]
            crops = guided(*comfy.samplers.calc_cond_batch(model, cut, x, sigma, options))
            high = lambda t: t - U(P(t))
            out = out + share(u, high(crops - y), high(given - y), U(whole), 1, 2.0) * high(crops - given)
        return out

    theirs = base.clone()
    theirs.set_model_sampler_post_cfg_function(post)
    wanted = sampled(lab, kind, theirs, 1, None, 0, free, latent)
    found = sampled(lab, kind, attach(base, method), 1, None, 0, free, latent)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (found - sampled(lab, kind, base, 1, None, 0, free, latent)).abs().max() > 1e-3 * wanted.abs().max()


def test_what_is_kept_is_known(lab):
    """The step's picture and mask are the run's, in the model's own space."""
    if not lab.modern:
        pytest.skip("refused on this host")
    found = []

    class Looking(MultiScaleRestoration):
        def delta(self, step, base, predictions, state):
            found.append(known(step, base))
            return super().delta(step, base, predictions, state)

    latent, free = latent_of(2), mask_of(2)
    sampled(lab, "unet", attach(lab.models["unet"], Looking()), 2, None, 0, free, latent)
    y, k = found[-1]
    torch.testing.assert_close(y, lab.models["unet"].model.process_latent_in(latent))
    assert torch.equal(k, 1 - free)
    sampled(lab, "unet", attach(lab.models["unet"], Looking()), 2)
    assert found[-1] == (None, None)


def test_what_the_controlnet_sees_at_first(lab):
    """Before training its encoder gives what the U-Net's first convolution makes of the latent, gray where the picture is damaged."""
    from lodestar.demo import damage
    from lodestar.demo.weights_file import read
    own, code, control = read("unet"), read("latents"), damage.controlnet()

    class Network:
        @staticmethod
        def state_dict():
            return own
    with torch.inference_mode():
        weights = damage.fresh(Network, control, code)
        whole = damage.whole(Network, weights)
        control.load_state_dict({k: whole[k] for k in control.state_dict()})
        _, pictures, masks, _ = damage.damaged(random.Random(0), 3)
        wanted = torch.nn.functional.conv2d(damage.encode(pictures * (1 - masks) + 0.5 * masks, code), own["input_blocks.0.0.weight"], padding=1)
        found = control.input_hint_block(damage.shown(pictures, masks), None, None)
    assert (found - wanted)[..., 1:-1, 1:-1].abs().max() < 0.02 * wanted.std()


def test_the_bundled_controlnet(lab):
    """The host reads it as any other and runs it as it was trained; with it the clean estimate of held-out damaged pictures is nearer to the true ones."""
    import comfy.samplers

    from lodestar.demo import damage, train_damage
    from lodestar.demo.loader import load_demo_model
    from lodestar.demo.train_loop import encoder_of, frozen_unet
    from lodestar.demo.weights_file import FOLDER, read
    model, clip, _ = load_demo_model("unet")
    code, weights, control_network = read("latents"), read(damage.NAME), damage.controlnet()
    _, pictures, masks, _ = damage.damaged(random.Random(5), 2, close=0.0)
    z, hint, heard = damage.encode(pictures, code), damage.shown(pictures, masks), []
    made = lab.node("LodestarLoadDemoControlNet")[0].copy().set_cond_hint(hint)

    def note(module, args, kwargs):
        given = kwargs.get("control", args[3] if len(args) > 3 else None)      # whose lists the network empties
        heard.append(({k: list(v) for k, v in given.items()}, args[0], args[1], kwargs.get("context", args[2] if len(args) > 2 else None)))
    with torch.inference_mode():
        words = clip.encode_from_tokens(clip.tokenize("a red circle"))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[words, {"control": made, "control_apply_to_uncond": False}]], [[words, {}]])
        guider.set_cfg(1.0)
        handle = model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
        guider.sample(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), z, comfy.samplers.sampler_object("euler"), sigmas, denoise_mask=masks[..., ::8, ::8], disable_pbar=True, seed=0)
        handle.remove()
        given, x, t, context = heard[0]
        again = damage.residuals(model.model.diffusion_model, control_network, weights, x, hint, t, context)
        assert again["middle"][0].abs().max() > 1e-3
        torch.testing.assert_close(given["middle"][0], again["middle"][0], rtol=1e-3, atol=1e-3)

        network, alpha = frozen_unet(FOLDER)
        held = train_damage.batch(random.Random(77_001), 16, code, encoder_of(FOLDER))
        loss = lambda w: float(train_damage.loss_of(network, control_network, w, held, alpha, torch.Generator().manual_seed(1)))
        assert loss(weights) < 0.97 * loss(damage.fresh(network, control_network, code))
