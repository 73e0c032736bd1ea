"""Stores in S3, Google Cloud Storage and Azure: upload, labels, and a local mirror that all other code reads."""
