"""The manifest: NIM's ids, canonical bytes, digests that pin content, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from serving.contract import manifest
from serving.contract.manifest import Manifest, content_digest, dump, load, profile_id
from serving.contract.profile import Profile, ProfileFile
from serving.errors import ManifestError

IDS = {  # published NIM profile ids -> the tags they are made of
    "425dcb3ef646e497d5a50bbd1eb1169c9f33f4253f36669bb428ef250e2447cd": {"gpu": "a6000"},
    "ea95501d4e68ce0adf88f962526d1fbac0fa64032495b6f6a421b2c37b62433f": {
        "backend": "onnx",
        "key": "onnx",
        "precision": "fp16",
    },
    "ef90a4689f79683f170e365ac4d6988f8c9eb9c4f81f2c58827c3f27ed7cd5a8": {
        "backend": "tensorrt",
        "key": "NVIDIA-A100_10.0.1_12",
        "precision": "fp16",
        "product_name_regex": "^NVIDIA-A100.*",
    },
    "72972bc1f4dc3f79aff74aa6a9a26d24d27d6f9c74c455dc904b2a2a20f156d2": {
        "backend": "tensorrt",
        "key": "NVIDIA-A10G_10.0.1_12",
        "precision": "fp16",
        "product_name_regex": "^NVIDIA-A10(?!0).*",
    },
    "f7391ddbcb95b2406853526b8e489fedf20083a2420563ca3e65358ff417b10f": {
        "backend": "onnx",
        "model_type": "onnx",
        "precision": "fp16",
    },
    "e28f17c9c13a99055d065f88d725bf93c23b3aab14acd68f16323de1353fc528": {"model_type": "onnx", "precision": "fp16"},
    "f6ecf987d3acacf363a4125195c7f84cd4110520157f9091702a3061e2fd69fa": {
        "backend": "triton",
        "gpu": "h100-nvl",
        "model_type": "tensorrt",
        "precision": "fp8",
    },
    "58610f044b526218e323a350f3bc22d6fdaa775b3b634fc3b671ca29ba8848d6": {
        "backend": "triton",
        "gpu": "h100-pcie",
        "model_type": "tensorrt",
        "precision": "fp8",
    },
    "761a1460449bba9831b61bcc1e4e2ce93bfc66f5badecf6157009a0e0d18d934": {
        "backend": "triton",
        "gpu": "h100-hbm3-80gb",
        "model_type": "tensorrt",
        "precision": "fp8",
    },
    "a525212dd4373ace3be568a38b5d189a6fb866e007adf56e750ccd11e896b036": {"type": "bert"},
    "e2f00b2cbfb168f907c8d6d4d40406f7261111fbab8b3417a485dcd19d10cc98": {"llm_engine": "vllm"},
    "668b575f1701fa70a97cfeeae998b5d70b048a9b917682291bb82b67f308f80c": {"llm_engine": "tensorrt_llm"},
    "bbbb4a404c66d299bf36015162aae3c73615d39011213ffd5a8cad75c42ee80b": {
        "feat_lora": "false",
        "gpu": "h100_nvl",
        "gpu_device": "2321:10de",
        "llm_engine": "tensorrt_llm",
        "nim_workspace_hash_v1": "5e20634213cb4c32e86f048dbc274eb8bff74720af81fe400d8924e766f3e723",
        "number_of_gpus": "4",
        "pp": "1",
        "precision": "fp8",
        "profile": "throughput",
        "tp": "2",
    },
    "8333205760e6953934deaa1f47f4b5ca37a26c5ad03b076bcb43d017b282becc": {
        "feat_lora": "false",
        "llm_engine": "vllm",
        "nim_workspace_hash_v1": "b84343a5f0204e11c83c4e0dce9626d4795db4b7f251375b3d321dc0d8c19d46",
        "pp": "1",
        "precision": "bf16",
        "tp": "2",
    },
}
TAGS = {"backend": "onnxruntime", "model_type": "onnx", "sku": "cpu-generic", "precision": "fp32", "tp": "1"}
DIGEST = "a" * 64


def a_profile(name: str = "mini__cpu-generic__fp32__tp1", **tags: str) -> Profile:
    tags = {**TAGS, **tags}
    files = tuple(
        ProfileFile(path=path, uri=f"blobs/blake3/{DIGEST}", checksum=f"blake3:{DIGEST}", size_bytes=123)
        for path in ("tokenizer.json", "engine.onnx")
    )
    return Profile(id=profile_id(tags), name=name, tags=tags, files=files, proof_min_cosine=0.98)


def a_manifest() -> Manifest:
    second = a_profile("mini__a-sku__fp16__tp1", precision="fp16", product_name_regex="it's ^A|B.*", note="é 雪")
    return Manifest(model="mini", release="0.1.0", profiles=(a_profile(), second))


@pytest.mark.parametrize(("expected", "tags"), IDS.items(), ids=[e[:8] for e in IDS])
def test_profile_ids_are_those_that_nim_publishes(expected: str, tags: dict[str, str]) -> None:
    assert profile_id(tags) == expected
    assert profile_id(dict(reversed(tags.items()))) == expected


def test_what_is_dumped_loads_to_the_same_values() -> None:
    loaded = load(dump(a_manifest()))
    assert (loaded.model, loaded.release) == ("mini", "0.1.0")
    wanted = sorted(a_manifest().profiles, key=lambda p: p.name)
    for profile, original in zip(loaded.profiles, wanted, strict=True):
        assert profile.digest == content_digest(original)
        sorted_files = tuple(sorted(original.files, key=lambda f: f.path))
        assert profile == replace(original, digest=profile.digest, files=sorted_files)


def test_two_dumps_are_byte_equal_whatever_the_order_of_profiles_tags_and_files() -> None:
    one = a_manifest()
    turned = tuple(
        replace(p, tags=dict(reversed(list(p.tags.items()))), files=tuple(reversed(p.files)))
        for p in reversed(one.profiles)
    )
    assert dump(one) == dump(replace(one, profiles=turned)) == dump(load(dump(one)))


def test_every_scalar_is_a_quoted_string_to_any_yaml_reader() -> None:
    data = dump(a_manifest())

    def leaves(node: object) -> list[object]:
        if isinstance(node, dict):
            return [leaf for pair in node.items() for part in pair for leaf in leaves(part)]
        return [leaf for item in node for leaf in leaves(item)] if isinstance(node, list) else [node]

    assert all(isinstance(leaf, str) for leaf in leaves(yaml.safe_load(data)))
    values = [e for e in yaml.parse(data) if isinstance(e, yaml.ScalarEvent)]
    assert {"2.0", "auto", "123", "0.98", "it's ^A|B.*"} <= {e.value for e in values if e.style == "'"}
    assert data.startswith(b"schema_version: '2.0'\nprofile_selection_criteria: 'auto'\n")


def test_the_content_digest_changes_with_bytes_tags_and_proof_but_not_with_the_mirror() -> None:
    one = a_profile()
    changed = [
        replace(one, files=(replace(one.files[0], checksum="blake3:" + "b" * 64), one.files[1])),
        replace(one, files=one.files[:1]),
        replace(one, tags={**one.tags, "precision": "fp16"}),
        replace(one, proof_min_cosine=0.5),
        replace(one, name="other"),
    ]
    assert len({content_digest(p) for p in [one, *changed]}) == 1 + len(changed)
    assert content_digest(
        replace(one, files=tuple(replace(f, uri="s3://mirror/x") for f in one.files))
    ) == content_digest(one)


@pytest.mark.parametrize(
    ("old", "new"), [("'0.98'", "'0.10'"), (f"blake3:{DIGEST}'", f"blake3:{'b' * 64}'"), ("'123'", "'124'")]
)
def test_a_manifest_changed_after_packaging_is_refused_by_its_digest(old: str, new: str) -> None:
    text = dump(a_manifest()).decode()
    with pytest.raises(ManifestError, match="changed after it was packaged"):
        load(text.replace(old, new, 1))


def test_nvidias_own_manifest_loads_though_it_has_no_names_sizes_or_digests() -> None:
    text = """
schema_version: '2.0'
profile_selection_criteria: auto
model: org/team/name
release: rc1
profiles:
- id: 425dcb3ef646e497d5a50bbd1eb1169c9f33f4253f36669bb428ef250e2447cd
  tags:
    gpu: a6000
  workspace:
    files:
      classifier.onnx_b1_gpu0_fp16.engine:
        uri: ngc://org/team/model:version?file=name
        checksum: blake3:27621bbf2621bbf227621bbf2621bbf227621bbf2621bbf227621bbf2621bbf2
"""
    (profile,) = load(text).profiles
    assert (profile.name, profile.proof_min_cosine) == ("gpu:a6000", 1.0)
    assert profile.files[0].size_bytes == manifest.NO_SIZE


def test_everything_wrong_is_said_at_once_with_its_place() -> None:
    text = f"""
schema_version: '1.0'
model: m
relaese: 'x'
profiles:
- id: 'has space'
  name: a
  tags: {{'a|b': 'x', list: [1]}}
  proof: {{min_cosine: nan}}
  workspace:
    files:
      engine.onnx: {{uri: ../up, checksum: 'blake3:{DIGEST.upper()}', size_bytes: '-5'}}
- name: b
  tags: {{}}
  workspace: {{}}
"""
    with pytest.raises(ManifestError) as caught:
        load(text)
    message = str(caught.value)
    for part in (
        "schema_version: '1.0' is not supported",
        "relaese: is not a key of this format; did you mean 'release'?",
        "profiles[0].id: 'has space'",
        "profiles[0].tags: 'a|b' is no tag name",
        "profiles[0].tags.list: is not one line of text",
        "min_cosine: 'nan' is not a decimal",
        "'../up' has an empty, '.' or '..' segment",
        "64 lower-case hex digits",
        "size_bytes: '-5' is not a number of bytes",
        "profiles[1].id: is missing",
        "profiles[1].workspace.files: is missing",
    ):
        assert part in message
    assert len(caught.value.problems) == 11


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../x",
        "/etc/passwd",
        "a\\b",
        "a\x00b",
        "a//b",
        "./a",
        "",
        "c:x",
        "cafe\u0301",
        "a\u202eb",
        "a/",
        "file:x",
    ],
)
def test_an_unsafe_file_name_or_relative_uri_is_refused(path: str) -> None:
    good = a_profile()
    for file in (replace(good.files[0], path=path), replace(good.files[0], uri=path)):
        with pytest.raises(ManifestError):
            dump(Manifest(model="m", release="1", profiles=(replace(good, files=(file,)),)))


@pytest.mark.parametrize("twin", ["Engine.onnx", "\uff45ngine.onnx"])
def test_file_names_that_differ_only_in_case_or_unicode_form_are_refused(twin: str) -> None:
    good = a_profile()
    files = (*good.files, replace(good.files[1], path=twin))
    with pytest.raises(ManifestError, match="differ only in case or Unicode form"):
        dump(Manifest(model="m", release="1", profiles=(replace(good, files=files),)))


def test_two_profiles_with_one_id_or_one_name_are_refused() -> None:
    one = a_profile()
    with pytest.raises(ManifestError, match=r"the id .* is given 2 times"):
        dump(Manifest(model="m", release="1", profiles=(one, replace(one, name="other"))))
    with pytest.raises(ManifestError, match=r"the name .* is given 2 times"):
        dump(Manifest(model="m", release="1", profiles=(one, a_profile(precision="fp16"))))


def test_a_stale_digest_is_not_dumped() -> None:
    with pytest.raises(ManifestError, match="does not match its content"):
        dump(Manifest(model="m", release="1", profiles=(replace(a_profile(), digest="sha256:" + "0" * 64),)))


@pytest.mark.parametrize("text", ["just text", "- a list", "{}", "profiles: {}", "profiles: []"])
def test_yaml_of_another_form_is_refused_with_words_not_a_traceback(text: str) -> None:
    with pytest.raises(ManifestError):
        load(text)


def test_a_file_that_is_not_there_names_the_remedy(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ManifestError, match="NIM_MANIFEST_PATH"):
        manifest.read(tmp_path / "none.yaml")


def test_any_byte_changed_in_a_manifest_gives_a_manifest_or_a_manifest_error() -> None:
    data = dump(a_manifest())
    for place in range(0, len(data), 3):
        for byte in (0x00, 0x27, 0x3A, 0xFF):
            try:
                load(data[:place] + bytes([byte]) + data[place + 1 :])
            except ManifestError:
                continue
