"""This machine: the job is a child process in the foreground."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from dataclasses import dataclass

from clusters.job import Job


@dataclass(frozen=True, kw_only=True)
class Local:
    """Runs a job here. One node: more would be other machines."""

    def render(self, job: Job) -> str:
        """The job as the shell line that does the same.

        Raises:
            ValueError: a job this machine cannot hold.
        """
        job.checked()
        if job.nodes != 1:
            raise ValueError(f"--nodes {job.nodes}: the local cluster is this one machine; leave --nodes out")
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(job.environment.items())]
        return f"cd {shlex.quote(str(job.folder))} && {' '.join([*variables, shlex.join(job.command)])}"

    def run(self, job: Job) -> int:
        """Run it to its end and return its exit code; an interrupt is passed on and waited for."""
        self.render(job)
        with subprocess.Popen(job.command, cwd=job.folder, env={**os.environ, **job.environment}) as child:
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:
                    child.send_signal(signal.SIGINT)
