"""The bundled models as the host's MODEL, CLIP and VAE."""
import logging

import pytest
import torch

pytestmark = pytest.mark.method("LodestarLoadDemoModel")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.demo import loader
    from lodestar.guidance.host import features

    class Lab:
        modern, module = features.wrappers(), loader
        kinds = ("unet", "dit", "video", "degrading") if modern else ("unet", "video", "degrading")
    lab = Lab()
    features.complete()
    with torch.inference_mode():
        lab.loaded = {kind: loader.load_demo_model(kind) for kind in lab.kinds}
    return lab


def of(lab, kind):
    if kind not in lab.loaded:
        pytest.skip("this host has no Flux; test_an_old_host_says_so checks its message")
    return lab.loaded[kind]


def prompt(clip, text):
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def sample(model, clip, text="a red circle left of a blue square", batch=1, steps=4, size=(16, 16), cfg=3.0, seed=0):
    import comfy.sample
    noise = torch.cat([torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)])
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", prompt(clip, text), prompt(clip, ""), torch.zeros_like(noise), disable_pbar=True, seed=seed)


KINDS = pytest.mark.parametrize("kind", ("unet", "dit"))


@KINDS
def test_samples_are_finite_and_batches_are_singles(lab, kind):
    model, clip, _ = of(lab, kind)
    both = sample(model, clip, batch=2)
    assert both.shape == (2, 16, 16, 16) and torch.isfinite(both).all() and 0.2 < both.std() < 5
    assert (sample(model, clip, seed=1) - both[1:]).abs().max() < 1e-3 * both.abs().max()
    assert torch.isfinite(sample(model, clip, size=(24, 16))).all()


@KINDS
def test_the_prompt_matters_and_empty_latents_fit(lab, kind):
    import comfy.sample
    model, clip, _ = of(lab, kind)
    assert (sample(model, clip, "a large red circle") - sample(model, clip, "a small blue square")).abs().max() > 0.5
    fixed = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 16, 16)) if hasattr(comfy.sample, "fix_empty_latent_channels") else None
    assert fixed is None or fixed.shape == (1, 16, 16, 16)


@pytest.mark.newest
def test_the_batch_of_the_video_model_is_one_video(lab):
    import comfy.sample
    model, clip, _ = of(lab, "video")

    def video(noise):
        with torch.inference_mode():
            return comfy.sample.sample(model, noise, 4, 3.0, "euler", "simple", prompt(clip, "a large red circle"), prompt(clip, ""), torch.zeros_like(noise), disable_pbar=True, seed=0)
    noise = torch.randn(8, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, changed = video(noise), video(torch.cat((noise[:7], torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1)))))
    assert whole.shape == noise.shape and torch.isfinite(whole).all() and 0.2 < whole.std() < 5
    assert (whole[0] - changed[0]).abs().max() > 1e-3, "the first frame does not see the last one"
    assert torch.isfinite(video(noise[:3])).all() and torch.isfinite(video(noise[:1])).all()


def test_without_its_layers_over_the_frames_the_video_model_is_the_u_net(lab):
    import comfy.sample
    video, unet = of(lab, "video"), of(lab, "unet")
    kept = video[0].clone()
    for key in [k for k in kept.model_state_dict() if k.endswith("time_mixer.mix_factor")]:
        kept.add_object_patch(key, torch.nn.Parameter(torch.full((1,), 1e4), requires_grad=False))      # all of it from the spatial path
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        made = [comfy.sample.sample(m, noise, 2, 3.0, "euler", "simple", prompt(c, "a large red circle"), prompt(c, ""), torch.zeros_like(noise), disable_pbar=True, seed=0)
                for m, c in ((kept, video[1]), (unet[0], unet[1]))]
    assert (made[0] - made[1]).abs().max() < 2e-3 * made[1].abs().max()


def test_dit_forward_equals_the_training_forward(lab):
    model, clip, _ = of(lab, "dit")
    import comfy.model_management as management

    from lodestar.demo.train_forward import dit_forward
    x, t = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.3])
    with torch.inference_mode():
        text = prompt(clip, "a red circle above a green cross")
        context, pooled = text[0][0].expand(2, -1, -1), text[0][1]["pooled_output"].expand(2, -1)
        management.load_models_gpu([model])
        network = model.model.diffusion_model
        theirs = network(x, t, context, pooled)
        mine, _ = dit_forward(network, x, t, context, pooled)
    assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()


@KINDS
def test_weight_patches_act_and_come_off(lab, kind):
    model, clip, _ = of(lab, kind)
    before = sample(model, clip)
    name = next(k for k in model.model_state_dict() if k.endswith("weight") and ("middle_block.0.in_layers.2" in k or "double_blocks.1.img_mlp.0" in k))
    patched = model.clone()
    patched.add_patches({name: (0.05 * torch.randn(model.model_state_dict()[name].shape, generator=torch.Generator().manual_seed(0)),)}, 1.0)
    assert (sample(patched, clip) - before).abs().max() > 1e-3
    assert torch.equal(sample(model, clip), before)


@pytest.mark.parametrize("size", ((128, 128), (192, 128), (64, 128)))
def test_vae_round_trip(lab, size):
    from lodestar.demo import scenes
    import random
    _, _, vae = of(lab, "unet")
    picture = torch.cat([scenes.render(scenes.random_scene(random.Random(i)))[None] for i in range(4)])
    picture = torch.nn.functional.interpolate(picture, size=size, mode="bilinear", antialias=True).clamp(0, 1).movedim(1, -1)
    with torch.inference_mode():
        latent = vae.encode(picture)
        again = vae.decode(latent)
    assert latent.shape == (4, 16, size[0] // 8, size[1] // 8) and again.shape == picture.shape
    psnr = -10 * torch.log10((again - picture).square().mean())
    assert psnr > 26 and again.min() >= 0 and again.max() <= 1


def test_vae_decodes_with_gradient(lab):
    model, _, vae = of(lab, "unet")
    from lodestar.guidance.gradients import plain_context
    from lodestar.guidance.host.decode import Decoder
    with plain_context():
        z = torch.zeros(1, 16, 16, 16, requires_grad=True)
        slope, = torch.autograd.grad(Decoder(vae, model.get_model_object("latent_format"))(z).sum(), z)
    assert slope.abs().max() > 0


def test_prompt_weights_empty_prompts_and_long_ones(lab, caplog):
    _, clip, _ = of(lab, "unet")
    with torch.inference_mode():
        plain, same, more = (prompt(clip, t)[0][0] for t in ("red circle", "(red:1.0) circle", "(red:1.5) circle"))
        assert plain.shape == (1, 24, 128) and torch.equal(plain, same) and (more - plain).abs().max() > 1e-3
        assert torch.isfinite(prompt(clip, "")[0][0]).all()
        assert prompt(clip, "a red circle and " * 8)[0][0].shape[1] == 48
        with caplog.at_level(logging.WARNING):
            odd = prompt(clip, "a gorgeous red circle, masterpiece")[0][0]
    warnings = [r.getMessage() for r in caplog.records if "ignored words" in r.getMessage()]
    assert len(warnings) == 1 and "gorgeous" in warnings[0] and "masterpiece" in warnings[0]
    with torch.inference_mode():
        assert torch.equal(odd, prompt(clip, "a red circle")[0][0])


@KINDS
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, kind, dtype):
    of(lab, kind)
    with torch.inference_mode():
        model = lab.module.load_demo_patcher(kind, dtype=dtype)
    out = sample(model, of(lab, kind)[1])
    full = sample(*of(lab, kind)[:2])
    assert torch.isfinite(out).all() and (out - full).square().mean() < 0.05 * full.square().mean()


def test_an_old_host_says_so(lab):
    if lab.modern:
        with pytest.raises(ValueError, match="unknown demo model"):
            lab.module.load_demo_model("sdxl")
        return
    with pytest.raises(RuntimeError, match="choose \"unet\""):
        lab.module.load_demo_model("dit")


def test_a_missing_or_wrong_file_is_named(lab, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="latents"):
        lab.module.load_demo_patcher("unet", folder=str(tmp_path))
    (tmp_path / "latents.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="latents"):
        lab.module.load_demo_patcher("unet", folder=str(tmp_path))
