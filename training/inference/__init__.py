"""A trained model run over photos: weights, predictions, features."""
