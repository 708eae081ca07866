"""The sbatch file, by dry run: its own commands, with Slurm's played by processes of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import aligngap
from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.pipeline.executors.cluster.slurm import sbatch_file
from faults.campaign import STUDY, difference, results
from tiny import Tiny

SRUN = """#!/bin/bash
# Each node of the allocation is a group of processes; told to stop, the step stops all of them.
for word; do case $word in --ntasks=*) tasks=${word#*=};; esac; done
while [[ $1 == --* ]]; do shift; done
for ((k = 0; k < tasks; k++)); do
  SLURM_NODEID=$k setsid "$@" >"$SAID/node-$k.txt" 2>&1 &
  groups+=($!)
done
trap 'for group in "${groups[@]}"; do kill -TERM -- "-$group"; done' TERM
wait
wait
"""
SCONTROL = '#!/bin/bash\necho "$@" >>"$SAID/scontrol.txt"\n'
HOSTNAME = "#!/bin/bash\necho 127.0.0.1\n"
ALIGNGAP = '#!/bin/bash\nexec {python} -m aligngap "$@"\n'


def test_the_file_is_bash_and_says_what_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["my study.yaml", "--out", "/shared/run", "--set", "tasks=[arena]"]
    options = ["--nodes", "3", "--cpus", "16", "--gpus", "4", "--time", "1-12"]
    assert main(["slurm", *options, *words]) == 0
    text = capsys.readouterr().out
    for line in ("--nodes=3", "--cpus-per-task=16", "--gpus-per-node=4", "--time=1-12", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    assert "\naligngap run 'my study.yaml' --out /shared/run --set 'tasks=[arena]' --executor ray --address" in text
    assert "--num-cpus=16 --num-gpus=4" in text
    assert "@" not in text.replace("USR1@120", "").replace("[@]", "")
    file = tmp_path / "job.sbatch"
    file.write_text(text)
    subprocess.run(["bash", "-n", file], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, file], check=True)
    assert "--gpus" not in sbatch_file(words, nodes=1, cpus=1, gpus=0, time="60")


@pytest.mark.parametrize(
    ("words", "time", "told"),
    [
        (["quick"], "tomorrow", "'tomorrow' is no time"),
        (["quick", "--address=x:1"], "60", "gives --address=x:1 itself"),
    ],
)
def test_what_the_script_could_not_do(words: list[str], time: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        sbatch_file(words, nodes=1, cpus=1, gpus=0, time=time)


@pytest.mark.slow
def test_a_job_at_its_limit_queues_again_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'aligngap[ray]'")
    Tiny(tmp_path)  # its base
    (tmp_path / "study.yaml").write_text(STUDY)
    commands, said = tmp_path / "bin", tmp_path / "said"
    commands.mkdir()
    said.mkdir()
    ray = "import sys; from ray.scripts.scripts import cli; sys.exit(cli())"
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("hostname", HOSTNAME),
        ("aligngap", ALIGNGAP.format(python=sys.executable)),
        ("ray", f"#!/bin/bash\nexec {sys.executable} -c '{ray}' \"$@\"\n"),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    source = str(Path(aligngap.__file__).parents[1])
    variables = os.environ | {
        "PYTHONPATH": source,
        "SAID": str(said),
        "SLURM_JOB_ID": str(os.getpid()),
        "TMPDIR": "/tmp",
    }

    # The script puts the environment that printed it first; here the fakes are.
    script = sbatch_file(["study.yaml", "--out", "run"], nodes=2, cpus=1, gpus=0, time="60")
    first = f"export PATH={Path(sys.executable).parent}:"
    assert first in script
    (tmp_path / "job.sbatch").write_text(script.replace(first, f"export PATH={commands}:"))

    def job() -> subprocess.Popen[bytes]:
        with (said / "job.txt").open("ab") as file:
            words = ["bash", "job.sbatch"]
            return subprocess.Popen(
                words, cwd=tmp_path, env=variables, stdout=file, stderr=file, start_new_session=True
            )

    store = tmp_path / "run" / "store"
    process = job()
    try:
        until(lambda: len(list(store.glob("*/manifest.json"))) >= 4, process, said)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(120) == 130, (said / "job.txt").read_text()
        assert (said / "scontrol.txt").read_text() == f"requeue {os.getpid()}\n"
        made = {path: path.read_bytes() for path in store.glob("*/manifest.json")}
        assert len(made) < 26  # or there would be nothing to go on with
        process = job()
        assert process.wait(600) == 0, (said / "job.txt").read_text()
    finally:
        process.terminate()
        process.wait(60)
    assert {path: path.read_bytes() for path in made} == made
    assert (said / "scontrol.txt").read_text().count("\n") == 1
    subprocess.run(
        [commands / "aligngap", "run", "study.yaml", "--out", "here"], cwd=tmp_path, env=variables, check=True
    )
    expected, found = results(tmp_path / "here"), results(tmp_path / "run")
    assert found == expected, difference(expected, found)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], said: Path) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (said / "job.txt").read_text()
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.2)
