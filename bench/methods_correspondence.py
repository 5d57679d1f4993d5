"""What is measured for the methods that follow correspondences between two pictures, and for Cocktail."""
from .methods_regions import placed
from .plan import Claim, Comparison, Cost, Entry, Setup, use

DECOUPLED = "attention.decoupled_prompt:DecoupledPrompt"
FEATURES = "attention.feature_correspondence:FeatureCorrespondenceGuidance"
SHAPING = "attention.adapter_shaping:AdapterAttentionShaping"
WEIGHTING = "attention.spatial_weighting:SpatialPromptWeighting"
NORM = "attention.control_norm:ControlNorm"
CORRFILL = "attention.corrfill:CorrFill"

_HOLE = dict(prompts="hole", task="inpaint")
_HOLED = ("hole_error", "recovered", "clipped", "evaluations")
_VIEWED = ("view_ssim", "view_error", "accuracy", "clipped", "evaluations")
_seen = dict(warp="$camera", reference="$reference", reference_prompt="$reference_words", end_percent=1.0)
_TOLD = ("accuracy", "binding_errors", "frechet", "clipped", "std_ratio", "evaluations")
_second = use(DECOUPLED, second="$caption")


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
                    Setup("CFG, w = 4, no view", 4.0, prompts="viewed"), (Claim("view_ssim", "higher"), Claim("view_error", "lower")), _VIEWED),),
        (Cost("Feature-Correspondence Guidance", methods=(use(FEATURES, **_seen),)),)),
    Entry(
        "LodestarDecoupledPrompt",      # the second prompt says the colours that the first leaves out
        (Comparison(Setup("Decoupled Prompt, strength 0.5", 4.0, (_second,), prompts="colourless"), Setup("CFG, w = 4, no colour named", 4.0, prompts="colourless"),
                    (Claim("accuracy", "higher"),), _TOLD, generators=("unet",)),),
        (Cost("Decoupled Prompt", methods=(use(DECOUPLED, second="$forbidden"),), limit=1.2),)),
    Entry(
        "LodestarAdapterAttentionShaping",      # no adapter is bundled: a second prompt in the place of one
        (Comparison(Setup("shaped second prompt, w = 1.5", 1.5, (use(SHAPING), _second), prompts="colourless"), Setup("Decoupled Prompt, w = 1.5", 1.5, (_second,), prompts="colourless"),
                    (Claim("accuracy", "higher"),), _TOLD, "power", ("unet",)),
         Comparison(Setup("shaped second prompt, soft mask, w = 1.5", 1.5, (use(SHAPING, mode="soft mask", quantile=0.65), _second), prompts="colourless"),
                    Setup("Decoupled Prompt, w = 1.5", 1.5, (_second,), prompts="colourless"), (Claim("accuracy", "higher"),), _TOLD, "soft mask", ("unet",))),
        (Cost("Adapter Attention Shaping, with a second prompt", methods=(use(SHAPING), use(DECOUPLED, second="$forbidden")), heavy=False),)),
    Entry(
        "LodestarSpatialPromptWeighting",
        (placed("Spatial Prompt Weighting", use(WEIGHTING, regions="$words"), (Claim("iou", "higher"), Claim("in_box", "higher"))),),
        (Cost("Spatial Prompt Weighting", methods=(use(WEIGHTING, regions="$words"),), peer=r"(?i)paint.?with.?words|cocktail", limit=1.3),)),
    Entry(
        "LodestarControlNorm",      # no ControlNet is bundled: without one nothing changes
        (Comparison(Setup("ControlNorm, no ControlNet", 4.0, (use(NORM),)), Setup("CFG, w = 4", 4.0), (Claim("ssim", "at least", 1.0), Claim("evaluations", "ratio at most", 1.0)),
                    ("ssim", "evaluations"), generators=("unet",)),),
        (Cost("ControlNorm, no ControlNet", methods=(use(NORM),), limit=1.02),)),
)
