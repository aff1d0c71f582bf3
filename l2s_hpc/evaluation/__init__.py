"""Benchmarks, prompts, answer extraction and grading: no torch, no GPU."""
