"""What is measured for pairs of streams."""
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

UNICON = "attention.unicon:UniCon"
_ways = dict(weights="$depth_pair")
_METRICS = tuple(m for m in CAPTION_METRICS if m != "diversity")      # each prompt has one pair


def _pair(mode, name, claims, metrics, prompts="captions", w=4.0, label=""):
    """The streams that see each other against the same streams apart: the same weights, noise and prompts."""
    return Comparison(Setup(f"UniCon, {mode}{label}", w, (use(UNICON, **_ways),), prompts=prompts, task=mode), Setup(f"streams apart, {mode}{label}", w, (use(UNICON, joint_scale=0.0, **_ways),), prompts=prompts, task=mode),
                      claims, metrics, name, generators=("unet",))


ENTRIES = (
    Entry(
        "LodestarUniCon",      # the scenes' depth is given or asked for; the picture of streams apart is the plain model's
        (_pair("image from condition", "image from depth", (Claim("depth_overlap", "higher"), Claim("accuracy", "not lower", 0.15)), _METRICS + ("depth_overlap",)),
         _pair("condition from image", "depth from image", (Claim("depth_error", "lower"), Claim("depth_overlap", "higher")), ("depth_error", "depth_overlap", "evaluations"), "empty", 1.0),
         _pair("both", "both", (Claim("depth_overlap", "higher"), Claim("accuracy", "not lower", 0.15)), _METRICS + ("depth_overlap",))),
        (Cost("UniCon, picture and depth (twice the rows)", methods=(use(UNICON, **_ways),), task="both", heavy=False),)),
)
