"""A bundle is a folder of files named by what is in them; what is missing, changed or foreign is found."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest

from edge.errors import BundleError, DigestMismatch, UnsupportedVersion
from edge.formats.bundle import Manifest, decode_manifest, digest_of, encode_manifest
from edge.formats.message import BLOCK_BYTES
from host import oci
from host.bundle import BundleContent, OpenBundle, blob_of, manifest_blobs, open_bundle, rehash, write_bundle
from host.errors import PackageError
from host.oci import canonical_json
from tests.tiny_bundle import make_tiny_bundle


def content(seed: int = 0, *, tag: str = "1.0.0") -> BundleContent:
    """A bundle of two shards."""
    tiny = make_tiny_bundle(seed)
    blobs = {digest: data for digest, data in tiny.blobs.items() if digest != tiny.manifest_blob.digest}
    return BundleContent(manifest=tiny.manifest, blobs=blobs, tag=tag, parameter_count=7)


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    return write_bundle(content(), tmp_path / "bundle")


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob_file(bundle: OpenBundle, digest: str) -> Path:
    """The file of a blob."""
    return bundle.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


# ------------------------------------------------------------------------------------------------------------ writing


def test_what_was_written_is_read_back(bundle: OpenBundle) -> None:
    tiny = make_tiny_bundle()
    assert bundle.manifest == tiny.manifest
    assert bundle.manifest_blob.digest == tiny.manifest_blob.digest
    assert {blob.digest for blob in bundle.blobs()} == set(tiny.blobs)
    for blob in bundle.blobs():
        assert bundle.read(blob) == tiny.blobs[blob.digest]


def test_every_blob_is_a_file_named_by_its_digest(bundle: OpenBundle) -> None:
    for path in bundle.blobs_folder.iterdir():
        assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_bundle(content(), tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_other_weights_give_another_identity(tmp_path: Path, bundle: OpenBundle) -> None:
    other = write_bundle(content(seed=1), tmp_path / "other")
    assert other.artefact_digest != bundle.artefact_digest


def test_a_taken_place_is_refused_and_kept(bundle: OpenBundle) -> None:
    before = files(bundle.folder)
    with pytest.raises(PackageError) as caught:
        write_bundle(content(seed=1), bundle.folder)
    assert str(caught.value) == f"{bundle.folder} is there already: remove it, choose another --out, or give --force"
    assert files(bundle.folder) == before


def test_a_bundle_is_replaced_when_told(bundle: OpenBundle, tmp_path: Path) -> None:
    again = write_bundle(content(seed=1), bundle.folder, replace=True)
    assert again.manifest == make_tiny_bundle(1).manifest
    assert list(tmp_path.iterdir()) == [bundle.folder]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(PackageError):
        write_bundle(content(), mine, replace=True)
    assert files(mine) == {"letter.txt": b"dear"}


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    good = content()
    # A digest with a slash cannot be the name of a file: the write fails after others have succeeded.
    bad = BundleContent(
        manifest=good.manifest, blobs={**good.blobs, "sha256:none/such": b"x"}, tag="1", parameter_count=0
    )
    with pytest.raises(PackageError, match=r"bundle: cannot be written \(No such file or directory\)"):
        write_bundle(bad, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_large_blobs_carry_the_digest_of_each_block() -> None:
    data = bytes(range(256)) * (BLOCK_BYTES // 256) + b"rest"
    blob = blob_of(data)
    assert (blob.digest, blob.size_bytes) == (digest_of(data), BLOCK_BYTES + 4)
    assert blob.block_digests == hashlib.sha256(data[:BLOCK_BYTES]).digest() + hashlib.sha256(b"rest").digest()
    assert blob_of(data[:BLOCK_BYTES]).block_digests == b""


def test_json_is_canonical() -> None:
    assert canonical_json({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'.encode()


# ------------------------------------------------------------------------------------------------------------ reading


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no bundle here (no index.json); make one with `shardwire package`"


def test_an_index_that_is_no_json(bundle: OpenBundle) -> None:
    (bundle.folder / "index.json").write_text("{")
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.folder)
    assert str(caught.value) == f"{bundle.folder / 'index.json'}: Input data was truncated"


def test_an_index_that_is_too_large(bundle: OpenBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (bundle.folder / "index.json").stat().st_size
    monkeypatch.setattr("host.bundle.MAX_OCI_JSON_BYTES", size - 1)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.folder)
    assert str(caught.value) == f"{bundle.folder / 'index.json'}: {size} bytes are more than {size - 1}"


@pytest.mark.parametrize("count", [0, 2])
def test_an_index_of_none_or_several_models(bundle: OpenBundle, count: int) -> None:
    index = msgspec.json.decode((bundle.folder / "index.json").read_bytes())
    models = [entry for entry in index["manifests"] if entry["artifactType"] == oci.ARTIFACT_TYPE]
    index["manifests"] = models * count
    (bundle.folder / "index.json").write_bytes(canonical_json(index))
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.folder)
    assert str(caught.value) == f"{bundle.folder}/index.json: names {count} model artefacts, expected 1"


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "md5:00", "sha256:" + "A" * 64])
def test_a_digest_that_is_a_path_is_refused(bundle: OpenBundle, digest: str) -> None:
    index = (bundle.folder / "index.json").read_text()
    (bundle.folder / "index.json").write_text(index.replace(bundle.artefact_digest, digest))
    with pytest.raises(BundleError, match=r"is not sha256:<64 hex digits>"):
        open_bundle(bundle.folder)


def test_a_manifest_of_another_major_version_is_refused(tmp_path: Path) -> None:
    manifest: Manifest = msgspec.structs.replace(content().manifest, format="2.0")
    with pytest.raises(UnsupportedVersion):
        write_bundle(
            BundleContent(manifest=manifest, blobs=content().blobs, tag="1", parameter_count=0), tmp_path / "b"
        )


def test_a_changed_manifest_is_found_when_the_bundle_is_opened(bundle: OpenBundle) -> None:
    path = blob_file(bundle, bundle.manifest_blob.digest)
    changed = encode_manifest(bundle.manifest).replace(b'"name":"tiny"', b'"name":"tini"')
    path.write_bytes(changed)
    with pytest.raises(DigestMismatch) as caught:
        open_bundle(bundle.folder)
    assert str(caught.value) == f"{path}: digest is {digest_of(changed)}, expected {bundle.manifest_blob.digest}"


def test_a_blob_of_another_size_is_refused_before_it_is_hashed(bundle: OpenBundle) -> None:
    blob = bundle.manifest.shards[0].weights[0]
    path = blob_file(bundle, blob.digest)
    path.write_bytes(b"short")
    with pytest.raises(BundleError) as caught:
        bundle.read(blob)
    assert str(caught.value) == f"{path}: has 5 bytes, expected {blob.size_bytes}; package or copy it again"


# ---------------------------------------------------------------------------------------------------------- rehashing


def test_a_sound_bundle_is_hashed_whole(bundle: OpenBundle) -> None:
    assert {blob.digest for blob in rehash(bundle)} >= {blob.digest for blob in manifest_blobs(bundle.manifest)}


def test_any_file_that_changes_is_found(tmp_path: Path) -> None:
    original = write_bundle(content(), tmp_path / "original")
    for name in sorted(path.name for path in original.blobs_folder.iterdir()):
        folder = Path(shutil.copytree(original.folder, tmp_path / name[:16]))
        path = folder / "blobs" / "sha256" / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(DigestMismatch):
            list(rehash(open_bundle(folder)))


def test_any_file_that_is_missing_is_found(tmp_path: Path) -> None:
    original = write_bundle(content(), tmp_path / "original")
    for name in sorted(path.name for path in original.blobs_folder.iterdir()):
        folder = Path(shutil.copytree(original.folder, tmp_path / name[:16]))
        (folder / "blobs" / "sha256" / name).unlink()
        with pytest.raises(BundleError, match=f"{name}: cannot be read"):
            list(rehash(open_bundle(folder)))


def test_a_file_that_does_not_belong_is_found(bundle: OpenBundle) -> None:
    stray = bundle.blobs_folder / "notes.txt"
    stray.write_text("hello")
    with pytest.raises(DigestMismatch):
        list(rehash(bundle))
    stray.unlink()
    stray.mkdir()
    with pytest.raises(BundleError):
        list(rehash(bundle))


# ----------------------------------------------------------------------------------------------------- older manifests


def test_a_manifest_of_version_1_0_is_read_with_nothing_measured() -> None:
    fields = msgspec.json.decode(encode_manifest(make_tiny_bundle().manifest))
    fields["format"] = "1.0"
    for tensor in fields["tensors"]:
        del tensor["deflated_bytes"]
    for layer in fields["layers"]:
        del layer["nodes"]

    manifest = decode_manifest(msgspec.json.encode(fields))

    assert {tensor.deflated_bytes for tensor in manifest.tensors} == {0}
    assert {layer.nodes for layer in manifest.layers} == {()}


def test_names_of_nodes_are_bounded() -> None:
    manifest = make_tiny_bundle().manifest
    layer = msgspec.structs.replace(manifest.layers[0], nodes=("a", "b" * 513))
    data = encode_manifest(msgspec.structs.replace(manifest, layers=(layer, *manifest.layers[1:])))

    with pytest.raises(BundleError, match=f"^here: layer {layer.name!r}: a node's name has 513 characters$"):
        decode_manifest(data, where="here")


@pytest.mark.parametrize("deflated_bytes", [-1, 1 << 40])
def test_sizes_that_cannot_be_are_refused(deflated_bytes: int) -> None:
    manifest = make_tiny_bundle().manifest
    tensor = msgspec.structs.replace(manifest.tensors[0], deflated_bytes=deflated_bytes)
    data = encode_manifest(msgspec.structs.replace(manifest, tensors=(tensor, *manifest.tensors[1:])))

    with pytest.raises(BundleError, match=r"^here: tensor 'x' deflates to "):
        decode_manifest(data, where="here")
