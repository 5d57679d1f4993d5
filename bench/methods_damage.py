"""What is measured for restorers of damaged pictures."""
from .plan import Claim, Comparison, Entry, Setup, use

_MANY = "inverse.multi_scale:MultiScaleRestoration"
_METRICS = ("damage_psnr", "damage_features", "damage_seam", "evaluations")
_CLAIMS = (Claim("damage_psnr", "higher"), Claim("damage_features", "lower"))
_many = lambda label, **values: Setup(label, 2.0, (use(_MANY, **values),), task="damaged", size=32)
_PLAIN = Setup("inpainting with the same ControlNet, one scale", 2.0, task="damaged", size=32)
_against = lambda name, setup, base, claims=_CLAIMS: Comparison(setup, base, claims, _METRICS, name, generators=("unet",))

ENTRIES = (
    Entry("LodestarMultiScaleRestoration",
          (_against("one scale", _many("Multi-Scale Restoration"), _PLAIN),
           _against("small picture alone", _many("the small picture alone", fine=0.0), _PLAIN),
           _against("crops alone", _many("the crops alone", coarse=0.0), _PLAIN),
           _against("schedule alone", _many("Multi-Scale Restoration"), _many("by the schedule alone", agreement=0.0)))),
)
