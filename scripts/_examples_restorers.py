"""Examples of restorers with weights of their own, on the bundled U-Net: a picture is made, blurred and noised, and restored."""

from __future__ import annotations

from ._examples import SEED, Scene

PROMPT = "a large red circle left of a small green square"


class Degraded:
    """A picture that was made, what is left of it, and what becomes of that."""

    def __init__(self, definitions, definition, note, sigma=2.5, noise=0.1):
        self.scene = scene = Scene(definitions, f"{definition.title}: {definition.description} {note}", prompt=PROMPT)
        g = self.graph = scene.graph
        self.picture = scene.decode(scene.sample(title="Makes a picture"))
        blur = g.add("LodestarGaussianBlurOperator", "Blurs it", sigma=sigma)[0]
        self.image = g.add("LodestarApplyOperator", "Blurs it and adds noise", operator=blur, image=self.picture, noise=noise)[0]
        self.latent = scene.latent = g.add("VAEEncode", pixels=self.image, vae=scene.vae)[0]

    def restore(self, name, title, model=None, sampler=None, steps=1, denoise=0.5, scheduler="simple", cfg=1.0, seed=SEED + 1):
        scene, g = self.scene, self.graph
        sigmas = g.add("BasicScheduler", model=scene.model, scheduler=scheduler, steps=steps, denoise=denoise)[0]
        scene.save(scene.custom(sampler, sigmas, g.add("RandomNoise", noise_seed=seed)[0], model=model, cfg=cfg), name, title)

    def save(self, name):
        g = self.graph
        g.add("SaveImage", "The picture", images=self.picture, filename_prefix=f"lodestar/{name}_picture")
        g.add("SaveImage", "What is left of it", images=self.image, filename_prefix=f"lodestar/{name}_measured")
        return g


def _s3diff(definitions, definition, name):
    made = Degraded(definitions, definition, "How blurred and noisy the picture is, a small network estimates. One step; above with the LoRA, below the same step without it.")
    g = made.graph
    found = g.add("LodestarEstimateDegradation", image=made.image)[0]
    lora = g.add("LodestarLoadDegradationLora")[0]
    model = g.add(definition.node_id, model=made.scene.model, lora=lora, degradation=found)[0]
    made.scene.latent = g.add("LodestarDegradationGuidedEncode", pixels=made.image, vae=made.scene.vae, lora=lora, degradation=found)[0]
    start = g.add("LodestarRestorationStart", noise=0.0)[0]
    made.restore(name, "Restored", model, start)
    made.scene.latent = made.latent
    made.restore(f"{name}_without", "Without the LoRA", None, start)
    return made.save(name)


def _guided(definitions, definition, name):
    made = Degraded(definitions, definition, "One step with the Degradation-Guided LoRA. Above decoded with a second look at the degraded picture, below by VAE Decode.", 3.0, 0.05)
    g, scene = made.graph, made.scene
    found = g.add("LodestarEstimateDegradation", image=made.image)[0]
    model = g.add("LodestarDegradationGuidedLora", model=scene.model, lora=g.add("LodestarLoadDegradationLora")[0], degradation=found)[0]
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="simple", steps=1, denoise=0.5)[0]
    latent = scene.custom(g.add("LodestarRestorationStart", noise=0.0)[0], sigmas, g.add("RandomNoise", noise_seed=SEED + 1)[0], model=model, cfg=1.0)
    picture = g.add(definition.node_id, latent=latent, vae=scene.vae, image=made.image, branch=g.add("LodestarLoadGuidanceBranch")[0])[0]
    g.add("SaveImage", "Decoded with the branch", images=picture, filename_prefix=f"lodestar/{name}")
    scene.save(latent, f"{name}_without", "By VAE Decode")
    return made.save(name)


def _start(definitions, definition, name):
    made = Degraded(definitions, definition, "The prompt says what there is, the picture where. Above from three quarters of the noise, below from the noise alone.", noise=0.05)
    g = made.graph
    made.restore(name, "From between", None, g.add(definition.node_id, noise=0.75)[0], 20, 1.0, "normal", 2.0)
    made.restore(f"{name}_without", "From the noise", None, g.add("KSamplerSelect", sampler_name="euler")[0], 20, 1.0, "normal", 2.0)
    return made.save(name)


def _pasd(definitions, definition, name):
    made = Degraded(definitions, definition, "The picture, what is left of it, and what the model draws that sees it; below what it draws without.")
    g = made.graph
    model = g.add(definition.node_id, model=made.scene.model, weights=g.add("LodestarLoadPixelAwareAttention")[0], latent=made.latent)[0]
    start = g.add("LodestarRestorationStart", noise=0.9)[0]
    made.restore(name, "Restored", model, start, 20, 1.0, "normal", 3.0)
    made.restore(f"{name}_without", "Without", None, start, 20, 1.0, "normal", 3.0)
    return made.save(name)


def _semantics(definitions, definition, name):
    made = Degraded(definitions, definition, "The picture, what is left of it, and what the model draws whose blocks see it; below what it draws without.")
    g = made.graph
    model = g.add(definition.node_id, model=made.scene.model, weights=g.add("LodestarLoadBlockWiseSemantics")[0], image=made.image)[0]
    start = g.add("LodestarRestorationStart", noise=0.9)[0]
    made.restore(name, "Restored", model, start, 20, 1.0, "normal", 3.0)
    made.restore(f"{name}_without", "Without", None, start, 20, 1.0, "normal", 3.0)
    return made.save(name)


def _prior(definitions, definition, name):
    """Two prompts, with "at" for good pictures and "of" for degraded ones: words that the bundled text encoder knows and that mean little alone."""
    made = Degraded(definitions, definition, "Made here: pictures of two prompts, and what is left of them. The words \"at\" and \"of\" learn to mean good and degraded. Above a picture from the middle of the schedule on with "
                    "both words in the prompts and the trained model, below without: after so short a training little is seen.", 2.0, 0.1)
    scene, g, examples = made.scene, made.graph, None
    wanted, left = scene.positive, scene.latent
    blur = g.add("LodestarGaussianBlurOperator", "Blurs the examples", sigma=2.0)[0]
    scene.latent = g.add("EmptyLatentImage", "Four pictures", width=128, height=128, batch_size=4)[0]
    for i, text in enumerate(("a large blue square", "a small yellow triangle above a red cross")):
        prompt = g.add("CLIPTextEncode", f"Prompt {i + 1}", text=text, clip=scene.clip)[0]
        good = scene.sample(positive=prompt, seed=SEED + 50 + i, title=f"Good pictures {i + 1}")
        bad = g.add("LodestarApplyOperator", f"Degraded {i + 1}", operator=blur, image=scene.decode(good), noise=0.1)[0]
        words = [g.add("CLIPTextEncode", f"{kind} {i + 1}", text=f"{word} {text}", clip=scene.clip)[0] for kind, word in (("Good", "at"), ("Degraded", "of"))]
        given = {"examples": examples} if examples is not None else {}
        examples = g.add("LodestarRestorationExamples", f"Examples {i + 1}", good=good, degraded=g.add("VAEEncode", pixels=bad, vae=scene.vae)[0], good_prompt=words[0], degraded_prompt=words[1], **given)[0]
    trained = g.add(definition.node_id, model=scene.model, examples=examples, steps=60, batch=4)[0]
    scene.latent, scene.negative = left, g.add("CLIPTextEncode", "Away from degraded pictures", text=f"of {PROMPT}", clip=scene.clip)[0]
    euler = g.add("KSamplerSelect", sampler_name="euler")[0]
    scene.positive = g.add("CLIPTextEncode", "Towards good pictures", text=f"at {PROMPT}", clip=scene.clip)[0]
    made.restore(name, "With the prior", trained, euler, 20, 0.5, "normal", 2.0)
    scene.positive, scene.negative = wanted, g.add("CLIPTextEncode", "Empty", text="", clip=scene.clip)[0]
    made.restore(f"{name}_without", "Without", None, euler, 20, 0.5, "normal", 2.0)
    return made.save(name)


OWN = {"LodestarTrainRestorationPrior": _prior, "LodestarPixelAwareAttention": _pasd, "LodestarBlockWiseSemantics": _semantics, "LodestarDegradationGuidedLora": _s3diff, "LodestarRestorationStart": _start, "LodestarGuidedDecode": _guided}
