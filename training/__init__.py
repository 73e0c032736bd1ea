"""The offline stage: configs and data in, bundles out. Servers neither install nor import it."""
