"""Reading from a network: attention maps, and what its predictions say about a given picture."""
from ..guidance.attention.capture import MapRecord
from ..guidance.inspection.attention_maps import CaptureAttention
from ..guidance.reading.classifier import DiffusionClassifier
from ..guidance.reading.information import PromptInformation
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of

_IMAGE = Input("image", "IMAGE", "The picture to look at. Needs the VAE.", optional=True)
_VAE = Input("vae", "VAE", "Encodes the picture.", optional=True)
_LATENT = Input("latent", "LATENT", "The picture as a latent, in place of an image.", optional=True)


def _picture(title, image, vae, latent):
    """The LATENT of a picture that came as one of the two."""
    from ..guidance.method import BadInput
    if (image is None) == (latent is None):
        raise BadInput(title, "picture", "both" if image is not None else None, "Connect either an image (with a VAE) or a latent.")
    if image is None:
        return latent
    if vae is None:
        raise BadInput(title, "vae", None, "An image needs the model's VAE.")
    return {"samples": vae.encode(image[..., :3])}


def _capture(model, **values):
    from ..guidance.host.attach import attach
    record = MapRecord()
    return attach(model, CaptureAttention(record=record, **values).validate()), record


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
    from ..guidance.host.probe import probe
    from ..guidance.reading.classifier import report
    method = DiffusionClassifier(**values).validate()
    classes = _classes(method.title, captions, clip, conditionings)
    names, prompts = [n for n, _ in classes], {i: c for i, (_, c) in enumerate(classes)}
    picture = _picture(method.title, image, vae, latent)

    def work(p):
        return [method.scores(p.x0[i:i + 1], len(names), p.each, p.sigma, p.flow) for i in range(p.x0.shape[0])]
    found = probe(model, prompts, picture, work, total=method.samples * picture["samples"].shape[0])
    texts = [report(names, s) for s in found]
    text = texts[0] if len(texts) == 1 else "\n".join(f"picture {i + 1}\n{t}" for i, t in enumerate(texts))
    return Shown(("\n".join(names[s.order[0]] for s in found), found[0].order[0], text), text)


def _information(model, base, first, second, both, image, vae, latent, **values):
    from ..guidance.host.probe import probe
    from ..guidance.reading.information import alpha_of
    from ..guidance.reading.pictures import coloured
    import torch
    method = PromptInformation(**values).validate()
    picture = _picture(method.title, image, vae, latent)

    def work(p):
        low, high = alpha_of(p.sigma(1.0) if not p.flow else min(p.sigma(1.0), 0.999), p.flow), alpha_of(p.sigma(0.0), p.flow)
        return method.decomposition(p.x0, p.each, low, high, p.flow)
    found = probe(model, {"base": base, "first": first, "second": second, "both": both}, picture, work, total=method.samples * picture["samples"].shape[0])
    size = image.shape[1:3] if image is not None else [8 * n for n in picture["samples"].shape[-2:]]
    maps = torch.stack([found.first, found.second, found.redundancy, found.unique_first, found.unique_second, found.synergy], 1).flatten(0, 1)
    totals = found.totals()
    lines = ["picture " + str(i + 1) + ": " + ", ".join(f"{name.replace('_', ' ')} {float(v[i]):.2f}" for name, v in totals.items()) for i in range(found.first.shape[0])]
    return Shown((coloured(maps, size, signed=True), "\n".join(lines)), "\n".join(lines))


NODES = (
    NodeDef(
        **about(CaptureAttention),
        inputs=(Input("model", "MODEL", "The model to read from, with its guidance."), *inputs_of(CaptureAttention)),
        outputs=(Output("MODEL", "model", "The same model, read from. Connect it to the sampler."), Output("LODESTAR_MAPS", "maps", "The maps of the last run, for Attention Heat Maps.")),
        run=_capture),
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
        outputs=(Output("IMAGE", "maps", "Per picture six heat maps on one scale: information of the first and the second prompt, redundancy, uniqueness of each, synergy; blue is negative."),
                 Output("STRING", "totals", "Their sums over the picture, in nats.")),
        run=_information,
        output_node=True),
)
