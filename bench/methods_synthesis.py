"""What is measured for what degrades pictures."""
from .plan import Claim, Comparison, Entry, Setup, use

_METHOD = "inverse.degradation_synthesis:DegradationSynthesis"
_METRICS = ("mean_error", "mean_follows", "deviation_error", "deviation_follows", "scene_ssim")
_CLAIMS = (Claim("mean_error", "lower"), Claim("deviation_error", "lower"), Claim("mean_follows", "higher"))
_made = lambda label, cfg=2.0, **values: Setup(label, cfg, (use(_METHOD, **values),), task="synthesis")
_SETUP = _made("Degradation Synthesis")
_against = lambda name, base, claims=_CLAIMS: Comparison(_SETUP, base, claims, _METRICS, name, generators=("unet",))

ENTRIES = (
    Entry("LodestarDegradationSynthesis",
          (_against("no level", _made("the same without a level", any_level=True)), _against("image to image", Setup("the plain model from the middle of the schedule", 4.0, task="synthesis image to image")),
           _against("image scale 1", _made("the same at image scale 1", image_scale=1.0), (Claim("scene_ssim", "higher"),)),
           _against("true pictures", Setup("the true degraded pictures", 1.0, task="synthesis true"), ()))),
)
