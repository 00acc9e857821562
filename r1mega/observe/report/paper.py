"""The figures of the paper that a scorecard is read beside: its stage table."""

from __future__ import annotations

SOURCE = "DeepSeek-R1 (arXiv 2501.12948 v2), Table 3"

# column -> (the node of this project's R1 graph that makes it, how it came about)
MODELS = {
    "R1-Zero": ("zero", "RL from the base model, rules alone"),
    "Dev1": ("cold_start", "SFT on cold-start traces"),
    "Dev2": ("reasoning_rl", "RL on reasoning, with language consistency"),
    "Dev3": ("sft", "SFT from the base on 800k samples"),
    "R1": ("all_scenario_rl", "RL on all scenarios, with preference rewards"),
}

# benchmark -> (unit, one figure for each of MODELS)
RESULTS = {
    "AIME 2024": ("pass@1, %", (77.9, 59.0, 74.0, 78.1, 79.8)),
    "MATH-500": ("pass@1, %", (95.9, 94.2, 95.9, 95.4, 97.3)),
    "GPQA Diamond": ("pass@1, %", (75.8, 66.1, 70.7, 71.2, 71.5)),
    "LiveCodeBench": ("pass@1, %", (50.0, 57.5, 63.5, 64.6, 65.9)),
    "Codeforces": ("rating", (1444, 1534, 1687, 1746, 2029)),
    "IF-Eval": ("%", (46.6, 71.7, 72.0, 78.1, 83.3)),
    "AlpacaEval 2": ("length-controlled wins, %", (24.7, 50.1, 55.8, 62.1, 87.6)),
    "ArenaHard": ("wins, %", (53.6, 77.0, 73.2, 75.6, 92.3)),
    "Aider-Polyglot": ("%", (12.2, 6.7, 25.6, 44.8, 53.3)),
}
