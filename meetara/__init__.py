"""The user's door: the `meetara` command and a typed client for programs.

    async with Lab() as lab:
        job = await lab.train(domain="sleep", dataset="sleep.jsonl")
        async for progress in job.progress():
            print(progress.step, progress.loss)
        print((await job.result()).artefacts)
"""

from meetara.lab import Agent, Job, Lab

__all__ = ["Agent", "Job", "Lab"]
