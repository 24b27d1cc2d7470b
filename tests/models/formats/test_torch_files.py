"""PyTorch's files: tensors are read, and no code of a malicious pickle is run."""

import json
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import find_model, save_hf_weights
from pipeline.models.formats.torch_files import TorchFiles
from tests.conftest import run_python
from tests.models.formats import writing
from tests.models.formats.writing import (
    BUILD,
    REDUCE,
    call,
    integer,
    items,
    mapping,
    name_of,
    pickle_of,
    storage,
    tensor,
    text,
    write_archive,
    write_torch,
)

FOUR = np.arange(4, dtype=np.float32)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "pytorch_model.bin"


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    files = TorchFiles((path,))
    return files.read(list(files.shapes))


def refusal(path: pathlib.Path) -> InputError:
    with pytest.raises(InputError) as error:
        read(path)
    assert str(path) in error.value.subject
    assert len(str(error.value)) < 2_000 and len(str(error.value).splitlines()) == 1
    return error.value


def write_value(path: pathlib.Path, value: bytes, content: bytes = FOUR.tobytes()) -> None:
    """Writes an archive with four numbers, whose pickle has one value."""
    write_archive(path, pickle_of(value), {"0": content})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_tensors_are_read_in_float32(path, dtype) -> None:
    value = np.arange(-3, 3).reshape(2, 3).astype(dtype)
    write_torch(path, {"a": value, "bert.b": value[0]})
    loaded = read(path)
    assert [array.dtype for array in loaded.values()] == [np.float32, np.float32]
    np.testing.assert_array_equal(loaded["a"], value.astype(np.float32))
    np.testing.assert_array_equal(loaded["bert.b"], value[0].astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_views_of_one_storage_equal_numpy_views(tmp_path_factory, data) -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    view = base.transpose(data.draw(st.permutations(range(3))))
    for axis in range(3):
        first = data.draw(st.integers(0, view.shape[axis] - 1))
        step = data.draw(st.integers(1, 3))
        view = np.moveaxis(np.moveaxis(view, axis, 0)[first::step], 0, axis)
    offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
    strides = tuple(step // 4 for step in view.strides)
    path = tmp_path_factory.mktemp("views") / "pytorch_model.bin"
    stored = storage("Float", "0", 24)
    write_value(path, mapping({"v": tensor(stored, offset, view.shape, strides)}), base.tobytes())
    np.testing.assert_array_equal(read(path)["v"], view)


def test_state_dictionary_with_parameters_and_metadata_is_read(path) -> None:
    plain = tensor(storage("Float", "0", 4), 0, (4,), (1,))
    hooks = call("collections", "OrderedDict")
    parameter = call("torch._utils", "_rebuild_parameter", plain, writing.FALSE, hooks)
    state = hooks + b"(" + text("w") + parameter + text("version") + integer(1) + b"u"
    write_value(path, state + mapping({"_metadata": hooks}) + BUILD)
    loaded = read(path)
    assert list(loaded) == ["w"]
    np.testing.assert_array_equal(loaded["w"], FOUR)


def test_integers_are_listed_and_refused_when_read(path) -> None:
    write_torch(path, {"bert.embeddings.position_ids": np.arange(4)[None], "w": FOUR})
    files = TorchFiles((path,))
    assert files.shapes == {"bert.embeddings.position_ids": (1, 4), "w": (4,)}
    np.testing.assert_array_equal(files.read(["w"])["w"], FOUR)
    with pytest.raises(InputError) as error:
        files.read(["bert.embeddings.position_ids"])
    assert error.value.received == "<i8"


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments) -> None:
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _touch(canary: pathlib.Path) -> str:
    return f"touch {canary}"


def hostile_pickles(canary: pathlib.Path) -> dict[str, tuple[bytes, str]]:
    """Returns pickles that would write a file, and the name in the message of each."""
    command = f"open({str(canary)!r}, 'w')"
    system = name_of("os", "system") + items(text(_touch(canary))) + REDUCE
    good = tensor(storage("Float", "0", 4), 0, (4,), (1,))
    pieces = "getattr", "builtins.getattr"
    return {
        "os.system": (pickle.dumps(Reduced(os.system, _touch(canary)), 2), "posix.system"),
        "builtins.eval": (pickle.dumps(Reduced(eval, command), 2), "eval"),
        "builtins.exec of protocol 4": (pickle.dumps(Reduced(exec, command), 4), "exec"),
        "of protocol 0": (pickle.dumps(Reduced(eval, command), 0), "eval"),
        "of protocol 5": (pickle.dumps([Reduced(eval, command)], 5), "eval"),
        "a value": (pickle_of(mapping({"w": good, "x": system})), "os.system"),
        "a key": (pickle_of(b"}(" + system + good + b"u"), "os.system"),
        "nested in a hook": (
            pickle_of(mapping({"w": call("collections", "OrderedDict", b"](" + system + b"e")})),
            "os.system",
        ),
        "in a persistent id": (pickle_of(mapping({"w": system + b"Q"})), "os.system"),
        "as a storage": (
            pickle_of(
                items(text("storage"), name_of("os", "system"), text("0"), text("cpu")) + b"Q"
            ),
            "os.system",
        ),
        "through the memo": (
            pickle_of(text("os") + b"q\x00" + text("system") + b"q\x01" + b"00h\x00h\x01\x93"),
            "POP",
        ),
        "STACK_GLOBAL from the memo": (
            b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x30\x30h\x00h\x01\x93.",
            "POP",
        ),
        "STACK_GLOBAL": (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93" + items(text("x")) + b"R.",
            "os.system",
        ),
        "STACK_GLOBAL of no text": (b"\x80\x04K\x01K\x02\x93.", "?"),
        "INST": (b"(" + text("touch x") + b"ios\nsystem\n.", "INST"),
        "OBJ": (b"(cos\nsystem\nS'x'\no.", "os.system"),
        "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
        "PERSID": (b"Pos.system\n.", "PERSID"),
        "getattr": (pickle_of(call("builtins", *pieces[:1], text("x"))), "builtins.getattr"),
        "a submodule": (pickle_of(name_of("torch._utils", "_rebuild_tensor_v2.x")), "tensor_v2.x"),
        "torch.load": (pickle_of(call("torch", "load", text("x"))), "torch.load"),
        "torch.hub": (pickle_of(name_of("torch.hub", "FloatStorage")), "torch.hub.FloatStorage"),
        "a class of the project": (pickle_of(name_of("pipeline", "api")), "pipeline.api"),
        "state of a class": (
            pickle_of(name_of("collections", "OrderedDict") + mapping({"x": b"N"}) + BUILD),
            "state",
        ),
        "slots of a dictionary": (
            pickle_of(mapping({"w": good}) + items(b"N", mapping({"x": b"N"})) + BUILD),
            "state",
        ),
        "a call of a dictionary": (pickle_of(b"}" + items() + REDUCE), "calls"),
        "a call of a storage": (pickle_of(call("torch", "FloatStorage", integer(9))), "calls"),
        "a rebuilt text": (
            pickle_of(call("torch._utils", "_rebuild_parameter", text("x"))),
            "calls torch._utils._rebuild_parameter",
        ),
        "a lambda in a text": (pickle_of(name_of("os\nsystem", "x")), "os"),
    }


@pytest.mark.parametrize("name", hostile_pickles(pathlib.Path("x")))
def test_no_code_of_a_malicious_pickle_is_run(path, name: str) -> None:
    canary = path.with_name("canary")
    content, named = hostile_pickles(canary)[name]
    write_archive(path, content, {"0": FOUR.tobytes()})
    error = refusal(path)
    assert named in error.received
    assert not canary.exists()
    # The folder has only the archive, so no file was written.
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_unpickling_the_malicious_pickle_would_write_the_file(tmp_path) -> None:
    """This makes sure that the previous test can fail."""
    canary = tmp_path / "canary"
    run_python("-c", f"import pickle; pickle.loads({hostile_pickles(canary)['os.system'][0]!r})")
    assert canary.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (0, (2, 2), (2, 3)),
        (0, (2, 2), (4, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-4,), (1,)),
        (0, (2**40,), (0,)),
        (0, (4, 2), (1, 0)),
        (2**62, (1,), (1,)),
        (2**70, (1,), (1,)),
        (0, (2,), (2**70,)),
        (0, (4,), ()),
        (0, (1,) * 17, (1,) * 17),
    ],
)
def test_tensor_outside_its_storage_is_refused(path, offset, size, stride) -> None:
    write_value(path, mapping({"w": tensor(storage("Float", "0", 4), offset, size, stride)}))
    assert "tensor" in refusal(path).received


@pytest.mark.parametrize("numel", [0, 3, 5, -1, 2**40, 2**62, 2**70])
def test_storage_of_another_size_than_its_entry_is_refused(path, numel: int) -> None:
    write_value(path, mapping({"w": tensor(storage("Float", "0", numel), 0, (), ())}))
    refusal(path)


@pytest.mark.parametrize("key", ["1", "../0", "/etc/passwd", "", "0/../0", "\n", "x" * 5000])
def test_storage_missing_in_the_archive_is_refused(path, key: str) -> None:
    write_value(path, mapping({"w": tensor(storage("Float", key, 4), 0, (4,), (1,))}))
    assert refusal(path).received == "no such entry"


def test_compressed_archive_is_refused_without_unpacking(path) -> None:
    """A zip bomb: 64 MiB of zeros in 64 KiB."""
    size = 2**24
    value = mapping({"w": tensor(storage("Float", "0", size), 0, (size,), (1,))})
    zeros = {"0": bytes(4 * size)}
    write_archive(path, pickle_of(value), zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    assert "uncompressed" in refusal(path).expected


def test_pickle_of_too_many_bytes_is_refused(path) -> None:
    write_value(path, b"}" * (8 * 2**20))
    assert refusal(path).received == 8 * 2**20 + 3


@pytest.mark.parametrize(
    "value",
    [
        b"}" * 200_000,
        b"(" * 200_000,
        b"t",
        b"u",
        b"(t(u",
        b"h\x07",
        b"N" * 2 + b"s",
        b"",
        b"}(K\x01u",
        # Computing its hash would take unlimited time.
        b")" + b"q\x00h\x00\x86" * 60 + b"q\x01}h\x01Ns",
        b"\x8b\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        text("\ud800"),
    ],
)
def test_damaged_pickle_is_refused(path, value: bytes) -> None:
    write_value(path, value)
    refusal(path)


@pytest.mark.parametrize(
    ("content", "received", "hint"),
    [
        (pickle.dumps({"w": 1}, 2), "a file of torch before 1.6", "weights_only=True"),
        (b"", "a file of torch before 1.6", "weights_only=True"),
    ],
)
def test_older_files_are_refused_with_a_command_that_converts_them(
    path, content: bytes, received: str, hint: str
) -> None:
    path.write_bytes(content)
    error = refusal(path)
    assert received in error.received and hint in error.hint
    assert repr(str(path)) in error.hint


@pytest.mark.parametrize("name", ["../pytorch_model.bin", "x.safetensors", "gone.bin", 5])
def test_index_refuses_files_outside_its_directory(tmp_path, config, weights, name: object) -> None:
    save_hf_weights(tmp_path, config, weights)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError) as error:
        find_model(tmp_path)
    assert error.value.subject == f"{index}: weight_map"


def test_pointer_of_git_lfs_is_refused(path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    error = refusal(path)
    assert "Git LFS" in error.received and error.hint.startswith("run git lfs pull")


def test_torchscript_archive_is_refused_with_a_command_that_converts_it(path) -> None:
    others = {"constants.pkl": pickle.dumps(()), "code/__torch__.py": b""}
    write_archive(path, pickle.dumps({}), {}, others=others)
    error = refusal(path)
    assert error.received == "a TorchScript archive" and "torch.jit.load" in error.hint


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_training_state_is_refused_with_a_command_that_extracts_its_tensors(
    path, name: str
) -> None:
    inner = mapping({"w": tensor(storage("Float", "0", 4), 0, (4,), (1,))})
    write_value(path, mapping({"epoch": integer(3), name: inner}))
    error = refusal(path)
    assert repr(name) in error.received and f"['{name}']" in error.hint


def test_files_without_tensors_are_refused(path) -> None:
    for value in (b"N", b"]", b"}", mapping({"w": b"N"})):
        write_value(path, value)
        assert "without tensors" in refusal(path).received
    write_archive(path, pickle_of(b"}"), {}, others={"byteorder": b"big"})
    assert refusal(path).expected == "little-endian numbers"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    assert refusal(path).received == "a zip archive of another format"


def test_every_truncated_archive_is_refused(path) -> None:
    write_torch(path, {"w": FOUR})
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        refusal(path)


def test_archive_without_its_beginning_is_refused(path) -> None:
    write_torch(path, {"w": FOUR})
    path.write_bytes(path.read_bytes()[70:])
    refusal(path)


def test_memory_is_limited_to_the_requested_tensors(path) -> None:
    """Reads one tensor of 1 MiB out of 256 MiB, in a process limited to 64 MiB more."""
    value = mapping(
        {
            "large": tensor(storage("Float", "0", 2**26), 0, (2**26,), (1,)),
            "small": tensor(storage("Float", "1", 2**18), 0, (2**18,), (1,)),
        }
    )
    write_archive(path, pickle_of(value), {"0": bytes(2**28), "1": bytes(2**20)})
    code = (
        "import pathlib, resource, sys\n"
        "from pipeline.models.formats.torch_files import TorchFiles\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2**26\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "from pipeline.base.location import Location\n"
        "files = TorchFiles((Location.parse(sys.argv[1]),))\n"
        "print(files.read(['small'])['small'].size)\n"
        "try:\n"
        "    files.read(['large'])\n"
        "except MemoryError:\n"
        "    print('too large')\n"
    )
    assert run_python("-c", code, str(path)).stdout.split() == [str(2**18), "too", "large"]


def test_model_directory_with_pytorch_model_bin_opens(tmp_path, config, weights) -> None:
    save_hf_weights(tmp_path, config, weights)
    write_torch(tmp_path / "pytorch_model.bin", load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    source = find_model(tmp_path)
    assert (source.format, source.has_head) == ("torch", True)
    loaded = source.read_weights()
    assert loaded.keys() == weights.keys()
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, weights[name])
