"""Reading adapter folders of any origin."""

from pathlib import Path

import pytest

from finlora.adapters.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from finlora.adapters.source import MAX_EXTRA_BYTES, read_peft_folder
from finlora.errors import AdapterLoadError
from tests.adapters.conftest import MakeCopy
from tests.adapters.peft_folders import edit_config


def test_a_plain_folder_has_no_manifest_and_brings_its_card(copy: MakeCopy) -> None:
    folder = copy("lora")
    (folder / "optimizer.pt").write_bytes(b"not taken")
    (folder / "README.md").write_bytes(b"# card")
    source = read_peft_folder(folder, max_weights_bytes=10**6)

    assert source.manifest is None
    assert source.extra_files == {"README.md": b"# card"}
    assert source.config == (folder / CONFIG_FILE).read_bytes()
    assert source.weights == (folder / WEIGHTS_FILE).read_bytes()


def test_a_manifest_is_read_strictly(copy: MakeCopy) -> None:
    folder = copy("lora")
    manifest = Manifest(task="sentiment", labels=["a", "b"])
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    assert read_peft_folder(folder, max_weights_bytes=10**6).manifest == manifest

    for content in ('{"new_field": 1}', '{"format_version": 2}', '{"temperature": NaN}', "{"):
        (folder / MANIFEST_FILE).write_text(content)
        with pytest.raises(AdapterLoadError, match=r"manifest\.json: "):
            read_peft_folder(folder, max_weights_bytes=10**6)


def test_files_that_are_too_large_are_refused(copy: MakeCopy) -> None:
    folder = copy("lora")
    with pytest.raises(AdapterLoadError, match=r"adapter_model\.safetensors is larger than 99"):
        read_peft_folder(folder, max_weights_bytes=99)

    (folder / "README.md").write_bytes(b" " * (MAX_EXTRA_BYTES + 1))
    with pytest.raises(AdapterLoadError, match=r"README\.md is larger"):
        read_peft_folder(folder, max_weights_bytes=10**6)


@pytest.mark.parametrize(
    ("stated", "base"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/home/someone/models/my-base/", "my-base"),
        ("./my-base", "my-base"),
        ("a/b/c", "c"),
        ("my-base", "my-base"),
        ("", None),
        ("/", None),
        (None, None),
        (5, None),
    ],
)
def test_the_stated_base_never_gives_away_a_path(
    copy: MakeCopy, stated: object, base: str | None
) -> None:
    folder = copy("lora")
    edit_config(folder, base_model_name_or_path=stated)

    assert read_peft_folder(folder, max_weights_bytes=10**6).stated_base == base


def test_only_folders_are_read(tmp_path: Path) -> None:
    with pytest.raises(AdapterLoadError, match="is not a folder"):
        read_peft_folder(tmp_path / "absent", max_weights_bytes=1)
