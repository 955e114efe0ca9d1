"""`make prove`: a model trained in peace, and again under SIGKILL and a flipped bit; they end equal, bit for bit.

Every attempt is a real `gpt-job train` in a process of its own, followed by what it logs. The seed decides at which
steps it is killed and which bit is flipped; when exactly the signal arrives is up to the machine.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from job.checkpoint import history
from job.checkpoint.choice import open_run
from job.config import StorageConfig
from job.infra.storage import open_store
from tests.chaos import evidence
from tests.chaos.outcome import Outcome, outcome

ROOT = Path(__file__).parents[2]
KILLS, STEPS, EVERY = 5, 160, 10
SETTINGS = (
    "model.dropout=0.1",
    "training.micro_batch_size=8",
    "training.eval_every=40",
    "training.eval_batches=2",
    "training.sample_every=none",
    "observe.metrics_port=none",
    "observe.log_every=1",
    "runtime.threads=1",  # as fast as more at this size, and not slowed down by whatever else runs
)
HASHES = ("chain", "model", "optimizer", "tokenizer")


@dataclass(frozen=True)
class Trial:
    """What is trained, and in which folder everything of it lies.

    Args:
        launcher: What starts Python's part of `gpt-job`.
    """

    folder: Path
    steps: int = STEPS
    every: int = EVERY
    settings: tuple[str, ...] = SETTINGS
    launcher: tuple[str, ...] = ("-m", "job")

    def run_uri(self, name: str) -> str:
        """Where the run of this name is kept."""
        return str(self.folder / name)

    def command(self, name: str, *more: str) -> list[str]:
        """`gpt-job train` for the run of this name, saying each step."""
        settings = (
            f"run_uri={self.run_uri(name)}",
            f"data.cache_dir={self.folder / 'cache'}",
            f"training.max_steps={self.steps}",
            f"checkpoint.every={self.every}",
            *self.settings,
            *more,
        )
        flags = [word for setting in settings for word in ("--set", setting)]
        return [sys.executable, *self.launcher, "--log-format", "json", "-v", "train", *flags]

    def environ(self) -> dict[str, str]:
        """This process's environment, without anything that would change the run."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("GPT_JOB_")}
        return {**own, "PYTHONPATH": str(ROOT), "TERMINATION_LOG": str(self.folder / "termination")}


@dataclass
class Attempt:
    """A process of the job, and how far it came by its own account."""

    process: subprocess.Popen[str]
    began: int = 0
    reached: int = 0
    rejected: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def follow(self, goal: int | None = None) -> bool:
        """Read its log until it has taken step `goal`, or to its end; whether it got to the goal."""
        for line in self.process.stderr or ():
            self.said.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            match event.get("event"):
                case "run started" | "run continued":
                    self.began = self.reached = event["step"]
                case "step":
                    self.reached = event["step"]
                    show(self.reached)
                case "checkpoint rejected, the one before it is tried":
                    self.rejected.append(f"step {event['step']} ({event['reason']})")
            if goal is not None and self.reached >= goal:
                return True
        return False

    def __str__(self) -> str:
        refused = f"rejected {', '.join(self.rejected)}, " if self.rejected else ""
        return f"{refused}{'continued from' if self.began else 'began at'} step {self.began:>3}"


@dataclass
class Toll:
    """What a run went through."""

    kills: int = 0
    flips: int = 0
    rejections: int = 0
    redone: int = 0
    seconds: float = 0.0


def say(line: str) -> None:
    """A line of the proof, over the step that is shown on a terminal."""
    click.echo(f"\r{line}" if sys.stdout.isatty() else line)


def show(step: int) -> None:
    """How far the job is, on a terminal."""
    if sys.stdout.isatty():
        click.echo(f"\r  step {step:>3} ", nl=False)


def attempt(trial: Trial, name: str, *more: str, goal: int | None = None, delay: float = 0.0) -> Attempt:
    """Start the job and follow it to its end, or kill it `delay` seconds after it has taken step `goal`.

    Raises:
        RuntimeError: It ended by itself and not with 0; says its last words.
    """
    command, environ = trial.command(name, *more), trial.environ()
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        this = Attempt(process)
        try:
            if this.follow(goal):
                time.sleep(delay)
                process.kill()
                this.follow()  # what it had said before the signal came
            process.wait()
        finally:
            process.kill()  # when it is this process that is interrupted
    if process.returncode not in (0, -9):
        raise RuntimeError(f"gpt-job train ended with {process.returncode}:\n{''.join(this.said[-5:])}")
    return this


def in_peace(trial: Trial, name: str, *more: str) -> Outcome:
    """Train without a disturbance; what it came to."""
    started = time.monotonic()
    this = attempt(trial, name, *more)
    say(f"  attempt 1  {this}, complete at step {this.reached} after {time.monotonic() - started:.0f} s")
    return outcome(trial.run_uri(name), trial.folder / f"{name}-files")


def under_fire(trial: Trial, name: str, pick: random.Random, kills: int) -> Toll:
    """Train, killed once in each of `kills` stretches of the run, one bit flipped after one of the later kills."""
    started, toll, last = time.monotonic(), Toll(), 0
    goals = kill_steps(trial.steps, kills, pick)
    flip_from = pick.randrange(kills // 2, kills)
    complete = False
    while not complete:
        goal = goals[toll.kills] if toll.kills < kills else None
        this = attempt(trial, name, goal=goal, delay=pick.uniform(0, 0.15))
        complete = this.process.returncode == 0
        toll.redone += max(0, last - this.began)
        toll.rejections += len(this.rejected)
        last = this.reached
        number = toll.kills + 1
        if complete:
            say(f"  attempt {number}  {this}, complete at step {this.reached}")
            break
        toll.kills += 1
        say(f"  attempt {number}  {this}, killed -9 at step {this.reached:>3}, newest checkpoint {newest(trial, name)}")
        if toll.kills > flip_from and not toll.flips and (flipped := flip_bit(trial, name, pick)):
            toll.flips += 1
            say(f"             flipped {flipped}")
    toll.seconds = time.monotonic() - started
    return toll


def kill_steps(steps: int, kills: int, pick: random.Random) -> list[int]:
    """A random step in each of `kills` stretches of equal length, the last two steps left out."""
    edges = [1 + (steps - 2) * n // max(1, kills) for n in range(kills + 1)]
    return [pick.randrange(first, max(first + 1, end)) for first, end in itertools.pairwise(edges)]


def newest(trial: Trial, name: str) -> str:
    """The step of the run's newest checkpoint."""
    standing = history.checkpoints(open_run(open_store(trial.run_uri(name), StorageConfig())).records)
    return str(standing[-1].step) if standing else "none"


def flip_bit(trial: Trial, name: str, pick: random.Random) -> str | None:
    """Flip a random bit of the newest checkpoint; None while there is no other to go back to."""
    run = open_run(open_store(trial.run_uri(name), StorageConfig()))
    standing = history.checkpoints(run.records)
    if len(standing) < 2:
        return None
    objects = standing[-1].objects
    (stored,) = pick.choices(objects, [stored.size for stored in objects])
    place, bit = pick.randrange(stored.size), pick.randrange(8)
    with (trial.folder / name / stored.key).open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    return f"bit {bit} of byte {place:,} in {stored.name} of step {standing[-1].step}"


def verdict(first: Outcome, second: Outcome, toll: Toll, trial: Trial) -> bool:
    """Say how both runs ended, hash by hash; whether they are equal and the damage was noticed."""
    say("\nwithout a disturbance, and below it with all of them:")
    for name in ("step", *HASHES):
        say(f"  {name:<10} {getattr(first, name)}\n  {'':<10} {getattr(second, name)}")
    once = [run.logged_steps == tuple(range(1, trial.steps + 1)) for run in (first, second)]
    say(f"  each step stands once in events.jsonl: {' and '.join('yes' if right else 'NO' for right in once)}")
    noticed = toll.rejections == toll.flips
    say(
        f"  {toll.kills} kills, {toll.flips} bit flipped and {'' if noticed else 'NOT '}noticed, "
        f"{toll.redone} steps trained again, {toll.seconds:.0f} s\n"
    )
    same = all(getattr(first, name) == getattr(second, name) for name in ("step", *HASHES))
    proven = same and all(once) and noticed and toll.kills > 0 and toll.flips > 0
    say("EQUAL" if proven else "DIFFERENT")
    return proven


@click.command()
@click.option("--seed", type=int, envvar="CHAOS_SEED", show_envvar=True, help="Unset: another one each time.")
@click.option("--kills", type=click.IntRange(min=2), default=KILLS, show_default=True)
def main(seed: int | None, kills: int) -> None:
    """Train a small model unbroken and under SIGKILL; print both and whether they are EQUAL (0) or DIFFERENT (1)."""
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    say(f"seed {seed} (kills at the same steps again: make prove SEED={seed})")
    with tempfile.TemporaryDirectory(prefix="gpt-job-prove-") as folder:
        trial = Trial(Path(folder))
        say(f"{trial.steps} steps in peace, a checkpoint every {trial.every}:")
        first = in_peace(trial, "peace")
        say(f"the same, killed {kills} times, with one bit of a checkpoint flipped:")
        toll = under_fire(trial, "fire", random.Random(seed), kills)
        second = outcome(trial.run_uri("fire"), trial.folder / "fire-files")
        equal = verdict(first, second, toll, trial)
    evidence.case(
        "R-01 (gpt-job itself)", cases=1, kills=toll.kills, seed=seed, seconds=round(toll.seconds), equal=equal
    )
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
