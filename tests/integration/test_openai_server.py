"""`rollout=openai` and the judge against real servers: a transformers model behind HTTP, with faults, and `transformers serve`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai_server import Served, make_model, serve
from r1mega_plugins.rollouts.openai import OpenAIRollout, OpenAIRolloutConfig
from r1mega_plugins.tokenizers.huggingface import HuggingFace, HuggingFaceConfig

from r1mega.config import RewardTerm
from r1mega.errors import ConfigError
from r1mega.remote.client import RemoteError, RemoteRefusedError
from r1mega.remote.config import ServerConfig
from r1mega.rewards.pool import RewardPool
from r1mega.types import Completion, GenerationRequest, RewardSample, SamplingParams

STOP = ("a", "Q+", "7")
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    make_model(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HuggingFace:
    return HuggingFace(HuggingFaceConfig(), folder=folder)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Served]:
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(tiny: Served) -> None:
    tiny.requests.clear()
    tiny.faults.clear()


def requests_of(tokenizer: HuggingFace, count: int = 16, temperature: float = TEMPERATURE, stop: tuple[str, ...] = STOP) -> list[GenerationRequest]:
    sampling = SamplingParams(24, temperature=temperature, stop=stop, stop_token_ids=(tokenizer.eos_id,))
    return [GenerationRequest(f"p{i // 4}#{i % 4}", tuple(tokenizer.encode(f"What is {i // 4} + 1?\n")), sampling, (i * 7919 + 1) << 35) for i in range(count)]


def generate(url: str, tokenizer: HuggingFace, requests: Sequence[GenerationRequest], *, server: dict[str, Any] | None = None, model: str = "tiny",
             **settings: Any) -> dict[str, Completion]:
    config = OpenAIRolloutConfig(model, ServerConfig(base_url=url, backoff_s=0.01, max_backoff_s=0.05, **server or {}), **settings)
    done: dict[str, Completion] = {}
    OpenAIRollout(config, policy=None, tokenizer=tokenizer).generate(requests, lambda completion: done.__setitem__(completion.id, completion))
    return done


def test_log_probs_are_those_of_the_models_own_forward_pass(tiny: Served, folder: Path, tokenizer: HuggingFace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    requests = requests_of(tokenizer)
    tiny.faults += [429, 503, 0.6, 429, 500]
    done = generate(tiny.url, tokenizer, requests, dialect="vllm", logprobs="processed", server={"read_timeout_s": 0.5})
    assert not tiny.faults
    assert sorted(done) == sorted(request.id for request in requests)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    worst = 0.0
    for request in requests:
        made = done[request.id]
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt_tokens + made.tokens])).logits[0, len(request.prompt_tokens) - 1: -1]
        expected = torch.log_softmax(logits / TEMPERATURE, -1).gather(1, torch.tensor(made.tokens)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(made.logprobs)).abs().max()))
    assert worst < 1e-5, worst
    assert {made.finish_reason for made in done.values()} == {"stop", "length"}
    for made in done.values():
        at_end = made.tokens[-1] == tokenizer.eos_id
        assert made.text == tokenizer.decode(made.tokens)
        assert (made.finish_reason == "stop") == (at_end or made.text.endswith(STOP))
        assert made.finish_reason == "stop" or len(made.tokens) == 24


def test_a_completion_depends_on_its_request_alone(tiny: Served, tokenizer: HuggingFace) -> None:
    requests = requests_of(tokenizer)
    settings: dict[str, Any] = {"dialect": "vllm", "logprobs": "processed"}
    together = generate(tiny.url, tokenizer, requests, **settings)
    assert generate(tiny.url, tokenizer, requests[::-1], server={"max_in_flight": 1}, **settings) == together
    assert len({made.tokens for made in together.values()}) > 12


def test_text_alone_gives_the_same_completions(tiny: Served, tokenizer: HuggingFace) -> None:
    """Stop strings are cut here, the end of sequence is restored, and log-probs are taken over because the tokens agree."""
    requests = requests_of(tokenizer, temperature=1.0)
    by_ids = generate(tiny.url, tokenizer, requests, dialect="vllm", logprobs="raw")
    by_text = generate(tiny.url, tokenizer, requests, logprobs="raw")
    assert all(isinstance(body["prompt"], str) and "stop" not in body and "return_token_ids" not in body for body in tiny.requests[16:])
    assert by_text == by_ids
    assert any(made.text.endswith(STOP) for made in by_text.values())


def test_log_probs_of_another_distribution_are_not_passed_on(tiny: Served, tokenizer: HuggingFace) -> None:
    for settings in ({}, {"logprobs": "raw"}, {"logprobs": "raw", "dialect": "vllm"}):
        for made in generate(tiny.url, tokenizer, requests_of(tokenizer, 2), **settings).values():
            assert all(math.isnan(value) for value in made.logprobs)
            assert len(made.logprobs) == len(made.tokens) > 0


def test_chat(tiny: Served, tokenizer: HuggingFace) -> None:
    done = generate(tiny.url, tokenizer, requests_of(tokenizer, 4), endpoint="chat", extra_body={"top_p": None})
    assert all(made.text and made.tokens[: len(made.text)] == tuple(tokenizer.encode(made.text)) for made in done.values())
    assert {body["messages"][0]["content"] for body in tiny.requests} == {"What is 0 + 1?\n"}
    assert all("top_p" not in body for body in tiny.requests)
    with pytest.raises(ConfigError, match=r"rollout\.endpoint=chat"):
        OpenAIRolloutConfig("tiny", endpoint="chat", logprobs="raw")


def test_a_wrong_model_name_and_a_server_that_stays_busy(tiny: Served, tokenizer: HuggingFace) -> None:
    with pytest.raises(RemoteRefusedError, match=r"/v1/completions: status 404: .*`tinny` does not exist.*the model's name"):
        generate(tiny.url, tokenizer, requests_of(tokenizer, 2), model="tinny")
    tiny.faults += [429] * 10
    with pytest.raises(RemoteError, match=r"status 429.*3 tries.*server\.retries=2"):
        generate(tiny.url, tokenizer, requests_of(tokenizer, 1), server={"retries": 2})


def test_a_server_without_token_ids_is_named(tiny: Served, tokenizer: HuggingFace) -> None:
    with pytest.raises(RemoteError, match=r"request 'p0#0': the answer has no choices\[0\]\.token_ids"):
        generate(tiny.url, tokenizer, requests_of(tokenizer, 1), dialect="vllm", extra_body={"return_token_ids": None})


def test_a_judge_that_talks_nonsense_masks_its_samples(tiny: Served) -> None:
    """The random model's words are no verdict: every sample is invalid, none scores 0."""
    term = RewardTerm("judge", settings={"model": "tiny", "max_tokens": 12, "attempts": 2, "server": {"base_url": tiny.url}})
    with RewardPool({"accuracy": term}, timeout_s=60.0, retries=0, max_failure_rate=1.0) as pool:
        for number in range(3):
            pool.submit(str(number), RewardSample("What is 3+4?", str(number), "7"))
        verdicts = pool.finish()
    assert [(verdict.valid, math.isnan(verdict.value)) for verdict in verdicts] == [(False, True)] * 3
    assert "3 of 3 verdicts of 'tiny' cannot be read after 2 attempts" in verdicts[0].error
    assert len(tiny.requests) == 6


@pytest.mark.parametrize("layout", [{"tensor_model_parallel_size": 2}, {"data_parallel_size": 2}], ids=["tp2", "dp2"])
def test_only_the_replicas_lead_sends(layout: dict[str, int], tiny: Served, folder: Path) -> None:
    script = Path(__file__).parent / "ranks_openai.py"
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), tiny.url, str(folder),
               json.dumps(layout)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT"))
    assert len(tiny.requests) == 8, "each completion is asked for once"
    if "data_parallel_size" in layout:
        assert sorted(first["ids"] + second["ids"]) == [f"r{number}" for number in range(8)]
    else:
        assert first["ids"] == second["ids"]
        assert first["digest"] == second["digest"]
    for said in (first, second):
        assert "reinforcement learning needs them" in said["refused"]
        assert "`tinny` does not exist" in said["failed"], "every rank of the replica hears of the failure"


SERVE_NEEDS = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(SERVE_NEEDS), reason=f"transformers serve needs {', '.join(SERVE_NEEDS)}: pip install 'transformers[serving]'")
def test_transformers_serve(folder: Path, tokenizer: HuggingFace, tmp_path: Path) -> None:
    """A server nobody here wrote: text only, no log-probs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    try:
        url = f"http://localhost:{port}"
        _wait(f"{url}/health", process, tmp_path / "serve.log")
        requests = requests_of(tokenizer, 4, temperature=0.0, stop=())
        done = generate(f"{url}/v1", tokenizer, requests, model=str(folder), server={"max_in_flight": 1})
        assert _greedy(folder, requests[0]) == done["p0#0"].tokens
        assert all(math.isnan(value) for value in done["p0#0"].logprobs)
        chat = generate(f"{url}/v1", tokenizer, requests[:1], model=str(folder), endpoint="chat")
        assert chat["p0#0"].text
        with pytest.raises(RemoteRefusedError, match=r"status 400: .*prompt must be a string"):
            generate(f"{url}/v1", tokenizer, requests[:1], model=str(folder), dialect="vllm",
                     extra_body={"return_token_ids": None, "include_stop_str_in_output": None, "skip_special_tokens": None, "stop_token_ids": None})
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


def _greedy(folder: Path, request: GenerationRequest) -> tuple[int, ...]:
    """The tokens of transformers' own greedy search."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([request.prompt_tokens])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=request.sampling.max_tokens)
    return tuple(out[0, prompt.shape[1]:].tolist())
