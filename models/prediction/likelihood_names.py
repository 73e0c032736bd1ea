"""The names of the likelihoods, for configs, which are checked without JAX; the functions are in `likelihoods.py`."""

from typing import Literal

LikelihoodName = Literal["categorical", "bernoulli", "normal", "heteroscedastic_normal"]
