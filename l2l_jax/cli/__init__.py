"""Command-line input and console output of the programs."""
