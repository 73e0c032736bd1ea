"""The user's own Linen class: for one example or a batch, allowed or not, fitted, scored and served from disk."""

import json
import os
import re
import shutil
import sys
import textwrap
import time

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.special import softmax

from abstain.models.bundles.bundle import load, read_published
from abstain.models.bundles.manifest import read_manifest, write_manifest
from abstain.models.errors import AbstainError, BundleError, ConfigError
from abstain.models.networks.allowed import check_allowed, read_modules
from abstain.models.networks.architectures import NetworkSpec, parameter_shapes
from abstain.models.networks.user_module import ModuleSpec, takes_batches
from abstain.models.networks.user_module import instance_of as instance
from abstain.models.prediction.posterior import Model, Posterior, check_draws
from abstain.models.prediction.predictive import Predictor
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.service.commands.cli import main
from abstain.service.loading import Loader, NoRoom
from abstain.service.settings import read_settings
from abstain.training.config.reading import read_config
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server

DOCUMENTED = (PROJECT / "docs" / "networks.md").read_text("utf-8")
CLASSES = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    def function(outputs):
        raise AssertionError("called")

    class NotLinen:
        def __init__(self, outputs):
            raise AssertionError("called")

    class One(nn.Module):
        outputs: int
        widths: tuple = (4,)

        @nn.compact
        def __call__(self, x):
            assert isinstance(self.widths, tuple)
            x = x.ravel()
            for width in self.widths:
                x = nn.tanh(nn.Dense(width)(x))
            return nn.Dense(self.outputs)(x)

    class Batch(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            batch, height, width = x.shape
            x = nn.relu(nn.Conv(3, (3, 3), name="first")(x[..., None]))
            return nn.Dense(self.outputs)(x.mean(axis=(1, 2)))

    class Either(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(nn.LayerNorm()(nn.Dense(5)(x)))

    class Ambiguous(nn.Module):
        outputs: int
        channels: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(nn.Conv(self.channels, (3, 3))(x[..., None]).mean(axis=(1, 2)))

    class Ranks(nn.Module):
        '''Parameters of every rank: a scalar, a vector, a table to look up in, a tensor, a kernel to convolve with.'''
        outputs: int

        @nn.compact
        def __call__(self, x):
            normal = nn.initializers.normal()
            table = self.param("table", normal, (17, 3))
            x = nn.Conv(4, (3, 3))(table[x.astype(int)])
            x = nn.LayerNorm()(x) * self.param("temperature", nn.initializers.ones, ())
            tensor = self.param("tensor", normal, (8, 4, 5))
            x = jnp.einsum("hwc,hcd->d", x, tensor) + self.param("shift", normal, (5,))
            return nn.Dense(self.outputs)(x)

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.ravel())

    class Statistics(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(nn.BatchNorm(use_running_average=True)(x.ravel()))

    class Dropout(nn.Module):
        outputs: int
        quiet: bool = False

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(nn.Dropout(0.5, deterministic=self.quiet)(x.ravel()))

    class Flagged(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(self.outputs)(x.ravel())

    class Half(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs, param_dtype=jnp.bfloat16)(x.ravel())

    class HalfOutputs(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs, dtype=jnp.bfloat16)(x.ravel())

    class Dotted(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs, name="block.0")(x.ravel())

    class Tupled(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            pair = self.param("pair", lambda key: (jnp.zeros(()), jnp.zeros(())))
            return nn.Dense(self.outputs)(x.ravel()) + pair[0]

    class Bare(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return x.ravel()[:self.outputs]

    class Two(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(x.ravel()), 1

    class Needy(nn.Module):
        outputs: int
        depth: int
        width: int

    class Picky(nn.Module):
        outputs: int
        width: int = 1

        def __post_init__(self):
            if self.width > 8:
                raise RuntimeError("too wide")
            super().__post_init__()
"""
SIDE_EFFECT = """
    import pathlib
    pathlib.Path(__file__).with_name("imported").touch()
    from own_nets import One
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of modules: sound ones, one that leaves a trace when it is imported, and ones that raise."""
    folder = tmp_path_factory.mktemp("nets")
    files = {
        "own_nets": CLASSES,
        "own_traced": SIDE_EFFECT,
        "own_raising": "1 / 0",
        "own_exiting": "raise SystemExit(3)",
        "own_needing": "import no_such_package",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), "utf-8")
    (folder / "mynets.py").write_text(block("python"), "utf-8")
    (folder / "own.toml").write_text(block("toml"), "utf-8")
    return folder


@pytest.fixture
def allow(folder, monkeypatch):
    """Makes the folder importable, and allows entries."""
    monkeypatch.syspath_prepend(str(folder))

    def allow(*entries):
        monkeypatch.setenv("ABSTAIN_MODULES", ",".join(entries))

    allow("own_nets")
    return allow


@pytest.fixture(scope="module")
def path(folder) -> str:
    """PYTHONPATH with the folder."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    """The documentation's network, fitted by the command; and the same bundle naming a module that nobody allowed."""
    store = tmp_path_factory.mktemp("store")
    quick = (
        "steps=20",
        "batch_size=32",
        "reports=1",
        "draws=4",
        "calibration_size=120",
        "network.arguments.channels=[2]",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("ABSTAIN_MODULES", "")
        options = [part for override in quick for part in ("--set", override)]
        patch.setattr(
            "sys.argv", ["abstain", "fit", str(folder / "own.toml"), "--store", str(store), "--no-report", *options]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    # As a process that has fitted nothing would find it.
    del sys.modules["mynets"]
    instance.cache_clear()
    barred = store / "barred" / "1"
    barred.parent.mkdir()
    shutil.copytree(store / "own" / "1", barred)
    manifest = read_manifest(barred)
    network = manifest.model.network.model_copy(update={"module": "own_traced:One"})
    model = manifest.model.model_copy(update={"network": network})
    write_manifest(barred, manifest.model_copy(update={"model": model, "name": "barred"}))
    return store


def block(language):
    """The documentation's first block in a language."""
    return re.search(rf"```{language}\n(.*?)```", DOCUMENTED, re.DOTALL).group(1)


def spec(name, **arguments):
    """A spec of a class among those above."""
    return ModuleSpec(module=f"own_nets:{name}", arguments=arguments).allow(("own_nets",))


def refusal(name, **arguments):
    """Why a network for 8×8 images and 4 outputs is refused."""
    with pytest.raises(AbstainError) as caught:
        parameter_shapes(spec(name, **arguments).build(4), (8, 8))
    return str(caught.value)


def model_of(name, outputs=3, **arguments):
    """A classifier of 8×8 images by one of the classes above."""
    return Model(
        network=spec(name, **arguments),
        likelihood="categorical",
        preprocessing=Preprocessing(scale=(1.0,)),
        feature_shape=(8, 8),
        class_names=tuple(map(str, range(outputs))),
    )


def draws_of(model, size=5):
    """Normal draws."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, (size, *leaf.shape)).astype(np.float32), model.parameter_shapes()
    )


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "batched"), [("One", False), ("Batch", True), ("Ranks", False)])
def test_a_module_for_one_or_for_many_is_a_network_for_one(allow, name, batched):
    """Parameters, by their own names, and outputs are those of the class itself, which takes its own shape."""
    import own_nets

    network, own = spec(name).build(3), getattr(own_nets, name)(outputs=3)
    x = jnp.asarray(np.random.default_rng(1).integers(0, 16, (8, 8)), jnp.float32)
    given = x[None] if batched else x
    expected = own.init(jax.random.key(0), given)
    found = network.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    outputs = own.apply(expected, given)
    np.testing.assert_array_equal(network.apply(found, x), outputs[0] if batched else outputs)
    assert takes_batches(network, (8, 8)) is batched
    assert jax.tree.map(lambda leaf: leaf.shape, parameter_shapes(network, (8, 8))) == jax.tree.map(
        lambda leaf: leaf.shape, expected["params"]
    )


def test_lists_in_arguments_become_tuples_and_outputs_is_filled_in(allow):
    """As Linen, which hashes its fields, wants them; `outputs` may be set, and must then be right."""
    shapes = parameter_shapes(spec("One", widths=[7, 2]).build(3), (8, 8))
    assert [shapes[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [(64, 7), (7, 2), (2, 3)]
    assert parameter_shapes(spec("One", outputs=3).build(3), (8, 8))
    assert "expected float32 (4,) from an example of shape (8, 8)" in refusal("One", outputs=3)
    assert parameter_shapes(spec("Fixed").build(3), (8, 8))


@pytest.mark.parametrize("name", ["Ranks", "Batch", "One"])
def test_the_packed_predictor_is_the_plain_loop(allow, name):
    """Parameters of rank 0 to 4, packed and compiled for a batch, answer as one draw and one row at a time."""
    model = model_of(name)
    draws = draws_of(model)
    check_draws(model, draws, "here")
    assert {leaf.ndim for leaf in jax.tree.leaves(draws)} == {"Ranks": {1, 2, 3, 4, 5}, "Batch": {2, 3, 5}}.get(
        name, {2, 3}
    )
    rows = np.random.default_rng(2).integers(0, 16, (9, 8, 8)).astype(np.float32)
    apply = jax.jit(lambda draw, x: model.module.apply({"params": draw}, x))
    logits = np.array(
        [[apply(jax.tree.map(lambda leaf, s=s: leaf[s], draws["network"]), row) for row in rows] for s in range(5)]
    )
    found = Predictor(Posterior(model, draws), (1, 8))(rows).summary
    np.testing.assert_allclose(found.mean, softmax(logits, axis=-1).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.std, softmax(logits, axis=-1).std(axis=0), atol=1e-5)


def test_a_network_first_met_inside_a_program_is_read_as_well(allow):
    """Both readings are tried on numbers, also while jit, vmap and grad trace."""
    takes_batches.cache_clear()
    network = spec("Either").build(2)
    parameters = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), parameter_shapes(network, (4,)))
    takes_batches.cache_clear()

    def loss(parameters, x):
        return network.apply({"params": parameters}, x).sum()

    found = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(parameters, jnp.ones((3, 4)))
    assert found["Dense_0"]["bias"].shape == (3, 2)
    assert not takes_batches(network, (4,))


def test_a_spec_survives_json_and_has_a_hash():
    """What the manifest holds is what was configured; equal specs have equal hashes, and different specs are not equal."""
    given = ModuleSpec(module="a.b:C", arguments={"widths": [1, [2.0, None]], "kind": {"x": True}})
    assert TypeAdapter(NetworkSpec).validate_json(given.model_dump_json()) == given
    assert hash(given) == hash(given.model_copy())


def test_equal_numbers_of_other_types_are_other_networks(allow):
    """`1`, `1.0` and `true` are equal to Python, and must not be taken for each other."""
    assert parameter_shapes(spec("One", widths=[1]).build(3), (8, 8))
    assert "does not fit" in refusal("One", widths=[1.5])
    assert spec("One", widths=[1]).build(3) != spec("One", widths=[1.0]).build(3)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "os:", ":system", "a.b:__class__", "__main__:C", "a.__init__:C", ".a:C", "a..b:C", "../a:C", "a/b:C",
        "a:b:c", "a:b.c", "a b:C", "a:C ", "a:C\n", "a:C,b:D", "1a:C", "é:C", "", "a" * 300 + ":C",
    ],
)  # fmt: skip
def test_a_name_that_is_no_absolute_class_is_refused(name):
    """Relative names, dunders, paths and lists get no further than the spec."""
    with pytest.raises(ValidationError):
        ModuleSpec(module=name)


@pytest.mark.parametrize(
    "arguments",
    [
        [1],
        "width=3",
        {1: 2},
        {"a": {1, 2}},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": 2**64},
        {"a": b"x"},
        None,
    ],
)
def test_arguments_that_no_manifest_holds_are_refused(arguments):
    """Not at the end of a fit, but before it."""
    with pytest.raises(ValidationError):
        TypeAdapter(NetworkSpec).validate_python({"kind": "module", "module": "a:C", "arguments": arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Missing", {}, r"network, .*own_nets.py: no class 'Missing': expected one of .*Batch"),
        ("function", {}, r"'function' is no flax.linen.Module: expected one of .*, found <function function at"),
        ("NotLinen", {}, r"'NotLinen' is no flax.linen.Module: .*found <class 'own_nets.NotLinen'>"),
        ("jax", {}, r"'jax' is no flax.linen.Module"),
        ("One", {"widht": 3}, r"^network, own_nets:One: unknown arguments: expected some of outputs, widths, found widht; did you mean 'widths'\?$"),
        ("One", {"parent": 3}, r"unknown arguments: expected some of outputs, widths, found parent$"),
        ("Needy", {"width": 2}, r"^network, own_nets:Needy: arguments are missing: expected depth; set them under"),
        ("Picky", {"width": 9}, r"^network, own_nets:Picky: refuses its arguments: found RuntimeError: too wide$"),
        ("One", {"widths": ["4"]}, r"own_nets:One does not fit: .*found TypeError: "),
        ("Fixed", {}, r"^network: own_nets:Fixed does not fit: expected float32 \(4,\) from an example of shape \(8, 8\), "
                      r"or \(1, 4\) from a batch of one, found float32 \(3,\); check its arguments"),
        ("Batch", {"outputs": 5}, r"expected float32 \(4,\) .*, found ValueError: .*, and from the batch float32 \(1, 5\);"),
        ("Flagged", {}, r"does not fit: .* found TypeError: .*missing 1 required positional argument: 'train'"),
        ("Two", {}, r"does not fit: .* found a tuple;"),
        ("HalfOutputs", {}, r"does not fit: expected float32 .* found bfloat16 \(4,\);"),
        ("Half", {}, r"^network: own_nets:Half, parameter Dense_0.\w+: expected float32, found bfloat16; set param_dtype"),
        ("Statistics", {}, r"^network: own_nets:Statistics has mutable collections: .*found batch_stats; use layers"),
        ("Dropout", {}, r"^network: own_nets:Dropout draws random numbers when it predicts: expected outputs that .*, "
                        r'found InvalidRngError: Dropout_0 needs PRNG for "dropout"; remove dropout'),
        ("Dotted", {}, r"own_nets:Dotted, parameter block.0: expected a name without dots, found block.0$"),
        ("Tupled", {}, r"own_nets:Tupled, parameter pair: expected an array, found tuple$"),
        ("Bare", {}, r"^network: own_nets:Bare has no parameters: expected at least one$"),
        ("Ambiguous", {"channels": 2}, r"takes one example and a batch, but gives different outputs for them: expected a network "
                                       r"that takes only one of the shapes \(8, 8\) and \(1, 8, 8\), found both; begin __call__"),
        ("Ambiguous", {"channels": 8}, r"takes one example and a batch, but gives different outputs for them"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_served_is_refused_by_name(allow, name, arguments, message):
    """Before anything is fitted: what is wrong with the class, what was expected, and what to do."""
    assert re.search(message, refusal(name, **arguments))


def test_quiet_dropout_is_taken(allow):
    """Dropout that is off needs no key."""
    assert parameter_shapes(spec("Dropout", quiet=True).build(2), (3,))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("no_such_file:C", r"module 'no_such_file' cannot be found: expected no_such_file:C, .*or put the folder that holds"),
        ("own_nets.deeper:C", r"module 'own_nets.deeper' cannot be found: .*PYTHONPATH"),
        ("own_raising:C", r"module 'own_raising' raises an error when it is imported: .*found ZeroDivisionError: division by zero$"),
        ("own_exiting:C", r"module 'own_exiting' raises an error when it is imported: .*found SystemExit: 3$"),
        ("own_needing:C", r"module 'own_needing' raises an error when it is imported: .*No module named 'no_such_package'$"),
        ("os:system", r"'system' is no flax.linen.Module: expected a subclass of flax.linen.Module, found <built-in"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_is_refused(allow, module, message):
    """Absent, raising, ending the process, or lacking a package: each has its own error."""
    with pytest.raises(AbstainError, match=message):
        ModuleSpec(module=module).allow((module,)).build(2)


def test_a_config_names_the_key(tmp_path):
    """The tag of the union, which is also the name of a key, does not hide it."""
    path = tmp_path / "a.toml"
    for text, message in (
        ('module = "os.system"', "network.module: expected a string that matches pattern"),
        ("", "network.module: the key is missing"),
        ('module = "a:C"\nmodul = 1', "unknown key 'network.modul': expected one of arguments, kind, module"),
        ('module = "a:C"\narguments = [1]', "network.arguments: expected a valid dict"),
        ('module = "a:C"\narguments = { a = nan }', "network.arguments: expected values that JSON holds"),
    ):
        path.write_text(f'name = "a"\n[network]\nkind = "module"\n{text}\n', "utf-8")
        with pytest.raises(ConfigError) as caught:
            read_config(path)
        assert str(caught.value).startswith(f"{path}: {message}")
    path.write_text('name = "a"\n[network]\nkind = "module"\nmodule = "a:C"\narguments = { a = 1 }\n', "utf-8")
    config = read_config(path, ("network.arguments.a=[2]", "module=b.c:D"))
    assert config.network == ModuleSpec(module="b.c:D", arguments={"a": [2]})


# ---- what is allowed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        ("a.b:C", True),
        ("a.b", True),
        (" x:Y , a.b:C ,", True),
        ("", False),
        ("a", False),
        ("a.b:D", False),
        ("a.b:CC", False),
        ("b", False),
        ("a.b.c", False),
    ],
)
def test_an_entry_allows_a_class_or_a_file_and_no_more(entries, allowed):
    """Exactly: no package, no prefix, no other class."""
    modules = read_modules({"ABSTAIN_MODULES": entries})
    if allowed:
        check_allowed("a.b:C", modules)
    else:
        with pytest.raises(AbstainError, match="the module is not allowed"):
            check_allowed("a.b:C", modules)


def test_a_refusal_says_how_to_allow():
    """What is allowed, what was named, and the variable as it would have to be."""
    with pytest.raises(AbstainError) as caught:
        ModuleSpec(module="a.b:C").build(1)
    assert str(caught.value) == (
        "network: the module is not allowed: expected ABSTAIN_MODULES to name it, found a.b:C; if you trust its code, "
        "set ABSTAIN_MODULES=a.b:C; it must be importable: installed, or on PYTHONPATH"
    )
    with pytest.raises(AbstainError, match=r"expected one of x:Y, z, found a.b:C; .* set ABSTAIN_MODULES=x:Y,z,a.b:C;"):
        ModuleSpec(module="a.b:C").allow(("x:Y", "z")).build(1)


def test_permission_belongs_to_one_spec_and_is_never_written():
    """A spec that is read, copied to another module, or written has none; those that differ in it are not equal."""
    permitted = ModuleSpec(module="a.b:C").allow(("a.b",))
    assert permitted != ModuleSpec(module="a.b:C")
    assert hash(permitted) == hash(ModuleSpec(module="a.b:C"))
    assert permitted.model_dump() == ModuleSpec(module="a.b:C").model_dump()
    assert ModuleSpec.model_validate(permitted.model_dump()) == ModuleSpec(module="a.b:C")
    with pytest.raises(ValidationError, match="_allowed"):
        ModuleSpec.model_validate({"kind": "module", "module": "a.b:C", "_allowed": ["a.b"]})
    with pytest.raises(AbstainError, match=r"not allowed: expected one of a\.b, found other\.net:Net"):
        permitted.model_copy(update={"module": "other.net:Net"}).build(1)


@pytest.mark.parametrize("entries", ["*", "a.*", "a:*", "/srv/a.py", "a:b:c", "a b", "a.__class__", "a;b"])
def test_a_list_that_is_none_is_refused_where_a_server_starts(entries):
    """No wildcards, no paths: the variable and the entry are named."""
    with pytest.raises(ConfigError) as caught:
        read_settings({"ABSTAIN_MODULES": f"ok:Fine,{entries}"})
    assert str(caught.value).startswith("environment: ABSTAIN_MODULES: expected package.file:ClassName or package.file")
    assert str(caught.value).endswith(f"found {entries!r}")


def test_nothing_is_imported_that_is_not_allowed(allow, store, folder, monkeypatch):
    """Building or loading what is not allowed runs none of its code, and says so by the bundle; allowed, it runs."""
    for entries in ("", "own_nets", "own_traced:Other"):
        allow(entries)
        with pytest.raises(AbstainError, match="not allowed"):
            ModuleSpec(module="own_traced:One").allow(tuple(filter(None, [entries]))).build(2)
        with pytest.raises(
            BundleError, match=r"barred/1/draws: network: the module is not allowed: .*own_traced:One"
        ) as error:
            load(store / "barred" / "1")
        assert BundleError.usual_fix not in str(error.value)  # The bundle is sound: the advice is that of the module.
        assert not (folder / "imported").exists()
        assert "own_traced" not in sys.modules
    ModuleSpec(module="own_traced:One").allow(("own_traced",)).build(2)
    assert (folder / "imported").exists()
    (folder / "imported").unlink()
    monkeypatch.delitem(sys.modules, "own_traced")


# ---- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["abstain", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_commands_that_import_nothing_need_no_permission(run, store, monkeypatch):
    """`models` and `show` work for a bundle with a module that is neither allowed nor installed."""
    monkeypatch.delenv("ABSTAIN_MODULES", raising=False)
    assert run("models", "--store", store)[0] == 0
    code, out, _ = run("show", "own", "--store", store, "--json")
    assert code == 0
    assert json.loads(out)["model"]["network"] == {
        "kind": "module",
        "module": "mynets:SmallCNN",
        "arguments": {"channels": [2]},
    }


def test_commands_that_import_need_permission(run, store, tmp_path, monkeypatch):
    """`predict` and `evaluate` refuse a bundle with a module that is not allowed or not installed, and say how to fix it."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 8, 8)))
    for entries, message in (("", "set ABSTAIN_MODULES=mynets:SmallCNN"), ("mynets", "'mynets' cannot be found")):
        monkeypatch.setenv("ABSTAIN_MODULES", entries)
        for command in (
            ("predict", "own", "--data", tmp_path / "rows.npz", "--out", tmp_path / "out.jsonl"),
            ("evaluate", "own", "--data", "digits"),
        ):
            code, out, err = run(*command, "--store", store)
            assert (code, out) == (1, "")
            assert message in err
            assert len(err.splitlines()) == 1


def test_the_room_of_allowed_networks_is_counted(allow, store, path):
    """Also of those that are served already, whose manifests are read anew."""
    allow("mynets")
    served = read_published(store, "own", 1)
    with pytest.raises(NoRoom, match=r"others have [\d,]+ \(own:1 [\d,]+\)"):
        Loader(store, memory_bytes=10).check_room("own", 1, [served])


def test_a_server_goes_on_without_what_it_may_not_import(run, allow, store, folder, path, tmp_path):
    """The network of the documentation answers as `abstain predict` does; the other says why it failed, unimported."""
    rows = np.random.default_rng(3).integers(0, 16, (3, 8, 8)).astype(np.float64)
    np.savez(tmp_path / "rows.npz", x=rows)
    server = start_server(
        store, tmp_path, wait=False, PYTHONPATH=path, ABSTAIN_MODULES="mynets:SmallCNN", TMPDIR=str(tmp_path)
    )
    try:
        allow("mynets")
        out = tmp_path / "answers.jsonl"
        assert run("predict", "own", "--data", tmp_path / "rows.npz", "--out", out, "--store", store)[0] == 0
        expected = [json.loads(line) for line in out.read_text().splitlines()]
        listed = states(server)
        found = httpx.post(f"{server.url}/predict", json={"inputs": rows.tolist(), "model": "own"}, timeout=PATIENCE)
        refused = httpx.post(
            f"{server.url}/predict", json={"inputs": rows.tolist(), "model": "barred"}, timeout=PATIENCE
        )
        ready = httpx.get(f"{server.url}/readyz", timeout=PATIENCE)
    finally:
        stop_server(server)
    assert (listed["own"]["state"], listed["own"]["why"]) == ("ready", None)
    assert listed["barred"]["state"] == "failed"
    assert "expected one of mynets:SmallCNN, found own_traced:One" in listed["barred"]["why"]
    assert "set ABSTAIN_MODULES=mynets:SmallCNN,own_traced:One; it must be importable" in listed["barred"]["why"]
    assert found.status_code == 200
    for answer, line in zip(found.json()["predictions"], expected, strict=True):
        np.testing.assert_allclose(answer["probabilities"], line["probabilities"], atol=1e-5)
        assert answer["label"] == line["label"]
    assert refused.status_code == 503
    assert "the module is not allowed" in refused.json()["error"]
    assert any("barred:1" in why for why in ready.json()["why"])
    assert not (folder / "imported").exists()


def states(server, seconds=PATIENCE):
    """The one version of each model, once none is loading."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            models = httpx.get(f"{server.url}/models", timeout=PATIENCE).json()["models"]
        except httpx.TransportError:
            models = []
        if models and not any(model["versions"][0]["state"] == "loading" for model in models):
            return {model["name"]: model["versions"][0] for model in models}
        time.sleep(0.1)
    pytest.fail(server.log.read_text())
