"""One run from plan to record: build, attach, certify, track, train, measure; a failure becomes a record too."""

from __future__ import annotations

import gc
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from baselines.method import Refreshing, merges_after, rewarm_factor, trainable
from gnlorp import Diverged
from results.schema import INSTRUMENTATION, Engagement, Memory, Peak, Plan, Record, Status
from suites.catalogue import catalogue_for
from suites.measure import live, tracker
from suites.measure.environment import CodeVersion, derived_seed, environment
from suites.measure.ledger import with_ledger
from suites.resolved import Resolved, resolved
from suites.run import resume, saved
from suites.run.build import Built, build
from suites.run.eviction import Evicted
from suites.run.follow import Followed
from suites.run.loop import DivergedError, Hooks, Outcome, Progress, timing, train
from suites.run.products import products
from suites.run.rounding import rule_of
from suites.run.tracked import Tracked, tracked_pass
from suites.suite import Beside, Job, Runtime

COMPILE_BACKEND = "inductor"
OUT_OF_MEMORY = ("DefaultCPUAllocator", "error: out of memory", "_STATUS_ALLOC_FAILED")
"""Of torch's allocator on the CPU; of CUDA ("CUDA error: out of memory"); of cuBLAS, cuDNN and cuSOLVER."""


def execute(
    plan: Plan,
    runtime: Runtime,
    predicted_peak_bytes: int | None,
    report: Progress,
    checkpoints: Path | None = None,
    predicted_reserved_bytes: int | None = None,
    code: CodeVersion | None = None,
) -> Record:
    """Run `plan` and return its record, whatever happens: a failure is a status with its text.

    Goes on from the newest whole checkpoint in the folder `checkpoints`, and writes its own there; they go away once
    the run has a final record. `code`: see `environment`.
    """
    started = _now()
    run = _Run(predicted_peak_bytes, report, checkpoints, predicted_reserved_bytes)
    # Before the run: what is committed or edited while it goes on is not what ran.
    where = environment(runtime.device, runtime.threads, runtime.workers, code)
    status: Status = "ok"
    error: str | None = None
    try:
        run.go(resolved(plan, runtime))
    except Evicted as notice:
        status, error = "interrupted", str(notice)
    except KeyboardInterrupt:
        status, error = "interrupted", "interrupted by the user"
    except (DivergedError, Diverged) as problem:
        status, error = "diverged", str(problem)
    except Exception as problem:  # noqa: BLE001  a run that fails is a result; the others go on
        status = "out_of_memory" if is_out_of_memory(problem) else "failed"
        error = "".join(traceback.format_exception_only(problem)).strip()
        if status == "failed" and not isinstance(problem, ValueError):
            error += "\n" + "".join(traceback.format_tb(problem.__traceback__)[-3:])
    out = run.out
    wall = out.wall_s + run.seconds()
    return Record(
        plan=plan,
        plan_hash=plan.hash(),
        status=status,
        error=error,
        started_at=started,
        finished_at=_now(),
        environment=where,
        catalogue=catalogue_for(plan),
        timing=timing(out, wall) if out.timed_steps else None,
        evaluations=out.evaluations,
        curve=out.curve,
        skipped_steps=out.skipped_steps,
        resumed_at=out.resumed_at,
        **run.parts,
    )


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out: the device's, for tensors or a library, or the CPU allocator's."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in OUT_OF_MEMORY)


def measured(job: Job, case: Resolved) -> tuple[Peak | None, Tracked | None, str | None]:
    """Build a model to measure, measure it, and let go of all of it: (peak of loading, what was tracked, why not).

    The largest batch there can be may never come in the run, so that memory which runs out here says nothing of the
    method: the run goes on, without tracked peaks, and its record says why.
    """
    found: tuple[Peak | None, Tracked | None, str | None]
    try:
        first, load = tracker.track_load(
            lambda: build(job.model(), job.placement, case),
            lambda made: (made.model, made.optimizer),
            case.runtime.device.type,
        )
        found = load, tracked_pass(first, job, case), None
        del first
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        text = next(iter(str(problem).splitlines()), type(problem).__name__)
        found = None, None, f"memory ran out in the instrumentation pass, at the largest batch there can be: {text}"
    # What the model refers back to itself through is only found by the collector.
    gc.collect()
    return found


class _Run:
    """A run in hand: `out` and `parts` hold what its record will say, as far as it has come when it ends."""

    def __init__(self, predicted: int | None, report: Progress, checkpoints: Path | None, reserved: int | None) -> None:
        self._predicted, self._report, self._checkpoints, self._reserved = predicted, report, checkpoints, reserved
        self._start = time.perf_counter()
        self._rss_start = live.rss_bytes()
        self.out = Outcome()
        self.parts: dict[str, Any] = {}

    def seconds(self) -> float:
        """Return the seconds since this process began with the run."""
        return time.perf_counter() - self._start

    def go(self, case: Resolved) -> None:
        """Do all of it; whatever is raised ends the run."""
        device, group = case.runtime.device, case.runtime.group
        devices = live.DevicePeaks(device)
        job = case.job()
        self.parts |= {"data": job.facts, "main_metric": job.main_metric}

        # 1. Memory, on a model of its own that the tracked steps use up and that is gone before the next one comes.
        with devices.phase(INSTRUMENTATION):
            load, tracked, untracked = measured(job, case)
        devices.release()

        # 2. The model that is trained: drawn again from the same seeds, or put back from a checkpoint.
        with devices.phase("load"):
            built = build(job.model(), job.placement, case)
        torch.manual_seed(derived_seed(case.plan.seed, "dropout") + case.runtime.group.rank)
        saver = resume.Saver(self._checkpoints, case, built, self.out, self.seconds)
        saver.load()

        # 3. Training, with the certificate early in it.
        if case.training.compile:
            built.model.compile(backend=COMPILE_BACKEND)
        followed = Followed(case.plan, case.runtime.beside if case.runtime.group.leads else Beside(), self.out)
        try:
            with devices.phase("train"), products(case.training):
                hooks = self._hooks(built, case, saver, devices, followed)
                train(built.model, built.optimizer, job, case.training, self.out, hooks, case.runtime.group)
        finally:
            followed.finish()

        # 4. What is left to say of it.
        self.parts["final_digest"] = resume.digest(built.model, built.optimizer)
        self._certify(built, case)
        memory = self._memory(built, tracked, untracked, devices)
        self.parts["memory"] = memory
        # The ledger's formulas are of whole weights.
        if tracked is not None and load is not None and group.shard is None:
            self.parts["memory"] = with_ledger(memory, built, job, case, {"load": load, **tracked.phases})

        # 5. The model itself, last, since merging uses it up.
        if case.runtime.beside.model is not None and (group.leads or group.shard is not None):
            saved.save(built, job, case, case.runtime.beside)

    def _hooks(
        self, built: Built, case: Resolved, saver: resume.Saver, devices: live.DevicePeaks, followed: Followed
    ) -> Hooks:
        def report(step: int, loss: float) -> None:
            # Early, so that no time goes into a method without effect. A skipped step has no state yet to certify, and
            # a factor that starts at zero gives its partner state only in the second one.
            if 1 <= step - self.out.skipped_steps <= 2:
                self._certify(built, case)
            followed.step(self.out)
            self._report(step, loss)

        def restart(step: int) -> None:
            if merges_after(case.config, step) and step < case.training.steps:
                assert case.method.restart is not None
                seed = derived_seed(case.plan.seed, f"restart {step}")
                generator = torch.Generator(case.runtime.device).manual_seed(seed)
                case.method.restart(built.model, built.optimizer, generator)

        return Hooks(
            report,
            lambda step: rewarm_factor(case.config, step),
            restart,
            saver.save,
            lambda: devices.phase("evaluation"),
        )

    def _certify(self, built: Built, case: Resolved) -> None:
        """Record what the method did, and raise RuntimeError where that is not what it should do."""
        certificate = _certificate(built, self.out)
        self.parts["engagement"] = certificate
        method, shape = case.method, built.layers[0].shape if built.layers else (1, 1)
        trains_layers = method.trains_layers(shape, case.config)
        keeps_state = built.formula_state_bytes > 0
        rule = rule_of(built.optimizer)
        live.check_engagement(
            certificate,
            built.model,
            method.title,
            method.saves_state,
            trains_layers,
            method.bases,
            keeps_state,
            rule_bytes=0 if rule is None else rule.rest_bytes,
        )

    def _memory(
        self, built: Built, tracked: Tracked | None, untracked: str | None, devices: live.DevicePeaks
    ) -> Memory:
        return Memory(
            weight_bytes=live.weight_bytes(built.model),
            trainable_bytes=live.trainable_bytes(built.model),
            buffer_bytes=live.buffer_bytes(built.model),
            gradient_bytes=None if tracked is None else tracked.gradient_bytes,
            state_bytes=live.state_bytes(built.optimizer, built.model),
            basis_bytes=live.basis_bytes(built.optimizer),
            formula_state_bytes=built.formula_state_bytes,
            predicted_peak_bytes=self._predicted,
            predicted_reserved_bytes=self._reserved,
            step_peak=None if tracked is None else tracked.plain,
            refresh_peak=None if tracked is None else tracked.refresh,
            untracked=untracked,
            rss_peak_bytes=live.rss_peak_bytes(),
            rss_start_bytes=self._rss_start,
            cuda_allocated_bytes=devices.allocated_bytes,
            cuda_reserved_bytes=devices.reserved_bytes,
        )


def _certificate(built: Built, out: Outcome) -> Engagement:
    return live.engagement(
        built.layers,
        sum(parameter.numel() for parameter in trainable(built.model).values()),
        sum(parameter.numel() for parameter in built.model.parameters()),
        built.optimizer,
        built.dense_state_bytes,
        out.refreshes if isinstance(built.optimizer, Refreshing) and live.basis_bytes(built.optimizer) else None,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
