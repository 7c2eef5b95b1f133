"""Reading, importing, exporting and downloading of checkpoints."""
