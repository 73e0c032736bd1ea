"""The offline stage: configs and data in, bundles out. Nothing of it is installed or imported where models are served."""
