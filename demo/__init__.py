"""The bundled models: scenes with known truth, how the models were trained, and the headless runner."""
