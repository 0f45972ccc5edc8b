"""Merged language models under lm-evaluation-harness: sets by name, results with intervals, scores relative to the experts."""
