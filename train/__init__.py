"""Training of the paper's networks; runs from a clone of the repository and is not installed."""
