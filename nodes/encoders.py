"""Losses that look through an encoder, and the networks and heads that they use from files."""
from ..guidance.loss.classifier import ClassifierLoss, SegmentationLoss
from ..guidance.loss.clip import CLIPImage, CLIPText
from ..guidance.loss.exemplar import ExemplarSet
from ..guidance.loss.feature import FeatureLoss
from ..guidance.loss.preference import PreferenceLoss
from ..guidance.loss.semantic import SemanticGuidance
from ..guidance.loss.style import StyleLoss
from ._define import Input, NodeDef, Output, about, category
from .losses import TYPE, decoder_of, loss_inputs, ordinary

LOADER = "Load Vision Network"
VGG, KINDS, TASTE = "bundled: kinds and colours of the demo scenes", "bundled: kinds, for the demo scene encoder", "bundled: a taste for warm colours, for the demo scene encoder"
PICTURES = ("image", "bad")      # inputs that are pictures [n, height, width, channels]
_CLIP = Input("clip", "CLIP", "The text encoder that belongs to the image encoder.")
_VAE = Input("vae", "VAE", "The model's VAE: decodes the estimate (space rgb).", optional=True)


def _text(tip, name="text", default=""):
    return Input(name, "STRING", tip, default, multiline=True)


def _texts(cls, clip, text, vision, name="text"):
    """The texts' embeddings [lines, d], or None for none."""
    from ..guidance.host.vision import text_embeddings
    from ..guidance.loss.clip import lines_of
    from ..guidance.method import BadInput
    lines = lines_of(text or "")
    if not lines:
        return None
    if clip is None:
        raise BadInput(cls.title, "clip", None, "A text needs the CLIP that belongs to the image encoder.")
    return text_embeddings(clip, lines, vision, cls.title, name)


def _parts(cls, clip, values, vision):
    """The embeddings of a node's texts, by the names of the loss's fields."""
    text = values.pop("text", "")
    if cls is CLIPText:
        from ..guidance.method import BadInput
        found = {"texts": _texts(cls, clip, text, vision), "others": _texts(cls, clip, values.pop("other_text", ""), vision, "other_text")}
        if found["texts"] is None:
            raise BadInput(cls.title, "text", text, "Write what the picture is to look like.")
        return found
    if cls is CLIPImage:
        both = [t for t in (text, values.pop("source_text", "")) if t.strip()]
        return {"texts": _texts(cls, clip, "\n".join(" ".join(t.split()) for t in both), vision)}
    return {"texts": _texts(cls, clip, text, vision)} if cls in (PreferenceLoss, SemanticGuidance) else {}


def _run(cls):
    def run(model, vae=None, clip=None, **values):
        from ..guidance.host.vision import encoder
        vision = values.get("clip_vision")
        if vision is not None:
            values["clip_vision"] = vision = encoder(vision, cls.title)
        values |= _parts(cls, clip, values, vision)
        for name in PICTURES:
            if values.get(name) is not None:
                values[name] = values[name][..., :3].movedim(-1, 1)
        if "image" in values:
            values["target"], values["image"] = values["image"], None
        return (cls(**ordinary(values), decoder=decoder_of(cls, model, vae, values.get("space", cls.spaces[0]))).check(),)
    return run


def _node(cls, *more):
    return NodeDef(**about(cls), inputs=(Input("model", "MODEL", "The model that will be guided: its latents are what is decoded."), *more, *loss_inputs(cls), _VAE),
                   outputs=(Output(TYPE, "loss", "For Universal Guidance and other nodes that take a loss."),), run=_run(cls))


def _optional(i):
    import dataclasses
    return dataclasses.replace(i, optional=True)


def _files():
    from ..guidance.host.weight_files import names
    return [VGG, KINDS, TASTE, *names()]


def _load(file):
    from ..guidance.loss.networks import parse
    from ..guidance.method import BadInput
    if file in (VGG, KINDS, TASTE):
        from ..demo import scene_heads, scene_vgg
        tensors, notes = scene_vgg.tensors() if file == VGG else scene_heads.tensors(scene_heads.KINDS if file == KINDS else scene_heads.TASTE)
    else:
        from ..guidance.host.weight_files import load, notes_of
        tensors = load(LOADER, "file", file)
        notes = notes_of(file)
    try:
        return (parse(tensors, notes, file),)
    except (ValueError, KeyError) as error:
        raise BadInput(LOADER, "file", file, str(error) if isinstance(error, ValueError) else f"The tensor {error} is missing.") from error


NODES = (
    _node(CLIPText, _CLIP, _text("What the picture is to look like; several texts, one a line."), _optional(_text("cross-entropy: what it is not to look like, one a line.", "other_text"))),
    _node(CLIPImage, _optional(_CLIP), _optional(_text("direction: what the picture is to become.")), _optional(_text("direction: what the given picture is.", "source_text"))),
    _node(ExemplarSet),
    _node(StyleLoss),
    _node(FeatureLoss),
    _node(ClassifierLoss),
    _node(SegmentationLoss),
    _node(PreferenceLoss, _optional(_CLIP), _optional(_text("The prompt that the picture is judged by, where no head is connected; one line, or one for each picture of the batch."))),
    _node(SemanticGuidance, _optional(_CLIP), _optional(_text("What the picture is to look like; several texts, one a line."))),
    NodeDef(
        node_id="LodestarLoadVisionNetwork",
        title=LOADER,
        category=category("loss"),
        description="Reads a classifier, a segmentation network, an aesthetic head or a feature network from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar, or a small one that comes with the pack.", VGG, choices=_files),),
        outputs=(Output("LODESTAR_NETWORK", "network", "For Classifier Loss, Segmentation Loss, Style Loss, Feature Loss and Preference Loss."),),
        run=_load,
        aliases=("classifier", "VGG", "ResNet", "aesthetic predictor"),
        part_of=ClassifierLoss.node_id,
        help="""What a file is follows from its keys (an outer "module.", "model." or "net." is taken off):

- features.N, classifier.N: a VGG as torchvision names it (vgg11 to vgg19, with or without batch norm). With head.weight [labels, channels, 1, 1] it also has a class for each cell of its last map.
- conv1, bn1, layer1 to layer4, fc: a ResNet of torchvision.
- backbone.*, classifier.0, classifier.1, classifier.4: torchvision's FCN on a ResNet (fcn_resnet50, fcn_resnet101), for Segmentation Loss.
- weight, bias, or layers.N.weight, layers.N.bias: linear layers on an image encoder's embedding, as LAION's aesthetic predictors have them.

The file's metadata may say mean and std (three numbers each; ImageNet's else), size (the side that pictures are brought to; 224 for classifiers, else their own), classes and labels (names), activation (between linear
layers: none, relu, gelu) and unit (false where a head takes embeddings that are not of unit length).

The bundled files know the demo models' scenes: 28 kinds of one object ("red circle") and the colour of each cell by pictures; the same kinds, and a score from 0 to 10 that is high for warm colours, on the embedding of
Load Demo Vision with "scenes and captions". They were trained by demo/train_scene_vgg.py and demo/train_scene_heads.py.
"""),
)
