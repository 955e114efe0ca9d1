"""The tests of the tests: faults put into a copy of the project, each of which has to turn it red.

`python -m tests.chaos.mutants` tries all of them and prints a line for each; the first few are tried at every commit.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A fault: `old`, which stands once in `file`, becomes `new`, and one of `tests` has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "leave the step out of the seed",
        "job/training/trainer.py",
        'seed_for(self.config.seed, "step", self.state.step, self.ranks.place.rank)',
        'seed_for(self.config.seed, "step", 0, self.ranks.place.rank)',
        ("tests/unit/test_training.py::test_each_step_of_a_run_has_randomness_of_its_own",),
    ),
    Mutant(
        "forget the data offset",
        "job/training/trainer.py",
        "self.text.batches(self.config, state.step, state.data_offsets, pin_memory, self.ranks.place)",
        "self.text.batches(self.config, state.step, (), pin_memory, self.ranks.place)",
        ("tests/chaos/test_rollback.py::test_the_data_that_is_left_is_met_no_more",),
    ),
    Mutant(
        "off by one in the data index",
        "job/data/loader.py",
        "count(step)",
        "count(step + (step > 0))",
        ("tests/chaos/test_resume.py::test_a_clean_stop_at_every_step[7]",),
    ),
    Mutant(
        "publish before the upload",
        "job/checkpoint/store.py",
        "        folder, marks = self._fresh_folder(checkpoint.step), [time.monotonic()]\n",
        """        folder, marks = self._fresh_folder(checkpoint.step), [time.monotonic()]
        early = {"step": checkpoint.step, "prev_checkpoint_seq": None, "objects": [], "events": {}}
        self._commit("checkpoint", {**checkpoint.facts, **early})
""",
        ("tests/unit/test_checkpoint_protocol.py",),
    ),
    Mutant(
        "ignore 412",
        "job/infra/directory_store.py",
        """    except FileExistsError:
        return False
""",
        """    except FileExistsError:
        return True
""",
        ("tests/contract/test_directory_store.py",),
    ),
    Mutant(
        "count unverified checkpoints in retention",
        "job/checkpoint/retention.py",
        "if not found.enough:",
        "if False:",
        ("tests/unit/test_checkpoint_retention.py",),
    ),
    Mutant(
        "map 403 to none",
        "job/infra/s3_errors.py",
        'if code(error) == "NoSuchKey":',
        'if code(error) == "NoSuchKey" or status(error) == 403:',
        ("tests/unit/test_s3_errors.py",),
    ),
    Mutant(
        "skip the SHA-256 check",
        "job/checkpoint/verify.py",
        "if found != stored.sha256:",
        "if not found:",
        ("tests/integration/test_lost_checkpoints.py::test_a_damaged_checkpoint_is_passed_over",),
    ),
    Mutant(
        "read the windows in order",
        "job/data/order.py",
        "return permuted(places, epochs, windows, secret) * self.stride",
        "return places * self.stride",
        ("tests/unit/test_data_order.py",),
    ),
    Mutant(
        "drop dropout from the workload",
        "tests/chaos/harness.py",
        '"model.dropout=0.1"',
        '"model.dropout=0"',
        ("tests/chaos/test_resume.py::test_the_workload_is_hard_to_resume",),
    ),
    Mutant(
        "seed dropout from what was drawn before",
        "job/training/trainer.py",
        'seed_torch(self.learner.device, seed_for(self.config.seed, "step", self.state.step, self.ranks.place.rank))',
        "pass",
        ("tests/chaos/test_resume.py::test_a_clean_stop_at_every_step[7]",),
    ),
    Mutant(
        "store what training goes on changing",
        "job/training/snapshot.py",
        "self._room(name, tensor).copy_(tensor, non_blocking=pinned)",
        "tensor",
        ("tests/unit/test_saver.py::test_what_is_uploaded_is_what_was_copied",),
    ),
    Mutant(
        "take later events for saved",
        "job/checkpoint/events.py",
        "del self._segment[: segment.count]",
        "self._segment.clear()",
        ("tests/unit/test_saver.py::test_events_during_an_upload_wait_for_the_next_checkpoint",),
    ),
    Mutant(
        "commit a state that is not finite",
        "job/training/snapshot.py",
        "if bad := not_finite(self.model) + not_finite(self.optimizer):",
        "if bad := []:",
        ("tests/unit/test_saver.py::test_a_state_that_is_not_finite_is_lost_not_stored",),
    ),
    Mutant(
        "go back to whatever checkpoint is there",
        "job/training/rollback.py",
        "return DataOffset(step=back_to, samples=(last_bad - back_to) * batch_size)",
        "return DataOffset(step=first_bad - 1, samples=(last_bad - first_bad + 1) * batch_size)",
        ("tests/chaos/test_rollback.py",),
    ),
    Mutant(
        "commit over a newer fence",
        "job/checkpoint/log.py",
        "if term is not None and found.attempt != attempt:",
        "if False:",
        ("tests/unit/test_checkpoint_protocol.py",),
    ),
    Mutant(
        "keep the slots of a client that has left",
        "job/serving/completions.py",
        "            engine.cancel(self._ticket)\n",
        "            pass\n",
        ("tests/integration/test_serving.py::test_a_client_that_leaves_frees_its_slots",),
    ),
    Mutant(
        "take more requests than there is room for",
        "job/serving/engine.py",
        "if len(self._tickets) + count > self._room:",
        "if False:",
        ("tests/integration/test_serving.py::test_more_than_there_is_room_for",),
    ),
    Mutant(
        "mix up the rows when one leaves",
        "job/model/batching.py",
        """        if row < len(self._open):
            self._open[row] = last
""",
        """        if row < len(self._open):
            self._open.insert(row, last)
            self._open.pop()
""",
        ("tests/unit/test_batching.py",),
    ),
    Mutant(
        "let those in who show no key",
        "job/serving/app.py",
        "if not hmac.compare_digest(shown, self._expected):",
        "if shown and not hmac.compare_digest(shown, self._expected):",
        ("tests/integration/test_serving.py::test_the_key",),
    ),
]
AT_EVERY_COMMIT = 4


def survives(mutant: Mutant) -> str | None:
    """What the tests said when the fault did not turn them red; None when it did."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("job", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / name, copy)
        file = copy / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"{mutant.file} has {text.count(mutant.old)} times what {mutant.name!r} changes, not once"
        file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
        said = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": folder}, capture_output=True, text=True, check=False
        )
        return (
            None
            if said.returncode == 1
            else f"{' '.join(mutant.tests)} ended with {said.returncode}:\n{said.stdout[-2000:]}"
        )


def main() -> int:
    """Try all; the exit code is the number of faults that nobody noticed."""
    alive = 0
    for mutant in MUTANTS:
        problem = survives(mutant)
        alive += problem is not None
        print(f"{'NOTICED' if problem is None else 'ALIVE  '}  {mutant.name}", flush=True)
        if problem:
            print(problem)
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} faults turned the tests red")
    return alive


if __name__ == "__main__":
    sys.exit(main())
