"""Measuring restorers with weights of their own: blurred and noisy pictures of the scenes, what becomes of them, and how near that is to the true ones."""
from __future__ import annotations

import random

import torch

from ..demo import degraded as of
from ..demo.scenes import SIZE, render
from . import restoration

TASKS = ("degraded", "itself", "from the middle", "one step", "restored", "prior", "words alone", "guided", "guided alone")
GOOD_WORD, BAD_WORD, PRIOR_STEPS, PRIOR_SEED = "at", "of", 40, 70_001      # of a restoration prior that is trained when it is measured; the seed is no other's
METRICS = ("psnr", "features")
WHOLE = ("whole_psnr", "whole_features")      # of the pictures as they are saved, at 128 pixels, against the scenes themselves
FOLD = 8      # pictures of 128 pixels stand behind the latents in cells of 8 pixels, where they are not what the VAE makes of these
VALUES = ("$degradation", "$degradation_lora", "$degraded", "$degraded_image", "$pixel_attention", "$block_semantics", "$true_edges", "$true_depth", "$true_segmentation")
FILES = {"$degradation_lora": ("degradation_lora", "degradation_estimator"), "$pixel_attention": ("pixel_attention",), "$block_semantics": ("block_semantics",)}      # the bundled files behind a value


def pictures(batch):
    """(true pictures [n, 3, 128, 128], degraded ones) of cases, the same for every setup."""
    true = torch.stack([render(c.scene, 2 * SIZE) for c in batch])
    made = []
    for c, u in zip(batch, true):
        seed = 90_001 + c.seed * 1_000_003 + c.prompt
        made.append(of.degrade(u[None], of.drawn(random.Random(seed), 1), torch.Generator().manual_seed(seed)))
    return true, torch.cat(made)


def value(text, subject, batch):
    """What a "$name" in a Use stands for."""
    from ..demo.weights_file import read
    from ..guidance.inverse import degradation, degradation_lora, pixel_aware
    if text == "$degraded":
        return {"samples": of.encode(pictures(batch)[1], subject.code)}
    if text == "$degraded_image":
        return pictures(batch)[1].movedim(1, -1)
    if text.startswith("$true_"):      # maps of the scenes themselves
        from ..demo.block_semantics import maps
        return torch.stack([maps(c.scene, 2 * SIZE)[text.removeprefix("$true_")].expand(3, -1, -1) for c in batch]).movedim(1, -1)
    if text == "$block_semantics":
        from ..guidance.inverse import block_semantics
        return block_semantics.parse(read("block_semantics"), "bench", "file")
    if text == "$pixel_attention":
        return pixel_aware.parse(read("pixel_attention"), "bench", "file")
    if text == "$degradation":
        scores = degradation.parse_estimator(read("degradation_estimator"), "bench", "file")(pictures(batch)[1])
        return degradation.Degradation(tuple(map(tuple, scores.tolist())))
    return degradation_lora.parse(read("degradation_lora"), "bench", "file")


def files(setup):
    """The bundled files that a setup's result depends on."""
    return tuple(f for name, found in FILES.items() if f"'{name}'" in repr(setup) for f in found) + (("guidance_branch", "upsampler") if setup.task.startswith("guided") else ()) \
        + (("damage_control",) if setup.task == "damaged" else ()) + (("degradation_generator",) if setup.task == "synthesis" else ())


def sampled(subject, setup, batch, texts, steps):
    """Latents [n, 16, 16, 16], behind them the pictures (folded) where these are not decoded from them. degraded: as they are, itself: without the VAE; guided: one step, by Guided Decode; guided alone: the
    degraded latents by Guided Decode; from the middle: by the sampler from the middle of the schedule on, as image to image; one step: from there at once; restored: through the whole schedule;
    prior: as from the middle, by a model with a restoration prior, its words in both prompts; words alone: the same words without the training."""
    import comfy.samplers
    z = of.encode(pictures(batch)[1], subject.code)
    if setup.task == "degraded":
        return z
    if setup.task == "itself":
        return with_pictures(subject, pictures(batch)[1])
    if setup.task == "guided alone":
        return with_pictures(subject, guided(subject, z, batch))
    sigmas = subject.sigmas(steps)
    middle = float(subject.model.get_model_object("model_sampling").percent_to_sigma(1 - (of.LEVEL + 0.5) / 1000))
    worded = setup.task in ("prior", "words alone")
    if setup.task != "restored":
        later = sigmas[sigmas < middle * 0.999]
        sigmas = torch.cat((torch.tensor([middle]), later if worded or setup.task == "from the middle" else sigmas[-1:]))
    guider = comfy.samplers.CFGGuider(prior(subject) if setup.task == "prior" else subject.guided(setup, batch))
    guider.set_conds(*([subject.encode([f"{word} {t}" for t in texts]) for word in (GOOD_WORD, BAD_WORD)] if worded else (subject.encode(texts), subject.encode([""]))))
    guider.set_cfg(setup.cfg)
    out = guider.sample(torch.cat([c.noise() for c in batch]), z, subject.sampler(setup, batch), sigmas, disable_pbar=True, seed=batch[0].seed)
    return with_pictures(subject, guided(subject, out, batch)) if setup.task == "guided" else out


def decoded(subject, z):
    """Pictures [n, 3, 128, 128] as the VAE makes them of latents."""
    return subject.vae.decode(z).movedim(-1, 1)[:, :3].float()


def guided(subject, z, batch):
    """Pictures [n, 3, 128, 128] of latents by Guided Decode with the bundled branch."""
    from ..demo.weights_file import read
    from ..guidance.host.guided_decode import decoded as by_node
    from ..guidance.inverse.guidance_branch import GuidedDecode, parse
    return by_node(GuidedDecode(latent={"samples": z}, vae=subject.vae, image=pictures(batch)[1].movedim(1, -1), branch=parse(read("guidance_branch"), "bench", "file"))).movedim(-1, 1)


def with_pictures(subject, found):
    """Latents of pictures, and the pictures themselves behind them."""
    return torch.cat((of.encode(found, subject.code), torch.nn.functional.pixel_unshuffle(found, FOLD)), 1)


def whole(metric, measured):
    """One value per picture, as `values`, of whole pictures: those behind the latents, else what the VAE makes of the latents."""
    found = [measured.cases[i] for i in measured.main]
    with torch.inference_mode():
        made = torch.nn.functional.pixel_shuffle(measured.before[measured.main], FOLD) if measured.before.shape[1] else decoded(measured.subject, measured.latents[measured.main])
        true = pictures(found)[0]
        made = made.float().clamp(0, 1)
        return restoration.psnr(made, true) if metric == "whole_psnr" else restoration.feature_distance(made, true, measured.judge.network)


def prior(subject):
    """The generator with a restoration prior, trained on 48 scenes that are measured nowhere; once for a subject."""
    if getattr(subject, "prior", None) is None:
        from ..guidance.host.prior_training import applied, train
        from ..guidance.training.restoration_prior import RestorationExamples, TrainRestorationPrior
        scenes, good, bad, _ = of.pairs(random.Random(PRIOR_SEED), 48, torch.Generator().manual_seed(PRIOR_SEED))
        with torch.inference_mode(False):
            good, bad = (of.encode(t, subject.code).clone() for t in (good, bad))
            groups = tuple((good[i:i + 1], bad[i:i + 1], *(subject.encode([f"{word} {scene.caption}"]) for word in (GOOD_WORD, BAD_WORD))) for i, scene in enumerate(scenes))
        lora, *_ = train(TrainRestorationPrior(examples=RestorationExamples(groups), steps=PRIOR_STEPS, batch=4).validate(), subject.model)
        subject.prior = applied(subject.model, lora)
    return subject.prior


def values(metric, made, batch, judge, subject):
    """One value per picture: the peak signal-to-noise ratio in dB, or the distance of the measuring network's maps as a share of the true picture's."""
    true = subject.pictures(of.encode(pictures(batch)[0], subject.code)).clamp(0, 1)
    made = made.clamp(0, 1)
    return restoration.psnr(made, true) if metric == "psnr" else restoration.feature_distance(made, true, judge.network)
