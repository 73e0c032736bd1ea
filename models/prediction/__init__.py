"""Prediction: preprocessing, networks with posterior draws, and the summaries and scores of their predictions."""
