"""What is measured for the methods that follow correspondences between two pictures, and for Cocktail."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

CORRFILL = "attention.corrfill:CorrFill"

_HOLE = dict(prompts="hole", task="inpaint")
_HOLED = ("hole_error", "recovered", "clipped", "evaluations")


ENTRIES = (
    Entry(
        "LodestarCorrFill",      # no prompt: what is in the hole is known from the reference alone, which shows the scene two cells further
        (Comparison(Setup("CorrFill, w = 3", 3.0, (use(CORRFILL, reference="$reference"),), **_HOLE),
                    Setup("reference in attention, not steered, w = 3", 3.0, (use(CORRFILL, reference="$reference", boost=0.0, hide=False, optimise=0.0),), **_HOLE),
                    (Claim("hole_error", "lower"), Claim("recovered", "higher")), _HOLED, "steered"),
         Comparison(Setup("CorrFill, w = 3", 3.0, (use(CORRFILL, reference="$reference"),), **_HOLE), Setup("no reference, w = 3", 3.0, **_HOLE),
                    (Claim("hole_error", "lower"), Claim("recovered", "higher")), _HOLED, "reference")),
        (Cost("CorrFill, no optimisation", methods=(use(CORRFILL, reference="$reference", optimise=0.0),), peer=r"(?i)corrfill"),
         Cost("CorrFill", methods=(use(CORRFILL, reference="$reference"),)))),
)
