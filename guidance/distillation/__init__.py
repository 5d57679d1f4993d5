"""Score distillation: something is optimised until the model finds it likely, without a sampling run."""
