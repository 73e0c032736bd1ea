"""Calibration: feature scores, the temperature, and the thresholds, from the calibration part alone."""
