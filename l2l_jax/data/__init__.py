"""Image data: sources, selection of classes and sets, transforms and batches."""
