"""From the logits of photos to predicted paths and brands of listings. NumPy only."""
