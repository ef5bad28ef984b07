"""How the trainer's child process is to run, as its command line. Shared by both sides of the pipe."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

__all__ = ["TrainerOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainerOptions:
    """What a trainer process needs to know before its first job."""

    data_path: str
    """The local examples: only the child ever opens them."""
    trainer: Literal["litert", "linear"] = "litert"
    num_threads: int = 1
    memory_limit_mb: int = 0
    """Limit of the child's address space; 0 is none."""

    def command(self, *, parent_pid: int) -> list[str]:
        """The command that starts the child."""
        return [
            sys.executable,
            "-m",
            "edge_client.trainer_child",
            f"--data-path={self.data_path}",
            f"--trainer={self.trainer}",
            f"--num-threads={self.num_threads}",
            f"--memory-limit-mb={self.memory_limit_mb}",
            f"--parent-pid={parent_pid}",
        ]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> tuple["TrainerOptions", int]:
        """The options in a command line, and the parent's process id."""
        parser = argparse.ArgumentParser(prog="edge_client.trainer_child")
        parser.add_argument("--data-path", required=True)
        parser.add_argument("--trainer", choices=["litert", "linear"], required=True)
        parser.add_argument("--num-threads", type=int, required=True)
        parser.add_argument("--memory-limit-mb", type=int, required=True)
        parser.add_argument("--parent-pid", type=int, required=True)
        values = vars(parser.parse_args(arguments))
        parent_pid: int = values.pop("parent_pid")
        return cls(**values), parent_pid
