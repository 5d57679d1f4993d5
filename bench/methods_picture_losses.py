"""What is measured for the losses of pictures: how far each falls under Universal Guidance, at one scale (a quarter for those that have no target) and without the network's gradient, beside the same prompts without it."""
from .methods_encoders import UNIVERSAL
from .picture_losses import LOSSES
from .plan import Claim, Comparison, Entry, Setup, use

SVDD = "particles.svdd:SVDD"
SCALE = 1.0
_CFG = Setup("CFG, w = 4", 4.0)
_COLOURLESS = Setup("CFG, w = 4, no colour named", 4.0, prompts="colourless")
_HIGH = Setup("CFG, w = 8", 8.0)
_LIKE = ("accuracy", "target_distance", "clipped", "evaluations")


def _lower(title, metric, base, *metrics, claims=(), scale=SCALE):
    """The loss `metric` of bench.picture_losses against the same prompts without it."""
    setup = Setup(f"{title}, scale {scale:g}", base.cfg, (use(UNIVERSAL, loss=LOSSES[metric], scale=scale, route="none"),), prompts=base.prompts)
    return Entry("Lodestar" + title.replace(" ", ""), (Comparison(setup, base, (Claim(metric, "lower"), *claims), (metric, *metrics), generators=("unet",)),))


ENTRIES = (
    _lower("Wavelet Target Loss", "wavelet", _CFG, *_LIKE),
    _lower("Edge Loss", "edges", _CFG, *_LIKE),
    _lower("Spectrum Loss", "spectrum", _CFG, *_LIKE),
    _lower("Colour Loss", "colours", _COLOURLESS, "palette", *_LIKE, claims=(Claim("palette", "higher"),)),      # the prompt names no colours, the loss is told them
    _lower("Coloured Shape Loss", "coloured_shape", _COLOURLESS, "forbidden", "clipped", "evaluations", claims=(Claim("forbidden", "higher"),)),      # a disc of the batch's colour in the middle
    _lower("Palette Segmentation Loss", "label_map", _CFG, *_LIKE),
    _lower("Multiscale Structure Loss", "structure_loss", _CFG, *_LIKE),
    _lower("Total Variation Loss", "variation", _CFG, "accuracy", "std_ratio", "clipped", "evaluations", scale=0.25),
    _lower("Symmetry Loss", "asymmetry", _CFG, "accuracy", "clipped", "evaluations", scale=0.25),
    _lower("Range Loss", "beyond_range", _HIGH, "clipped", "accuracy", "evaluations", claims=(Claim("clipped", "lower"),), scale=0.25),
    Entry("LodestarJPEGSizeLoss",      # it has no gradient: by choosing among candidates
          (Comparison(Setup("the smallest file of 4 candidates, w = 4", 4.0, sampler=use(SVDD, loss=LOSSES["file_size"], candidates=4)), Setup("CFG, w = 4, ancestral", 4.0, sampler=use(SVDD, loss="$target", candidates=1)),
                      (Claim("file_size", "lower"),), ("file_size", "accuracy", "clipped", "evaluations"), generators=("unet",)),)),
)
