"""Heat maps of words: reading attention during a run, and showing it."""
from ..guidance.attention.capture import MapRecord
from ..guidance.inspection.attention_maps import CaptureAttention
from ..guidance.inspection.heat_maps import SCALES
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of

TITLE = "Attention Heat Maps"


def _capture(model, **values):
    from ..guidance.host.attach import attach
    record = MapRecord()
    return attach(model, CaptureAttention(record=record, **values).validate()), record


def _show(maps, latent, clip, prompt, words, scale, strength, least, image):
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import phrases_of
    from ..guidance.inspection.heat_maps import drawn, heat, phrase_maps, tokens_of
    from ..guidance.method import BadInput
    if not maps.grids:
        raise BadInput(TITLE, "maps", "empty", "Nothing was read. Connect the latent of the run that used Capture Attention's model, and choose a role, a window and layers that "
                       "take part in it.")
    groups = tokens_of(Words(clip, prompt, maps.length, TITLE), phrases_of(words))
    if not groups:
        raise BadInput(TITLE, "prompt", prompt, "It has no words; write the prompt that was sampled.")
    size = image.shape[1:3] if image is not None else [8 * n for n in latent["samples"].shape[-2:]]
    heats = heat(phrase_maps(maps, [tokens for _, tokens in groups], least), size, scale)
    names = ", ".join(name for name, _ in groups)
    return Shown((drawn(heats, None if image is None else image[..., :3], strength), heats.flatten(0, 2), names), names)


NODES = (
    NodeDef(
        **about(CaptureAttention),
        inputs=(Input("model", "MODEL", "The model to read from, with its guidance."), *inputs_of(CaptureAttention)),
        outputs=(Output("MODEL", "model", "The same model, read from. Connect it to the sampler."), Output("LODESTAR_MAPS", "maps", "The maps of the last run, for Attention Heat Maps.")),
        run=_capture),
    NodeDef(
        node_id="LodestarAttentionHeatMaps",
        title=TITLE,
        category=category("inspection"),
        description="Shows where the picture attended to words of the prompt, as heat maps and masks.",
        inputs=(
            Input("maps", "LODESTAR_MAPS", "From Capture Attention."),
            Input("latent", "LATENT", "The sampler's output: makes sure that the maps are drawn after the run."),
            Input("clip", "CLIP", "The text encoder that encoded the prompt; finds the words among its tokens."),
            Input("prompt", "STRING", "The prompt that was sampled (the negative one, if that was read).", "", multiline=True),
            Input("words", "STRING", "Words or phrases of the prompt, separated by commas; \"ball[2]\" is the second ball. Empty: every word.", ""),
            Input("scale", "COMBO", "each: every map from its least to its largest value. common: all maps of a picture on one scale, to compare words.", SCALES[0], choices=SCALES),
            Input("strength", "FLOAT", "How much of the picture the heat covers.", 0.6, 0.0, 1.0, 0.05),
            Input("least", "INT", "Layers whose grid has fewer cells are left out, 0 takes all. 65 leaves out the 8 x 8 grid of SD1.5 at 512 pixels.", 0, 0, 65536, 1,
                  optional=True, advanced=True),
            Input("image", "IMAGE", "The decoded picture, to lay the heat over. Without it the maps are drawn alone.", optional=True)),
        outputs=(Output("IMAGE", "images", "One for each word, picture after picture (of a video frame after frame)."), Output("MASK", "heat", "The same maps as masks, from 0 to 1."),
                 Output("STRING", "words", "The words, in this order.")),
        run=_show,
        output_node=True,
        aliases=("DAAM", "attention map", "word heat map"),
        part_of="LodestarCaptureAttention",
        help="""A phrase has the mean map of its tokens; layers and steps count alike, each grid is brought to the size of the largest.

Maps are relative: they say which word a part of the picture attended to most, not whether it shows it. Articles and the begin token take what nothing else claims.

The maps are those of the last run that used the MODEL output of Capture Attention: give each sampler one of its own. Other uses of `heat`: a threshold makes a mask of a word.
"""),
)
