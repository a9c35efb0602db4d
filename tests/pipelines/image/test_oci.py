"""Layers, configs and layouts: bytes that depend on content only."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from pipelines.image import oci
from pipelines.store.store import Store


def make_tree(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def written(entries: list[oci.Entry], target: Path) -> bytes:
    oci.write_layer(entries, target)
    return target.read_bytes()


def members(layer: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(layer) as archive:
        return {member.name: member for member in archive.getmembers()}


def foreign_tar(target: Path, *infos: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(target, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for info, data in infos:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def info(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def rewritten(source: Path, target: Path) -> Path:
    with source.open("rb") as file:
        oci.rewrite_layer(file, target)
    return target


def image(store: Store, tmp_path: Path, *contents: str) -> oci.Image:
    layers = []
    for content in contents:
        oci.write_layer([oci.Entry(name=f"opt/{content}", source=content.encode())], tmp_path / "layer")
        layers.append(oci.Layer(what=content, blob=store.put(tmp_path / "layer")))
    return oci.assemble(layers, {"User": "1000:1000", "Cmd": None}, {"org.opencontainers.image.title": "x"})


def test_a_layer_does_not_depend_on_times_modes_or_the_order_of_writing(tmp_path: Path) -> None:
    names = ["b/two", "a/one", "a/deep/three"]
    first = make_tree(tmp_path / "first", names)
    second = make_tree(tmp_path / "second", names[::-1])
    os.utime(second / "a/one", (1, 1))
    (second / "b/two").chmod(0o600)
    one = written(list(oci.tree(first, "opt")), tmp_path / "1.tar")
    two = written(list(oci.tree(second, "opt"))[::-1], tmp_path / "2.tar")
    assert one == two


def test_a_layer_names_every_parent_and_belongs_to_root(tmp_path: Path) -> None:
    oci.write_layer([oci.Entry(name="opt/nim/x", source=b"x", executable=True)], tmp_path / "layer")
    found = members(tmp_path / "layer")
    assert list(found) == ["opt", "opt/nim", "opt/nim/x"]
    assert {(m.uid, m.gid, m.mtime, m.mode) for m in found.values()} == {(0, 0, 0, 0o755)}


def test_one_changed_byte_changes_a_layer(tmp_path: Path) -> None:
    one = written([oci.Entry(name="x", source=b"same")], tmp_path / "1.tar")
    assert one != written([oci.Entry(name="x", source=b"sane")], tmp_path / "2.tar")


def test_links_and_long_names_survive(tmp_path: Path) -> None:
    long = "/".join(["folder" * 8] * 4)
    folder = make_tree(tmp_path / "tree", [long])
    (folder / "alias").symlink_to(long)
    oci.write_layer(oci.tree(folder, "opt"), tmp_path / "layer")
    found = members(tmp_path / "layer")
    assert found["opt/alias"].linkname == long
    assert found[f"opt/{long}"].isreg()


def test_a_foreign_layer_loses_its_clock_its_order_and_what_is_volatile(tmp_path: Path) -> None:
    kept, volatile = (info("etc/os-release", mtime=123.5), b"debian"), (info("etc/machine-id"), b"4711")
    log = (info("var/log/build.log"), b"Tuesday")
    one = foreign_tar(tmp_path / "1", (info("./var/log/", tarfile.DIRTYPE), b""), kept, volatile, log)
    later = (info("etc/os-release", mtime=999, uname="me", pax_headers={"atime": "5.5"}), b"debian")
    two = foreign_tar(tmp_path / "2", later, (info("var/log", tarfile.DIRTYPE), b""))
    first = rewritten(one, tmp_path / "1.tar")
    assert first.read_bytes() == rewritten(two, tmp_path / "2.tar").read_bytes()
    assert list(members(first)) == ["etc/os-release", "var/log"]


def test_rewriting_a_layer_again_changes_nothing(tmp_path: Path) -> None:
    oci.write_layer(oci.tree(make_tree(tmp_path / "t", ["a/b", "c"]), "opt"), tmp_path / "layer")
    assert rewritten(tmp_path / "layer", tmp_path / "again").read_bytes() == (tmp_path / "layer").read_bytes()


def test_a_compressed_foreign_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    plain = foreign_tar(tmp_path / "plain", (info("bin/sh", mode=0o755), b"#!"))
    (tmp_path / "packed").write_bytes(gzip.compress(plain.read_bytes()))
    assert rewritten(tmp_path / "packed", tmp_path / "1").read_bytes() == rewritten(plain, tmp_path / "2").read_bytes()


def test_hard_links_keep_one_copy_whichever_name_came_first(tmp_path: Path) -> None:
    data = b"perl" * 100
    one = foreign_tar(tmp_path / "1", (info("bin/z"), data), (info("bin/a", tarfile.LNKTYPE, linkname="bin/z"), b""))
    two = foreign_tar(tmp_path / "2", (info("bin/a"), data), (info("bin/z", tarfile.LNKTYPE, linkname="./bin/a"), b""))
    first = rewritten(one, tmp_path / "1.tar")
    assert first.read_bytes() == rewritten(two, tmp_path / "2.tar").read_bytes()
    assert members(first)["bin/z"].islnk()
    with tarfile.open(first) as archive:
        assert archive.extractfile("bin/z").read() == data  # type: ignore[union-attr]


def test_deletions_owners_and_capabilities_are_content(tmp_path: Path) -> None:
    capability = {"SCHILY.xattr.security.capability": "\x01\x02"}
    source = foreign_tar(
        tmp_path / "1",
        (info("etc/.wh.motd"), b""),
        (info("usr/bin/ping", uid=7, gid=8, mode=0o4755, pax_headers=capability), b"ping"),
    )
    found = members(rewritten(source, tmp_path / "out"))
    ping = found["usr/bin/ping"]
    assert "etc/.wh.motd" in found
    assert (ping.uid, ping.gid, ping.mode, ping.pax_headers) == (7, 8, 0o4755, capability)


def test_a_config_holds_no_time_and_no_empty_settings(tmp_path: Path) -> None:
    made = image(Store(tmp_path / "store"), tmp_path, "a", "b")
    config = json.loads(made.config)
    assert config["created"] == "1970-01-01T00:00:00Z"
    assert config["config"] == {"User": "1000:1000"}
    assert config["rootfs"]["diff_ids"] == [layer.blob.digest for layer in made.layers]
    assert len(config["history"]) == len(made.layers)


def test_every_digest_in_a_layout_is_the_digest_of_its_blob(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    oci.write_layout(tmp_path / "oci", {"enginery/x:1": image(store, tmp_path, "a", "b")}, store)
    for path in (tmp_path / "oci/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    (entry,) = json.loads((tmp_path / "oci/index.json").read_text())["manifests"]
    manifest = json.loads((tmp_path / "oci" / oci.blob_path(entry["digest"])).read_text())
    for descriptor in [manifest["config"], *manifest["layers"]]:
        assert (tmp_path / "oci" / oci.blob_path(descriptor["digest"])).stat().st_size == descriptor["size"]


def test_layers_in_a_layout_are_links_into_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = image(store, tmp_path, "a")
    oci.write_layout(tmp_path / "oci", {"x:1": made}, store)
    digest = made.layers[0].blob.digest
    assert (tmp_path / "oci" / oci.blob_path(digest)).samefile(store.path(digest))


def test_a_layout_written_again_keeps_what_is_shared_and_drops_what_nothing_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    old, new = image(store, tmp_path, "shared", "old"), image(store, tmp_path, "shared", "new")
    oci.write_layout(tmp_path / "oci", {"x:1": old}, store)
    oci.write_layout(tmp_path / "oci", {"x:1": new}, store)
    held = {path.name for path in (tmp_path / "oci/blobs/sha256").iterdir()}
    wanted = [layer.blob.digest for layer in new.layers]
    wanted += [oci.blob_of(content).digest for content in (new.config, new.manifest)]
    assert held == {digest.removeprefix("sha256:") for digest in wanted}


def test_a_layout_with_two_images_names_both_and_stores_shared_layers_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    images = {"x:1": image(store, tmp_path, "shared", "a"), "x:1-cpu": image(store, tmp_path, "shared", "b")}
    oci.write_layout(tmp_path / "oci", images, store)
    index = json.loads((tmp_path / "oci/index.json").read_text())
    named = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert named == ["x:1", "x:1-cpu"]
    assert len(list((tmp_path / "oci/blobs/sha256").iterdir())) == 3 + 2 * 2


@pytest.mark.parametrize("left_out", [0, 1])
def test_the_stream_for_docker_load_is_a_tar_without_the_layers_left_out(tmp_path: Path, left_out: int) -> None:
    store = Store(tmp_path / "store")
    made = image(store, tmp_path, "a", "b")
    absent = frozenset(layer.blob.digest for layer in made.layers[:left_out])
    stream = io.BytesIO(b"".join(oci.docker_archive({"x:1": made}, store, absent)))
    with tarfile.open(fileobj=stream) as archive:
        names = set(archive.getnames())
        (described,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = archive.extractfile(described["Config"]).read()  # type: ignore[union-attr]
    assert config == made.config
    assert described["RepoTags"] == ["x:1"]
    assert {name in names for name in described["Layers"][:left_out]} <= {False}
    assert set(described["Layers"][left_out:]) <= names
