"""What is measured for the methods that take regions, or act on words of the prompt."""
from .plan import PLACED_METRICS, Claim, Comparison, Cost, Entry, Setup, use

DENSE = "attention.dense:DenseDiffusion"
REGIONAL = "attention.regional:RegionalPrompts"

PLACED = Setup("CFG, w = 4, no boxes", 4.0, prompts="placed")


def placed(label, used, claims, prompts="placed", generators=("unet", "dit")):
    """A layout method against the same objects without boxes."""
    return Comparison(Setup(label, 4.0, (used,), prompts=prompts), PLACED, claims, PLACED_METRICS, generators=generators)


ENTRIES = (
    Entry(
        "LodestarRegionalPrompts",
        (placed("Regional Prompts", use(REGIONAL, regions="$regions"), (Claim("iou", "higher"), Claim("in_box", "higher")), "regional"),),
        (Cost("Regional Prompts, 2 regions", methods=(use(REGIONAL, regions="$regions"),), peer=r"(?i)regional|couple"),)),
    Entry(
        "LodestarDenseDiffusion",
        (placed("Dense Diffusion", use(DENSE, regions="$words"), (Claim("iou", "higher"), Claim("in_box", "higher"))),),
        (Cost("Dense Diffusion, while it acts", methods=(use(DENSE, regions="$words", end_percent=1.0),), peer=r"(?i)dense"),)),
)
