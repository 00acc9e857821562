"""A pool of reward workers that never blocks training and that nothing a reward does can take down.

    with RewardPool.from_config(config.reward) as pool:
        generator.generate(requests, lambda completion: pool.submit(completion.id, sample_of(completion)))
        verdicts = pool.finish()

One thread per worker hands out calls and enforces their deadlines, whether or not the training loop calls `poll`. A call is one reward
term on up to `batch_size` samples. A failed call is repeated sample by sample, so that one bad sample does not take its neighbours with it.
"""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from r1mega.config import RewardConfig, RewardTerm
from r1mega.errors import ConfigError, R1MegaError, RewardError
from r1mega.rewards.process import CallFailedError, WorkerProcess
from r1mega.rewards.schedule import applicable
from r1mega.rewards.worker import Setup
from r1mega.types import RewardSample

_COUNTERS = ("calls", "timeouts", "errors", "retries", "restarts", "busy_seconds", "queue_seconds")
_PLURAL = {"timeout": "timeouts", "crash": "errors", "error": "errors"}
_JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rewards that apply to one sample. A reward that failed has the part NaN; then `valid` is false, `value` is NaN and `error` says why."""

    key: str
    value: float  # sum of weight * part over the terms that apply, in the config's order; 0 where none does
    parts: Mapping[str, float]  # term name -> unweighted value
    valid: bool
    error: str = ""
    explanations: Mapping[str, str] = field(default_factory=dict)  # term name -> the reward's own words, where it gave any


@dataclass(slots=True, eq=False)
class _Entry:
    """A sample under way."""

    index: int
    key: str
    sample: RewardSample
    pickled: bytes
    terms: tuple[str, ...]  # that apply, in the config's order
    parts: dict[str, float] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    """One call to make."""

    reward: str
    entries: list[_Entry]
    attempt: int  # 0: the first
    queued: float  # time.monotonic()


class RewardPool:
    """Scores samples with all reward terms in `workers` processes; see the module's text. Used from one thread.

    The constructor returns at once; start-up errors of rewards (`PluginError`, `ConfigError`) come from the first call after them.
    `retries` is how often a failed sample is tried again. With `on_failure="stop"` a sample that fails for good raises `RewardError` from
    the next call; with "mask" it gives an invalid `Verdict`. Either way `finish` raises `RewardError` when more than `max_failure_rate` of
    the samples since the last `finish` failed.
    After an error the pool is done: every further call raises it again.
    """

    def __init__(self, terms: Mapping[str, RewardTerm], *, workers: int = 1, timeout_s: float = 10.0, memory_mb: int = 4096,
                 batch_size: int = 32, retries: int = 1, on_failure: Literal["mask", "stop"] = "mask", max_failure_rate: float = 0.25) -> None:
        if not terms:
            raise ConfigError("reward.terms is empty: name at least one reward, for example reward.terms.accuracy.name=accuracy")
        at_least = {"workers": (workers, 1), "batch_size": (batch_size, 1), "retries": (retries, 0), "memory_mb": (memory_mb, 0)}
        for name, (value, least) in at_least.items():
            if value < least:
                raise ConfigError(f"reward.{name} must be at least {least}, got {value}")
        if timeout_s <= 0:
            raise ConfigError(f"reward.timeout_s must be above 0, got {timeout_s}")
        self._terms = dict(terms)
        self._timeout_s, self._batch_size, self._retries = timeout_s, batch_size, retries
        self._stop_on_failure, self._max_failure_rate = on_failure == "stop", max_failure_rate
        self._setup = Setup(self._terms, memory_mb)

        self._lock = threading.Condition()  # guards everything below; notified when a job is queued, a sample is done, or the pool ends
        self._jobs: deque[_Job] = deque()
        self._buffer: list[_Entry] = []
        self._pending: set[str] = set()
        self._done: list[tuple[int, Verdict]] = []
        self._error: R1MegaError | None = None
        self._closed = False
        self._counts = self._zero_counts()
        self._submitted = self._failed = 0  # since the last finish()
        self._last_failure = ""
        self._workers: list[WorkerProcess | None] = [None] * workers
        self._threads = [threading.Thread(target=self._run, args=(slot,), name=f"reward-{slot}", daemon=True) for slot in range(workers)]
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_config(cls, config: RewardConfig) -> RewardPool:
        return cls(config.terms, workers=config.workers, timeout_s=config.timeout_s, memory_mb=config.memory_mb, batch_size=config.batch_size,
                   retries=config.retries, on_failure=config.on_failure, max_failure_rate=config.max_failure_rate)

    # ------------------------------------------------------------------------------------------------------------ the training loop's side

    def submit(self, key: str, sample: RewardSample, terms: Collection[str] | None = None) -> None:
        """Queue one sample under a key that is not under way yet. Does not block. The sample must pickle without torch.

        `terms` are the rewards that count for it; by default all that apply to its domain.
        """
        pickled = pickle.dumps(sample)
        named = applicable(self._terms, sample.domain) if terms is None else tuple(name for name in self._terms if name in terms)
        with self._lock:
            self._check()
            if key in self._pending:
                raise ValueError(f"sample '{key}' is submitted twice")
            entry = _Entry(self._submitted, key, sample, pickled, named)
            self._submitted += 1
            self._pending.add(key)
            if not named:
                self._complete(entry)
                return
            self._buffer.append(entry)
            if len(self._buffer) >= self._batch_size:
                self._flush()

    def poll(self) -> list[Verdict]:
        """What has finished since the last call, by order of submission. Does not block."""
        with self._lock:
            self._check()
            if not self._jobs:  # a worker is free, or will be next: no point in gathering a fuller batch
                self._flush()
            return self._take_done()

    def finish(self) -> list[Verdict]:
        """Block until every submitted sample is done; the verdicts not yet handed out, by order of submission."""
        with self._lock:
            self._check()
            self._flush()
            while self._pending:
                self._check_failure_rate()  # no need to wait for the rest once too many have failed
                self._lock.wait()
                self._check()
            self._check_failure_rate()
            self._submitted = self._failed = 0
            return self._take_done()

    def stats(self) -> dict[str, float]:
        """Counters since the last call: `<term>/calls`, `timeouts`, `errors`, `retries` (samples tried again), `restarts`,
        `busy_seconds` (in calls), `queue_seconds` (calls waiting for a worker)."""
        with self._lock:
            counts, self._counts = self._counts, self._zero_counts()
        return counts

    def pids(self) -> list[int]:
        """The process ids of the running workers (of their keepers)."""
        with self._lock:
            return [worker.pid for worker in self._workers if worker is not None]

    def close(self) -> None:
        """End all workers now; unfinished samples are dropped. May be called twice."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                if worker is not None:
                    worker.terminate()
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------- inside, holding the lock

    def _zero_counts(self) -> dict[str, float]:
        return {f"{reward}/{name}": 0.0 for reward in self._terms for name in _COUNTERS}

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise RewardError("the reward pool is closed")

    def _check_failure_rate(self) -> None:
        if self._failed > self._max_failure_rate * self._submitted:
            self._error = RewardError(
                f"{self._failed} of {self._submitted} samples could not be scored, more than reward.max_failure_rate="
                f"{self._max_failure_rate:g} allows. The last one: {self._last_failure}")
            raise self._error

    def _take_done(self) -> list[Verdict]:
        done, self._done = sorted(self._done, key=lambda item: item[0]), []
        return [verdict for _, verdict in done]

    def _flush(self) -> None:
        """Cut the buffer into calls, spread over the workers."""
        entries, self._buffer = self._buffer, []
        if not entries:
            return
        size = min(self._batch_size, math.ceil(len(entries) / len(self._workers)))
        for reward in self._terms:
            wanted = [entry for entry in entries if reward in entry.terms]
            for start in range(0, len(wanted), size):
                self._enqueue(_Job(reward, wanted[start:start + size], 0, time.monotonic()))

    def _enqueue(self, job: _Job) -> None:
        self._jobs.append(job)
        self._lock.notify_all()

    def _count(self, reward: str, name: str, amount: float = 1.0) -> None:
        self._counts[f"{reward}/{name}"] += amount

    def _succeed(self, job: _Job, scores: list[tuple[float, str]]) -> None:
        for entry, (value, explanation) in zip(job.entries, scores, strict=True):
            entry.parts[job.reward] = value
            if explanation:
                entry.explanations[job.reward] = explanation
            self._complete(entry)

    def _fail_job(self, job: _Job, failure: CallFailedError) -> None:
        """Try the samples of a failed call again one by one, or give them up."""
        self._count(job.reward, _PLURAL[failure.kind])
        if job.attempt < self._retries:
            self._count(job.reward, "retries", len(job.entries))
            for entry in job.entries:
                self._enqueue(_Job(job.reward, [entry], job.attempt + 1, time.monotonic()))
            return
        for entry in job.entries:
            entry.parts[job.reward] = math.nan
            entry.errors[job.reward] = f"reward '{job.reward}': {failure}"
            if self._stop_on_failure and self._error is None:
                self._error = RewardError(
                    f"reward '{job.reward}' failed on sample '{entry.key}': {failure}. The sample: {_excerpt(entry.sample)}")
            self._complete(entry)

    def _complete(self, entry: _Entry) -> None:
        """Hand the sample out if this was its last reward."""
        if len(entry.parts) < len(entry.terms):
            return
        parts = {reward: entry.parts[reward] for reward in entry.terms}
        value = sum((self._terms[reward].weight * part for reward, part in parts.items()), 0.0)
        error = "; ".join(entry.errors.values())
        if error:
            self._failed += 1
            self._last_failure = f"sample '{entry.key}': {error}"
        self._done.append((entry.index, Verdict(entry.key, value, parts, not error, error, entry.explanations)))
        self._pending.discard(entry.key)

    # ----------------------------------------------------------------------------------------------------------------- the workers' threads

    def _run(self, slot: int) -> None:
        try:
            self._serve(slot)
        except Exception as error:
            with self._lock:
                if not self._closed and self._error is None:
                    broke = RewardError(f"the reward pool broke: {type(error).__name__}: {error}")
                    self._error = error if isinstance(error, R1MegaError) else broke
                self._lock.notify_all()
        finally:
            worker = self._workers[slot]
            if worker is not None:
                worker.kill()

    def _serve(self, slot: int) -> None:
        """Make calls until the pool ends; replace the worker whenever a call cost it its life."""
        worker = self._start(slot)
        while worker is not None and (job := self._next_job()) is not None:
            started = time.monotonic()
            failure: CallFailedError | None = None
            scores: list[tuple[float, str]] = []
            try:
                scores = worker.call(job.reward, [entry.pickled for entry in job.entries], self._timeout_s)
            except CallFailedError as error:
                failure = error
            lost = failure is not None and failure.kind != "error"
            with self._lock:
                if self._closed:
                    return
                self._count(job.reward, "calls")
                self._count(job.reward, "busy_seconds", time.monotonic() - started)
                self._count(job.reward, "queue_seconds", started - job.queued)
                self._count(job.reward, "restarts", float(lost))
                if failure is None:
                    self._succeed(job, scores)
                else:
                    self._fail_job(job, failure)
                self._lock.notify_all()
            if lost:
                worker.kill()
                worker = self._start(slot)

    def _start(self, slot: int) -> WorkerProcess | None:
        """A ready worker, or None when the pool has ended."""
        with self._lock:
            if self._closed or self._error is not None:
                return None
            worker = self._workers[slot] = WorkerProcess(self._setup)
        worker.wait_ready()
        return worker

    def _next_job(self) -> _Job | None:
        with self._lock:
            while not self._jobs:
                if self._closed or self._error is not None:
                    return None
                self._lock.wait()
            return None if self._closed or self._error is not None else self._jobs.popleft()


def _excerpt(sample: RewardSample, length: int = 200) -> str:
    """Enough of a sample to recognise it."""
    def short(text: str) -> str:
        return repr(text if len(text) <= length else f"{text[:length // 2]} ... {text[-length // 2:]}")

    return f"prompt {short(sample.prompt)}, completion {short(sample.completion)}, answer {short(sample.answer or '')}"
