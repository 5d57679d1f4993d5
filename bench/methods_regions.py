"""What is measured for the methods that take regions, or act on words of the prompt."""
from .plan import CAPTION_METRICS, PLACED_METRICS, Claim, Comparison, Cost, Entry, Setup, use

DENSE = "attention.dense:DenseDiffusion"
DIRECTED = "attention.directed:DirectedDiffusion"
MULTI = "rules.multi_conditional:MultiConditionalCFG"
NASA = "attention.nasa:NegativeAwaySteerAttention"
P2P = "attention.prompt_to_prompt:PromptToPrompt"
REGIONAL = "attention.regional:RegionalPrompts"
STRUCTURED = "attention.structured:StructuredDiffusionGuidance"

PLACED = Setup("CFG, w = 4, no boxes", 4.0, prompts="placed")
COLOURLESS = Setup("no colour named, w = 1", 1.0, prompts="colourless")


_first, _second = (use(MULTI, condition=f"${n}", mask=f"${n}_place", scale=4.0) for n in ("first", "second"))


def placed(label, used, claims, prompts="placed", generators=("unet", "dit"), w=4.0):
    """A layout method (or several) against the same objects without boxes."""
    return Comparison(Setup(label, w, used if isinstance(used, tuple) else (used,), prompts=prompts), PLACED, claims, PLACED_METRICS, generators=generators)


ENTRIES = (
    Entry(
        "LodestarRegionalPrompts",
        (placed("Regional Prompts", use(REGIONAL, regions="$regions"), (Claim("iou", "higher"), Claim("in_box", "higher")), "regional"),),
        (Cost("Regional Prompts, 2 regions", methods=(use(REGIONAL, regions="$regions"),), peer=r"(?i)regional|couple"),)),
    Entry(
        "LodestarMultiConditionalCFG",      # each object's words in its own box, beside the prompt that names both and no place
        (placed("both objects' words in their boxes, scale 4 each, w = 1.5", (_first, _second), (Claim("iou", "higher"), Claim("in_box", "higher")), w=1.5),),
        (Cost("Multi-Conditional CFG, 2 conditions", methods=(_first, _second), limit=2.05),)),
    Entry(
        "LodestarDenseDiffusion",
        (placed("Dense Diffusion", use(DENSE, regions="$words"), (Claim("iou", "higher"), Claim("in_box", "higher"))),),
        (Cost("Dense Diffusion, while it acts", methods=(use(DENSE, regions="$words", end_percent=1.0),), peer=r"(?i)dense"),)),
    Entry(
        "LodestarDirectedDiffusion",      # the bundled text encoder's padding knows nothing of the layout: no trailing tokens
        (placed("Directed Diffusion, half of the steps", use(DIRECTED, regions="$words", trailing=0, steps=0.5), (Claim("iou", "higher"), Claim("in_box", "higher")),
                generators=("unet",)),),
        (Cost("Directed Diffusion, while it acts", methods=(use(DIRECTED, regions="$words", steps=1.0),), peer=r"(?i)directed"),)),
    Entry(
        "LodestarNegativeAwaySteerAttention",
        (Comparison(Setup("NASA, scale 0.3, w = 1", 1.0, (use(NASA, negative="$forbidden"),), prompts="colourless"), COLOURLESS,
                    (Claim("forbidden", "lower"),), ("forbidden", "clipped", "std_ratio", "evaluations"), generators=("unet",)),),
        (Cost("NASA, w = 1", 1.0, (use(NASA, negative="$forbidden"),), peer=r"(?i)\bnasa"),)),
    Entry(
        "LodestarSceneGraphLayout",
        (Comparison(Setup("relation as a layout, by Dense Diffusion", 4.0, (use(DENSE, regions="$graph"),), prompts="graph"), Setup("relation not told", 4.0, prompts="graph"),
                    (Claim("accuracy", "higher"),), ("accuracy", "objects", "frechet", "evaluations")),)),
    Entry(
        "LodestarStructuredDiffusionGuidance",
        (Comparison(Setup("structured values, w = 4", 4.0, (use(STRUCTURED, text="captions", texts="$structured"),)), Setup("CFG, w = 4", 4.0),
                    (Claim("binding_errors", "not higher"), Claim("accuracy", "not lower", 0.1)), CAPTION_METRICS, generators=("unet",)),),
        (Cost("Structured values", methods=(use(STRUCTURED, text="captions", texts="$structured"),), peer=r"(?i)structur"),)),
    Entry(
        "LodestarPromptToPrompt",      # the coarsest grid of the bundled U-Net is half of its latent's
        (Comparison(Setup("Prompt-to-Prompt, replace", 4.0, (use(P2P, pair="$pair", detail=2),), prompts="edit"), Setup("the edited prompt alone, same noise", 4.0, prompts="edit"),
                    (Claim("ssim_before", "higher"), Claim("accuracy", "not lower", 0.15)), ("ssim_before", "accuracy", "frechet", "clipped", "evaluations")),),
        (Cost("Prompt-to-Prompt, per pair", methods=(use(P2P, pair="$pair", detail=2, cross_steps=1.0, self_steps=1.0),), heavy=False, peer=r"(?i)prompt.?to.?prompt|\bp2p"),)),
)
