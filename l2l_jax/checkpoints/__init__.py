"""What lies on the disk: training states and saved models, written and read with Orbax."""
