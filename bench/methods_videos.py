"""What is measured on the bundled video model."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use
from .videos import KIND

TEMPERATURE = "attention.temperature:TemporalAttentionTemperature"

_PLAIN = Setup("CFG, w = 4, a video", 4.0, prompts=KIND)
_METRICS = ("flicker", "travel", "accuracy", "clipped")
_still = use(TEMPERATURE, mask="$moving")


def _video(setup, claims, metrics=_METRICS, name=""):
    return Comparison(setup, _PLAIN, claims, metrics, name, generators=("video",))


ENTRIES = (
    Entry("LodestarTemporalAttentionTemperature",      # the mask is where plain sampling shows something
          (_video(Setup("gain 3, w = 4", 4.0, (_still,), prompts=KIND), (Claim("flicker", "lower"), Claim("accuracy", "not lower", 0.1))),),
          (Cost("Temporal Attention Temperature", methods=(_still,), heavy=False, limit=1.05),)),
)
