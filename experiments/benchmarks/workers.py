"""The worker processes of a benchmark, one for each framework of a case. They take turns with their repeats."""

import contextlib
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

from experiments.benchmarks.cases import NO_FLAGS, READS_FILES, describe_choices, find_batch_size, list_files
from experiments.benchmarks.records import ROOT, find_time, set_ratio, summarise_samples
from pneumojax.errors import UserError

logger = logging.getLogger("experiments")

# Packages that the Python of --peer_python needs.
NEEDS = {"torch": "torch, PIL", "keras": "keras, tensorflow"}


def check_peer(python: str, name: str) -> None:
    """Checks that a Python interpreter can import the packages of a peer.

    Args:
      python: path of the interpreter.
      name: the peer, a key of NEEDS.

    Raises:
      UserError: the interpreter cannot be started, or a package is missing.
    """
    command = [python, "-c", f"import {NEEDS[name]}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=_make_environment(python))
    except OSError as error:
        raise UserError(f"--peer_python={python} cannot be started: {error.strerror}.") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it ended with an error"
        raise UserError(
            f"--peer_python={python} cannot import {NEEDS[name]} ({reason}). Make an environment with the packages of "
            "the extra `peers` in pyproject.toml and give the path of its Python interpreter."
        )


def _make_environment(python: str) -> dict[str, str]:
    """Returns the environment variables for a Python interpreter. Another one than ours has packages of its own."""
    ours = () if python == sys.executable else ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours}


class Worker:
    """A process that measures one case in one framework. It repeats the work on each call of `repeat`.

    Args:
      case: a case from `plan_cases`. If it reads JPEG files, "files" is the path of their list.
      framework: pneumojax, pillow, or a peer with its variant, such as "torch channels_last".
      python: interpreter for the peers.
    """

    def __init__(self, case: dict, framework: str, python: str):
        self.framework = framework
        ours = framework in ("pneumojax", "pillow")
        program = (
            [sys.executable, "-m", "experiments.benchmarks.measure"]
            if ours
            else [python, str(ROOT / "experiments/benchmarks/peers.py")]
        )
        environment = _make_environment(sys.executable if ours else python)
        if ours:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        if case["peers"] or case["what"] in ("start", "tests"):
            # Several processes share the GPU's memory, so JAX must not reserve most of it.
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        self.cache = tempfile.TemporaryDirectory(prefix="pneumojax-compiled-")
        if case["xla_flags"] and ours:
            flags = "" if case["xla_flags"] == NO_FLAGS else case["xla_flags"]
            flags = flags.replace("{folder}", case["folder"])
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}"
            # Each set of flags compiles with an empty cache, so that the compile times can be compared.
            environment["JAX_COMPILATION_CACHE_DIR"] = self.cache.name
        if case["devices"]:
            environment["JAX_NUM_CPU_DEVICES"] = str(case["devices"])
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(case["devices"])))
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*program, json.dumps(case | {"framework": framework})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,  # So that the processes that it starts can be ended with it.
        )
        assert self.process.stdin and self.process.stdout  # Popen makes the pipes that it is asked for.
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.minutes, self.is_late = case["minutes"], False
        self.timer = threading.Timer(60 * (self.minutes or 0), self._stop_late)
        if self.minutes:
            self.timer.start()

    def _stop_late(self) -> None:
        self.is_late = True
        self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def read(self) -> dict:
        """Reads the next line of the process.

        Raises:
          UserError: the process reports an error that the user can correct.
          ChildProcessError: the process has ended.
        """
        line = self.stdout.readline()
        if not line:
            self.process.wait()
            if self.is_late:
                raise ChildProcessError(f"{self.framework}: it was ended after {self.minutes:g} minutes")
            self.log.seek(0)
            raise ChildProcessError(f"{self.framework}: {find_reason(self.log.read(), self.process.returncode)}")
        content = json.loads(line)
        if "error" in content:
            raise UserError(content["error"])
        return content

    def repeat(self) -> dict:
        """Requests one repeat and returns its result, {"seconds", ...}. Raises the errors of `read`."""
        with contextlib.suppress(BrokenPipeError):  # The process has ended, and read() reports the reason.
            self.stdin.write("\n")
            self.stdin.flush()
        return self.read()

    def close(self) -> None:
        """Ends the process and those that it has started."""
        self.timer.cancel()
        if self.process.poll() is None:
            self._send(signal.SIGTERM)
        self.process.wait()
        self.cache.cleanup()
        for file in (self.stdin, self.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def find_reason(log: str, code: int) -> str:
    """Returns why a process ended: the last error in its log, or its exit code."""
    # XLA aborts at a flag that it does not know, with a message instead of an exception.
    lines = [line for line in log.splitlines() if re.match(r"[\w.]+(Error|Exception)\b|F\d+ .*XLA_FLAGS", line)]
    return re.sub(r"^F\d+ .*?\] ", "", lines[-1]) if lines else f"the process ended with code {code}"


def measure_in_turn(case: dict, folder: pathlib.Path, peer_python: str) -> list[dict]:
    """Measures a case in all of its frameworks, which take turns with their repeats.

    Args:
      case: a case from `plan_cases`.
      folder: folder for temporary files.
      peer_python: interpreter for the peers.

    Returns:
      A row of results for each framework. Ours is the first. A peer that does not start has the row of
      `describe_failure`.

    Raises:
      UserError: a flag is invalid, or the network of a peer differs from ours.
      ChildProcessError: our process does not start, or a process has ended during the measurement.
    """
    load = os.getloadavg()[0]
    if case["what"] in READS_FILES:
        case = case | {"files": str(list_files(case["images"], case["limit"], folder))}
    with contextlib.ExitStack() as stack:

        def start(framework: str) -> tuple[Worker, dict]:
            worker = Worker(case, framework, peer_python)
            stack.callback(worker.close)
            return worker, worker.read()

        # The processes start one after another, so that they do not compile at the same time.
        started = [start("pneumojax")]
        device = started[0][1]["device"]
        if case["devices"] not in (None, device["count"]):
            raise UserError(
                f"--devices={case['devices']}: this machine has only {device['count']} devices ({device['kind']})."
            )
        failed = []
        for name in list_frameworks(case["peers"], device["platform"]):
            try:
                started.append(start(name))
            except ChildProcessError as error:  # Its batch may not fit into memory, or its packages may be missing.
                logger.error("%s", error)
                failed.append(describe_failure(case, name, str(error)))
        sizes = {worker.framework: ready["parameters"] for worker, ready in started if "parameters" in ready}
        if len(set(sizes.values())) > 1:
            raise UserError(f"the networks differ, so this is not the same work. Numbers of parameters: {sizes}.")
        samples: list[list[dict]] = [[] for _ in started]
        for _ in range(case["repeats"]):
            for (worker, _), own in zip(started, samples, strict=True):
                own.append(worker.repeat())
    is_epoch = case["what"] == "epoch"
    rows = [
        describe_choices(case, worker.framework)
        | summarise_samples(own, ready, find_batch_size(case), first_is_apart=is_epoch)
        | {"cores": case["cores"], "load": load}
        for (worker, ready), own in zip(started, samples, strict=True)
    ]
    set_ratio(rows)
    return rows + failed


def describe_failure(case: dict, framework: str, reason: str) -> dict:
    """Returns the row of results of a case that could not be measured: its choices, and "error", the reason."""
    return describe_choices(case, framework) | {"error": reason, "cores": case["cores"], "created": find_time()}


def list_frameworks(peers: list[str], platform: str) -> list[str]:
    """Returns the variants of the peers that are measured on a platform."""
    variants = {"torch": ["torch", "torch channels_last"]}
    if platform != "cpu":
        variants["torch"].append("torch compile channels_last")
    return [variant for peer in peers for variant in variants.get(peer, [peer])]
