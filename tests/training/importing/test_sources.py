"""The readers of files: damaged and hostile ones are refused with words, and nothing of them is executed."""

import json
import pickle
from itertools import pairwise

import h5py
import numpy as np
import pytest

from abstain.models.errors import AbstainError
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.training.importing.netcdf import read_netcdf
from abstain.training.importing.safetensors import read_safetensors
from abstain.training.importing.sources import read_found
from abstain.training.importing.torch_layers import with_flax_names
from tests.helpers.safetensors import header_of, write_safetensors

ARRAYS = {"0.weight": np.arange(6, dtype=np.float32).reshape(3, 2), "0.bias": np.ones(3, np.float32)}


def refusal(read, *arguments):
    """The text of the error."""
    with pytest.raises(AbstainError) as caught:
        read(*arguments)
    return str(caught.value)


# ---- safetensors -----------------------------------------------------------------------------------------------------


def test_safetensors_of_every_type(tmp_path):
    """Also of half precision, whose bits are those of a float32's upper half."""
    arrays = {name: np.arange(4).astype(name) for name in ("float64", "float32", "float16", "int64")}
    header = header_of(arrays | {"bfloat16": np.zeros(0, np.float32)})
    end = header["int64"]["data_offsets"][1]
    header["bfloat16"] = {"dtype": "BF16", "shape": [2], "data_offsets": [end, end + 4]}
    header["__metadata__"] = {"format": "pt"}
    bits = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    path = write_safetensors(tmp_path / "a.safetensors", arrays | {"bfloat16": bits}, header)
    found = read_safetensors(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["bfloat16"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": [3, 3]}, "would follow"),
        ({"shape": [10**12, 10**12]}, "would follow"),
        ({"shape": [-1, 2]}, "shape"),
        ({"dtype": "object"}, "dtype"),
        ({"data_offsets": [0, 8]}, "would follow"),
        ({"data_offsets": [4, 28]}, "would follow"),
        ({"data_offsets": [0]}, "data_offsets"),
        ({"more": 1}, "more"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, change, text):
    """Shapes and positions must be those of the bytes."""
    header = header_of(ARRAYS)
    header["0.weight"] |= change
    assert text in refusal(read_safetensors, write_safetensors(tmp_path / "a.safetensors", ARRAYS, header))


def test_every_mutation_of_a_file_is_read_or_refused(tmp_path):
    """Cut off, with other lengths, and with other bytes: never another kind of error."""
    whole = write_safetensors(tmp_path / "a.safetensors", ARRAYS).read_bytes()
    rng = np.random.default_rng(0)
    cases = [whole[:length] for length in range(0, len(whole), 7)]
    cases += [int(length).to_bytes(8, "little") + whole[8:] for length in (0, 1, 2**63, 2**40, len(whole))]
    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        cases.append(bytes(changed))
    read = 0
    for case in cases:
        path = tmp_path / "b.safetensors"
        path.write_bytes(case)
        try:
            found = read_safetensors(path)
        except AbstainError:
            continue
        read += 1
        assert sorted(array.size for array in found.values()) in ([3, 6], [6, 12])
    assert 0 < read < len(cases)


# ---- PyTorch's layers ------------------------------------------------------------------------------------------------


def layers_of(*widths, names=None, seed=0):
    """The state dict of linear layers."""
    rng, state = np.random.default_rng(seed), {}
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        name = names[index] if names else f"net.{2 * index}"
        state |= {f"{name}.weight": rng.normal(size=(outputs, inputs)), f"{name}.bias": rng.normal(size=outputs)}
    return state


def test_layers_are_ordered_by_their_numbers():
    """10 is after 2, whatever the order in the file."""
    state = layers_of(2, 5, 5, 3, names=["fc2", "fc10", "fc11"])
    shuffled = dict(sorted(state.items(), reverse=True))
    found = with_flax_names(shuffled, MLPSpec(hidden=(5, 5)), (), "a")
    np.testing.assert_array_equal(found["Dense_1.kernel"], state["fc10.weight"].T)
    np.testing.assert_array_equal(found["Dense_2.bias"], state["fc11.bias"])


def test_layers_with_other_names_are_ordered_by_shape_if_one_order_fits():
    """Else the order must be given."""
    state = layers_of(2, 5, 4, 3, names=["stem", "body", "head"])
    found = with_flax_names(state, MLPSpec(hidden=(5, 4)), (), "a")
    np.testing.assert_array_equal(found["Dense_0.kernel"], state["stem.weight"].T)
    same = layers_of(4, 4, 4, 4, names=["stem", "body", "head"])
    text = refusal(with_flax_names, same, MLPSpec(hidden=(4, 4)), (), "a")
    assert "order of the layers: expected names that differ only by numbers, or one order whose shapes fit" in text
    assert "several orders fit; set posterior.layers" in text
    given = with_flax_names(same, MLPSpec(hidden=(4, 4)), ("stem", "body", "head"), "a")
    np.testing.assert_array_equal(given["Dense_1.kernel"], same["body.weight"].T)


@pytest.mark.parametrize(
    ("state", "network", "text"),
    [
        (layers_of(2, 5, 3), MLPSpec(hidden=(5, 5)), "layers: expected 3, for network.hidden = [5, 5], found 2"),
        ({"0.weight": np.zeros((3, 2))}, MLPSpec(hidden=()), "array '0.bias' is missing"),
        ({"0.weight": np.zeros((3, 2, 5, 5)), "0.bias": np.zeros(3)}, MLPSpec(hidden=()), "linear layers, found shape"),
        ({"0.running_mean": np.zeros(3)}, MLPSpec(hidden=()), "array '0.running_mean': expected weights"),
        (layers_of(2, 3), LeNetSpec(), 'network.kind: expected "mlp", the only network'),
        (layers_of(2, 5, 3, names=["a", "b"]), MLPSpec(hidden=(7,)), "no order fits; set network.hidden"),
    ],
)
def test_layers_that_do_not_fit_are_refused(state, network, text):
    """Another number, no bias, convolutions, running statistics, another network."""
    assert text in refusal(with_flax_names, state, network, (), "net.safetensors")


def test_given_layers_must_be_those_of_the_file():
    """Each once."""
    text = refusal(with_flax_names, layers_of(2, 5, 3), MLPSpec(hidden=(5,)), ("net.0", "net.1"), "a")
    assert "posterior.layers: expected each of net.0, net.2 once, found net.0, net.1" in text


# ---- netCDF ----------------------------------------------------------------------------------------------------------


def test_netcdf_that_refers_to_other_files_is_refused(tmp_path):
    """By a link, or by numbers that are kept elsewhere; also a group inside of itself, and text."""
    path = tmp_path / "a.nc"
    for make, text in (
        (lambda file: file.__setitem__("a", h5py.ExternalLink("other.nc", "/x")), "found a link"),
        (lambda file: file.__setitem__("a", h5py.SoftLink("/b")), "found a link"),
        (lambda file: file.create_dataset("a", (2,), "f4", external=[("raw", 0, 8)]), "found numbers in another file"),
        (lambda file: file.__setitem__("inner/again", file["/"]), "nested too deeply"),
        (lambda file: file.create_dataset("a", data=["text"]), "found type"),
        (lambda file: file.create_dataset("a", (2**40,), "f4", chunks=(2**10,)), "the draws take too much memory"),
    ):
        with h5py.File(path, "w") as file:
            make(file)
        assert text in refusal(read_netcdf, path)


def test_damaged_and_older_netcdf_is_refused(tmp_path):
    """With what would be right."""
    path = tmp_path / "a.nc"
    path.write_bytes(b"CDF\x01" + bytes(50))
    assert "expected a netCDF4 file, found an older netCDF" in refusal(read_netcdf, path)
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros((3, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    assert "cannot be read: expected a netCDF4 file" in refusal(read_netcdf, path)


def test_arvizs_dimensions_are_checked(tmp_path):
    """The group `posterior` has chains and draws first; a file without the group may have any names."""
    path = tmp_path / "a.nc"
    with h5py.File(path, "w") as file:
        file.create_group("posterior")["w"] = np.zeros((3, 4))
    assert "variable 'w': expected the dimensions chain, draw, …" in refusal(read_netcdf, path)
    with h5py.File(path, "w") as file:
        file["params/Dense_0/kernel"] = np.zeros((3, 4))
    found = read_netcdf(path)
    assert (found.kind, [*found.arrays]) == ("netcdf", ["params/Dense_0/kernel"])


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_paths_that_are_no_source_are_refused(tmp_path):
    """Absent, of several kinds, twice, of an unknown kind, or a folder that is no checkpoint."""
    read = lambda *names: refusal(read_found, [tmp_path / name for name in names], MLPSpec(), ())  # noqa: E731
    for name in ("a.npz", "b.npz", "model.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"PK")
    write_safetensors(tmp_path / "a.safetensors", ARRAYS)
    (tmp_path / "folder" / "7").mkdir(parents=True)
    assert "no such file or folder" in read("absent.npz")
    assert "expected one .npz or netCDF file, or the .safetensors files" in read("a.npz", "b.npz")
    assert "import sources of one kind" in read("a.npz", "a.safetensors")
    assert "expected each network once, found the same path twice" in read("a.safetensors", "a.safetensors")
    assert "it may hold pickled code, which is never read" in read("model.pt")
    assert "found a file notes.txt; save the draws as an .npz" in read("notes.txt")
    assert "found the steps 7; name one step" in read("folder")


def test_a_pickled_npz_is_refused_and_not_executed(tmp_path):
    """Its code would write a file."""

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    np.savez(tmp_path / "a.npz", w=np.array([Harm()], dtype=object))
    assert pickle.dumps(Harm())
    text = refusal(read_found, [tmp_path / "a.npz"], MLPSpec(), ())
    assert "expected an .npz of plain arrays, found no archive, or Python objects in it" in text
    assert not (tmp_path / "harm").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """A folder with metadata that Orbax cannot read."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": 7}))
    text = refusal(read_found, [folder], MLPSpec(), ())
    assert text.startswith(f"{folder}: ")
