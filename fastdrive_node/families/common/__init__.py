"""What several families share: loading, image normalisation, the torch language model, the pruner's layer."""
