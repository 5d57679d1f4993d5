"""Examples of the losses that look inside the network or at the noisy state, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, STEPS, Scene

BOTH = "a red circle and a blue square"


def _moved(definitions, definition, name):
    """One thing in another place; the picture without the node is what the other thing is kept from."""
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the red circle is moved and the blue square kept. Above with the node, below the picture that it refers to.", prompt=None)
    g = scene.graph
    words = g.add("LodestarPromptWords", clip=scene.clip, text=BOTH, words="red circle, blue square")
    before = scene.sample(positive=words[0], title="Without it")
    place = g.add("LodestarSelfGuidanceTerm", "Where the circle is to be", words=words[1], phrases="red circle", x=0.25, y=0.75, weight=3.0)[0]
    keep = g.add("LodestarSelfGuidanceTerm", "The square as it was", words=words[1], phrases="blue square", property="shape", source="reference", terms=place)[0]
    model = g.add(definition.node_id, model=scene.model, terms=keep, reference=before, scale=1.0)[0]
    scene.save(scene.sample(model, positive=words[0], title="With the node"), name, "With the node")
    scene.save(before, f"{name}_without", "Without it")
    return g



def _many(scene, text, count=6, seed=SEED, cfg=CFG, title=None):
    """A batch of latents of a prompt."""
    g = scene.graph
    positive = g.add("CLIPTextEncode", f"Prompt: {text or 'empty'}", text=text, clip=scene.clip)[0]
    latent = g.add("EmptyLatentImage", width=128, height=128, batch_size=count)[0]
    return g.add("KSampler", title, model=scene.model, seed=seed, steps=STEPS, cfg=cfg, sampler_name="euler", scheduler="normal", positive=positive, negative=scene.negative, latent_image=latent)[0]


def _labelled(scene, *parts):
    """Labelled Latents of (latents, label), one behind the other."""
    wires = {}
    for latent, label in parts:
        wires = {"examples": scene.graph.add("LodestarLabelledLatents", latent=latent, labels=label, **wires)[0]}
    return wires["examples"]


def _both(scene, definition, name, classifier, cfg=CFG, **values):
    """With the node and without it."""
    model = scene.graph.add(definition.node_id, model=scene.model, classifier=classifier, **values)[0]
    scene.save(scene.sample(model, cfg=cfg, title="With the node"), name, "With the node")
    scene.save(scene.sample(cfg=cfg, title="Without it"), f"{name}_without", "Without it")
    return scene.graph


def _classified(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The bundled classifier tells backgrounds; here white is wanted. Above with the node, below without.", prompt=BOTH)
    return _both(scene, definition, name, scene.graph.add("LodestarLoadNoiseAwareClassifier")[0], label="0", scale=2.0)


def _trained(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here it learns red circles against blue ones from the model's own samples, and leads the circle of a prompt that names no colour towards blue: a part of it turns from yellow to green, and no more, since twelve pictures are few. "
                  "Above with Classifier Guidance, below without.", prompt="a large circle")
    g = scene.graph
    examples = _labelled(scene, (_many(scene, "a large red circle"), "0"), (_many(scene, "a large blue circle"), "1"))
    classifier = g.add(definition.node_id, model=scene.model, examples=examples, steps=80, batch=12)[0]
    g.add("LodestarSaveNoiseAwareClassifier", classifier=classifier, prefix="lodestar/red_or_blue")
    return _both(scene, definitions["LodestarClassifierGuidance"], name, classifier, label="1", scale=30.0, cfg=1.0)


def _rare(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Twelve samples are scored, cut into three levels and learned, which is few: take hundreds. Above with the node, below without.", prompt="")
    g = scene.graph
    scores = g.add("LodestarMinorityScores", model=scene.model, positive=scene.positive, latent=_many(scene, "", 12, cfg=1.0), vae=scene.vae, samples=1)[0]
    classifier = g.add("LodestarTrainNoiseAwareClassifier", model=scene.model, examples=scores, steps=80, bins=3, batch=12)[0]
    return _both(scene, definition, name, classifier, cfg=1.0, scale=4.0)


def _refined(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} For want of a data set, pictures that were sampled with CFG stand for real ones, and those without it are corrected. With twelve pictures the two are nearly alike, also at a scale of 30: take hundreds. Above with the node, below without.", prompt=BOTH)
    examples = _labelled(scene, (_many(scene, BOTH, cfg=1.0, title="The model's own"), "0"), (_many(scene, BOTH, seed=SEED + 1, title="Stand for real ones"), "1"))
    classifier = scene.graph.add("LodestarTrainNoiseAwareClassifier", model=scene.model, examples=examples, steps=80, batch=12)[0]
    return _both(scene, definition, name, classifier, cfg=1.0)


def _returned(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here dark pictures are worth more. Above with the node, below without.", prompt=BOTH)
    g = scene.graph
    black = g.add("MaskToImage", mask=g.add("SolidMask", "Black", value=0.0, width=128, height=128)[0])[0]
    loss = g.add("LodestarTargetImageLoss", model=scene.model, image=black, vae=scene.vae)[0]
    examples = g.add("LodestarScoreLatentsByLoss", model=scene.model, latent=_many(scene, BOTH, 12), loss=loss)[0]
    classifier = g.add("LodestarTrainNoiseAwareClassifier", model=scene.model, examples=examples, steps=80, bins=4, batch=12)[0]
    return _both(scene, definition, name, classifier, scale=3.0)


def _seen(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The prompt names no colour; a text and a picture are what is to be come close to. Above by the text \"a red circle\", in the middle by the picture, below without.", prompt="a large circle")
    g = scene.graph
    vision, encoder = g.add("LodestarLoadDemoVision", encoder="scenes and captions")[0], g.add("LodestarLoadNoiseAwareEncoder")[0]
    other = g.add("CLIPTextEncode", "Prompt: the picture to be like", text="a large green triangle on a black background", clip=scene.clip)[0]
    given = scene.sample(positive=other, seed=SEED + 1, title="Makes the picture to be like")
    scene.save(given, f"{name}_given", "The picture to be like")
    by_text = g.add(definition.node_id, "By a text", model=scene.model, encoder=encoder, text="a red circle", clip=scene.clip, clip_vision=vision)[0]
    scene.save(scene.sample(by_text, title="By a text"), name, "By a text")
    by_picture = g.add(definition.node_id, "By a picture", model=scene.model, encoder=encoder, reference=given, image_weight=250.0)[0]
    scene.save(scene.sample(by_picture, title="By a picture"), f"{name}_picture", "By a picture")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return g


def _embedded(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here it learns the demo scene encoder's embeddings of twenty-four pictures, and leads the circle of a prompt that names no colour towards red; hundreds of pictures would be better. "
                  "Above with Semantic Diffusion Guidance, below without.", prompt="a large circle")
    g = scene.graph
    vision = g.add("LodestarLoadDemoVision", encoder="scenes and captions")[0]
    lines = [f"a large {colour} {shape}" for shape in ("circle", "square", "triangle") for colour in ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "red")]
    each = g.add("LodestarPromptPerPicture", clip=scene.clip, prompts="\n".join(lines))[0]
    empty = g.add("EmptyLatentImage", width=128, height=128, batch_size=len(lines))[0]
    made = g.add("KSampler", "Pictures to learn from", model=scene.model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=each, negative=scene.negative, latent_image=empty)[0]
    encoder = g.add(definition.node_id, model=scene.model, vae=scene.vae, clip_vision=vision, latent=made, steps=150, batch=16)[0]
    g.add("LodestarSaveNoiseAwareEncoder", encoder=encoder, prefix="lodestar/noisy_encoder")
    red = _many(scene, "a large red circle", 1, SEED + 3)
    model = g.add("LodestarSemanticDiffusionGuidance", model=scene.model, encoder=encoder, reference=red)[0]
    scene.save(scene.sample(model, cfg=1.0, title="With the node"), name, "With the node")
    scene.save(scene.sample(cfg=1.0, title="Without it"), f"{name}_without", "Without it")
    return g


OWN = {
    "LodestarSemanticDiffusionGuidance": _seen,
    "LodestarTrainNoiseAwareEncoder": _embedded,
    "LodestarSelfGuidance": _moved,
    "LodestarClassifierGuidance": _classified,
    "LodestarTrainNoiseAwareClassifier": _trained,
    "LodestarMinorityGuidance": _rare,
    "LodestarDiscriminatorGuidance": _refined,
    "LodestarReturnGuidance": _returned,
}
