"""What is measured for Readout Guidance: the shapes' places of a reference, a thing dragged elsewhere, and the looks of a reference, read by the bundled heads of the U-Net."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

READOUT = "attention.readout_guidance:ReadoutGuidance"
_BASE = Setup("CFG, w = 4, Euler ancestral, no reference", 4.0, sampler="euler_ancestral", prompts="crossed")
_given = dict(readout="$shapes_head", image="$shape_maps")
_CLAIMS = (Claim("structure", "higher"), Claim("shape_overlap", "higher"))
_METRICS = ("structure", "shape_overlap", "accuracy", "clipped", "std_ratio", "evaluations")


def _led(label, name="", **values):
    """The shapes of the reference against the same prompts, which name no place, without it."""
    return Comparison(Setup(label, 4.0, (use(READOUT, **_given, **values),), "euler_ancestral", prompts="crossed"), _BASE, _CLAIMS, _METRICS, name, generators=("unet",))


_drag = dict(readout="$places_head", drags="$drags", reference="$own", noise="shared", radius=0.09)
_looks = dict(readout="$looks_head", reference="$appearance")


def _dragged(label, name="", more=(), **values):
    """The first object of what the model makes of the same noise is to be elsewhere, against the same without drags."""
    return Comparison(Setup(label, 4.0, (use(READOUT, **_drag, **values), *more), prompts="shifted"), Setup("CFG, w = 4, no drags", 4.0, prompts="shifted"), (Claim("place_error", "lower"), Claim("kept", "higher")),
                      ("place_error", "kept", "clipped", "std_ratio", "evaluations"), name, generators=("unet",))


ENTRIES = (
    Entry("LodestarReadoutGuidance",
          (_led("Readout Guidance, shapes, step 0.1", step_size=0.1), _led("Readout Guidance, shapes, step 0.02", "step 0.02"),
           _dragged("Readout Guidance, drags, step 0.03", "drags", step_size=0.03), _dragged("Readout Guidance, drags, step 0.1", "drags, step 0.1", step_size=0.1),
           _dragged("Readout Guidance, drags, step 0.1, and looks, 0.02", "drags and looks", (use(READOUT, readout="$looks_head", reference="$own", noise="shared", step_size=0.02),), step_size=0.1),
           Comparison(Setup("Readout Guidance, looks, step 0.1", 4.0, (use(READOUT, **_looks, step_size=0.1),), "euler_ancestral", prompts="crossed"),
                      Setup("CFG, w = 4, Euler ancestral, no reference", 4.0, sampler="euler_ancestral", prompts="crossed"), (Claim("palette", "higher"),), ("palette", "accuracy", "clipped", "std_ratio", "evaluations"), "looks", generators=("unet",))),
          (Cost("Readout Guidance, shapes", methods=(use(READOUT, **_given, end_percent=1.0),), heavy=False, peer=r"(?i)readout"),)),
)
