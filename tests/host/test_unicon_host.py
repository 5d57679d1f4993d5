"""UniCon on small random U-Nets of a real ComfyUI: two streams in a batch, each at a noise level of its own."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarUniCon")


@pytest.fixture(scope="module")
def lab(host):
    """A U-Net, prompts, weights for it, and latents."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.joint_lora import parse
    from lodestar.guidance.attention.unicon import UniCon, joint_latent
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.host.geometry import of_model
    from lodestar.tests.pairs import unicon_file

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.joint_latent, lab.modern = tiny, attach, engine, joint_latent, wrappers()
    with torch.inference_mode():
        lab.unet = tiny.unet()
    lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)
    g = torch.Generator().manual_seed(9)
    lab.condition = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.three = {"samples": torch.randn(3, 4, 8, 8, generator=g)}
    lab.noise = torch.randn(6, 4, 8, 8, generator=g)
    lab.empty = {"samples": torch.zeros(1, 4, 8, 8)}
    lab.made = {}

    def weights(**k):
        key = tuple(sorted(k.items()))
        if key not in lab.made:
            lab.made[key] = parse(unicon_file(lab.unet.model.diffusion_model, of_model(lab.unet), **k), "test", "file", "test")
        return lab.made[key]

    def on(model=None, file=None, **values):
        return attach(model or lab.unet, UniCon(weights=weights(**(file or {})), **values))

    def run(patcher, latent, noise=None, **k):
        with torch.inference_mode():
            n = latent["samples"].shape[0]
            noise = lab.noise[:n] if noise is None else noise
            return tiny.sample(patcher, k.pop("positive", lab.positive), lab.negative, latent=latent["samples"], denoise_mask=latent.get("noise_mask"), noise=noise, **{"steps": 3, **k})

    lab.weights, lab.on, lab.run = weights, on, run
    return lab


@pytest.fixture
def new(lab):
    if not lab.modern:
        pytest.skip("this host gives rows no noise level of their own; test_old_hosts_say_so checks that it says so")


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


def both(lab, pairs=1):
    return {"samples": torch.zeros(2 * pairs, 4, 8, 8)}


def test_old_hosts_say_so(lab):
    if lab.modern:
        lab.run(lab.on(), both(lab))
    else:
        with pytest.raises(ValueError, match="UniCon needs a newer ComfyUI"):
            lab.run(lab.on(), both(lab))


def test_weights_without_effect_leave_the_model_bit_for_bit(lab, new):
    plain = lab.run(lab.unet, both(lab, 3))
    assert torch.equal(lab.run(lab.on(file={"up": False}), both(lab, 3)), plain)
    assert torch.equal(lab.run(lab.on(joint_scale=0.0, lora_scale=0.0), both(lab, 3)), plain)
    assert not torch.equal(lab.run(lab.on(), both(lab, 3)), plain)


def test_streams_that_do_not_see_each_other_are_independent(lab, new):
    plain, apart = lab.run(lab.unet, both(lab, 3)), lab.on(joint_scale=0.0)
    out = lab.run(apart, both(lab, 3))
    assert torch.equal(out[:3], plain[:3])                        # the images are those of the network alone
    assert (out[3:] - plain[3:]).abs().max() > 1e-2               # the conditions' stream has its LoRA
    other = torch.cat((lab.noise[:3], lab.noise[3:].flip(0)))
    assert torch.equal(lab.run(apart, both(lab, 3), other)[:3], out[:3])
    assert (lab.run(lab.on(), both(lab, 3), other)[:3] - lab.run(lab.on(), both(lab, 3))[:3]).abs().max() > 1e-2
    half = lab.on(condition_sees=0.0)                             # the condition looks at nothing, the image at it
    seen = lab.run(half, both(lab, 3))
    assert torch.equal(seen[3:], out[3:]) and (seen[:3] - out[:3]).abs().max() > 1e-2


@pytest.mark.parametrize("file", [{}, {"fused": False, "own": False}], ids=["fused", "alone"])
def test_a_batch_of_three_pairs_is_three_pairs(lab, new, file):
    latent = lab.joint_latent("image from condition", None, lab.three)
    model = lab.on(file=file)
    out = lab.run(model, latent)
    close(out[3:], lab.three["samples"])
    for i in range(3):
        rows = [i, i + 3]
        one = lab.run(model, {k: v[rows] for k, v in latent.items()}, lab.noise[rows])
        close(one, out[rows])
    order = [2, 0, 1, 5, 3, 4]
    close(lab.run(model, {k: v[order] for k, v in latent.items()}, lab.noise[order]), out[order])


def test_the_two_directions_exchange(lab, new):
    """With mirrored weights the streams are alike: what is made in the one mode from a latent is what is made in the other."""
    model = lab.on(file={"mirrored": True, "own": False})
    image = lab.run(model, lab.joint_latent("image from condition", None, lab.condition))
    condition = lab.run(model, lab.joint_latent("condition from image", lab.condition, None), lab.noise[:2].flip(0))
    close(condition.flip(0), image)
    assert (lab.run(lab.on(), lab.joint_latent("image from condition", None, lab.condition)) - image).abs().max() > 1e-2


class Watch:
    """What the network is given: inputs, timesteps and texts of every call."""

    def __init__(self, network):
        self.calls = []
        self.handle = network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        context = kwargs.get("context", args[2] if len(args) > 2 else None)
        self.calls.append((args[0].clone(), args[1].clone(), context.clone()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_each_stream_has_its_own_level(lab, new):
    sampling, network = lab.unet.get_model_object("model_sampling"), lab.unet.model.diffusion_model
    with Watch(network) as seen:
        lab.run(lab.on(), lab.joint_latent("image from condition", None, lab.condition), cfg=1.0)
    clean = lab.unet.model.process_latent_in(lab.condition["samples"])[0]

    def at(level):
        level = torch.tensor([level], dtype=torch.float32).view(1, 1, 1, 1)
        return sampling.calculate_input(level, sampling.noise_scaling(level, lab.noise[1:2], clean[None]))[0]
    for x, t, _ in seen.calls:
        close(x[1], at(float(sampling.sigma_min)))                # the least noise, the least timestep
        assert float(t[1]) == 0
    assert float(seen.calls[0][1][0]) > 900
    with Watch(network) as seen:
        out = lab.run(lab.on(), lab.joint_latent("noise levels", None, lab.condition, 1.0, 0.5), cfg=1.0, steps=6)
    waiting = at(float(sampling.percent_to_sigma(0.5)))
    times = [[float(v) for v in t] for _, t, _ in seen.calls]
    assert sum(own < image for image, own in times) >= 2 and times[0][1] == pytest.approx(499, abs=2)
    for x, t, _ in seen.calls:
        assert float(t[1]) == min(float(t[0]), times[0][1])
        if float(t[1]) < float(t[0]):
            close(x[1], waiting)
    assert (out[1] - lab.condition["samples"][0]).abs().max() > 1e-2


def test_masks_keep_places_of_a_stream(lab, new):
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    given = {**lab.condition, "noise_mask": mask}
    out = lab.run(lab.on(), lab.joint_latent("both", None, given))
    close(out[1, :, :, :4], lab.condition["samples"][0, :, :, :4])
    assert (out[1, :, :, 4:] - lab.condition["samples"][0, :, :, 4:]).abs().max() > 1e-2
    area = lab.positive + [[lab.other[0][0], {**lab.other[0][1], "area": (8, 4, 0, 4), "strength": 1.0}]]
    held = lab.run(lab.on(), lab.joint_latent("image from condition", None, lab.condition), positive=area)      # a part of the picture with a prompt of its own
    close(held[1:], lab.condition["samples"])
    assert torch.isfinite(held).all()


def test_condition_guidance_is_the_difference_to_streams_apart(lab, new):
    latent = lab.joint_latent("both", lab.empty, None)
    joint, apart = (lab.run(lab.on(joint_scale=s), latent, steps=1, cfg=1.0) for s in (1.0, 0.0))
    close(lab.run(lab.on(condition_guidance=1.5), latent, steps=1, cfg=1.0), joint + 1.5 * (joint - apart), 1e-4)
    assert lab.engine.REPORTS[-1].by_kind["branch"] == 1
    with_cfg, cfg = (lab.run(lab.on(condition_guidance=g), latent, steps=1, cfg=3.0) for g in (1.5, 0.0))
    close(with_cfg, cfg + 1.5 * (joint - apart), 1e-4)


def test_conditions_have_their_own_prompt(lab, new):
    apart = dict(joint_scale=0.0)
    one, other = lab.run(lab.on(**apart), both(lab, 2)), lab.run(lab.on(**apart), both(lab, 2), positive=lab.other)
    mixed = lab.run(lab.on(condition_prompt=lab.other, **apart), both(lab, 2))
    close(mixed[:2], one[:2])
    close(mixed[2:], other[2:])
    longer = [[lab.other[0][0].repeat(1, 2, 1), lab.other[0][1]]]      # twice the same text is the same text
    close(lab.run(lab.on(condition_prompt=longer, **apart), both(lab, 2)), mixed, 1e-4)


@pytest.mark.newest
def test_gradients_pass_the_streams_by_both_routes(lab, new):
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    loss = TargetImage(target=lab.three["samples"][:1], reduction="mean")
    latent = lab.joint_latent("image from condition", None, lab.condition)
    steered = [lab.run(lab.attach(lab.on(), UniversalGuidance(loss=loss, route=r, start_percent=0.0, end_percent=1.0)), latent, steps=2) for r in ("network", "checkpoint")]
    close(steered[1], steered[0], 1e-4)
    assert (steered[0] - lab.run(lab.on(), latent, steps=2)).abs().max() > 1e-4


@pytest.mark.newest
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc", "lcm"])
def test_any_sampler_keeps_what_is_given(lab, new, sampler):
    out = lab.run(lab.on(), lab.joint_latent("condition from image", lab.condition, None), sampler=sampler)
    close(out[:1], lab.condition["samples"], 1e-2 if sampler == "uni_pc" else 2e-5)      # which ends above the level 0
    assert torch.isfinite(out).all()


def test_what_cannot_be_is_named(lab, new):
    from lodestar.guidance.attention.joint_lora import parse
    from lodestar.guidance.attention.unicon import UniCon
    from lodestar.guidance.method import BadInput
    from lodestar.tests.pairs import unicon_file
    from lodestar.guidance.host.geometry import of_model
    with pytest.raises(BadInput, match="samples pairs"):
        lab.run(lab.on(), {"samples": torch.zeros(3, 4, 8, 8)})
    with pytest.raises(BadInput, match="One pair of streams"):
        lab.on(lab.on())
    clone = lab.on().clone()
    clone.model_options["denoise_mask_function"] = lambda *a, **k: a[1]
    with pytest.raises(BadInput, match="Differential Diffusion"):
        lab.run(clone, lab.joint_latent("image from condition", None, lab.condition))
    with pytest.raises(BadInput, match="Connect Load UniCon Weights"):
        lab.attach(lab.unet, UniCon())
    with torch.inference_mode():
        wide, flux = lab.tiny.unet(channels=64), lab.tiny.flux()
    with pytest.raises(BadInput, match="made for another model"):
        lab.on(wide)
    with pytest.raises(BadInput, match="Use a U-Net"):
        lab.on(flux)
    short = unicon_file(lab.unet.model.diffusion_model, of_model(lab.unet))
    short = {k: v for k, v in short.items() if not k.startswith("up_blocks.3")}
    with pytest.raises(BadInput, match="3 transformer blocks in the output part"):
        lab.attach(lab.unet, UniCon(weights=parse(short, "test", "file")))
    decoder = {k: v for k, v in unicon_file(lab.unet.model.diffusion_model, of_model(lab.unet)).items() if not k.startswith("down_blocks")}
    assert torch.isfinite(lab.run(lab.attach(lab.unet, UniCon(weights=parse(decoder, "test", "file"))), both(lab))).all()      # trained without the encoder


def test_other_edits_act_beside_it(lab, new):
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    latent = lab.joint_latent("image from condition", None, lab.condition)
    model = lab.attach(lab.on(), PerturbedAttentionGuidance())
    out = lab.run(model, latent)
    close(out[1:], lab.condition["samples"])
    assert (out[0] - lab.run(lab.on(), latent)[0]).abs().max() > 1e-3
    assert not any("forward" in m.__dict__ for m in lab.unet.model.diffusion_model.modules())      # nothing stays behind
