"""Which visual tokens the language model sees: ReconPruner, top-K selection, and the pruners to compare with."""
