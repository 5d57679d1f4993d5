"""What is measured for edits of the whole network and for readers of attention."""
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

CFG = Setup("CFG, w = 4", 4.0)
MILD = Setup("CFG, w = 2", 2.0)
COUNTED = CAPTION_METRICS + ("count",)

ENTROPY = "attention.entropy:AttentionEntropyScaling"
PLADIS = "attention.pladis:PLADIS"
FREEU = "attention.freeu:FreeU"
DRAFT = "attention.draft:DraftAttention"
CAPTURE = "inspection.attention_maps:CaptureAttention"

_draft = dict(kept=0.5, pool_height=2, pool_width=2, least_tokens=0, layers="all")

ENTRIES = (
    Entry(
        "LodestarAttentionEntropyScaling",
        (Comparison(Setup("entropy scaling, 24 x 24", 4.0, (use(ENTROPY, train_width=128),), size=24), Setup("CFG, 24 x 24", 4.0, size=24),
                    (Claim("count", "higher"), Claim("frechet", "lower")), COUNTED, "larger"),
         Comparison(Setup("entropy scaling, 12 x 12", 4.0, (use(ENTROPY, train_width=128),), size=12), Setup("CFG, 12 x 12", 4.0, size=12),
                    (Claim("count", "higher"), Claim("frechet", "lower")), COUNTED, "smaller")),
        (Cost("Entropy scaling", methods=(use(ENTROPY, train_width=128, train_height=96),), limit=1.05),)),
    Entry(
        "LodestarPLADIS",
        (Comparison(Setup("PLADIS, amount 2, w = 2", 2.0, (use(PLADIS),)), MILD, (Claim("accuracy", "higher"), Claim("frechet", "lower")), generators=("unet",)),),
        (Cost("PLADIS", methods=(use(PLADIS),), peer=r"(?i)pladis"),)),
    Entry(
        "LodestarFreeU",
        (Comparison(Setup("FreeU, w = 2", 2.0, (use(FREEU),)), MILD, (Claim("frechet", "lower"),), generators=("unet",)),),
        (Cost("FreeU", methods=(use(FREEU),), host=("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}), peer=r"(?i)freeu"),)),
    Entry(
        "LodestarDraftAttention",
        (Comparison(Setup("half of the attention", 4.0, (use(DRAFT, **_draft),)), CFG, (Claim("ssim", "at least", 0.8), Claim("accuracy", "not lower", 0.1)),
                    CAPTION_METRICS + ("ssim",)),),
        (Cost("Draft, quarter kept", methods=(use(DRAFT, least_tokens=0, start_percent=0.0),)),)),
    Entry(
        "LodestarCaptureAttention",
        (Comparison(Setup("read, w = 4", 4.0, (use(CAPTURE),)), CFG, (Claim("ssim", "at least", 1.0), Claim("evaluations", "ratio at most", 1.0)), ("ssim", "evaluations")),),
        (Cost("Capture Attention", methods=(use(CAPTURE),), limit=1.2),)),
)
