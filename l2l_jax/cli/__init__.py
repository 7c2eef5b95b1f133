"""Input of the programs from the command line, and what they print."""
