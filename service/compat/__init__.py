"""The private interfaces of BentoML, circus, uvicorn, prometheus_client and JAX that the service uses or changes.

Each has its reason and a test. One more is in `models/bundles/signatures.py`: a class of model-signing.
"""
