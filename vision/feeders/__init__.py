"""From stored photos to the model's input, beside the process that has the model."""
