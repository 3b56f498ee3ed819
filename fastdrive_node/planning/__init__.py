"""Prompt, pruned prefill, decode, answer grammar, plan checks, and the VLA directory that they read."""
