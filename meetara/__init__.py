"""The user's door: the `meetara` command and a typed client for programs.

    async with Lab() as lab:
        job = await lab.train(domain="sleep", dataset="sleep.jsonl")
        async for progress in job.progress():
            print(progress.step, progress.loss)
        print((await job.result()).artefacts)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meetara.job import Job
    from meetara.lab import Agent, Lab

__all__ = ["Agent", "Job", "Lab"]


def __getattr__(name: str) -> Any:
    # late: the client brings the whole bus, which `meetara --help` and shell completion need not wait for
    if name in __all__:
        from meetara import lab

        return getattr(lab, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
