from pathlib import Path

import pytest

from loadtest.picture import MIN_SAMPLES, NUM_BINS, Sample, by_users, main, over_time, read_samples
from loadtest.samples import Kind, Recorder


def recorder(count: int) -> Recorder:
    made = Recorder()
    for index in range(count):
        for kind in (Kind.REQUEST, Kind.FIRST_TOKEN):
            made.add(
                kind, "completions", at_seconds=index, milliseconds=10.0 + index, users=index // 20
            )
    return made


def test_a_number_of_users_needs_enough_samples_for_its_percentiles() -> None:
    samples = [Sample(0, 5, 1)] * MIN_SAMPLES + [Sample(0, 7, 9)] * (MIN_SAMPLES - 1)
    assert by_users(samples) == {1: [5] * MIN_SAMPLES}


def test_time_is_cut_into_equal_stretches_that_hold_every_sample() -> None:
    samples = [Sample(index / 10, 1, 1) for index in range(601)]
    bins = over_time(samples)
    assert len(bins) == NUM_BINS
    assert list(bins)[:2] == [pytest.approx(1), pytest.approx(3)]
    assert sum(len(group) for group in bins.values()) == 601
    assert over_time([]) == {}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_samples_become_a_picture(tmp_path: Path, count: int) -> None:
    recorder(count).write_csv(tmp_path / "samples.csv")
    assert sum(map(len, read_samples(tmp_path / "samples.csv").values())) == 2 * count
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "latency.png").read_bytes()[:4] == b"\x89PNG"
