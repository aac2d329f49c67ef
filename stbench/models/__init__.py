"""Models: their shapes, their files and their bundles."""
