"""Runs as jobs of SLURM, through submitit; they go on when the command ends, and the next one takes them up.

A job that is preempted or reaches its time limit is queued again with the same number and goes on from its checkpoint.
Its folder stands in the store: what it says when it ends, its output, and where it is.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from suites.engines import queue
from suites.engines.engine import Capacity, Gone, NotTaken, Queued, Resources, Running, State, Task
from suites.engines.node import Refusal, check_code, run_task
from suites.measure.environment import code_digest
from suites.run.eviction import SAVE_S

FOLDER = ".jobs"
STEP = "step"
STEP_EVERY_S = 2.0
PATIENCE_S = 60.0
TIMEOUTS = 50
"""How often a job may reach its time limit and be queued again."""
Ask = Callable[[Sequence[str]], str | None]


def ask(command: Sequence[str]) -> str | None:
    """Return what a command of SLURM says; None where it fails or does not answer: then nothing is known."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


class SlurmEngine:
    """See `suites.engines.engine.Engine`; `settings` are those of `--slurm`, `ask_` runs SLURM's commands."""

    name = "slurm"
    outlives = True
    pause_s = 10.0

    def __init__(self, store: Path, settings: Mapping[str, str], ask_: Ask = ask) -> None:
        self._folder, self._settings, self._ask = store.resolve() / FOLDER, settings, ask_
        self._jobs: dict[str, queue.Job] | None = None
        self._asked_at = 0.0

    def capacity(self, resources: Resources) -> Capacity:
        said = self._ask(queue.SINFO)
        if said is None:
            raise ValueError("--on slurm: sinfo does not answer: is this a node of a SLURM cluster?")
        partition = queue.chosen(queue.partitions(said), self._settings.get("partition"))
        return Capacity(queue.slots(partition, resources), f"partition {partition.name}")

    def submit(self, task: Task) -> str:
        name = self._name(task)
        # A command that was killed between handing over and noting it has left a job that only its name tells of.
        self._jobs = None
        left = queue.live(self._queue() or {}, name)
        if left is not None:
            return left
        handle = self._submitted(task, name)
        # What the queue said before this job was in it says nothing of it.
        self._jobs = None
        return handle

    def _submitted(self, task: Task, name: str) -> str:
        import submitit

        executor = submitit.SlurmExecutor(folder=self._folder / "%j", max_num_timeout=TIMEOUTS)
        given = {key: value for key, value in self._settings.items() if key not in ("time", "cpus")}
        cpus = task.resources.cpus
        executor.update_parameters(
            job_name=name,
            time=queue.limit_of(self._settings),
            cpus_per_task=cpus,
            # Since 22.05 a step no longer takes the number from its job.
            srun_args=[f"--cpus-per-task={cpus}"],
            signal_delay_s=queue.NOTICE_S,
            additional_parameters={"requeue": True},
            **given,
            **({"gpus_per_node": 1} if task.resources.gpus else {}),
        )
        try:
            job = executor.submit(Serve(), code_digest(), pickle.dumps(task), str(self._folder))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise NotTaken(f"--on slurm: sbatch refuses the job: {' '.join(str(error).split())[-300:]}") from error
        return str(job.job_id)

    def _name(self, task: Task) -> str:
        """Return a job's name: no other run has it, nor the same run in another store."""
        place = hashlib.sha256(str(self._folder).encode()).hexdigest()[:6]
        return f"gnlorp-{task.plan.hash()}-{place}"

    def poll(self, handle: str) -> State:
        ended = self._result(handle)
        if ended is not None:
            return ended
        known = self._queue()
        if known is None:
            return Queued()
        job = known.get(handle)
        if job is not None and job.state in queue.WAITING:
            if job.reason in queue.NEVER:
                self.cancel(handle)
                return Gone(f"job {handle} would wait for ever: {job.reason}", "refused")
            return Queued()
        if job is not None and job.state in queue.AT_WORK:
            return self._step(handle)
        # No accounting and no result: its supervisor is dead, or its last words are on their way. `follow` waits.
        return Gone(f"job {handle}: {queue.why(self._ask(('scontrol', 'show', 'job', handle, '-o')) or '')}", "ended")

    def answers(self) -> bool:
        """Whether the queue can be asked here."""
        return self._queue() is not None

    def cancel(self, handle: str) -> None:
        self._ask(("scancel", handle))
        self._jobs = None

    def _queue(self) -> dict[str, queue.Job] | None:
        """Return what the queue holds, asked once a pause; None where it has not answered yet."""
        if self._jobs is None or time.monotonic() - self._asked_at >= self.pause_s:
            said = self._ask(queue.SQUEUE)
            self._jobs = self._jobs if said is None else queue.jobs(said)
            self._asked_at = time.monotonic()
        return self._jobs

    def _result(self, handle: str) -> Gone | None:
        """Return what a job said at its end, as submitit keeps it: ("success", value) or ("error", trace)."""
        try:
            outcome, value = pickle.loads((self._folder / handle / f"{handle}_0_result.pkl").read_bytes())
        except (FileNotFoundError, EOFError):
            return None
        if outcome == "success" and isinstance(value, Gone):
            return value
        last = next((line for line in reversed(str(value).splitlines()) if line.strip()), "it said nothing")
        refused = last.startswith(f"{Refusal.__module__}.{Refusal.__qualname__}: ")
        return Gone(last.partition(": ")[2] if refused else last, "refused" if refused else "lost")

    def _step(self, handle: str) -> Running:
        try:
            return Running(*json.loads((self._folder / handle / STEP).read_text()))
        except (OSError, ValueError, TypeError):
            return Running()


class Serve:
    """What a job does; called again as it was where SLURM queues it again."""

    def __call__(self, code: str, packed: bytes, folder: str) -> Gone:
        """Compare the code before anything of the command's is unpacked, then run."""
        check_code(code, socket.gethostname())
        task: Task = pickle.loads(packed)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if task.resources.gpus else None
        runtime = replace(task.runtime, threads=task.resources.cpus, workers=1, visible_devices=visible)
        place = Path(folder) / os.environ["SLURM_JOB_ID"] / STEP
        said_at = 0.0

        def tell(*said: Any) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= STEP_EVERY_S:
                said_at = time.monotonic()
                scratch = place.with_suffix(".tmp")
                scratch.write_text(json.dumps(said))
                os.replace(scratch, place)

        gone = run_task(replace(task, runtime=runtime), tell)
        if gone.cause == "lost":
            # The run was told to make room: SLURM ends this job soon and queues it again, unless it ends by itself.
            time.sleep(queue.NOTICE_S)
        return gone

    def checkpoint(self, *given: Any) -> Any:
        """Have the run save, then give submitit what it queues again at a preemption or a time limit: the same call."""
        from submitit.helpers import DelayedSubmission

        pids = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        runs = []
        for pid in pids:
            with suppress(psutil.Error, OSError):
                os.kill(pid, signal.SIGUSR2)
                runs.append(psutil.Process(pid))
        psutil.wait_procs(runs, timeout=SAVE_S)
        return DelayedSubmission(self, *given)
