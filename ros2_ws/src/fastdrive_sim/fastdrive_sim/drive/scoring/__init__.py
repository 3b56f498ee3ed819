"""Scores of a recorded run: "EPDMS-style (own simulator)", NeuroNCAP, HD-Score and others.

docs/closed_loop.md has the definitions and what they do otherwise than their models.
"""
