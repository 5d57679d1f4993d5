"""Small networks for the bench: classifiers of noisy latents, trained on a bundled model's own samples; and how rare pictures are under it."""
from __future__ import annotations

import torch

from ..demo.scenes import BACKGROUNDS
from ..demo.weights_file import read
from . import references

SAMPLES, STEPS, TRAINING, SEED = 384, 12, 400, 50_002     # of the model without a prompt; no seed of the training
BUNDLED = {"$noisy_encoder": "noisy_encoder", "$backgrounds": "noisy_backgrounds", "$contrast_value": "value_contrast"}
TRAINED = ("$discriminator", "$contrasts", "$rarities", "$trained", "$trained_experts")
NAMES = ("$noisy_encoder", "$caption_texts", "$known", "$backgrounds", "$grounds", "$contrast_value", *TRAINED)


def value(text, subject, batch):
    """What NAMES stand for: the bundled noise-aware encoder, what the scene encoder gives of the captions, the wanted pictures; the bundled classifier and the labels of the wanted backgrounds; classifiers of made or rendered latents, of levels of contrast, of levels of rarity; the bundled value function of contrast; classifiers of the backgrounds that are trained when they are measured, one network or four of as many steps in all."""
    if text == "$grounds":
        return ", ".join(str(tuple(BACKGROUNDS).index(references.reference_of(c, True).background)) for c in batch)
    if text == "$caption_texts":      # in the scene encoder's space
        from ..demo.vision import SceneVision
        from ..guidance.host.vision import text_embeddings
        return text_embeddings(subject.clip, [c.scene.caption for c in batch], SceneVision(), "bench")
    if text == "$known":      # the wanted pictures, in the model's space
        return subject.model.get_model_object("latent_format").process_in(subject.target(batch))
    kept = vars(subject).setdefault("small_networks", {})
    if text not in kept:
        kept[text] = _bundled(text) if text in BUNDLED else _trained(text, subject)
    return kept[text]


def _bundled(text):
    from ..guidance.training import predictor, value
    if text == "$noisy_encoder":
        from ..guidance.training.noisy_encoder import parse_encoder
        return parse_encoder(read(BUNDLED[text]))
    return (value if text == "$contrast_value" else predictor).parse(read(BUNDLED[text]))


def made(subject):
    """SAMPLES latents that the model makes without a prompt, once."""
    kept = vars(subject).setdefault("small_networks", {})
    if "made" not in kept:
        import comfy.samplers
        parts = []
        for i in range(0, SAMPLES, 32):
            noise = torch.randn(32, 16, 16, 16, generator=torch.Generator().manual_seed(SEED + i))
            with torch.inference_mode():
                guider = comfy.samplers.CFGGuider(subject.model)
                guider.set_conds(subject.encode([""]), subject.encode([""]))
                guider.set_cfg(1.0)
                parts.append(guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), subject.sigmas(STEPS), disable_pbar=True, seed=0).float().cpu().clone())
        kept["made"] = torch.cat(parts)
    return kept["made"]


def _trained(text, subject):
    import random

    from ..demo.scenes import random_scene
    from ..guidance.host.examples import train
    from ..guidance.training.classifier import Examples, TrainNoiseAwareClassifier
    from .stats import contrast
    if text.startswith("$trained"):
        rng, experts = random.Random(SEED + 1), 4 if text == "$trained_experts" else 1
        scenes = [random_scene(rng) for _ in range(SAMPLES)]
        grounds = torch.tensor([float(tuple(BACKGROUNDS).index(s.background)) for s in scenes])
        return train(TrainNoiseAwareClassifier(examples=Examples(((subject.rendered(scenes), grounds),)), experts=experts, steps=TRAINING // (1 + (experts > 1)), batch=24, width=32).validate(), subject.model)[0]
    own = made(subject)
    if text == "$discriminator":
        rng = random.Random(SEED)
        real = subject.rendered([random_scene(rng) for _ in range(SAMPLES)])
        examples, bins = Examples(((own, torch.zeros(len(own))), (real, torch.ones(len(real))))), 0
    else:
        scores = contrast(subject.pictures(own)) if text == "$contrasts" else rarity(subject, own)
        examples, bins = Examples(((own, scores),)), 4
    return train(TrainNoiseAwareClassifier(examples=examples, bins=bins, steps=TRAINING, batch=24, width=32).validate(), subject.model)[0]


def rarity(subject, latents):
    """Minority scores [n] of latents under the model without a prompt: of their pictures, three noises at 0.6 of the schedule."""
    from ..guidance.host.probe import probe
    from ..guidance.loss.minority import minority_scores

    def work(p):
        return minority_scores(p.x0, lambda x, sigma: p.each(x, sigma, ["positive"])[0].float(), p.sigma(0.6), p.flow, 3, 0, view=lambda z: subject.pictures(z).clamp(0, 1)).cpu()
    with torch.inference_mode():
        return probe(subject.model, {"positive": subject.encode([""])}, {"samples": latents}, work).clone()
