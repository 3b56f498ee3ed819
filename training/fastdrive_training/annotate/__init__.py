"""Foreground masks from images: Grounding DINO finds boxes by text, SAM cuts out what is in them."""
