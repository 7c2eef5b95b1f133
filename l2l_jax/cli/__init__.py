"""What the programs read from the command line and print."""
