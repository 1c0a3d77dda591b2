import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tfsd.converters.importers.tensors import open_safetensors, safetensors_files
from tfsd.errors import CheckpointError

A, B = np.arange(6, dtype="float32").reshape(2, 3), np.arange(4, dtype="float16")


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        header(b"{}", 2**62),
        header(b"{}", 90_000_000),
        header(b"[]"),
        header(b"\xff\xfe"),
        header(b'{"a":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4]}}') + b"0000",
        header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}') + b"0000",
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') + b"00000000",
        header(b'{"a":{"dtype":"XX","shape":[1],"data_offsets":[0,4]}}') + b"0000",
        header(b'{"a":' * 100_000),
    ],
    ids=["empty", "garbage", "absurd", "long", "list", "bytes", "huge", "short", "hole", "type", "deep"],
)
def test_a_damaged_header_is_one_line(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged or no safetensors file") as caught:
        with open_safetensors([tmp_path / "x.safetensors"]):
            pass
    assert "\n" not in str(caught.value)


def test_values_are_read_as_stored(tmp_path):
    c = np.arange(5).astype(ml_dtypes.bfloat16)
    save_file({"a": A, "b": B, "c": c, "n": np.arange(3)}, tmp_path / "x.safetensors")
    with open_safetensors([tmp_path / "x.safetensors"]) as tensors:
        assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
            "a": ((2, 3), "float32"),
            "b": ((4,), "float16"),
            "c": ((5,), "bfloat16"),
            "n": ((3,), "I64"),
        }
        for name, expected in (("a", A), ("b", B), ("c", c)):
            assert tensors[name].read().dtype == expected.dtype
            np.testing.assert_array_equal(tensors[name].read(), expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model{}.safetensors.index.json", "model{}-0000{}-of-00002.safetensors"),
        ("model.safetensors.index{}.json", "model{}-0000{}-of-00002.safetensors"),
        ("model.safetensors{}.index.json", "model-0000{1}-of-00002{0}.safetensors"),
    ],
    ids=["after-stem", "after-index", "before-index"],
)
def test_shards_are_found_through_their_index(tmp_path, variant, index, shard):
    """The three ways in which releases of diffusers and transformers have named the index of a variant."""
    mark = f".{variant}" if variant else ""
    names = [shard.format(mark, i) for i in (1, 2)]
    save_file({"a": A}, tmp_path / names[0])
    save_file({"b": B}, tmp_path / names[1])
    (tmp_path / index.format(mark)).write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    with open_safetensors(safetensors_files(tmp_path, "model", variant)) as tensors:
        assert sorted(tensors) == ["a", "b"]


@pytest.mark.parametrize("mark", ["", ".fp16"])
@pytest.mark.parametrize(("stem", "sharded"), [("diffusion_pytorch_model", True), ("model", False)])
def test_of_a_whole_file_and_shards_the_same_are_read_as_there(tmp_path, stem, sharded, mark):
    """diffusers, which reads U-Net and VAE, looks for an index first; transformers, which reads text encoders, for the file."""
    (tmp_path / f"{stem}{mark}.safetensors").touch()
    shard = f"{stem}{mark}-00001-of-00001.safetensors"
    (tmp_path / f"{stem}.safetensors.index{mark}.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    found = [path.name for path in safetensors_files(tmp_path, stem, mark[1:] or None)]
    assert found == [shard if sharded else f"{stem}{mark}.safetensors"]


def test_the_plain_file_goes_before_variants(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors", "other.safetensors"):
        (tmp_path / name).touch()
    assert [p.name for p in safetensors_files(tmp_path, "model")] == ["model.safetensors"]
    assert [p.name for p in safetensors_files(tmp_path, "model", "fp16")] == ["model.fp16.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="several variants; give variant=, one of fp16, non_ema"):
        safetensors_files(tmp_path, "model")
    (tmp_path / "model.non_ema.safetensors").unlink()
    assert [p.name for p in safetensors_files(tmp_path, "model")] == ["model.fp16.safetensors"]
    with pytest.raises(CheckpointError, match=r"has no model\.bf16\.safetensors; it has model\.fp16\.safetensors"):
        safetensors_files(tmp_path, "model", "bf16")


def test_a_folder_of_pickles_is_refused(tmp_path):
    for name in ("pytorch_model.bin", "config.json"):
        (tmp_path / name).touch()
    message = r"has no model\.safetensors, the only format that is read; it holds config\.json, pytorch_model\.bin\."
    with pytest.raises(CheckpointError, match=message):
        safetensors_files(tmp_path, "model")


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin", ""])
def test_an_index_cannot_lead_elsewhere(tmp_path, place):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(CheckpointError, match="weight_map must name .safetensors files of the same folder"):
        safetensors_files(tmp_path, "model")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("x", "y"):
        save_file({"a": A}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="the tensor a is in another file, too"):
        with open_safetensors([tmp_path / "x.safetensors", tmp_path / "y.safetensors"]):
            pass


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"shard\.safetensors does not exist; .* holds other\.safetensors\."):
        with open_safetensors([tmp_path / "shard.safetensors"]):
            pass


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 334643268\n"
    (tmp_path / "x.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is a pointer of Git LFS.*`git lfs pull`"):
        with open_safetensors([tmp_path / "x.safetensors"]):
            pass


def test_many_names_are_not_all_listed(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").touch()
    with pytest.raises(CheckpointError, match=r"it holds 00\.txt, .*, 07\.txt and 12 more\."):
        safetensors_files(tmp_path, "model")
