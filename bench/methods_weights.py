"""What is measured for methods beside a reference with its own control."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

DEPTH = "attention.depth_injection:DepthGuidedInjection"

_told = dict(reference="$reference", reference_prompt="$reference_words")
_AGREEING = ("background", "palette", "accuracy", "clipped", "std_ratio", "evaluations")

ENTRIES = (
    Entry(
        "LodestarDepthGuidedInjection",      # no depth ControlNet is bundled: texture from the reference, places from the prompt
        (Comparison(Setup("injection, no depth", 4.0, (use(DEPTH, **_told),), prompts="moved"), Setup("CFG, w = 4, no reference", 4.0, prompts="moved"),
                    (Claim("background", "higher"), Claim("palette", "higher"), Claim("accuracy", "not lower", 0.15)), _AGREEING),),
        (Cost("Depth-Guided Injection", methods=(use(DEPTH, **_told),), heavy=False),)),
)
