"""The model FLOPs of `policy.flops` against torch's own counter on the real tiny models, and by hand where there is nothing to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import policy_models as models
import pytest
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from r1mega import plugins
from r1mega.config import OptimizerConfig
from r1mega.policy.architecture import Architecture
from r1mega.policy.build import TrainingTerms
from r1mega.policy.flops import Cost, Meter, Work, generation, sequences
from r1mega.policy.generate import Engine
from r1mega.policy.policy import Policy
from r1mega.types import Completion, EncodedPrompt, GenerationRequest, Prompt, RolloutGroup, SamplingParams, ScoredGroup

SGD = OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1e9, use_distributed_optimizer=False)
LENGTHS = (24, 24, 24)  # equal ones: the CPU's attention pads its rectangles to the longest, and padding is no model FLOP
PROMPT, COMPLETION, GROUP = 20, 16, 4


def model(repo: Path, name: str) -> Architecture:
    settings = yaml.safe_load((repo / "conf" / "model" / f"{name}.yaml").read_text())
    plugin = plugins.load().registry.get("models", settings.pop("name"))
    assert plugin.config is not None
    made: Architecture = plugin.factory(plugin.config(**settings))
    return made


def counted(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products that torch ran. Its CPU attention kernel is unknown to the counter: attention runs as plain products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.fixture(scope="module", params=["tiny_dense", "tiny_qwen3_moe", "tiny_deepseek_v3", "tiny_deepseek_v3 with MTP"])
def policy(request: pytest.FixtureRequest, repo: Path) -> Policy:
    name, _, mtp = request.param.partition(" ")
    architecture = dataclasses.replace(model(repo, name), mtp_num_layers=2 if mtp else 0)
    made = models.build(architecture, optimizer=SGD, terms=TrainingTerms(mtp_loss_scaling_factor=0.3, mtp_detach=False))
    made.options.vocab_size = 128  # the padded size, which the matrices have: the rest of the vocabulary is no model FLOP
    return made


def test_training_and_log_prob_passes_are_what_torch_counts(policy: Policy) -> None:
    """Exact, once attention's products are taken whole: plain products compute the half above the diagonal too."""
    batch, meter, work = models.batch_of(models.sequences(*LENGTHS)), Meter.of(policy), sequences(LENGTHS)
    square = dataclasses.replace(work, pairs=sum(length**2 for length in LENGTHS))
    forward = counted(lambda: policy.logprobs([batch]))
    assert meter.cost(square) == forward
    assert meter.cost(work) == pytest.approx(forward, rel=0.04), "the half that causality leaves out is small here"
    training = counted(lambda: policy.train_step([batch], models.likelihood))
    assert meter.cost(square, training=True) == training
    assert meter.cost(work, training=True) == pytest.approx(training, rel=0.04)


def test_generation_is_what_torch_counts(policy: Policy) -> None:
    """Prefill and decode of one group whose samples end together, so that no slot idles; the prompt's attention is taken whole again."""
    prompt, made = tuple(range(PROMPT)), list[Completion]()
    requests = [GenerationRequest(f"p#{k}", prompt, SamplingParams(COMPLETION), k) for k in range(GROUP)]
    spent = counted(lambda: Engine(policy, max_slots=8).generate(requests, lambda _: "", made.append))
    group = ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("p", ""), "", prompt), tuple(made)), (0.0,) * GROUP, {}, (True,) * GROUP)
    work = generation([group])
    square = dataclasses.replace(work, pairs=work.pairs + PROMPT * (PROMPT - 1) // 2)
    assert Meter.of(policy).cost(square) == spent
    assert Meter.of(policy).cost(work) == pytest.approx(spent, rel=0.01)


def test_a_reward_models_pass_ends_in_one_number(repo: Path) -> None:
    architecture = model(repo, "tiny_deepseek_v3")
    policy = Policy(architecture, vocab_size=128, parallel=models.ParallelConfig(), precision=models.PrecisionConfig(), seed=1, optimizer=SGD,
                    training_steps=1, reward_head="train")
    batch, square = models.batch_of(models.sequences(*LENGTHS)), Work(72, 3 * 24**2, 72)
    passes = counted(lambda: policy.values([batch]))
    assert Meter.of(policy).cost(square) == Meter.of(policy).cost(square, values=True) == passes
    assert Meter.of(policy).training == Cost.of(architecture, 1), "training a reward model computes no logits"


def test_the_cost_of_deepseek_v3_is_two_flops_per_active_parameter(repo: Path) -> None:
    """37B parameters are active for a token (DeepSeek-V3, arXiv 2412.19437, abstract), the embedding (0.9B, no product) among them."""
    architecture = model(repo, "deepseek_v3_671b")
    cost = Cost.of(architecture, 129_280)
    assert cost.token + cost.output == pytest.approx(2 * (37e9 - 0.93e9), rel=0.02)
    assert cost.pair == 2 * 61 * 128 * (128 + 64 + 128)
    with_mtp = Cost.of(dataclasses.replace(architecture, mtp_num_layers=1), 129_280, mtp=True)
    assert with_mtp.output == 2 * cost.output
    assert with_mtp.pair == cost.pair // 61 * 62


def test_work_counts_what_causality_allows() -> None:
    assert sequences([1, 3]) == Work(4, 1 + 6, 4)
    ends = tuple(Completion(f"p#{k}", (0,) * made, (0.0,) * made, "", "stop", 0) for k, made in enumerate((3, 1)))
    group = ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("p", ""), "", (1, 2)), ends), (0.0, 0.0), {}, (True, True))
    assert generation([group]) == Work(2 + 2, 3 + (3 + 4), 1 + 2), "the last token is drawn and not read"
    assert generation([]) == Work()


def test_a_meter_tells_steps_and_goes_on_from_a_checkpoint() -> None:
    cost = Cost(10, 1, 100)
    meter = Meter(cost, Cost(10, 1, 100), Cost(10, 1, 0))
    meter.add("generation", Work(1, 1, 1))
    meter.add("inference", Work(1, 1, 1), values=True)
    meter.add("training", Work(1, 0, 0))
    meter.add("evaluation", Work(1000, 0, 0))
    assert meter.step() == {"flops": 152.0, "flops_training": 30.0, "flops_inference": 11.0, "flops_generation": 111.0}
    meter.add("training", Work(2, 0, 0))
    resumed = Meter(cost, cost, cost)
    resumed.resume(dict(meter.totals))
    assert meter.step() == {"flops": 60.0, "flops_training": 60.0, "flops_inference": 0.0, "flops_generation": 0.0}
    assert resumed.metrics() == meter.metrics() == {
        "model_flops": 212.0, "flops_training": 90.0, "flops_inference": 11.0, "flops_generation": 111.0, "flops_evaluation": 10_000.0}
