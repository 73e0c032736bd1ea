"""Source text of networks that a user might write."""

CLASSES = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Batch(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        batch, height, width = x.shape
        x = nn.relu(nn.Conv(3, (3, 3))(x[..., None]))
        return nn.Dense(self.outputs, use_bias=False, name="head")(x.mean(axis=(1, 2)))


class Nested(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return One(self.outputs, name="inner")(x)


class One(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(5)(x.ravel())))


class NoDense(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (x.size, self.outputs))
        return jnp.tanh(x.ravel() @ kernel)


class Scanned(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        def step(layer, carry, _):
            return layer(carry), None

        over = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return over(nn.Dense(self.outputs), jnp.ravel(x)[: self.outputs], None)[0]


class Tokens(nn.Module):
    '''A dense layer for each row of an image, and their mean.'''
    outputs: int

    @nn.compact
    def __call__(self, x):
        height, width = x.shape
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(7)(x))).mean(axis=0)


class Keyword(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(inputs=x.ravel())


class Shared(nn.Module):
    outputs: int

    def setup(self):
        self.a = nn.Dense(self.outputs)
        self.b = nn.Dense(self.outputs)

    def __call__(self, x):
        return self.a(nn.relu(self.b(self.a(x.ravel()[: self.outputs]))))
"""
