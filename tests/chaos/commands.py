"""`gpt-job train` in a forked process with its seams counted: what it says and how it ends, without torch's import."""

import json
import os
import tempfile
from pathlib import Path
from signal import SIGKILL

from tests.chaos.harness import Plan, count_seams, ended, launch
from tests.integration.command import Ending, World, assignments

UNDISTURBED = Plan()


def train(world: World, *settings: str, plan: Plan = UNDISTURBED, before=None) -> Ending:
    """Run `train` in this world to its end.

    Args:
        plan: What to do to the process; `runtime.grace_seconds` is a setting here.
        before: Called in the process before the command.
    """
    notes = Path(tempfile.mkdtemp(prefix="ended-", dir=world.folder))
    drawn = "observe.report=true"  # not really: count_seams sees to that
    words = ["train", "--config", "run.toml", *assignments(drawn, *settings)]
    code = ended(launch(_command, plan, world.folder, notes, words, before), plan)
    termination = notes / "termination"
    whole = code != -SIGKILL and termination.exists()  # who is killed may have been writing it
    said = json.loads(termination.read_bytes()) if whole else {}
    return Ending(code, (notes / "stdout").read_text(), (notes / "stderr").read_text(), said)


def _command(points, folder, notes, words, before):
    from job import cli
    from job.data import tokenizing

    os.chdir(folder)
    os.environ["TERMINATION_LOG"] = str(notes / "termination")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(notes / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    count_seams(points)
    read_documents = tokenizing.read_documents

    def counted(*arguments):
        for document in read_documents(*arguments):
            points.reach("document")
            yield document

    tokenizing.read_documents = counted
    if before:
        before()
    cli.main(words, prog_name="gpt-job")
