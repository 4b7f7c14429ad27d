"""Ranks for tests: forks of one process that has imported torch, since the imports take longer than what ranks do.

`python -m tests.ranks` is that process. It reads requests, JSON lines, from its standard input.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Ranks:
    """Starts functions of test modules in several ranks, with torchrun's environment variables."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def run(self, count, function, folder, seconds=120, succeed=True):
        """Call `function`(folder) in each rank; return (exit code, standard output, standard error) of each.

        The rendezvous store lives in this process, as in torchrun. The system chooses its port, so tests do not clash.
        """
        from torch.distributed import TCPStore

        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.ranks"],
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},  # a fork has no other threads
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                start_new_session=True,
            )
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        environment = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        with tempfile.TemporaryDirectory() as outputs:
            request = {
                "module": function.__module__,
                "function": function.__name__,
                "folder": str(folder),
                "outputs": outputs,
                "count": count,
                "environment": environment,
                "seconds": seconds,
            }
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            codes = json.loads(self.process.stdout.readline())
            texts = [
                [(Path(outputs) / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(count)
            ]
        if succeed:
            assert codes == [0] * count, "\n".join(error for _, error in texts)
        return [(code, *text) for code, text in zip(codes, texts, strict=True)]

    def close(self) -> None:
        """End the process and all ranks."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


def serve() -> None:
    """Fork the ranks of each request and answer with their exit codes; return in a rank once its function has."""
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        module = importlib.import_module(request["module"])
        sys.stdout.flush()
        children = []
        for rank in range(request["count"]):
            if (child := os.fork()) == 0:
                become_rank(rank, request)
                getattr(module, request["function"])(Path(request["folder"]))
                return
            children.append(child)
        signal.signal(
            signal.SIGALRM, lambda *_, children=tuple(children): [os.kill(c, signal.SIGKILL) for c in children]
        )
        signal.alarm(request["seconds"])
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        signal.alarm(0)
        print(json.dumps(codes), flush=True)


def become_rank(rank: int, request: dict) -> None:
    """Give this process the environment and the standard streams of a rank."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.environ.update(request["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
    flags = os.O_WRONLY | os.O_CREAT
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(request["outputs"]) / f"{rank}.{name}", flags), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    serve()
