"""The stream of prompts and the requests made of it."""

from __future__ import annotations

import pytest

from r1mega.errors import DataError
from r1mega.rollout.collect import WorkItem, make_requests, sample_seed
from r1mega.rollout.prompts import drop_too_long, encode_prompt, stream_indices
from r1mega.types import EncodedPrompt, Prompt, SamplingParams


class Letters:
    vocab_size, eos_id = 256, 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens) -> str:  # type: ignore[no-untyped-def]
        return bytes(tokens).decode()


def test_every_epoch_shows_every_problem_once_in_an_order_of_its_own() -> None:
    stream = stream_indices(10, 0, 30, seed=1)
    epochs = [stream[start: start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_stream_resumes_anywhere() -> None:
    whole = stream_indices(7, 0, 40, seed=5)
    for start in (0, 3, 6, 7, 13, 20):
        assert stream_indices(7, start, 11, seed=5) == whole[start: start + 11]


def test_no_problems_is_an_error() -> None:
    with pytest.raises(DataError, match="no training problems"):
        stream_indices(0, 0, 1, seed=0)


def test_a_prompt_is_rendered_through_the_template() -> None:
    encoded = encode_prompt(Prompt("x", "1+2="), "Q: {question}\nA:", Letters())  # type: ignore[arg-type]
    assert encoded.text == "Q: 1+2=\nA:"
    assert bytes(encoded.tokens).decode() == encoded.text
    assert drop_too_long([encoded], 9) == ([], 1)
    assert drop_too_long([encoded], 10) == ([encoded], 0)


def test_ids_and_seeds_are_distinct_over_samples_places_and_steps() -> None:
    prompt = EncodedPrompt(Prompt("1+2", "1+2="), "1+2=", (1, 2))
    items = [WorkItem(0, prompt), WorkItem(9, prompt)]  # the same problem twice, in different epochs
    requests = make_requests(items, 4, SamplingParams(8), seed=0, step=0)
    assert len({request.id for request in requests}) == len({request.seed for request in requests}) == 8
    assert requests[0].id == "1+2@0#0"
    assert sample_seed(0, 0, "a") != sample_seed(0, 1, "a") != sample_seed(1, 1, "a")
    assert 0 <= sample_seed(0, 0, "a") < 2**64
