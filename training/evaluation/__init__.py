"""What a model is worth: metrics, slices, confusions, the report."""
