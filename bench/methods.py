"""What is measured for the foundation's methods: their setups, the bases they are compared with, and the papers' claims."""
from .plan import CAPTION_METRICS, FREE_METRICS, Claim, Comparison, Cost, Entry, Setup, use

PLAIN = Setup("no guidance, w = 1", 1.0)
CFG = Setup("CFG, w = 4", 4.0)
HIGH = Setup("CFG, w = 8", 8.0)
EMPTY = Setup("no prompt, no guidance", 1.0, prompts="empty")
COLOURLESS = Setup("no colour named, w = 1", 1.0, prompts="colourless")

APG = "rules.apg:AdaptiveProjectedGuidance"
AG = "rules.adaptive:AdaptiveGuidance"
CFGPP = "samplers.cfgpp:CFGPlusPlusSampler"
DDIM = "inversion.ddim:DDIMInversion"
INSPECTOR = "inspection.inspector:GuidanceInspector"
INTERVAL = "rules.interval:GuidanceInterval"
NAG = "attention.nag:NormalizedAttentionGuidance"
PAG = "perturbation.pag:PerturbedAttentionGuidance"
PAIR = "rules.model_pair:ModelPairGuidance"
UNIVERSAL = "loss.universal:UniversalGuidance"

_SIMILAR = CAPTION_METRICS + ("ssim",)
_plain_inversion = Setup("no refinement", 1.0, (use(DDIM, refine=0),), task="inversion")

ENTRIES = (
    Entry(
        "LodestarAdaptiveProjectedGuidance",
        (Comparison(Setup("APG, w = 8", 8.0, (use(APG),)), HIGH,
                    (Claim("clipped", "lower"), Claim("std_ratio", "lower"), Claim("accuracy", "not lower", 0.1), Claim("frechet", "lower"))),),
        (Cost("APG", methods=(use(APG),), host=("APG", {"eta": 0.0, "norm_threshold": 10.0, "momentum": -0.5}), peer=r"(?i)adaptive.?project|\bapg", limit=1.01),)),
    Entry(
        "LodestarGuidanceInterval",
        (Comparison(Setup("CFG, w = 4, middle half", 4.0, (use(INTERVAL, start_percent=0.25, end_percent=0.75),)), CFG,
                    (Claim("evaluations", "ratio at most", 0.76), Claim("diversity", "higher"), Claim("frechet", "not higher"))),),
        (Cost("Interval, inside", methods=(use(INTERVAL, start_percent=0.0, end_percent=0.999),), peer=r"(?i)interval|limiter", limit=1.01),)),
    Entry(
        "LodestarAdaptiveGuidance",
        (Comparison(Setup("AG, w = 4", 4.0, (use(AG),)), CFG,
                    (Claim("evaluations", "ratio at most", 0.8), Claim("ssim", "at least", 0.9), Claim("accuracy", "not lower", 0.1)), _SIMILAR),),
        (Cost("AG, before convergence", methods=(use(AG, threshold=1.0),), peer=r"(?i)adaptive.?guid", limit=1.01),)),
    Entry(
        "LodestarPerturbedAttentionGuidance",
        (Comparison(Setup("PAG, scale 2, no prompt", 1.0, (use(PAG, scale=2.0),), prompts="empty"), EMPTY, (Claim("frechet", "lower"),), FREE_METRICS, "empty prompt"),
         Comparison(Setup("PAG, scale 2, w = 1", 1.0, (use(PAG, scale=2.0),)), PLAIN, (Claim("accuracy", "higher"), Claim("frechet", "lower")), name="w = 1")),
        (Cost("PAG", methods=(use(PAG),), host=("PerturbedAttention", {"scale": 3.0}), peer=r"(?i)perturbed.?att|\bpag", limit=1.55),)),
    Entry(
        "LodestarModelPairGuidance",
        (Comparison(Setup("weakened copy, scale 1, w = 1", 1.0, (use(PAIR, weak_model="$weak", scale=1.0),)), PLAIN,
                    (Claim("frechet", "lower"), Claim("accuracy", "higher"))),),
        (Cost("Model Pair", methods=(use(PAIR, weak_model="$weak"),), peer=r"(?i)auto.?guid"),)),
    Entry(
        "LodestarNormalizedAttentionGuidance",
        (Comparison(Setup("NAG, scale 4, w = 1", 1.0, (use(NAG, negative="$forbidden"),), prompts="colourless"), COLOURLESS,
                    (Claim("forbidden", "lower"),), ("forbidden", "clipped", "std_ratio", "evaluations")),),
        (Cost("NAG, w = 1", 1.0, (use(NAG, negative="$forbidden"),), peer=r"(?i)\bnag|normalized.?att"),)),
    Entry(
        "LodestarUniversalGuidance",
        (Comparison(Setup("target loss, scale 0.5, w = 4", 4.0, (use(UNIVERSAL, loss="$target", scale=0.5),)), CFG,
                    (Claim("target_distance", "lower"), Claim("accuracy", "not lower", 0.1)), CAPTION_METRICS + ("target_distance",)),),
        (Cost("Universal, through the network", methods=(use(UNIVERSAL, loss="$target", scale=0.5),), heavy=False),
         Cost("Universal, checkpointed", methods=(use(UNIVERSAL, loss="$target", scale=0.5, route="checkpoint"),), heavy=False),
         Cost("Universal, no Jacobian", methods=(use(UNIVERSAL, loss="$target", scale=0.5, route="none"),)))),
    Entry(
        "LodestarCFGPlusPlusSampler",
        (Comparison(Setup("CFG++, scale 0.6", 4.0, sampler=use(CFGPP, scale=0.6)), Setup("CFG, w = 7.5", 7.5),
                    (Claim("accuracy", "not lower", 0.1), Claim("clipped", "lower"), Claim("frechet", "lower"))),),
        (Cost("CFG++", sampler=use(CFGPP)),)),
    Entry(
        "LodestarDDIMInversion",
        (Comparison(Setup("2 refinements", 1.0, (use(DDIM, refine=2),), task="inversion"), _plain_inversion, (Claim("round_trip", "lower"),),
                    ("round_trip", "ssim_source", "evaluations"), "refined"),
         Comparison(Setup("40 steps", 1.0, (use(DDIM, refine=0),), task="inversion", steps=40), _plain_inversion, (Claim("round_trip", "lower"),),
                    ("round_trip", "ssim_source", "evaluations"), "more steps")),
        (Cost("DDIM inversion, plain", 1.0, (use(DDIM, refine=0),), task="inversion"),)),
    Entry(
        "LodestarGuidanceInspector",
        (Comparison(Setup("inspected, w = 4", 4.0, (use(INSPECTOR, record="$record"),)), CFG, (Claim("ssim", "at least", 1.0), Claim("evaluations", "ratio at most", 1.0)),
                    ("ssim", "evaluations")),),
        (Cost("Inspector", methods=(use(INSPECTOR, record="$record"),)),)),
)
