"""What `r1mega chat` takes for a checkpoint, the conversation format it chooses, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from r1mega_plugins.tokenizers.sentencepiece import SentencePiece, SentencePieceConfig

from r1mega import cli, plugins
from r1mega.errors import UserError
from r1mega.policy.architecture import Architecture
from r1mega.talk_checkpoint import read_checkpoint

HOST = plugins.load()
ARCHITECTURE = Architecture(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2, max_position_embeddings=64)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The artifact of a run's stage, without weights, made with a template of the run's own."""
    folder = tmp_path / "run/stages/zero/0123/artifacts/checkpoint"
    (folder / "tokenizer").mkdir(parents=True)
    SentencePiece.train(SentencePieceConfig(vocab_size=60), ["what is seventeen and twenty five"] * 3, folder / "tokenizer")
    about = {"vocab_size": 100, "architecture": dataclasses.asdict(ARCHITECTURE)}
    (folder / "architecture.json").write_text(json.dumps(about))
    (folder.parent.parent / "config.yaml").write_text("seed: 0\ntemplate: {prompt: 'Q {question} A', response: '{response}', turn: '', path: /gone}\n")
    return folder


def test_the_template_is_the_users_else_the_runs_else_none(artifact: Path) -> None:
    found = read_checkpoint(artifact, [], HOST)
    assert (found.template.prompt, found.architecture, found.vocab_size) == ("Q {question} A", ARCHITECTURE, 100)
    assert found.template_source == "the one of the run that made it"
    assert read_checkpoint(artifact, ["template=zero_tiny"], HOST).template.prompt == "{question}\n"
    assert read_checkpoint(artifact, ["template.prompt='{question}?'", "template=zero_tiny"], HOST).template.prompt == "{question}?"
    assert read_checkpoint(artifact, ["precision=bf16"], HOST).precision.params_dtype == "bf16"  # type: ignore[union-attr]
    (artifact.parent.parent / "config.yaml").unlink()
    plain = read_checkpoint(artifact, [], HOST)
    assert plain.template.prompt == "{question}"
    assert "plain text" in plain.template_source
    (artifact / "tokenizer/chat_template.jinja").write_text(
        "{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}")
    asked = read_checkpoint(artifact, [], HOST).template.prompt
    assert asked == "<user>{question}<A><think>\n"  # as a released model is asked, opening included


@pytest.mark.parametrize(("overrides", "message"), [
    (["task=arithmetic"], "chat takes template=NAME, template.KEY=VALUE, tokenizer.KEY=VALUE, precision=NAME and model.ignore"),
    (["template=zeroo"], "there is no template 'zeroo'. Did you mean 'zero'"),
    (["template.promt=x"], "template.promt: no such key. Did you mean 'prompt'"),
    (["template=released"], "template.path must name a folder"),
    (["template.path=/nowhere"], "/nowhere is neither a folder with a chat template nor"),
    (["tokenizer.eos_token=x"], "tokenizer.eos_token: no such key"),
])
def test_overrides_that_do_not_fit_are_named(overrides: list[str], message: str, artifact: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_checkpoint(artifact, overrides, HOST)
    assert message in str(caught.value)


def test_what_is_no_checkpoint_is_exit_code_2_and_says_what_was_expected(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path, *arguments: str) -> str:
        assert cli.main(["chat", str(folder), "--prompt", "hi", *arguments]) == 2
        return capsys.readouterr().err

    assert "there is no such folder; expected artifacts/checkpoint of a finished stage" in refused(tmp_path / "absent")
    assert "is no checkpoint; expected" in refused(tmp_path)
    assert "--top-p=2.0 above 0 and at most 1" in refused(artifact, "--top-p", "2")
    (artifact / "architecture.json").write_text((artifact / "architecture.json").read_text().replace('"vocab_size": 100', '"vocab_size": 7'))
    assert "tokens, the model in" in (told := refused(artifact))
    assert "a vocabulary of 7: they do not belong together" in told
    (artifact / "tokenizer/tokenizer.model").rename(artifact / "elsewhere")
    assert "holds no tokenizer: expected tokenizer.json or tokenizer.model" in refused(artifact)
    (artifact / "architecture.json").write_text("{}")
    assert "architecture.json: not the architecture of a checkpoint" in refused(artifact)
    (artifact / "reward.json").write_text("{}")
    assert "is a reward model" in refused(artifact)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type='gpt2' is of no known family" in refused(tmp_path)
