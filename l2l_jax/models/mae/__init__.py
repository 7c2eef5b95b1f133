"""The family "mae": masked autoencoders."""
