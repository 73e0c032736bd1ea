"""Data: sources, tables, splitting into parts, preprocessing, augmentation, and OOD sets."""
