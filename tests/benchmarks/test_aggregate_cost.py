from benchmarks.aggregate import benchmark


def test_what_is_generated_is_read_and_ranked_and_one_more_run_is_seen(tmp_path):
    found = benchmark(tmp_path, runs=6, images=4, seeds=2)
    published = 63
    assert [v["runs"] for v in found.values()] == [6, 7]
    assert [v["rows"] for v in found.values()] == [published + 3, published + 4]
    assert all(v["unread"] == 0 and v["bytes"] > 0 for v in found.values())
