"""The stages of an experiment: what comes before, beside and after the training loop."""
