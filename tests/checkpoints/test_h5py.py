#!/usr/bin/python3
"""test_h5py.py WRITER MPIRUN...: what the contract promises to scripts, read with h5py alone."""
import os
import shutil
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

SHAPES = {  # of state_fixture.c, in its order
    "model.embed_tokens.weight": (19, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.experts.gate_up_proj": (5, 6, 8),
    "model.layers.0.mlp.experts.down_proj": (5, 8, 3),
    "model.norm.weight": (8,),
    "lm_head.weight": (19, 8),
}
KINDS = ("master", "adam_m", "adam_v")


def expected(param, kind, shape, step):
    element = numpy.arange(numpy.prod(shape), dtype=numpy.int64)
    mix = element * 7 + param * 31 + kind * 57 + step * 13
    scale = numpy.float32(0.03 if kind == 0 else 0.0625)
    return ((mix % 251 - 125).astype(numpy.float32) * scale).reshape(shape)


def check_tensors(f, ranks):
    for k, kind in enumerate(KINDS):
        assert sorted(f[kind]) == sorted(SHAPES), sorted(f[kind])
        for p, (name, shape) in enumerate(SHAPES.items()):
            data = f[kind][name]
            assert data.is_virtual and data.dtype == numpy.dtype("<f4"), name
            assert all(s.file_name in {f"shard-{r:04d}.h5" for r in range(ranks)}
                       for s in data.virtual_sources())
            assert len(data.attrs["digest"]) == 16, data.attrs["digest"]
            assert numpy.array_equal(data[...], expected(p, k, shape, 10)), (kind, name)


def check(folder, ranks):
    manifest = os.path.join(folder, "manifest.h5")
    with open(manifest, "rb") as f:
        assert f.read(26).startswith(b"tessera manifest 1 xxh3 ")
    with h5py.File(manifest, "r") as f:
        assert f.userblock_size == 512
        assert int(f.attrs["format"]) == 1 and int(f.attrs["step"]) == 10
        assert int(f.attrs["tokens"]) == 20480
        assert f.attrs["config"] == "[model]\nfamily = mixtral\nvocab_size = 19\n"
        assert len(f.attrs["version"]) > 0 and len(f.attrs["digest"]) == 16
        assert int(f["state/data_position"][()]) == 80
        assert int(f["state/seed"][()]) == 2**64 - 1 - 41
        assert f["state/router_bias"].shape == (2, 5)
        shards = f["shards"][...]
        assert shards.dtype.names == ("file", "bytes", "digest") and len(shards) == ranks
        for r, shard in enumerate(shards):
            name = shard["file"].decode()
            assert name == f"shard-{r:04d}.h5"
            assert os.path.getsize(os.path.join(folder, name)) == int(shard["bytes"])
        check_tensors(f, ranks)
        return f.attrs["digest"]


def main():
    writer, mpirun = sys.argv[1], sys.argv[2:]
    digests = set()
    with tempfile.TemporaryDirectory(prefix="tessera-test-") as top:
        for ranks in (1, 3):
            for cut in range(5):
                run = os.path.join(top, f"run-{ranks}-{cut}")
                subprocess.run([*mpirun, str(ranks), writer, run, str(cut)], check=True)
                folder = os.path.join(run, "checkpoints", "latest")
                digests.add(check(folder, ranks))
                moved = os.path.join(top, "moved")
                shutil.move(os.path.realpath(folder), moved)
                digests.add(check(moved, ranks))
                shutil.rmtree(moved)
    assert len(digests) == 1, digests


main()
