"""One training computed by several processes.

On a processor two processes of one thread each make about 1.4 times as many steps as one process of two threads. Every process draws the whole batch
and computes its share of it; the mean of their gradients is that of the batch, so the steps are those of a single process but for rounding, and
for captions that are padded to the longest of their share instead of their batch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Team:
    """One member's view: `rank` of `size`. The first, the leader, is the one that saves and reports."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: Any) -> Any:
        """This member's part of anything that can be sliced: [B, ...] -> [B / size, ...]"""
        return batch[self.rank :: self.size]

    def average(self, module: nn.Module, loss: Tensor) -> Tensor:
        """Every gradient of `module` becomes the team's mean, and so does the loss that is returned."""
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [loss.detach().reshape(1)])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients] + [1]), strict=False):
            gradient.copy_(mean.view_as(gradient))
        return flat[-1]


@contextmanager
def gathered(size: int, work: Callable[..., None], *arguments: Any) -> Iterator[Team]:
    """A team whose other members run `work(team, *arguments)` until the leader, this process, leaves.

    This process' threads are divided among them. A member that fails ends the leader's next step with a RuntimeError; members whose leader
    is gone, however it went, end likewise.

    Args:
        work: of a module's top level, because members are new processes.
        arguments: picklable.
    """
    if size == 1:
        yield Team()
        return
    threads = torch.get_num_threads()
    each = max(threads // size, 1)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        context = multiprocessing.get_context("spawn")
        members = [
            context.Process(target=_join, args=(rank, size, meeting, each, work, arguments), name=f"member {rank}", daemon=True)
            for rank in range(1, size)
        ]
        for member in members:
            member.start()
        torch.set_num_threads(each)
        try:
            _meet(0, size, meeting)
            yield Team(0, size)
        finally:
            torch.set_num_threads(threads)
            for member in members:
                member.terminate()
                member.join()
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet(rank: int, size: int, meeting: str) -> None:
    # Members are on this machine; its own name may not lead to it.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", init_method=Path(meeting).as_uri(), rank=rank, world_size=size)


def _join(rank: int, size: int, meeting: str, threads: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody; the leader decides when to stop
    torch.set_num_threads(threads)
    _meet(rank, size, meeting)
    work(Team(rank, size), *arguments)
