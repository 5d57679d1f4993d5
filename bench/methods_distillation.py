"""What is measured for score distillation: pictures that were optimised, beside pictures that were sampled."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

SDS = "distillation.sds:SDSGuidance"
HIFA = "distillation.hifa:HiFAGuidance"
DSD = "distillation.dsd:DenoisedScoreDistillation"
ISM = "distillation.ism:IntervalScoreMatching"
TSM = "distillation.tsm:TrajectoryScoreMatching"
SCORE = use("distillation.distil:ScoreDistillation", rate=0.2)
HYBRID = "distillation.hybrid:HybridDistillation"
PIXELS = use("distillation.distil:DistilPictures", rate=0.03)
COMPOSITE = "distillation.composite:CompositeDistillation"
WORDS = "attention.spatial_words:SpatialWordAttention"
CALM = use("distillation.distil:ScoreDistillation", rate=0.05, optimiser="SGD")      # where nothing draws grain out again
ITERATIONS = 50
METRICS = ("accuracy", "objects", "frechet", "clipped", "std_ratio", "evaluations")

SAMPLED = Setup("sampled, CFG, w = 4", 4.0)


def distilled(label, guidance, cfg=7.5, prompts="captions", others=(), score=SCORE, task="distil"):
    return Setup(f"{label}, {ITERATIONS} iterations, w = {cfg:g}", cfg, (guidance, score, *others), task=task, steps=ITERATIONS, prompts=prompts)


PLAIN = distilled("SDS", use(SDS))


def _against(setup, base, claims=(), name="", metrics=METRICS):
    return Comparison(setup, base, claims, metrics, name, generators=("unet",))


def _entry(node_id, setup, *claims):
    """A method beside sampling, and beside SDS, where its paper's claims are."""
    return Entry(node_id, (_against(setup, SAMPLED), _against(setup, PLAIN, claims, "against SDS")))


_HIGH = distilled("SDS", use(SDS, t_min=0.8, t_max=0.9), prompts="related")
_SSDS = distilled("SSDS, factor 25", use(SDS, t_min=0.8, t_max=0.9), prompts="related", others=(use(WORDS, words="$relation"),))
_MILD = distilled("SSDS, factor 3", use(SDS, t_min=0.8, t_max=0.9), prompts="related", others=(use(WORDS, words="$relation", factor=3.0),))
_STILL = dict(place_rate=0.0, size_rate=0.0)
_GRAY = Setup("gray object, as it is put there", 7.5, (use(SDS), use(COMPOSITE, colour_rate=0.0, **_STILL)), task="composite", steps=1)
_COLOURED = Setup("its colour optimised, 60 iterations, w = 7.5", 7.5, (use(SDS, t_max=0.7), use(COMPOSITE, **_STILL)), task="composite", steps=60)
_MOVED = Setup("colour, place and size optimised, 60 iterations, w = 7.5", 7.5, (use(SDS, t_max=0.7), use(COMPOSITE)), task="composite", steps=60)

ENTRIES = (
    Entry("LodestarSDSGuidance", (_against(PLAIN, SAMPLED),
                                  _against(distilled("SDS", use(SDS), 30.0), PLAIN, (Claim("clipped", "higher"), Claim("std_ratio", "higher")), "w = 30 against 7.5"))),
    _entry("LodestarHiFAGuidance", distilled("HiFA, 2 steps, latent alone", use(HIFA, rgb=0.0, steps=2)), Claim("frechet", "lower")),
    _entry("LodestarDenoisedScoreDistillation", distilled("DSD, amount 0.5", use(DSD, amount=0.5)), Claim("frechet", "lower")),
    _entry("LodestarIntervalScoreMatching", distilled("ISM, 1 inversion step, SGD", use(ISM, steps=1, t_min=0.3, t_max=0.7), score=CALM), Claim("frechet", "lower")),
    _entry("LodestarTrajectoryScoreMatching", distilled("TSM, 1 inversion step, SGD", use(TSM, steps=1, t_min=0.3, t_max=0.7), score=CALM), Claim("frechet", "lower")),
    Entry("LodestarHybridDistillation",      # two models with the same latents
          (_against(distilled("SDS of the U-Net and of the DiT", use(SDS), others=(use(SDS, model="$other"), use(HYBRID))), PLAIN, (Claim("accuracy", "higher"), Claim("frechet", "lower")), "against the U-Net alone"),)),
    Entry("LodestarDistilPictures",      # the same guidance, pixel by pixel
          (_against(distilled("SDS of pixels", use(SDS), score=PIXELS, task="pictures"), SAMPLED), _against(distilled("SDS of pixels", use(SDS), score=PIXELS, task="pictures"), PLAIN, (), "against SDS of latents"))),
    Entry("LodestarSpatialWordAttention", (_against(_SSDS, _HIGH, (Claim("accuracy", "higher"),)), _against(_MILD, _HIGH, (), "factor 3")),
          (Cost("Spatial Word Attention", methods=(use(WORDS, words="$relation"),), heavy=False, limit=1.3),)),
    Entry("LodestarCompositeDistillation", (_against(_COLOURED, _GRAY, (Claim("objects", "higher"),), "colour", ("objects", "accuracy", "evaluations")),
                                            _against(_MOVED, _GRAY, (), "colour and place", ("objects", "accuracy", "evaluations")))),
)
