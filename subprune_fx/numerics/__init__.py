"""The mathematics: moments, greedy selection, least squares. Knows tensors and no graph."""
