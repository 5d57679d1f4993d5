"""Noise-aware classifiers: their examples, training, files."""
from __future__ import annotations

from ..guidance.training.classifier import TrainNoiseAwareClassifier
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import reader, written

EXAMPLES, PREDICTOR = "LODESTAR_EXAMPLES", "LODESTAR_PREDICTOR"
SERVES = TrainNoiseAwareClassifier.node_id
_BEFORE = Input("examples", EXAMPLES, "Examples that come before these; chain the nodes for several.", optional=True)
_OUT = Output(EXAMPLES, "examples", "The examples before these, and these; for Train Noise-Aware Classifier.")


def _with(before, latents, labels):
    import torch

    from ..guidance.training.classifier import Examples
    with torch.inference_mode(False):      # gradients go past these
        own = Examples(((latents.clone(), labels.clone().float()),))
    return own if before is None else before + own


def _labelled(latent, labels, examples=None):
    from ..guidance.host.examples import samples_of
    from ..guidance.training.classifier import numbers
    title = "Labelled Latents"
    samples = samples_of(title, latent)
    return (_with(examples, samples, numbers(labels, samples.shape[0], title)),)


def _shown(examples, scores):
    text = ", ".join(f"{v:.4g}" for v in scores[:64].tolist()) + (" ..." if len(scores) > 64 else "")
    return Shown((examples, text), text)


def _by_loss(model, latent, loss, examples=None):
    from ..guidance.host.examples import scored_by_loss
    returns = -scored_by_loss(model, latent, loss, "Score Latents by Loss")
    return _shown(_with(examples, latent["samples"], returns), returns)


def _by_rarity(model, positive, latent, vae, level, samples, seed, examples=None):
    from ..guidance.host.examples import scored_by_rarity
    scores = scored_by_rarity(model, positive, latent, vae, level, samples, seed, "Minority Scores")
    return _shown(_with(examples, latent["samples"], scores), scores)


def _train(model, **values):
    method = TrainNoiseAwareClassifier(**values).validate()
    from ..guidance.host.examples import train
    predictor, report = train(method, model)
    counts = ", ".join(f"{v:.4g}" for v in predictor.values.tolist()[:16]) + (" ..." if predictor.classes > 16 else "")
    text = f"{len(method.examples)} examples, {predictor.classes} classes ({counts})\n" + "\n".join(f"right at {100 * p:.0f} % of the schedule: {100 * v:.0f} %" for p, v in report.items())
    return Shown((predictor, text), text)


BUNDLED = "bundled: backgrounds of the demo scenes"


def _parse():
    from ..guidance.training.predictor import parse
    return parse


_files, _load = reader("Load Noise-Aware Classifier", {BUNDLED: "noisy_backgrounds"}, _parse)


def _save(classifier, prefix):
    return written("Save Noise-Aware Classifier", classifier, prefix, "noise-aware classifier")


NODES = (
    NodeDef(
        node_id="LodestarLabelledLatents", title="Labelled Latents", category=category("training"),
        description="Clean latents with a number each: examples for a small network.",
        inputs=(Input("latent", "LATENT", "A batch of clean latents: sampled ones, or encoded pictures."),
                Input("labels", "STRING", "A number for all of them, or one for each, separated by commas: their class (0, 1, 2 ...), or a score of your own.", "0"), _BEFORE),
        outputs=(_OUT,), run=_labelled, aliases=("dataset", "class label"), part_of=SERVES,
        help="Classes are whole numbers from 0 on. Any other number is a score, which Train Noise-Aware Classifier cuts into `bins`.\n"),
    NodeDef(
        node_id="LodestarScoreLatentsByLoss", title="Score Latents by Loss", category=category("training"),
        description="Clean latents with a return each, the negative value of a loss: examples for Return Guidance.",
        inputs=(Input("model", "MODEL", "The model of these latents."), Input("latent", "LATENT", "A batch of clean latents."),
                Input("loss", "LODESTAR_LOSS", "What is good where it is small. It needs no gradient."), _BEFORE),
        outputs=(_OUT, Output("STRING", "scores", "The returns.")), run=_by_loss, aliases=("reward", "returns"), part_of=SERVES,
        help="return = -loss(latent), one for each latent of the batch.\n"),
    NodeDef(
        node_id="LodestarMinorityScores", title="Minority Scores", category=category("training"),
        description="How rare latents are under a model: how far it moves their noisy versions towards something more usual.",
        inputs=(Input("model", "MODEL", "The model whose minorities are meant."), Input("positive", "CONDITIONING", "The prompt under which it denoises; an empty one for all that it knows."),
                Input("latent", "LATENT", "A batch of clean latents."), Input("vae", "VAE", "Compares decoded pictures; without it latents are compared.", optional=True),
                Input("level", "FLOAT", "Place in the schedule of the noise that is added: 0 none, 1 all of it.", 0.6, 0.01, 1.0, 0.01),
                Input("samples", "INT", "Noises that the score is the mean of.", 5, 1, 1000, 1), Input("seed", "INT", "Of these noises.", 0, 0, 2**63 - 1, 1), _BEFORE),
        outputs=(_OUT, Output("STRING", "scores", "The scores, larger for rarer ones.")), run=_by_rarity, aliases=("rarity", "minority score", "low density"), part_of="LodestarMinorityGuidance",
        help="""    score = mean over noises of d(x0, D(a x0 + s n))

d is 1 - SSIM of the decoded pictures (of the latents without a VAE). The authors take LPIPS, whose weights do not come with the pack; level 0.6 and 5 noises are theirs. All latents get the same noises.
"""),
    NodeDef(
        **about(TrainNoiseAwareClassifier),
        inputs=(Input("model", "MODEL", "The model of these latents: their scale, and the noise schedule."), *inputs_of(TrainNoiseAwareClassifier)),
        outputs=(Output(PREDICTOR, "classifier", "For Classifier, Minority, Discriminator and Return Guidance."), Output("STRING", "report", "How often it is right on examples that were kept aside.")),
        run=_train),
    NodeDef(
        node_id="LodestarLoadNoiseAwareClassifier", title="Load Noise-Aware Classifier", category=category("training"),
        description="Reads a noise-aware classifier from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar, or the small one that comes with the pack.", BUNDLED, choices=_files),),
        outputs=(Output(PREDICTOR, "classifier", "For Classifier, Minority, Discriminator and Return Guidance."),), run=_load, part_of="LodestarClassifierGuidance",
        help="""Files are those of Save Noise-Aware Classifier, moved to models/lodestar. Keys, for each expert N = 0, 1, ...:

- experts.N.enter, experts.N.time.0, experts.N.time.2, experts.N.blocks.I.norm, .film, .conv, experts.N.norm, experts.N.leave: weight and bias
- edges [experts + 1]: shares of noise, atan2(s, a) / (pi / 2), between which an expert is asked; from 0 to 1
- values [classes]: the number that each class stands for

The network takes the noisy latent divided by sqrt(a^2 + s^2) and 16 sines and cosines of the share of noise. The bundled file tells the backgrounds of the demo scenes (0 white, 1 gray, 2 black)
in latents of both demo models; it was trained by demo/train_noisy.py.
"""),
    NodeDef(
        node_id="LodestarSaveNoiseAwareClassifier", title="Save Noise-Aware Classifier", category=category("training"),
        description="Writes a noise-aware classifier as a safetensors file into the output folder.",
        inputs=(Input("classifier", PREDICTOR, "The classifier, from Train Noise-Aware Classifier."), Input("prefix", "STRING", "Name of the file in the output folder; a number is added.", "lodestar/classifier")),
        outputs=(Output("STRING", "path", "Where it was written."),), run=_save, output_node=True, part_of=SERVES,
        help="Half precision. Move the file to models/lodestar to load it again.\n"),
)
