"""What is measured for restorers of damaged pictures."""
from .plan import Claim, Comparison, Entry, Setup, use

_MANY = "inverse.multi_scale:MultiScaleRestoration"
_METRICS = ("damage_psnr", "damage_features", "damage_seam", "evaluations")
_CLAIMS = (Claim("damage_psnr", "higher"), Claim("damage_features", "lower"))
_SETTINGS = dict(task="damaged", size=32, steps=8)      # four times the cells of other measurements
_PLAIN = Setup("inpainting with the same ControlNet, one scale", 2.0, **_SETTINGS)
_many = lambda label, **values: Setup(label, 2.0, (use(_MANY, **values),), **_SETTINGS)
_against = lambda name, setup: Comparison(setup, _PLAIN, _CLAIMS, _METRICS, name, generators=("unet",))

ENTRIES = (
    Entry("LodestarMultiScaleRestoration", (_against("one scale", _many("Multi-Scale Restoration")),)),
)
