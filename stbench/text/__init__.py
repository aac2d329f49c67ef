"""Text in and out of a model, in this process."""
