"""The verbs that make a model."""
