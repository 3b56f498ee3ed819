"""Engines: manifests, fingerprints and the runtimes that run vision encoder, pruner and language model."""
