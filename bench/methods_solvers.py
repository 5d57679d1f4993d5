"""What is measured for the samplers that are led by a loss, keep a part of a picture, correct by particles, or search for a noise; on one model, for most take backward passes. The solvers of measurements
are in bench.restoration."""
from .methods_distillation import distilled
from .methods_particles import BEST
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

DDA = "inverse.dda:DiffusionDrivenAdaptation"
DREAM = "loss.solvers.dreamguider:Dreamguider"
EDICT = "inversion.edict:EDICTInversion"
FKC = "particles.fkc:FeynmanKacCorrector"
FREE2 = "particles.free2guide:Free2Guide"
FREEDOM = "loss.solvers.freedom:FreeDoM"
GEO = "loss.solvers.geoguide:GeoGuide"
HYBRID = "distillation.hybrid:HybridDistillation"
MASKED = "inverse.masked_sampler:MaskedSampler"
NOISE = "loss.initial_noise:OptimiseInitialNoise"
PROJECTION = "inverse.projection:EstimateProjection"
REFINE = "loss.refine:LossRefinement"
SGG = "loss.solvers.semantic:SemanticGradientGuidance"
TEXT = "loss.latent_text:OptimiseLatentAndText"
TFG = "loss.solvers.tfg:TrainingFreeGuidance"
UNIVERSAL = "loss.solvers.universal:UniversalGuidanceSampler"

_cfg = Setup("CFG, w = 4", 4.0)
_TARGET = ("target_distance", *(m for m in CAPTION_METRICS if m not in ("binding_errors", "diversity")))
_near = (Claim("target_distance", "lower"), Claim("accuracy", "not lower", 0.1))
_unet = dict(generators=("unet",))


def _led(node_id, label, path, base=_cfg, claims=_near, metrics=_TARGET, **values):
    """A sampler that is led to the wanted picture's latent, beside plain sampling."""
    sampler = use(path, loss="$target", **values)
    return Entry(node_id, (Comparison(Setup(f"{label}, w = 4", 4.0, sampler=sampler), base, claims, metrics, **_unet),), (Cost(label, sampler=sampler, heavy=False),))


def _with(node_id, label, sampler, claims, metrics, base=_cfg, w=4.0):
    return Entry(node_id, (Comparison(Setup(label, w, sampler=sampler), base, claims, metrics, **_unet),), (Cost(label, sampler=sampler, heavy=False),))


def _search(node_id, label, path, **values):
    """A search for what sampling gives a picture near the wanted one; its plain sampling beside it."""
    method = lambda iterations: Setup(f"{label}, {iterations} iterations, w = 4" if iterations else "sampled plainly, 10 steps, w = 4", 4.0, (use(path, loss="$target", iterations=iterations, cfg=4.0, steps=10, **values),),
                                      task="search", steps=10)
    return Entry(node_id, (Comparison(method(10), method(0), (Claim("target_distance", "lower"),), ("target_distance", "accuracy", "clipped", "evaluations"), **_unet),))


_corrected = lambda particles: Setup(f"guidance 2 by Feynman-Kac, {particles} particle{'s' if particles > 1 else ''}", 1.0, sampler=use(FKC, guidance=2.0, particles=particles))
_round = lambda label, cls, **values: Setup(label, 4.0, (use(cls, **values),), task="inversion")

ENTRIES = (
    _led("LodestarFreeDoM", "FreeDoM", FREEDOM),
    _led("LodestarGeoGuide", "GeoGuide", GEO),
    _led("LodestarTrainingFreeGuidance", "Training-Free Guidance, mu 8", TFG, mu=8.0),
    _led("LodestarDreamguider", "Dreamguider", DREAM),
    _led("LodestarUniversalGuidanceSampler", "Universal Guidance Sampler", UNIVERSAL),
    _led("LodestarSemanticGradientGuidance", "Semantic Gradient Guidance", SGG, labels="$labels"),
    _led("LodestarFree2Guide", "Free2Guide, 4 candidates, 8 choices", FREE2, BEST, (Claim("target_distance", "lower"),), ("target_distance", "accuracy", "evaluations"), candidates=4, steps=8),
    Entry("LodestarFeynmanKacCorrector",
          (Comparison(_corrected(4), _corrected(1), (Claim("frechet", "lower"), Claim("accuracy", "not lower", 0.1)), CAPTION_METRICS, **_unet),), (Cost("Feynman-Kac Corrector, 4 particles", sampler=use(FKC, particles=4), heavy=False),)),
    _with("LodestarDiffusionDrivenAdaptation", "the wanted picture's low-pass part kept, w = 4", use(DDA, source="$reference"), _near, _TARGET),
    _with("LodestarMaskedSampler", "left half kept, w = 4", use(MASKED, source="$reference", mask="$right"), (Claim("known_error", "at most", 1e-3), Claim("accuracy", "not lower", 0.1)), ("known_error", *CAPTION_METRICS)),
    _with("LodestarEstimateProjection", "onto pictures of 8 pixel blocks, w = 4", use(PROJECTION, operator="$blocks", vae="$vae"), (Claim("outside", "lower"),), ("outside", "accuracy", "clipped", "evaluations")),
    Entry("LodestarEDICTInversion",
          (Comparison(_round("EDICT, there and back at w = 4", EDICT), _round("DDIM, there and back at w = 4", "inversion.ddim:DDIMInversion", refine=0), (Claim("round_trip", "lower"),),
                      ("round_trip", "ssim_source", "evaluations"), **_unet),)),
    Entry("LodestarEDICTSampler",
          (Comparison(Setup("EDICT, mix 0.8, w = 4", 4.0, sampler=use("inversion.edict:EDICTSampler", mix=0.8)), _cfg, (Claim("accuracy", "not lower", 0.1), Claim("frechet", "not higher", 1.0)), CAPTION_METRICS, **_unet),)),
    _search("LodestarOptimiseInitialNoise", "noise optimised", NOISE, rate=1.0, clip=0.1, scheduler="normal"),
    _search("LodestarOptimiseLatentAndText", "noise and text optimised", TEXT, rate=0.05, latent=1.0, scheduler="normal"),
    Entry("LodestarLossRefinement",
          (Comparison(Setup("refined, 30 steps", 4.0, (use(REFINE, loss="$target", steps=30, rate=0.05, optimiser="Adam"),), task="refined"), _cfg, (Claim("target_distance", "lower"),), ("target_distance", "accuracy", "clipped"), **_unet),)),
    Entry("LodestarScoreDistillation",      # the runner of all of them: SDS, as in that node's own row
          (Comparison(distilled("SDS", use("distillation.sds:SDSGuidance")), Setup("sampled, CFG, w = 4", 4.0), (), ("accuracy", "objects", "frechet", "clipped", "std_ratio", "evaluations"), **_unet),)),
)
