"""Two Ray nodes with one worker on each: as good as one node, and one may be lost."""

import os
import signal

import pytest
import trees
from clusters import second_node, started_cluster, wait_until
from mini import ADAPTATION_STEPS, TRAIN, arguments, assert_same_bits, messages, reached

from spcl.store.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HASTE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}  # until workers without room are given up


def test_two_nodes_equal_one_and_a_lost_node_costs_no_bit(commands, cluster, mini_data, tmp_path):
    def line(name: str) -> list[str]:
        more = ("--workers", "2", "--placement", "SPREAD")
        return [*TRAIN, *arguments(mini_data, tmp_path / name, "r"), *more]

    runs = {name: RunFolder(tmp_path / name / "r") for name in ("one node", "two nodes", "lost")}
    assert commands.run(line("one node"), cluster.environment).code == 0
    with started_cluster(cpus=1) as head:
        with second_node(head, cpus=1) as node:
            command = commands.run(line("two nodes"), head.environment)
            assert command.code == 0, command.err
            assert_same_bits(runs["two nodes"], runs["one node"])

            run = runs["lost"]
            stopped = commands.start(line("lost"), head.environment | HASTE)
            wait_until(
                lambda: stopped.code is not None or reached(run, "spcl", 12), 200, "spcl runs"
            )
            os.killpg(node.pid, signal.SIGKILL)
            assert stopped.finish() == 2
            error = stopped.err.splitlines()[1]
            assert "2 workers need 2 CPU, but the cluster has 1" in error
            assert not run.done and not reached(run, "spcl", ADAPTATION_STEPS)
        with second_node(head, cpus=1):
            command = commands.run(line("lost"), head.environment)
            assert command.code == 0, command.err
    assert any(text.startswith("spcl: resumed at step ") for text in messages(run))
    assert_same_bits(run, runs["one node"])


def test_two_nodes_convert_to_the_same_bytes_as_no_ray(commands, tmp_path):
    raw = trees.gta5_tree(tmp_path / "raw", 24)
    line = ["python", "ray_jobs/ingest.py", "--dataset", "gta5", "--root", str(raw), "--out"]
    with started_cluster(cpus=1) as head, second_node(head, cpus=1):
        command = commands.run([*line, str(tmp_path / "two")], head.environment)
        assert command.code == 0, command.err
        alone = commands.run([*line, str(tmp_path / "none"), "--workers", "0"], head.environment)
        assert alone.code == 0, alone.err
    two, none = (
        {path.name: path.read_bytes() for path in (tmp_path / place / "gta5/train").iterdir()}
        for place in ("two", "none")
    )
    for files in (two, none):
        del files["conversion_report.json"]  # holds the clock
    assert two == none and len(two) == 8 + 2  # shards, index, manifest
