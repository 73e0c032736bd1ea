"""Prediction: preprocessing, a network, its posterior draws, and the summaries and scores of their predictions."""
