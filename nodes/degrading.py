"""Making degraded pictures (GenDeg): the synthesis, the file that tells the level, and the level of a pair."""
from ..guidance.inverse.degradation_synthesis import DegradationSynthesis
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import files_of, tensors_of

LOAD, MEASURE, BUNDLED = "Load Degradation Generator", "Measure Degradation Level", "bundled: for the demo model \"degrading\""
CORRECT, LOAD_NETWORK, BUNDLED_NETWORK = "Structure Correction", "Load Structure Correction", "bundled: for the demo models' VAE"


def _load(file):
    from ..guidance.inverse.degradation_synthesis import KEYS, PHRASES, parse
    if file == BUNDLED:
        from ..demo import degrading
        from ..demo.weights_file import read
        return (parse(read(degrading.NAME), LOAD, "file", file, degrading.PHRASES),)
    from ..guidance.host.weight_files import load
    return (parse(load(LOAD, "file", file, "checkpoints", KEYS), LOAD, "file", file, PHRASES),)


def _synthesis(model, **values):
    method = DegradationSynthesis(**values).checked()
    from ..guidance.host.degradation_synthesis import prepared
    return prepared(method, model)


def _measure(clean, degraded):
    from ..guidance.inverse.degradation_synthesis import DegradationLevel, level_of
    from ..guidance.method import BadInput
    a, b = (t[..., :3].float().cpu() for t in (clean, degraded))
    if a.shape[1:] != b.shape[1:] or len(a) not in (1, len(b)):
        raise BadInput(MEASURE, "degraded", list(degraded.shape), f"Pictures of the size of the clean ones are wanted, {clean.shape[2]} x {clean.shape[1]}, and one clean picture or as many ({len(a)} clean).")
    found = DegradationLevel(tuple((round(m, 5), round(s, 5)) for m, s in level_of(a.expand_as(b), b).tolist()))
    text = "\n".join(f"mean {m:.3f}, deviation {s:.3f}" for m, s in found.levels)
    return Shown((found, *found.levels[0], text), text)


def _network(file):
    from ..demo.structure import NAME
    from ..guidance.inverse.structure_correction import parse
    return (parse(tensors_of(LOAD_NETWORK, file, BUNDLED_NETWORK, NAME, "lodestar"), LOAD_NETWORK, "file", file),)


def _correct(clean, degraded, network, strength):
    from ..guidance.host.degradation_synthesis import mended
    return (mended(CORRECT, clean, degraded, network, strength),)


NODES = (
    NodeDef(
        **about(DegradationSynthesis),
        inputs=(Input("model", "MODEL", "A model of InstructPix2Pix's type that draws degradations: GenDeg's, or the demo model \"degrading\"."), *inputs_of(DegradationSynthesis)),
        outputs=(Output("MODEL", "model", "With the clean picture's own scale."), Output("CONDITIONING", "positive", "The text, the level and the picture."),
                 Output("CONDITIONING", "negative", "The picture alone."), Output("LATENT", "latent", "An empty latent of the pictures' size, for denoise 1.")),
        run=_synthesis,
    ),
    NodeDef(
        node_id="LodestarLoadDegradationGenerator",
        title=LOAD,
        category=category("inverse"),
        description="Reads how a degradation generator (GenDeg) is told the level, from the safetensors checkpoint in models/checkpoints that holds the model itself.",
        inputs=(Input("file", "COMBO", "The checkpoint that Load Checkpoint reads the model from, or the small one that comes with the pack.", BUNDLED, choices=files_of(BUNDLED, "checkpoints")),),
        outputs=(Output("LODESTAR_DEGRADATION_GENERATOR", "generator", "For Degradation Synthesis."),),
        run=_load,
        part_of=DegradationSynthesis.node_id,
        help="""The authors publish a checkpoint of their training, gendeg.ckpt (a pickle, SD1.5 with eight input channels). Bring it to safetensors with its keys as they are, put it into models/checkpoints, and read it twice: by
Load Checkpoint (model.diffusion_model..., first_stage_model..., cond_stage_model...: the host knows InstructPix2Pix models by their input channels) and by this node, which takes four tensors of it:

- stats_proj.weight [77, 129], stats_proj.bias [77]: from a bin to a number for each token; bin 128 stands for "no level"
- cc_projection.weight [768, 770], cc_projection.bias [768]: from a token's state, the mean's and the deviation's number to its new state

The authors sample with the averaged weights of their U-Net (model_ema..., whose names have lost their dots): put them in place of model.diffusion_model.... Other widths are read as they are; tokens are those of one chunk of text.

The bundled file is for the demo model "degrading": scenes with haze, rain, snow, motion blur, low light or raindrops. It was trained by demo/train_degrading.py for 7,500 steps: after so short a training it draws the clean picture's things on its own ground, rain and snow (as specks for other kinds too), hardly haze or blur; the level follows what is asked for roughly (12 pictures: correlation of the means 0.53, without a level -0.29). Its text encoder has no words for the kinds; two words of its vocabulary stand
for each (haze "in in", rain "of of", snow "to to", motion blur "at at", low light "below below", raindrops "above above"), which Degradation Synthesis puts behind the text.
""",
    ),
    NodeDef(
        node_id="LodestarMeasureDegradationLevel",
        title=MEASURE,
        category=category("inverse"),
        description="Measures how far degraded pictures are from clean ones: mean and standard deviation of |degraded - clean|.",
        inputs=(Input("clean", "IMAGE", "The clean pictures: one, or one for each degraded picture."), Input("degraded", "IMAGE", "The degraded pictures, of the same size.")),
        outputs=(Output("LODESTAR_DEGRADATION_LEVEL", "level", "Both numbers of each picture, for Degradation Synthesis."), Output("FLOAT", "mean", "Of the first picture."),
                 Output("FLOAT", "deviation", "Of the first picture."), Output("STRING", "text", "In words.")),
        run=_measure,
        output_node=True,
        aliases=("GenDeg", "degradation strength", "difference of pictures"),
        part_of=DegradationSynthesis.node_id,
        help="""Over all pixels and colours, in [0, 1]. The mean says how strong a degradation is, the deviation how unevenly it is spread. For a degradation as strong as that of a known pair, connect `level` to Degradation Synthesis;
to see what that made of a wish, connect its pictures here.
""",
    ),
    NodeDef(
        node_id="LodestarStructureCorrection",
        title=CORRECT,
        category=category("inverse"),
        description="Mends what the VAE did to edges of a degraded picture: a small network sees the clean picture beside it.",
        inputs=(Input("clean", "IMAGE", "The clean pictures: one, or one for each degraded picture."), Input("degraded", "IMAGE", "The degraded pictures from VAE Decode."),
                Input("network", "LODESTAR_STRUCTURE_NETWORK", "From Load Structure Correction."), Input("strength", "FLOAT", "Factor on what is added; 0 leaves the picture.", 1.0, 0.0, 2.0, 0.05)),
        outputs=(Output("IMAGE", "image", "The mended pictures."),),
        run=_correct,
        aliases=("GenDeg", "NAFNet", "VAE artefacts"),
        part_of=DegradationSynthesis.node_id,
        help="""out = d + strength f(clean, d), d the degraded picture, f a NAFNet of both (GenDeg's structure correction). The authors use it for haze, motion blur and raindrops, where the scene's own edges should stay, not for rain and snow, whose lines it
would have to invent. Clean pictures of another size are brought to that of the degraded ones.
""",
    ),
    NodeDef(
        node_id="LodestarLoadStructureCorrection",
        title=LOAD_NETWORK,
        category=category("inverse"),
        description="Reads a structure correction network (GenDeg) from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar in NAFNet's layout, or the small one that comes with the pack.", BUNDLED_NETWORK, choices=files_of(BUNDLED_NETWORK, "lodestar")),),
        outputs=(Output("LODESTAR_STRUCTURE_NETWORK", "network", "For Structure Correction."),),
        run=_network,
        part_of=DegradationSynthesis.node_id,
        help="""The authors publish nafnet_sd.ckpt (a pickle; width 64, blocks 2 2 4 8, 12, 2 2 2 2): bring the tensors under "state_dict" to safetensors with their keys as they are.

- intro [width, 6, 3, 3] (the clean picture's colours, then the degraded one's), ending [3, width, 3, 3], each with weight and bias
- encoders.I.J, middle_blks.J, decoders.I.J: blocks with conv1 to conv5, sca.1, norm1, norm2 (weight and bias), beta and gamma [1, channels, 1, 1]
- downs.I (weight and bias), ups.I.0.weight

How many blocks there are and their width the file says. Pictures go in and out in [-1, 1] inside. The bundled file (width 12) is for the VAE of the demo models; it was trained by demo/train_structure.py: 36.8 dB in place of 36.3 from the true degraded picture, on 16 fresh ones.
""",
    ),
)
