"""Regions: where something is to be, and what. One input for all methods that place things."""
from __future__ import annotations

from ._define import Input, NodeDef, Output, category

TYPE = "LODESTAR_REGIONS"
SERVES = "LodestarRegionalPrompts"
_BEFORE = Input("regions", TYPE, "Regions that come before this one; chain the nodes to give several.", optional=True)
_WORDS = Input("words", "STRING", "Which words of the whole prompt belong here, for methods that move attention to words: \"red ball\"; several are separated by commas, "
               "\"ball[2]\" is the second ball of the prompt.", "")
_PROMPT = Input("prompt", "STRING", "A prompt of the region's own, for Regional Prompts: what is seen there.", "")
_WEIGHT = Input("weight", "FLOAT", "How strongly this region counts beside the others; 0 takes it out.", 1.0, 0.0, 100.0, 0.05)
_COND = Input("conditioning", "CONDITIONING", "An encoded prompt in place of the text in `prompt`.", optional=True)
_OUT = Output(TYPE, "regions", "The regions before this one, and this one.")


def _joined(before, region):
    from ..guidance.attention.regions import Regions
    return (Regions((*(before.items if before is not None else ()), region)),)


def _box(x, y, width, height, words, prompt, weight, regions, conditioning):
    from ..guidance.attention.regions import Region, checked_box
    box = checked_box((x, y, width, height), "Region")
    return _joined(regions, Region(boxes=(box,), words=words, prompt=prompt, weight=weight, conditioning=conditioning))


def _mask(mask, kind, words, prompt, weight, regions, conditioning):
    from ..guidance.attention.regions import Region, checked_mask
    mask = checked_mask(mask, "Region from Mask")
    return _joined(regions, Region(mask=mask, scribble=kind == "scribble", words=words, prompt=prompt, weight=weight, conditioning=conditioning))


def _json(text, regions):
    from ..guidance.attention.region_json import parse
    found = parse(text)
    return (regions + found if regions is not None else found,)


def _prompt(clip, text, regions, phrase_by_phrase):
    from ..guidance.attention.regions import renewed
    from ..guidance.attention.tokens import Words, aligned, located
    from ..guidance.host.text import encode
    title = "Prompt with Regions"
    regions.need(title)
    conditioning = encode(clip, text)
    if any(r.phrases for r in regions):
        words = Words(clip, text, conditioning[0][0].shape[1], title)
        regions = located(regions, words)
        for phrase in (p for r in regions if phrase_by_phrase for p in r.phrases):
            conditioning = [[aligned(t, words, phrase, lambda alone: encode(clip, alone)[0][0]), d] for t, d in conditioning]
    regions = regions.replace([renewed(r, conditioning=encode(clip, r.prompt)) if r.prompt and r.conditioning is None else r for r in regions], mark=_mark())
    return [[t, {**d, "lodestar_prompt": regions.mark}] for t, d in conditioning], regions


def _mark():
    import uuid
    return uuid.uuid4().hex


def _show(regions, width, height, frames, image):
    from ..guidance.attention.region_picture import draw
    if image is not None:
        height, width = image.shape[1:3]
    return (draw(regions, height, width, None if image is None else image[0], frames),)


NODES = (
    NodeDef(
        node_id="LodestarRegion",
        title="Region",
        category=category("regions"),
        description="A box in the picture with the words or the prompt that belong there.",
        inputs=(
            Input("x", "FLOAT", "Left edge, as a fraction of the picture's width.", 0.0, 0.0, 1.0, 0.01),
            Input("y", "FLOAT", "Upper edge, as a fraction of the picture's height.", 0.0, 0.0, 1.0, 0.01),
            Input("width", "FLOAT", "Width, as a fraction of the picture's width.", 0.5, 0.01, 1.0, 0.01),
            Input("height", "FLOAT", "Height, as a fraction of the picture's height.", 1.0, 0.01, 1.0, 0.01),
            _WORDS, _PROMPT, _WEIGHT, _BEFORE, _COND),
        outputs=(_OUT,),
        run=_box,
        aliases=("box", "layout", "area"),
        part_of=SERVES,
        help="""Fractions of the picture make one region fit every size, and every layer of a network.

Methods that move the attention of words (Dense Diffusion, Directed Diffusion and others) read `words`; Regional Prompts reads `prompt`. The node **Prompt with Regions**
finds the words among the tokens of the whole prompt and encodes the regions' prompts: chain Region nodes, give the chain to it, and its outputs to the method and to the sampler.

A layer's cells that a box covers only partly count by their share. Methods that need yes or no take the cells that are covered at least by half, and always at least one.
"""),
    NodeDef(
        node_id="LodestarRegionFromMask",
        title="Region from Mask",
        category=category("regions"),
        description="A masked part of the picture, or a thin stroke, with the words or the prompt that belong there.",
        inputs=(
            Input("mask", "MASK", "White where the region is. Several pictures stand for the frames of a video."),
            Input("kind", "COMBO", "area: the white part is the region. scribble: a thin line, drawn through the thing; methods that follow strokes use it as such, and every cell "
                  "that it touches belongs to it.", "area", choices=("area", "scribble")),
            _WORDS, _PROMPT, _WEIGHT, _BEFORE, _COND),
        outputs=(_OUT,),
        run=_mask,
        aliases=("mask region", "scribble"),
        part_of=SERVES,
        help="""The mask may have any size: it is averaged over the area of each cell. See **Region** for words and prompts.
"""),
    NodeDef(
        node_id="LodestarRegionsFromJSON",
        title="Regions from JSON",
        category=category("regions"),
        description="Regions written as text: a list of objects with boxes, polygons or strokes.",
        inputs=(Input("text", "STRING", "A list of objects; the help page lists the keys.",
                      '[{"box": [0, 0.25, 0.5, 0.5], "words": "red ball"},\n {"box": [0.5, 0.25, 0.5, 0.5], "words": "blue cube"}]', multiline=True), _BEFORE),
        outputs=(Output(TYPE, "regions", "The regions before, and those of the text."),),
        run=_json,
        aliases=("layout json",),
        part_of=SERVES,
        help="""One object for each kind of place:

    [{"box": [0, 0.25, 0.5, 0.5], "words": "red ball"},
     {"boxes": [[0, 0, 0.3, 1], [0.7, 0, 0.3, 1]], "words": "car"},
     {"polygon": [[0.5, 0], [1, 1], [0, 1]], "prompt": "a snowy mountain"},
     {"scribble": [[0.1, 0.9], [0.5, 0.6], [0.9, 0.9]], "thickness": 0.03, "words": "river", "weight": 1.5}]

    box        x, y, width, height in fractions of the picture
    boxes      key positions at even distances over the frames of a video; between them the box moves evenly
    polygon    at least three points, the inside is the region
    scribble   points that a stroke goes through; thickness is its width
    words      words of the whole prompt, separated by commas
    prompt     a prompt of the region's own
    weight     how strongly it counts, 1 without it

Each object has exactly one of box, boxes, polygon, scribble. Anything else is an error that names the object and the key.
"""),
    NodeDef(
        node_id="LodestarRegionPrompt",
        title="Prompt with Regions",
        category=category("regions"),
        description="Encodes a prompt, finds the regions' words in it, and encodes the regions' own prompts.",
        inputs=(
            Input("clip", "CLIP", "The model's text encoder."),
            Input("text", "STRING", "The whole prompt. Weights as in (red:1.2) are understood.", "", multiline=True),
            Input("regions", TYPE, "The regions whose words and prompts are looked up."),
            Input("phrase_by_phrase", "BOOLEAN", "Encodes the words of each region on their own too and puts those embeddings in their places of the prompt, as Dense Diffusion does: "
                  "a phrase then knows nothing of its neighbours.", False, optional=True, advanced=True)),
        outputs=(Output("CONDITIONING", "positive", "The encoded prompt, for the sampler."), Output(TYPE, "regions", "The regions with their tokens, for the methods.")),
        run=_prompt,
        aliases=("find tokens", "grounded prompt"),
        part_of=SERVES,
        help="""The tokens of a phrase are found with the model's own tokenizer, in all streams of its text encoder (CLIP, T5, language models). A phrase that the prompt does not
contain is an error that names it. A phrase that comes several times stands for all of its places; "ball[2]" is the second one alone.

Connect the same node's `positive` to the sampler: methods that work on words check that its number of tokens is right, and where several prompts are combined they keep to this one.
"""),
    NodeDef(
        node_id="LodestarShowRegions",
        title="Show Regions",
        category=category("regions"),
        description="Draws regions as a picture, over another one if it is given.",
        inputs=(
            Input("regions", TYPE, "The regions to show."),
            Input("width", "INT", "Width of the picture.", 512, 16, 8192, 8),
            Input("height", "INT", "Height of the picture.", 512, 16, 8192, 8),
            Input("frames", "INT", "How many pictures are drawn of regions that move.", 8, 1, 1024, 1, optional=True, advanced=True),
            Input("image", "IMAGE", "A picture to draw them on; its size is taken.", optional=True)),
        outputs=(Output("IMAGE", "image", "The regions, each in a colour of its own, with number and words."),),
        run=_show,
        aliases=("preview layout",),
        part_of=SERVES,
        help="""Shares of a cell are not shown: regions look as they were given. Strokes are drawn stronger than areas.
"""),
)
