"""What is measured for methods of motion, time and hard bounds."""
from .motion import UPPER
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

CONSTRAINT = "rules.value_constraint:ValueConstraint"
MOTION = "loss.solvers.motion:MotionGuidance"

_upper = ", ".join(f"{v:g}" for v in UPPER)
_bounded = use(CONSTRAINT, upper=_upper, region="$left")
_MOVED = ("place_error", "kept", "frechet", "clipped", "evaluations")
_plain = Setup("CFG, w = 4, no motion", 4.0, prompts="shifted")


def _moved(label, loss, **values):
    return Setup(label, 4.0, sampler=use(MOTION, loss=loss, repeats=2, edit_mask="$moved", latent="$reference", **values), prompts="shifted")


ENTRIES = (
    Entry("LodestarValueConstraint",      # no strong red in the left half
          (Comparison(Setup("left half: red at most 0.6, w = 4", 4.0, (_bounded,)), Setup("CFG, w = 4", 4.0), (Claim("violations", "at most", 0.0),), ("violations", *CAPTION_METRICS)),),
          (Cost("Value Constraint", methods=(_bounded,), limit=1.02),)),
    Entry("LodestarMotionGuidance",
          (Comparison(_moved("flow and colours, 2 repeats, w = 4", "$motion"), _plain, (Claim("place_error", "lower"), Claim("kept", "higher")), _MOVED),
           Comparison(_moved("colours along the wanted flow, 2 repeats, w = 4", "$photometric"), _plain, (Claim("place_error", "lower"), Claim("kept", "higher")), _MOVED, "colours alone")),
          (Cost("Motion Guidance, colours alone", sampler=use(MOTION, loss="$photometric", repeats=1), heavy=False),)),
)
