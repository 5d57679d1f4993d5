"""How the conditional and unconditional predictions combine: rules, gates and the model pair."""
from .adaptive import AdaptiveGuidance
from .apg import AdaptiveProjectedGuidance
from .interval import GuidanceInterval
from .model_pair import ModelPairGuidance
from .multi_conditional import MultiConditionalCFG

__all__ = ["AdaptiveGuidance", "AdaptiveProjectedGuidance", "GuidanceInterval", "ModelPairGuidance", "MultiConditionalCFG"]
