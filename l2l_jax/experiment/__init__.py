"""The phases of an experiment: what comes before, around and after the training loop."""
