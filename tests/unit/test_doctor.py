"""`r1mega doctor` judges machines nobody here has: each judgement is checked on a machine described by hand, the looking on this one."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from r1mega import doctor
from r1mega.doctor import Gpu, Machine

GOOD = {"torch": "2.13.0", "megatron-core": "0.19.2", "psutil": "7.2.2"}
LAPTOP = Machine(python="3.12.1", packages=GOOD, cores=8, free_disk_gib=100, threads_per_rank=1)
HOPPER = replace(LAPTOP, gpus=(Gpu("H200", 141.0, (9, 0)),), torch_cuda="13.0", driver=True, shared_memory_gib=64,
                 packages={**GOOD, "transformer-engine": "2.20.2"})


def states(machine: Machine) -> dict[str, doctor.Feature]:
    return {feature.name: feature for feature in doctor.features(machine)}


def messages(machine: Machine, level: str) -> str:
    return "\n".join(problem.message for problem in doctor.problems(machine) if problem.level == level)


def test_a_plain_cpu_machine_has_no_problem_and_every_missing_feature_names_its_way_in() -> None:
    assert doctor.problems(LAPTOP) == []
    off = states(LAPTOP)
    for name, extra in {"Transformer Engine layers": "te", "vLLM rollouts": "vllm", "Weights & Biases": "wandb", "MLflow": "mlflow",
                        "reasoning-gym tasks": "gym"}.items():
        assert not off[name].on, name
        assert f"pip install 'r1mega[{extra}]'" in off[name].reason, name
    assert "GPU" in off["FP8 blockwise"].reason


def test_the_extras_that_reasons_name_exist() -> None:
    extras = set(metadata.metadata("r1mega").get_all("Provides-Extra") or [])
    named = {feature.reason.partition("r1mega[")[2].partition("]")[0] for feature in doctor.features(LAPTOP) if "r1mega[" in feature.reason}
    assert named, "no feature names an extra"
    assert named <= extras


@pytest.mark.parametrize(("capability", "engine", "blockwise", "mxfp8", "tensorwise"), [
    ((8, 0), "2.20.2", False, False, False),
    ((8, 9), "2.20.2", False, False, True),
    ((9, 0), "2.2", False, False, True),
    ((9, 0), "2.3", True, False, True),
    ((10, 0), "2.20.2", True, True, True),
])
def test_fp8_recipes_follow_engine_version_and_compute_capability(
        capability: tuple[int, int], engine: str, blockwise: bool, mxfp8: bool, tensorwise: bool) -> None:
    machine = replace(HOPPER, gpus=(Gpu("g", 80.0, capability),), packages={**GOOD, "transformer-engine": engine})
    found = states(machine)
    assert (found["FP8 blockwise"].on, found["FP8 MXFP8"].on, found["FP8 tensorwise"].on) == (blockwise, mxfp8, tensorwise)
    if capability == (8, 0):
        assert "compute capability 9.0" in found["FP8 blockwise"].reason
    if engine == "2.2":
        assert "found 2.2" in found["FP8 blockwise"].reason


def test_the_weakest_gpu_decides() -> None:
    mixed = replace(HOPPER, gpus=(Gpu("H100", 80.0, (9, 0)), Gpu("A100", 80.0, (8, 0))))
    assert not states(mixed)["FP8 blockwise"].on
    assert "differ in compute capability" in messages(mixed, "warning")


def test_fused_adam_comes_from_nvidia_apex_too_and_the_other_apex_is_named() -> None:
    nvidia = replace(HOPPER, packages={**GOOD, "apex": "0.1"}, nvidia_apex=True)
    other = replace(HOPPER, packages={**GOOD, "apex": "0.9.10"}, nvidia_apex=False)
    assert states(nvidia)["fused Adam, bf16 moments"].on
    assert not states(other)["fused Adam, bf16 moments"].on
    assert "not NVIDIA's" in messages(other, "warning")
    assert messages(nvidia, "warning") == ""


def test_bad_combinations_are_errors_or_warnings() -> None:
    assert doctor.problems(HOPPER) == []
    assert "below 2.12" in messages(replace(HOPPER, packages={**HOPPER.packages, "megatron-core": "0.16.1"}), "error")
    assert "hangs" in messages(replace(LAPTOP, packages={"torch": "2.13.0", "megatron-core": "0.19.2"}), "error")
    assert "megatron-core is not installed" in messages(replace(LAPTOP, packages={"torch": "2.13.0", "psutil": "7.2.2"}), "error")
    assert "3.10.1" in messages(replace(LAPTOP, python="3.10.1"), "error")
    assert "no NVIDIA driver" in messages(replace(LAPTOP, torch_cuda="13.0"), "warning")
    assert "CPU build" in messages(replace(LAPTOP, driver=True), "warning")
    assert "/dev/shm" in messages(replace(HOPPER, shared_memory_gib=0.06), "warning")
    assert "r1mega requires x" in messages(replace(LAPTOP, unmet=("r1mega requires x>=2, found 1",)), "error")
    assert "vllm requires y" in messages(replace(LAPTOP, unmet=("vllm requires y, which is not installed",)), "warning")


def test_more_threads_than_cores_is_a_warning_with_the_right_number() -> None:
    crowded = replace(LAPTOP, cores=2, threads_per_rank=2, ranks=2)
    assert "4 threads on 2 cores" in messages(crowded, "warning")
    assert "OMP_NUM_THREADS=1" in messages(crowded, "warning")
    assert messages(replace(crowded, threads_per_rank=1), "warning") == ""


def test_requirements_are_read_from_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "fussy-1.0.dist-info"
    info.mkdir()
    requirements = ["pluggy<0.1", "not-there-at-all", "nor-this; extra == 'x'", "rich"]
    header = "Metadata-Version: 2.1\nName: fussy\nVersion: 1.0\n"
    (info / "METADATA").write_text(header + "".join(f"Requires-Dist: {line}\n" for line in requirements))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor.unmet_requirements("fussy")
    assert len(found) == 2, found
    assert found[0].startswith("fussy requires pluggy<0.1, found ")
    assert found[1] == "fussy requires not-there-at-all, which is not installed"
    assert doctor.unmet_requirements("no-such-distribution") == []


def test_nvidia_apex_is_told_from_the_other_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not doctor.has_nvidia_apex()
    (package / "optimizers").mkdir()
    assert doctor.has_nvidia_apex()


def test_this_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["packages"]["megatron-core"] == metadata.version("megatron-core")
    assert report["machine"]["cores"] >= 1
    assert status == int(any(problem["level"] == "error" for problem in report["problems"]))
    assert status == 0, report["problems"]


def test_the_table_keeps_the_brackets_of_extras(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "inspect_machine", lambda: LAPTOP)
    assert doctor.main() == 0
    assert "r1mega[te]" in capsys.readouterr().out
