"""What is measured for the perturbation family beside PAG."""
from .methods import CFG, EMPTY, PLAIN
from .plan import FREE_METRICS, Claim, Comparison, Cost, Entry, Setup, use

BLUR = "perturbation.sag:BlurGuidance"
S2 = "perturbation.s2:StochasticSelfGuidance"
SAG = "perturbation.sag:SelfAttentionGuidance"
SEG = "perturbation.seg:SmoothedEnergyGuidance"
SLG = "perturbation.slg:SkipLayerGuidance"
STG = "perturbation.stg:SpatiotemporalSkipGuidance"
SWG = "perturbation.swg:SlidingWindowGuidance"
TPG = "perturbation.tpg:TokenPerturbationGuidance"
UPSAMPLE = "perturbation.upsample:UpsampleGuidance"

_LARGE = Setup("CFG, w = 4, twice as large", 4.0, size=32)
_FREE, _TOLD = (Claim("frechet", "lower"),), (Claim("accuracy", "higher"), Claim("frechet", "lower"))


def _pair(label, method, free=True):
    """The method without a prompt, and with one at w = 1."""
    told = Comparison(Setup(f"{label}, w = 1", 1.0, (method,)), PLAIN, _TOLD, name="w = 1")
    return (Comparison(Setup(f"{label}, no prompt", 1.0, (method,), prompts="empty"), EMPTY, _FREE, FREE_METRICS, "empty prompt"), told) if free else (told,)


ENTRIES = (
    Entry("LodestarSmoothedEnergyGuidance", _pair("SEG, scale 0.5, all layers", use(SEG, scale=0.5, layers="all")),
          (Cost("SEG", methods=(use(SEG),), peer=r"(?i)smoothed.?energy|\bseg\b", limit=1.6),)),
    Entry("LodestarTokenPerturbationGuidance", _pair("TPG, scale 1", use(TPG, scale=1.0)),
          (Cost("TPG", methods=(use(TPG),), peer=r"(?i)token.?perturb", limit=1.6),)),
    Entry("LodestarSkipLayerGuidance", _pair("SLG, scale 2, all steps", use(SLG, scale=2.0, start_percent=0.0, end_percent=1.0), free=False),
          (Cost("SLG", methods=(use(SLG, start_percent=0.0, end_percent=1.0),), peer=r"(?i)skip.?layer", limit=1.6),
           Cost("SLG, negative only", methods=(use(SLG, start_percent=0.0, end_percent=1.0, mode="negative only"),), limit=1.1))),
    Entry("LodestarSpatiotemporalSkipGuidance", _pair("STG, scale 2, attention", use(STG, scale=2.0, mode="attention")) + (
        Comparison(Setup("STG, scale 2, attention over the frames, w = 2", 2.0, (use(STG, scale=2.0, mode="attention", axis="temporal"),), prompts="video"),
                   Setup("CFG, w = 2, a video", 2.0, prompts="video"), (Claim("accuracy", "higher"), Claim("flicker", "not higher", 0.005)), ("accuracy", "flicker", "travel", "clipped", "evaluations"),
                   "over the frames of a video", ("video",)),),
          (Cost("STG", methods=(use(STG),), peer=r"(?i)spatio.?temporal|\bstg", limit=1.6),)),
    Entry("LodestarStochasticSelfGuidance",
          (Comparison(Setup("S2, scale 0.25, w = 4", 4.0, (use(S2),)), CFG, (Claim("accuracy", "not lower", 0.1), Claim("frechet", "lower"))),),
          (Cost("S2", methods=(use(S2, start_percent=0.0, end_percent=1.0),), peer=r"(?i)s2.?guid|stochastic.?self", limit=1.6),)),
    Entry("LodestarSelfAttentionGuidance", _pair("SAG, scale 0.5", use(SAG)),
          (Cost("SAG", methods=(use(SAG),), host=("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}), peer=r"(?i)\bsag\b"),)),
    Entry("LodestarBlurGuidance", _pair("Blur Guidance, scale 0.5", use(BLUR)), (Cost("Blur Guidance", methods=(use(BLUR),)),)),
    Entry("LodestarSlidingWindowGuidance", _pair("M-SWG, scale 0.5", use(SWG)), (Cost("M-SWG", methods=(use(SWG),), peer=r"(?i)sliding.?window"),)),
    Entry("LodestarUpsampleGuidance",
          (Comparison(Setup("Upsample Guidance, w = 4, twice as large", 4.0, (use(UPSAMPLE),), size=32), _LARGE, _TOLD, name="twice as large"),),
          (Cost("Upsample Guidance", methods=(use(UPSAMPLE),)),)),
)
