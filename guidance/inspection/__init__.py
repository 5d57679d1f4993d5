"""Looking at a run: what each prediction did, step by step."""
