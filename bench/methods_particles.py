"""What is measured for the particle samplers: a loss that they see by its values alone, against the best of as many pictures, and against the plain sampler."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

FK = "particles.steering:ParticleSteering"
SVDD = "particles.svdd:SVDD"
LEARNED = "particles.learned_value:LearnedValueDecoding"

_METRICS = ("target_distance", "accuracy", "evaluations")
_NEARER = (Claim("target_distance", "lower"),)
_PLAIN = Setup("CFG, w = 4, ancestral", 4.0, sampler=use(FK, loss="$target", particles=1))
BEST = Setup("CFG, w = 4, the best of 4", 4.0, sampler=use(FK, loss="$target", particles=4, strength=0.0))
_STEERED = Setup("4 particles, strength 50, target by its values", 4.0, sampler=use(FK, loss="$target", particles=4, strength=50.0, every=2))
_CHOSEN = Setup("4 candidates, target by its values", 4.0, sampler=use(SVDD, loss="$target", candidates=4))

_CONTRAST = Setup("CFG, w = 4, 4 candidates, learned value of contrast", 4.0, sampler=use(LEARNED, value="$contrast_value", candidates=4))
_UNCHOSEN = Setup("CFG, w = 4, ancestral", 4.0, sampler=use(LEARNED, value="$contrast_value", candidates=1))

ENTRIES = (
    Entry("LodestarParticleSteering",
          (Comparison(_STEERED, BEST, _NEARER, _METRICS, "against the best of 4", ("unet",)), Comparison(_STEERED, _PLAIN, _NEARER, _METRICS, "against one", ("unet",))),
          (Cost("Particle Steering, 4 particles", sampler=use(FK, loss="$target", particles=4), heavy=False),)),
    Entry("LodestarSVDDSampler",
          (Comparison(_CHOSEN, BEST, _NEARER, _METRICS, "against the best of 4", ("unet",)), Comparison(_CHOSEN, _PLAIN, _NEARER, _METRICS, "against one", ("unet",))),
          (Cost("SVDD, 4 candidates", sampler=use(SVDD, loss="$target", candidates=4), heavy=False),)),
    Entry("LodestarLearnedValueSampler",
          (Comparison(_CONTRAST, _UNCHOSEN, (Claim("std_ratio", "higher"),), ("std_ratio", "accuracy", "evaluations"), "against one", ("unet",)),),
          (Cost("SVDD, 4 candidates, learned value", sampler=use(LEARNED, value="$contrast_value", candidates=4), heavy=False),)),
)
