"""What is measured for hard bounds."""
from .motion import UPPER
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

_bounded = use("rules.value_constraint:ValueConstraint", upper=", ".join(f"{v:g}" for v in UPPER), region="$left")

ENTRIES = (
    Entry("LodestarValueConstraint",      # no strong red in the left half
          (Comparison(Setup("left half: red at most 0.6, w = 4", 4.0, (_bounded,)), Setup("CFG, w = 4", 4.0), (Claim("violations", "at most", 0.0),), ("violations", *CAPTION_METRICS)),),
          (Cost("Value Constraint", methods=(_bounded,), limit=1.02),)),
)
