"""Configs: what is read, what `--set` means, and what a refusal says."""

from pathlib import Path
from typing import get_args

import pytest

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLPSpec
from abstain.training.config.config import Config
from abstain.training.config.methods import (
    METHOD_SETTINGS,
    ChEESConfig,
    HMCConfig,
    MAPSettings,
    MethodConfig,
    NUTSConfig,
    VIConfig,
)
from abstain.training.config.priors import LayerPrior
from abstain.training.config.reading import examples, read_config
from abstain.training.fit import METHODS
from tests.helpers.paths import CONFIGS


@pytest.fixture
def write(tmp_path):
    """Writes a config file of a name and some more lines."""

    def write(text="", name='name = "a"\n'):
        path = tmp_path / "a.toml"
        path.write_text(name + text, "utf-8")
        return path

    return write


def refusal(path, *overrides):
    """The text of the refusal."""
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_config_is_valid_and_says_how_to_run_it(path):
    """Every shipped config validates, names a known method, and shows its own command line."""
    assert read_config(path).method.kind in METHODS
    assert f"abstain fit training/configs/{path.name}" in path.read_text("utf-8")


def test_values_arrive_and_the_rest_keeps_its_default(write):
    """A config holds what the file says, and the documented defaults elsewhere."""
    config = read_config(write('seed = 3\n[network]\nkind = "mlp"\nhidden = []\n[prior]\nscale = 2\n'))
    assert config == Config(name="a", seed=3, network=MLPSpec(hidden=()), prior={"scale": 2.0})
    assert isinstance(config.method, VIConfig)
    assert (config.calibration.percentile, config.calibration.coverage) == (99.0, 0.9)


@pytest.mark.parametrize(
    ("text", "key", "offered", "foreign"),
    [
        ("sede = 1", "sede", "seed", "steps"),
        ("[dta]\nsource = 'x'", "dta", "data", "source"),
        ("[data]\nsorce = 'x'", "data.sorce", "source", "seed"),
        ("[network]\nkind = 'mlp'\nhiden = [4]", "network.hiden", "hidden", "channels"),
        ("[network]\nkind = 'lenet'\nchanels = [4, 4]", "network.chanels", "channels", "seed"),
        ("[prior]\nscal = 1", "prior.scal", "scale", "seed"),
        ("[method]\nkind = 'vi'\nstpes = 1", "method.stpes", "steps", "warmup"),
        ("[method]\nkind = 'nuts'\nsteps = 1", "method.steps", "warmup", "kl_weight"),
        ("[calibration]\ndecison = 'std'", "calibration.decison", "decision", "seed"),
        ("[method]\nkind = 'map'\nhold_out = 0.1", "method.hold_out", "held_out", "members"),
        ("[method]\nkind = 'ensemble'\nmember = 3", "method.member", "members", "warmup"),
        ("[method]\nkind = 'laplace'\nsubsets = 'diagonal'", "method.subsets", "subset", "members"),
        ("[method]\nkind = 'hmc'\nleapfrog = 3", "method.leapfrog", "leapfrogs", "max_tree_depth"),
        ("[method]\nkind = 'chees'\nleapfrogs = 3", "method.leapfrogs", "max_leapfrogs", "jitter"),
        ("[method]\nkind = 'mile'\nstep_size = 3.0", "method.step_size", "energy_variance", "leapfrogs"),
        ("[method]\nkind = 'nuts'\n[method.map]\nstep = 3", "method.map.step", "steps", "warmup"),
        ("[method]\nkind = 'nuts'\n[method.map]\nkind = 'map'", "method.map.kind", "held_out", "kind"),
        ("[method]\nkind = 'nuts'\n[method.vi]\nfamly = 'low_rank'", "method.vi.famly", "family", "warmup"),
        ("[method]\nkind = 'vi'\n[method.map]\nhold_out = 0.1", "method.map.hold_out", "held_out", "family"),
        ("[method]\nkind = 'hmc'\n[method.vi.map]\nstep = 1", "method.vi.map.step", "steps", "family"),
        ('[prior.layers."*.bias"]\nscal = 1', 'prior.layers."*.bias".scal', "scale", "noise"),
        ('[prior.layers."Dense_0.bias"]\nlayers = 1', 'prior.layers."Dense_0.bias".layers', "degrees", "layers"),
    ],
)
def test_an_unknown_key_is_refused_with_the_keys_of_its_table(write, text, key, offered, foreign):
    """A misspelt key is named with its table and the file, and that table's keys, no others, are offered."""
    path = write(text)
    before, _, after = refusal(path).partition(" expected one of ")
    listed, _, nearest = after.partition("; ")
    assert nearest in {"", *(f"did you mean {known!r}?" for known in listed.split(", "))}
    assert before == f"{path}: unknown key {key!r}:"
    assert offered in listed.split(", ")
    assert foreign not in listed.split(", ")


@pytest.mark.parametrize(
    ("text", "key", "expected", "found"),
    [
        ("seed = -1", "seed", "greater than or equal to 0", "-1"),
        ("seed = 'first'", "seed", "valid integer", "'first'"),
        ("draws = 0", "draws", "greater than 0", "0"),
        ("draws = 1.5", "draws", "valid integer", "1.5"),
        ("likelihood = 'poisson'", "likelihood", "'heteroscedastic_normal'", "'poisson'"),
        ("data = 3", "data", "DataConfig", "3"),
        ("[data]\ntest_size = 0", "data.test_size", "greater than or equal to 1", "0"),
        ("[data]\ntest_size = 1.5", "data.test_size", "integer", "1.5"),
        ("[data]\ncalibration_size = 'big'", "data.calibration_size", "integer", "'big'"),
        ("[data]\ninputs = 'scaled'", "data.inputs", "'standardize', 'range' or 'none'", "'scaled'"),
        ("[data]\ncategorical = 'colour'", "data.categorical", "tuple", "'colour'"),
        (
            "[data]\nclass_weights = 'blanced'",
            "data.class_weights",
            '"balanced", or weights by class name',
            "'blanced'",
        ),
        ("[data]\nclass_weights = 3", "data.class_weights", '"balanced", or weights by class name', "3"),
        ("[data]\nclass_weights = {}", "data.class_weights", '"balanced", or weights by class name', "{}"),
        ("[data]\nclass_weights = {a = 0}", "data.class_weights", "1e-6 to 1e6 for the class 'a'", "{'a': 0}"),
        ("[data]\nclass_weights = {a = -1.0}", "data.class_weights", "1e-6 to 1e6 for the class 'a'", "{'a': -1.0}"),
        ("[data]\nclass_weights = {a = nan}", "data.class_weights", "1e-6 to 1e6 for the class 'a'", "{'a': nan}"),
        ("[data]\nclass_weights = {a = 'x'}", "data.class_weights", "1e-6 to 1e6 for the class 'a'", "{'a': 'x'}"),
        ("[data]\nclass_weights = {a = true}", "data.class_weights", "1e-6 to 1e6 for the class 'a'", "{'a': True}"),
        ("[network]\nkind = 'cnn'", "network.kind", "mlp, lenet, module", "cnn"),
        ("[network]\nkind = 'mlp'\nhidden = 64", "network.hidden", "tuple", "64"),
        ("[network]\nkind = 'mlp'\nhidden = [64, 0]", "network.hidden.1", "greater than 0", "0"),
        ("[network]\nkind = 'mlp'\nactivation = 'rlu'", "network.activation", "'relu'", "'rlu'"),
        ("[prior]\nscale = 0", "prior.scale", "greater than 0", "0"),
        ("[prior]\nscale = nan", "prior.scale", "finite number", "nan"),
        ("[method]\nkind = 'gibbs'", "method.kind", "map, ensemble, vi, laplace, hmc, nuts", "gibbs"),
        ("[method]\nkind = 'nuts'\n[method.map]\nsteps = 0", "method.map.steps", "greater than 0", "0"),
        ("[method]\nkind = 'hmc'\n[method.vi]\nrank = 0", "method.vi.rank", "greater than 0", "0"),
        ("[method]\nkind = 'hmc'\njitter = 1.0", "method.jitter", "less than 1", "1.0"),
        ("[method]\nkind = 'hmc'\nadaptation = 'yes'", "method.adaptation", "'dual_averaging', 'simple'", "'yes'"),
        ("[method]\nkind = 'chees'\nchains = 3", "method.chains", "greater than or equal to 4", "3"),
        ("[method]\nkind = 'chees'\nmass_matrix = 'dense'", "method.mass_matrix", "'diagonal' or 'unit'", "'dense'"),
        ("[method]\nkind = 'nuts'\nmax_tree_depth = 16", "method.max_tree_depth", "less than or equal to 15", "16"),
        ("[method]\nkind = 'nuts'\nstart = 'zero'", "method.start", "'overdispersed', 'map'", "'zero'"),
        ("[method]\nkind = 'vi'\nstart = 'vi'", "method.start", "'network', 'prior', 'map'", "'vi'"),
        ("[method]\nkind = 'vi'\nclip = 0.0", "method.clip", "greater than 0", "0.0"),
        ("[method]\nkind = 'map'\nheld_out = 1.0", "method.held_out", "less than 1", "1.0"),
        ("[method]\nkind = 'ensemble'\nmembers = 1", "method.members", "greater than or equal to 2", "1"),
        ("[prior]\nkind = 'normall'", "prior.kind", "'student_t'", "'normall'"),
        ("[prior]\nnoise = 'gamma'", "prior.noise", "'half_cauchy', 'half_normal'", "'gamma'"),
        ("[prior]\nnarrow_weight = 1", "prior.narrow_weight", "less than 1", "1"),
        ('[prior.layers."*.bias"]\nscale = 0', 'prior.layers."*.bias".scale', "greater than 0", "0"),
        ('[prior.layers]\n"*.bias" = 3', 'prior.layers."*.bias"', "LayerPrior", "3"),
        ("[method]\nkind = 'vi'\nlearning_rate = 'fast'", "method.learning_rate", "valid number", "'fast'"),
        ("[method]\nkind = 'vi'\nkl_weight = -0.1", "method.kl_weight", "greater than 0", "-0.1"),
        ("[method]\nkind = 'nuts'\nchains = 1", "method.chains", "greater than or equal to 2", "1"),
        ("[method]\nkind = 'nuts'\ntarget_acceptance = 1.0", "method.target_acceptance", "less than 1", "1.0"),
        ("[calibration]\npercentile = 100", "calibration.percentile", "less than 100", "100"),
        ("[calibration]\npercentile = nan", "calibration.percentile", "finite number", "nan"),
        ("[calibration]\ncoverage = 0", "calibration.coverage", "greater than 0", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_file_key_expected_and_found(write, text, key, expected, found):
    """A value of the wrong type, or out of range, is refused with all that one needs to mend it."""
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}: {key}: expected ")
    before, _, after = message.rpartition(", found ")
    assert expected in before
    assert found in after


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed = true", "seed"),
        ("seed = '5'", "seed"),
        ("[data]\ntest_size = true", "data.test_size"),
        ("[data]\ntest_size = 1.0", "data.test_size"),
        ("[method]\nkind = 'vi'\nsteps = '200'", "method.steps"),
        ("[prior]\nfan_in = 'yes'", "prior.fan_in"),
        ("[prior]\nscale = inf", "prior.scale"),
    ],
)
def test_a_value_is_never_converted_in_silence(write, text, key):
    """Text or a truth value is no number, a share of 1.0 is not one row, and infinity is no scale."""
    path = write(text)
    assert refusal(path).startswith(f"{path}: {key}: expected ")


def test_a_name_is_one_that_the_store_can_hold(write):
    """A name that is missing or would leave the store is refused."""
    assert "name: the key is missing" in refusal(write(name=""))
    for name in ("../a", "", "a/b", "a" * 65):
        assert "name: expected a string that matches pattern" in refusal(write(name=f"name = '{name}'\n"))


def test_an_example_is_found_by_its_name(tmp_path, monkeypatch):
    """In any folder, unless a file has this name; `abstain configs` lists and prints them."""
    monkeypatch.chdir(tmp_path)
    assert read_config(Path("digits-vi")) == read_config(CONFIGS / "digits-vi.toml")
    assert set(examples()) == {path.stem for path in CONFIGS.glob("*.toml")}
    Path("digits-vi").write_text('name = "own"')
    assert read_config(Path("digits-vi")).name == "own"
    assert "abstain configs lists them" in refusal(Path("digits"))


def test_a_file_that_is_no_toml_is_refused_by_name(write, tmp_path):
    """A missing file, broken TOML and text that is not UTF-8 are refused by the file's name."""
    assert refusal(tmp_path / "none.toml") == (
        f"{tmp_path / 'none.toml'}: cannot be read: found No such file or directory; "
        "name an existing config, or an example; abstain configs lists them"
    )
    path = write("seed = = 1")
    assert refusal(path).startswith(f"{path}: is not TOML: found ")
    assert "line 2" in refusal(path)
    path.write_bytes(b'name = "caf\xe9"')
    assert refusal(path).startswith(f"{path}: is not TOML: found ")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("seed=7", None, "seed", 7),
        ("draws=1_000", None, "draws", 1000),
        ("name=b-2", None, "name", "b-2"),
        ("method.steps=200", "method", "steps", 200),
        ("steps=200", "method", "steps", 200),
        ("learning_rate=2e-3", "method", "learning_rate", 2e-3),
        ("hidden=[4, 2]", "network", "hidden", (4, 2)),
        ("scale=2.5", "prior", "scale", 2.5),
        ("fan_in=true", "prior", "fan_in", True),
        ("split_index=3", "data", "split_index", 3),
        ("calibration_size=7", "data", "calibration_size", 7),
        ("source=../shared/data/a b.npz", "data", "source", "../shared/data/a b.npz"),
        ("source='quoted'", "data", "source", "quoted"),
        ("decision=a=b", "calibration", "decision", "a=b"),
    ],
)
def test_set_replaces_one_key(override, section, key, value):
    """An override, dotted or bare, of any TOML type or plain text, changes its key and nothing else."""
    before = read_config(CONFIGS / "digits-vi.toml").model_dump()
    after = read_config(CONFIGS / "digits-vi.toml", (override,)).model_dump()
    (before[section] if section else before)[key] = value
    assert after == before


def test_set_reaches_the_tables_within_tables():
    """A warm start's key by its path, and a layer's prior with its name in quotes, as in the file."""
    overrides = ("method.map.steps=7", 'prior.layers."*.bias".scale=2.5', 'prior.layers."*.bias".kind=cauchy')
    config = read_config(CONFIGS / "wave-nuts.toml", overrides)
    assert config.method.map == MAPSettings(steps=7)
    assert config.prior.layers == {"*.bias": LayerPrior(scale=2.5, kind="cauchy")}
    assert (config.prior.noise_scale, config.method.warmup) == (0.5, 1000)


def test_every_method_has_a_config_and_every_config_a_method():
    """Every method that a config may name can run."""
    kinds = {cls.model_fields["kind"].default for cls in get_args(get_args(MethodConfig)[0])}
    assert set(METHODS) == kinds


def test_set_later_wins_and_all_apply():
    """Overrides are applied in order."""
    config = read_config(CONFIGS / "wave-nuts.toml", ("seed=1", "chains=2", "seed=2"))
    assert (config.seed, config.method) == (2, NUTSConfig(chains=2, warmup=1000, samples=4000))


def test_set_reaches_a_table_that_the_file_leaves_out(write):
    """A key of a table that stands at its defaults can be overridden as well."""
    config = read_config(write(), ("percentile=90", "hidden=[4]", "method.steps=200"))
    assert config == Config(
        name="a", calibration={"percentile": 90}, network=MLPSpec(hidden=(4,)), method=VIConfig(steps=200)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set: expected KEY=VALUE, found 'steps'"),
        ("=3", "--set: expected KEY=VALUE, found '=3'"),
        ("kind=nuts", "--set kind: expected a key of the config, or TABLE.KEY, found in network and prior and method"),
        (
            "stpes=4",
            "--set stpes: expected a key of the config, or TABLE.KEY, found in none of its tables; did you mean 'steps'?",
        ),
        ("method.stpes=4", "unknown key 'method.stpes': expected one of batch_size, "),
        ("x.y=2", "unknown key 'x': expected one of calibration, "),
        ("calibration=0.3", "calibration: expected a valid dictionary"),
        ("method=nuts", "method: expected a valid dictionary"),
        ("method.kind=nuts", "unknown key 'method.steps': expected one of adaptation, chain_method, chains, "),
        ("steps=many", "method.steps: expected a valid integer"),
        ("draws=", "draws: expected a valid integer"),
        ("data.source.deep=1", "data.source"),
        ("name.deep=1", "name"),
    ],
)
def test_a_wrong_set_is_refused(override, message):
    """An override that names no key, two keys, a table, or gives a wrong value is refused by its key."""
    assert message in refusal(CONFIGS / "digits-vi.toml", override)


def test_groups_of_chains_are_of_one_size():
    """Sixteen chains cannot go on in three equal groups; the error names both numbers."""
    with pytest.raises(ValueError, match="groups must divide chains, 16, found 3"):
        ChEESConfig(chain_method="parallel", groups=3)


FREE_OF_FALL = {"schedule": "constant"}
CAPABILITIES = {
    # Kind: settings, augmentation, draws from a normal, the key that may grow, the first search, sets of parameters.
    "map": ({}, True, False, None, None, {}),
    "ensemble": (FREE_OF_FALL, True, False, "steps", None, {"members": 5}),
    "vi": (FREE_OF_FALL | {"start": "map"}, True, True, "steps", "map", {"starts": 1, "particles": 1}),
    "laplace": ({}, False, True, None, None, {}),
    "hmc": ({"start": "vi"}, False, False, "samples", "vi", {"chains": 4}),
    "nuts": ({"start": "prior"}, False, False, "samples", None, {"chains": 4}),
    "chees": ({}, False, False, "samples", None, {"chains": 16}),
    "mile": ({}, False, False, "samples", "map", {"chains": 8}),
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_states_what_it_can_do(kind):
    """Augmentation, lengthening, memory and starts depend on these fields alone; every method has a line above."""
    given, augments, normal, growing, search, copies = CAPABILITIES[kind]
    settings = METHOD_SETTINGS[kind](**given)
    assert (settings.kind, settings.allows_augmentation, settings.samples_normal) == (kind, augments, normal)
    assert (settings.growing_key, settings.parameter_copies) == (growing, copies)
    assert settings.first_search == (search and (search, getattr(settings, search)))


def test_only_what_a_setting_says_changes_a_capability():
    """The earlier run, the deepest tree, a dense mass matrix, and the rank of a guide's covariance."""
    assert [METHOD_SETTINGS[kind]().earlier_run for kind in METHODS] == [None] * len(METHODS)
    assert VIConfig(start="run", start_from="a:1").earlier_run == "a:1"
    assert NUTSConfig(start="run", start_from="a:1").earlier_run == "a:1"
    assert VIConfig(family="low_rank", rank=3).parameter_copies == {"starts": 1, "particles": 1, "rank": 3}
    assert (NUTSConfig(max_tree_depth=7).largest_tree_depth, ChEESConfig().largest_tree_depth) == (7, None)
    dense = [kind(mass_matrix="dense").dense_mass_matrix for kind in (HMCConfig, NUTSConfig)]
    assert (dense, NUTSConfig().dense_mass_matrix) == ([True, True], False)
