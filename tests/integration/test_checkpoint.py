"""Checkpoints with real processes: `ranks_checkpoint.py` runs the scenarios in a few starts of one or two ranks, the tests read what it saw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)
SCRIPT = Path(__file__).with_name("ranks_checkpoint.py")
DEADLINE_S = 200  # of one start; a healthy one takes a tenth
LAYOUTS = ("tp", "pp", "ep", "dp", "cp")
Found = dict[str, Any]


def start(ranks: int, folder: Path, *scenarios: str) -> dict[str, Found]:
    """Run the scenarios on so many ranks and return what each found. Fails with the ranks' output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), ",".join(scenarios), str(folder)]
    outputs = [folder / f"{scenarios[0]}.rank{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        mine = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with output.open("wb") as log:
            processes.append(subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(DEADLINE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "\n".join(f"rank {rank}: {output.read_text()[-3000:]}" for rank, output in enumerate(outputs))
    assert codes == [0] * ranks, f"{scenarios} ended with {codes}\n{said}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in scenarios}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Found]:
    """What one rank found."""
    return start(1, folder, "resume", "folders", "artifacts", "optimizers", "sets")


@pytest.fixture(scope="module")
def together(folder: Path, alone: dict[str, Found]) -> dict[str, Found]:
    """What two ranks found."""
    assert alone
    return start(2, folder, "reshard", "poison")


@pytest.fixture(scope="module")
def resharded(together: dict[str, Found]) -> Found:
    """What two ranks found in the checkpoint of one."""
    return together["reshard"]


@pytest.fixture(scope="module")
def back(folder: Path, resharded: Found) -> Found:
    """What one rank found in the checkpoints of two."""
    assert resharded
    return start(1, folder, "back")["back"]


def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(alone: dict[str, Found]) -> None:
    found = alone["resume"]
    assert found["resumed"] == found["straight"], "losses, weights, version or random draws differ after the resume"
    assert found["same_files"], "the next checkpoints of both runs differ in a tensor of the optimizer"
    assert (found["step"], found["extra"]) == (3, {"cursor": [3, 2]})


def test_weight_sets_travel_with_the_checkpoint(alone: dict[str, Found]) -> None:
    before, after = alone["resume"]["reference"]
    assert before == after


def test_saving_a_small_model_is_quick(alone: dict[str, Found]) -> None:
    assert alone["resume"]["save_s"] < 3, "a tenth of this on an idle machine: does saving start processes again?"


def test_only_the_newest_checkpoints_are_kept(alone: dict[str, Found]) -> None:
    assert alone["folders"]["kept"] == ["step_00000002", "step_00000003"], "older checkpoints or an interrupted save's folder are still there"


def test_a_superseded_attempt_changes_nothing(alone: dict[str, Found]) -> None:
    found = alone["folders"]
    assert found["stale"] == found["late"] == ["StageFailed", "attempt 1 has been superseded"]
    assert found["untouched"] == found["kept"]


def test_a_background_save_holds_the_state_of_its_beginning(alone: dict[str, Found]) -> None:
    before, loaded = alone["folders"]["background"]
    assert loaded == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(alone: dict[str, Found]) -> None:
    (first, flipped), (second, gone), (third, unreadable) = alone["folders"]["damage"]
    assert (first, second, third) == (3, 3, 3)
    assert "step_00000005/__0_0.distcp is damaged: its SHA-256" in flipped
    assert "step_00000005/__0_0.distcp is missing" in gone
    assert "step_00000005/checksums.json cannot be read" in unreadable


def test_nothing_but_damage_is_an_error_and_nothing_at_all_is_a_beginning(alone: dict[str, Found]) -> None:
    kind, words = alone["folders"]["all_damaged"]
    assert kind == "R1MegaError"
    assert "every checkpoint in" in words
    assert ".metadata is missing" in words
    assert alone["folders"]["none"]


def test_an_artifact_gives_its_weights_to_another_policy(alone: dict[str, Found]) -> None:
    found = alone["artifacts"]
    exported, loaded = found["loaded"]
    assert loaded == exported
    first, changed, stated = found["digests"]
    assert first == stated
    assert changed != first
    assert not [name for name in found["left"] if ".tmp-" in name], "a temporary folder is left"


def test_weights_of_another_architecture_are_refused_by_field(alone: dict[str, Found]) -> None:
    found = alone["artifacts"]
    kind, words = found["wider"]
    assert kind == "UserError"
    assert "ffn_hidden_size is 64 there and 96 here" in words
    assert "max_position_embeddings" not in words, "a longer context has the same weights"
    kind, words = found["wider_checkpoint"]
    assert kind == "UserError"
    assert "decoder.layers.0.mlp.linear_fc1.weight is [128, 32] there and [192, 32] here" in words


def test_mtp_layers_may_differ_only_if_asked(alone: dict[str, Found]) -> None:
    found = alone["artifacts"]
    assert found["mtp"][0] == "UserError"
    assert "mtp_num_layers is 1 there and 0 here" in found["mtp"][1]
    assert found["without"] not in found["digests"]
    assert found["embedding"], "loading without MTP layers did not load the rest"


@pytest.mark.parametrize("case", ["bf16", "sgd", "adam"])
def test_every_optimizer_resumes_bit_equal(alone: dict[str, Found], case: str) -> None:
    straight, resumed = alone["optimizers"][case]
    assert resumed == straight


def test_main_weights_follow_weights_that_were_loaded_alone(alone: dict[str, Found]) -> None:
    loaded, written_back = alone["optimizers"]["main_weights"]
    assert written_back == loaded, "the optimizer's next step would start from other weights than those loaded"


def test_a_weight_set_is_swapped_in_and_out_exactly(alone: dict[str, Found]) -> None:
    found = alone["sets"]
    for what in ("initial", "trained", "losses", "weights"):
        there, back_again = found[what]
        assert there == back_again, what
    assert found["names"] == [["initial"], []]
    assert found["unknown"][0] == "R1MegaError"


def test_foreign_weights_are_neither_trained_nor_saved(alone: dict[str, Found]) -> None:
    for what, (kind, words) in alone["sets"]["refused"].items():
        assert kind == "R1MegaError", what
        assert "'initial'" in words, what
    assert alone["sets"]["nothing_written"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_moves_to_another_layout_bit_for_bit(alone: dict[str, Found], resharded: Found, layout: str) -> None:
    found = resharded[layout]
    assert found["tensors"] > 100
    assert found["differ"] == [], "tensors of the model, the optimizer or the weight set changed on the way"
    assert found["losses"] == pytest.approx(alone["resume"]["straight"]["losses"], rel=1e-4)
    assert found["content"] == alone["artifacts"]["digests"][1], "the content digest depends on the layout"
    kind, words = found["strict_rng"]
    assert kind == "R1MegaError"
    assert "random states" in words


@pytest.mark.parametrize("layout", ["dp", "cp", "ep"])
def test_replicas_share_the_writing_of_a_bit_equal_checkpoint(resharded: Found, layout: str) -> None:
    written = resharded[layout]["bytes"]
    assert len(written) == 2, "a rank wrote nothing"
    assert max(written) < 1.2 * min(written), f"bytes by rank: {written}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_and_back_bit_for_bit(alone: dict[str, Found], back: Found, layout: str) -> None:
    assert back[layout] == alone["resume"]["straight"]["weights"], "after training on, the weights are not those of the run that never moved"


def test_a_gradient_that_is_not_finite_on_one_replica_is_skipped_by_all(together: dict[str, Found]) -> None:
    first, second = together["poison"]["ranks"]
    assert first == second, "the replicas went apart"
    assert [updated for updated, _ in first] == [True, False, True]
    digests = [weights for _, weights in first]
    assert digests[0] == digests[1] != digests[2]
    assert together["poison"]["skipped"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `small` has room for one checkpoint (2.3 MB) and not for two."""
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3500k", "none", str(tmp_path / "small")]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path / "small")], timeout=10, check=True)


def test_a_full_disk_is_one_line_on_every_rank_and_costs_no_older_checkpoint(small_disk: Path) -> None:
    found = start(2, small_disk, "full_disk")["full_disk"]
    for kind, words in found["errors"]:
        assert kind == "R1MegaError"
        assert "No space left on device" in words
        assert "step_00000002" in words
        assert "\n" not in words
    assert found["left"] == ["step_00000001"]
    assert (found["step"], found["skipped"]) == (1, [])
    assert found["seconds"] < 60
