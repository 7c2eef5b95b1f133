"""Images: sources, class and set selection, transforms and batches."""
