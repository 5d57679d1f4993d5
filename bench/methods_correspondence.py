"""What is measured for the methods that follow correspondences between two pictures, and for Cocktail."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

FEATURES = "attention.feature_correspondence:FeatureCorrespondenceGuidance"
CORRFILL = "attention.corrfill:CorrFill"

_HOLE = dict(prompts="hole", task="inpaint")
_HOLED = ("hole_error", "recovered", "clipped", "evaluations")
_VIEWED = ("view_ssim", "view_error", "accuracy", "clipped", "evaluations")
_seen = dict(warp="$camera", reference="$reference", reference_prompt="$reference_words", end_percent=1.0)


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
    Entry(
        "LodestarFeatureCorrespondenceGuidance",      # 64 pixels: the scale is that of unit rms
        (Comparison(Setup("features of the moved view, w = 4", 4.0, (use(FEATURES, scale=0.5, normalise="unit rms", **_seen),), prompts="viewed"),
                    Setup("CFG, w = 4, no view", 4.0, prompts="viewed"), (Claim("view_ssim", "higher"), Claim("view_error", "lower"), Claim("accuracy", "not lower", 0.15)), _VIEWED),),
        (Cost("Feature-Correspondence Guidance", methods=(use(FEATURES, **_seen),)),)),
)
