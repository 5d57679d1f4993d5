"""What is measured for methods that run with weights of their own, or beside a reference with its own control."""
from .plan import CAPTION_METRICS, PLACED_METRICS, Claim, Comparison, Cost, Entry, Setup, use

DEPTH = "attention.depth_injection:DepthGuidedInjection"
EASY = "attention.easycontrol:EasyControl"
GLYPH = "attention.glyph_adaptive:GlyphAdaptiveAttention"
SUBJECTS = "attention.subject_attention:MaskedSubjectAttention"
MUTUAL = "attention.mutual:MutualSelfAttention"

_told = dict(reference="$reference", reference_prompt="$reference_words")
_read = dict(recogniser="$reader", vae="$vae", text="$letters", every=2)
_AGREEING = ("background", "palette", "accuracy", "clipped", "std_ratio", "evaluations")

ENTRIES = (
    Entry(
        "LodestarMaskedSubjectAttention",      # the prompt names two shapes; pictures show their colours, regions say where
        (Comparison(Setup("subjects in their boxes, scale 1", 4.0, (use(SUBJECTS, subjects="$subjects", scale=1.0),), prompts="pictured"), Setup("shapes named, no pictures", 4.0, prompts="pictured"),
                    (Claim("objects", "higher"), Claim("iou", "higher"), Claim("in_box", "higher")), PLACED_METRICS, generators=("unet",)),),
        (Cost("Masked Subject Attention, 2 subjects", methods=(use(SUBJECTS, subjects="$subjects"),), heavy=False, peer=r"(?i)ip.?adapter"),)),
    Entry(
        "LodestarEasyControl",      # the outlines of the captions' scenes: how near the pictures come to them
        (Comparison(Setup("EasyControl, outlines, w = 4", 4.0, (use(EASY, condition="$outlines", lora="$outlines_lora"),)), Setup("CFG, w = 4", 4.0),
                    (Claim("target_distance", "lower"), Claim("accuracy", "not lower", 0.1)), CAPTION_METRICS + ("target_distance",), generators=("dit",)),),
        (Cost("EasyControl, condition of the picture's size", methods=(use(EASY, condition="$outlines"),), heavy=False, peer=r"(?i)easycontrol"),)),
    Entry(
        "LodestarGlyphAdaptiveAttention",      # against the same source at full strength: legible shapes, and still the source's background and colours
        (Comparison(Setup("glyph-adaptive alpha", 4.0, (use(GLYPH, **_told, **_read),), prompts="styled"),
                    Setup("alpha 1", 4.0, (use(MUTUAL, start_percent=0.48, **_told),), prompts="styled"),
                    (Claim("accuracy", "higher"), Claim("background", "not lower", 0.1)), _AGREEING),),
        (Cost("Glyph-Adaptive Attention", methods=(use(GLYPH, **_told, **_read),), heavy=False),)),
    Entry(
        "LodestarDepthGuidedInjection",      # no depth ControlNet is bundled: texture from the reference, places from the prompt
        (Comparison(Setup("injection, no depth", 4.0, (use(DEPTH, **_told),), prompts="moved"), Setup("CFG, w = 4, no reference", 4.0, prompts="moved"),
                    (Claim("background", "higher"), Claim("palette", "higher"), Claim("accuracy", "not lower", 0.15)), _AGREEING),),
        (Cost("Depth-Guided Injection", methods=(use(DEPTH, **_told),), heavy=False),)),
)
