from pathlib import Path

import pytest

from finlora.datasets.data_files import dataset_files
from finlora.errors import ConfigError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client has in its cache of `owner/news`; it cannot reach more."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--owner--news"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (snapshot / "data" / f"{name}.parquet").touch()
    (snapshot / "data" / "train.csv").touch()
    return snapshot


def test_paths_count_from_the_given_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert dataset_files(["rows.jsonl"], tmp_path) == [tmp_path / "rows.jsonl"]
    with pytest.raises(ConfigError, match=r"there is no data file .*none\.jsonl"):
        dataset_files(["none.jsonl"], tmp_path)


def test_a_file_that_a_command_makes_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`finlora data prepare sentiment` makes it"):
        dataset_files(["data/train/finlora_sentiment_train.jsonl"], tmp_path)


def test_a_hub_data_set_gives_the_files_of_a_split(hub: Path, tmp_path: Path) -> None:
    files = dataset_files(["owner/news:train"], tmp_path)
    assert [file.name for file in files] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(dataset_files(["owner/news"], tmp_path)) == 3
    with pytest.raises(ConfigError, match=r"owner/news:valid has no"):
        dataset_files(["owner/news:valid"], tmp_path)


def test_a_data_set_out_of_reach_is_one_sentence(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="owner/other is not in the hub's local cache"):
        dataset_files(["owner/other"], tmp_path)
