"""Reading from a network: what its predictions and its attention say about a given picture."""
from ..guidance.reading.classifier import DiffusionClassifier
from ..guidance.reading.correspondence import DenseCorrespondence
from ..guidance.reading.information import PromptInformation
from ..guidance.reading.segmentation import CrossAttentionSegmentation
from ._define import Input, NodeDef, Output, Shown, about, inputs_of

_IMAGE = Input("image", "IMAGE", "The picture to look at. Needs the VAE.", optional=True)
_VAE = Input("vae", "VAE", "Encodes the picture.", optional=True)
_LATENT = Input("latent", "LATENT", "The picture as a latent, in place of an image.", optional=True)


def _encoded(vae, image):
    """Pictures [n, height, width, 3] encoded one by one, so that a video model takes each as a picture of its own."""
    import torch
    return {"samples": torch.cat([vae.encode(image[i:i + 1, ..., :3]) for i in range(image.shape[0])])}


def _picture(title, image, vae, latent, frames=False):
    """(LATENT, (height, width) in pixels) of pictures that came as one of the two; `frames`: whether videos are understood."""
    from ..guidance.method import BadInput
    if (image is None) == (latent is None):
        raise BadInput(title, "picture", "both" if image is not None else None, "Connect either an image (with a VAE) or a latent.")
    if image is None:
        samples = latent["samples"]
        if not frames and samples.ndim == 5 and samples.shape[2] > 1:
            raise BadInput(title, "latent", f"{samples.shape[2]} frames", "It looks at pictures, not at videos: give it single frames.")
        return latent, tuple(8 * n for n in samples.shape[-2:])
    if vae is None:
        raise BadInput(title, "vae", None, "An image needs the model's VAE.")
    return _encoded(vae, image), tuple(image.shape[1:3])


def _select(model, method):
    """A wrong selector is reported at the node. The model's Geometry."""
    from ..guidance.host.geometry import of_model
    from ..guidance.layers import select
    geometry = of_model(model)
    if method.layers:
        select(geometry, method.layers, method.title)
    return geometry


def _lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def _classes(title, captions, clip, conditionings):
    """[(name, CONDITIONING)] of the captions and of the entries of a combined conditioning."""
    from ..guidance.host.text import encode
    from ..guidance.method import BadInput
    lines = _lines(captions)
    if lines and clip is None:
        raise BadInput(title, "clip", None, "Captions need the model's text encoder.")
    found = [(line, encode(clip, line)) for line in lines]
    found += [(f"conditioning {i + 1}", [entry]) for i, entry in enumerate(conditionings or [])]
    if len(found) < 2:
        raise BadInput(title, "captions", captions, "Write at least two captions, one per line, or connect conditionings joined by Conditioning (Combine).")
    return found


def _classify(model, captions, clip, conditionings, image, vae, latent, **values):
    method = DiffusionClassifier(**values).validate()
    from ..guidance.host.probe import probe
    from ..guidance.reading.classifier import report
    classes = _classes(method.title, captions, clip, conditionings)
    names, prompts = [n for n, _ in classes], {i: c for i, (_, c) in enumerate(classes)}
    picture, _ = _picture(method.title, image, vae, latent, frames=True)

    def work(p):
        return [method.scores(p.x0[i:i + 1], len(names), p.each, p.sigma, p.flow) for i in range(p.x0.shape[0])]
    found = probe(model, prompts, picture, work, total=method.samples * picture["samples"].shape[0])
    texts = [report(names, s) for s in found]
    text = texts[0] if len(texts) == 1 else "\n".join(f"picture {i + 1}\n{t}" for i, t in enumerate(texts))
    return Shown(("\n".join(names[s.order[0]] for s in found), found[0].order[0], text), text)


def _information(model, base, first, second, both, image, vae, latent, **values):
    method = PromptInformation(**values).validate()
    from ..guidance.host.probe import probe
    from ..guidance.reading.information import PARTS
    from ..guidance.reading.pictures import coloured
    import torch
    picture, size = _picture(method.title, image, vae, latent, frames=True)

    def work(p):
        return method.decomposition(p.x0, p.each, *method.span(p.sigma, p.flow), p.flow)
    found = probe(model, {"base": base, "first": first, "second": second, "both": both}, picture, work, total=method.samples * picture["samples"].shape[0])
    maps = torch.stack([getattr(found, name) for name in PARTS], 1).cpu()
    drawn = coloured(maps.flatten(0, 1), size, signed=True, full=0.99).unflatten(0, maps.shape[:2])
    lines = ["picture " + str(i + 1) + ": " + ", ".join(f"{name.replace('_', ' ')} {float(v[i]):.2f}" for name, v in found.totals().items()) for i in range(maps.shape[0])]
    return Shown((*drawn.unbind(1), "\n".join(lines)), "\n".join(lines))


def _segmentation(model, clip, prompt, words, image, vae, latent, **values):
    method = CrossAttentionSegmentation(**values).validate()
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found, phrases_of
    from ..guidance.host.probe import probe
    from ..guidance.host.text import encode
    from ..guidance.reading.pictures import labelled_picture
    from ..guidance.reading.segmentation import Seen, labelled
    geometry = _select(model, method)
    conditioning = encode(clip, prompt)
    classes = found(Words(clip, prompt, conditioning[0][0].shape[1], method.title), phrases_of(words)).need(method.title)
    picture, size = _picture(method.title, image, vae, latent)
    observers, seen = method.observers(classes, geometry), Seen()
    probe(model, {"positive": conditioning}, picture, lambda p: method.look(p.x0, p.observed, p.sigma, p.flow), total=method.samples * picture["samples"].shape[0],
          observers=observers, take=seen.take)
    maps = method.maps(*(seen[o] for o in observers), *((None,) if len(observers) == 1 else ()), classes, *size)
    masks, labels = labelled(maps, method.threshold)
    shown = labelled_picture(labels, None if image is None else image[..., :3])
    return masks.flatten(0, 1).float(), maps.flatten(0, 1), shown, ", ".join(classes.phrases)


def _correspondence(model, positive, first, second, vae, **values):
    method = DenseCorrespondence(**values).validate()
    from ..guidance.host.probe import probe
    from ..guidance.method import BadInput
    from ..guidance.reading.correspondence import Summed, confidence, drawn, listed, warped
    from ..guidance.reading.pictures import resized
    import json
    import torch
    observer = method.observer(_select(model, method))
    first, second = first[..., :3], resized(second[..., :3], first.shape[1:3])
    if len(first) != len(second) and len(second) != 1:
        raise BadInput(method.title, "second", f"{len(second)} pictures", f"It must be one picture, or as many as first has ({len(first)}).")
    second = second.expand_as(first)
    latent = _encoded(vae, torch.stack((first, second), 1).flatten(0, 1))
    summed = Summed()

    def work(p):
        found = []
        for pair in p.x0.split(2):
            summed.clear()
            method.look(pair, p.observed, p.sigma, p.flow)
            found.append(method.matches(summed.found))
        return found
    found = probe(model, {"positive": positive}, latent, work, total=method.samples * len(latent["samples"]), observers=(observer,), take=summed.take)
    size = tuple(first.shape[1:3])
    points = [listed(m, method.lines) for m in found]
    return (torch.stack([warped(s, m.places.cpu()) for s, m in zip(second.cpu(), found)]), torch.stack([confidence(m, size).cpu() for m in found]),
            torch.stack([drawn(f, s, p) for f, s, p in zip(first, second, points)]), json.dumps(points if len(points) > 1 else points[0]))


NODES = (
    NodeDef(
        **about(DiffusionClassifier),
        inputs=(
            Input("model", "MODEL", "The model whose predictions judge; its guidance nodes do not take part."),
            Input("captions", "STRING", "One caption per line; each is a class. They should differ only in what is asked.", "a red circle\na blue circle\na green circle", multiline=True),
            *inputs_of(DiffusionClassifier),
            Input("clip", "CLIP", "The model's text encoder, for the captions.", optional=True),
            Input("conditionings", "CONDITIONING", "More classes: encoded prompts joined by Conditioning (Combine), each part is a class.", optional=True),
            _IMAGE, _VAE, _LATENT),
        outputs=(Output("STRING", "best", "The best caption, one line per picture."), Output("INT", "index", "Its number in the list, from 0 (of the first picture)."),
                 Output("STRING", "ranking", "All captions with their errors, best first.")),
        run=_classify,
        output_node=True),
    NodeDef(
        **about(PromptInformation),
        inputs=(
            Input("model", "MODEL", "The model whose predictions are compared; its guidance nodes do not take part."),
            Input("base", "CONDITIONING", "What the prompts are compared with: an empty prompt, or a context."),
            Input("first", "CONDITIONING", "The first prompt."),
            Input("second", "CONDITIONING", "The second prompt."),
            Input("both", "CONDITIONING", "A prompt that says both."),
            *inputs_of(PromptInformation),
            _IMAGE, _VAE, _LATENT),
        outputs=(Output("IMAGE", "first", "Information of the first prompt, a heat map. All six maps have one scale: white is nothing, red is information, blue is negative."),
                 Output("IMAGE", "second", "Information of the second prompt."), Output("IMAGE", "redundancy", "What both prompts say."),
                 Output("IMAGE", "unique_first", "What only the first prompt says."), Output("IMAGE", "unique_second", "What only the second prompt says."),
                 Output("IMAGE", "synergy", "What only both prompts together say."), Output("STRING", "totals", "The sums over the picture, in nats.")),
        run=_information,
        output_node=True),
    NodeDef(
        **about(CrossAttentionSegmentation),
        inputs=(
            Input("model", "MODEL", "The model whose attention is read; its guidance nodes do not take part."),
            Input("clip", "CLIP", "The model's text encoder."),
            Input("prompt", "STRING", "A prompt that names everything that is to be found, and the background.", "a red circle left of a blue square", multiline=True),
            Input("words", "STRING", "The classes: words or phrases of the prompt, separated by commas; \"ball[2]\" is the second ball.", "red circle, blue square"),
            *inputs_of(CrossAttentionSegmentation), _IMAGE, _VAE, _LATENT),
        outputs=(Output("MASK", "masks", "One mask for each class, picture after picture."), Output("MASK", "maps", "The classes' maps before the decision, from 0 to 1, in the same order."),
                 Output("IMAGE", "overview", "The classes in colours, over the picture if it came as an image."), Output("STRING", "classes", "The classes, in order.")),
        run=_segmentation),
    NodeDef(
        **about(DenseCorrespondence),
        inputs=(
            Input("model", "MODEL", "The model whose features are compared; its guidance nodes do not take part."),
            Input("positive", "CONDITIONING", "A prompt for both pictures; an empty one does."),
            Input("first", "IMAGE", "The picture whose parts are looked up."),
            Input("second", "IMAGE", "The picture in which they are found; brought to the first one's size."),
            Input("vae", "VAE", "Encodes the pictures."),
            *inputs_of(DenseCorrespondence)),
        outputs=(Output("IMAGE", "warped", "The second picture warped onto the first."),
                 Output("MASK", "confidence", "How sure each match is: the features' similarity, 0 where the way back differs."),
                 Output("IMAGE", "matches", "Both pictures side by side, the surest matches joined by lines."),
                 Output("STRING", "points", "These matches as JSON: from and to as [x, y] in fractions of the pictures, and the score.")),
        run=_correspondence),
)
