"""What is measured for EDICT, and for what optimises the noise and the text that a picture is sampled from."""
from .methods import DDIM
from .plan import Claim, Comparison, Entry, Setup, use

EDICT = "inversion.edict:EDICTInversion"
NOISE = "loss.initial_noise:OptimiseInitialNoise"
TEXT = "loss.latent_text:OptimiseLatentAndText"
STEPS = 8

_PLAIN = Setup("DDIM inversion, w = 3", 3.0, (use(DDIM, refine=0),), task="inversion")
_CFG = Setup("CFG, w = 4, 8 steps", 4.0, steps=STEPS)
_TRIP = ("round_trip", "ssim_source", "evaluations")
_LED = ("target_distance", "frechet", "clipped", "evaluations")

ENTRIES = (
    Entry("LodestarEDICTInversion", (Comparison(Setup("EDICT, w = 3", 3.0, (use(EDICT),), task="inversion"), _PLAIN, (Claim("round_trip", "lower"),), _TRIP),)),
    Entry("LodestarOptimiseInitialNoise",
          (Comparison(Setup("Optimise Initial Noise, 8 iterations", 4.0, (use(NOISE, loss="$target", iterations=8, clip=0.03),), task="search", steps=STEPS), _CFG, (Claim("target_distance", "lower"),), _LED),)),
    Entry("LodestarOptimiseLatentAndText",
          (Comparison(Setup("Optimise Latent and Text, 8 iterations", 4.0, (use(TEXT, loss="$target", iterations=8, rate=0.1),), task="search", steps=STEPS), _CFG, (Claim("target_distance", "lower"),), _LED),)),
)
