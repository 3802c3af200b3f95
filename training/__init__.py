"""How a model is made: listing data, checks, the training loop, calibration, evaluation and export."""
