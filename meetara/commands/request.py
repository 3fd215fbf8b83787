"""Ask for a model, or what it would take."""

from __future__ import annotations

from typing import Annotated

import typer

from meetara import complete
from meetara.commands.options import Base, Parameters, where
from meetara.door import Home, Host, Json, LabName, Port, console, run
from protocol.job import Profile

app = typer.Typer()

Data = Annotated[
    str,
    typer.Option(
        "--data", help="Training rows: a path or URI (jsonl, json, csv, parquet).", autocompletion=complete.data_sets
    ),
]  # fmt: skip
Domain = Annotated[
    str | None,
    typer.Option(
        "--domain", help="What the model is for, e.g. time_management.", show_default=False, autocompletion=complete.domains
    ),
]  # fmt: skip
Purpose = Annotated[
    str | None,
    typer.Option("--for", metavar="TEXT", help="What it is for, in free words; finds the domain.", show_default=False),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data", help="Held-out rows; default: a split.", show_default=False, autocompletion=complete.data_sets
    ),
]  # fmt: skip
TierName = Annotated[
    str | None,
    typer.Option(
        "--tier", help="starter, lightning, fast, balanced or quality.", show_default=False, autocompletion=complete.tiers
    ),
]  # fmt: skip
ProfileName = Annotated[
    Profile, typer.Option("--profile", help="edge: one merged file. adapter: a LoRA file on a base that others share.")
]
Quantisation = Annotated[str | None, typer.Option("--quantisation", help="GGUF type, e.g. Q4_K_M.", show_default=False)]
Budget = Annotated[
    float | None, typer.Option("--budget", help="Most this job may cost, in US dollars.", show_default=False)
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline", metavar="HOURS", show_default=False,
        help="No machine is chosen on which nine in ten such jobs would take longer.",
    ),
]  # fmt: skip
ProviderNames = Annotated[
    list[str] | None,
    typer.Option(
        "--provider", metavar="NAME", show_default=False,
        help="Whose machines may be taken: local, lent, lambda, runpod, vast; may be repeated. Default: all.",
    ),
]  # fmt: skip
Untrusted = Annotated[
    bool, typer.Option("--untrusted-hosts", help="Machines of strangers (marketplaces) may get the data.")
]
StoreCheckpoints = Annotated[
    bool,
    typer.Option("--store-checkpoints", help="Keep checkpoints in the artefact store too, so that another machine can go on."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train even if the same model is finished or being made already.")]


@app.command()
def train(
    data: Data,
    domain: Domain = None,
    text: Purpose = None,
    eval_data: EvalData = None,
    tier: TierName = None,
    base: Base = None,
    priority: Annotated[int, typer.Option("--priority", help="1 normal, 2 high, 3 critical.")] = 1,
    id: Annotated[
        str | None, typer.Option("--id", help="The job's id; the same request again is the same job.", show_default=False)
    ] = None,
    param: Parameters = None,
    profile: ProfileName = "edge",
    quantisation: Quantisation = None,
    budget: Budget = None,
    deadline: Deadline = None,
    provider: ProviderNames = None,
    untrusted_hosts: Untrusted = False,
    fresh: Fresh = False,
    store_checkpoints: StoreCheckpoints = False,
    licence: Annotated[
        str | None,
        typer.Option("--licence", help="The data's licence for the model card, e.g. cc-by-4.0.", show_default=False),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the job is accepted.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would take and cost, as `meetara quote`.")
    ] = False,
    home: Home = None,
    host: Host = None,
    port: Port = None,
    lab: LabName = None,
    as_json: Json = False,
) -> None:
    """Train a model and watch it; Ctrl-C leaves the job running."""
    from meetara.screens import quote as quoted
    from meetara.screens import train as screen

    screen.purpose(domain, text)
    fields = {
        "domain": domain, "text": text, "dataset": data, "eval_dataset": eval_data, "tier": tier, "base": base,
        "profile": profile, "priority": priority, "quantisation": quantisation, "budget_usd": budget,
        "deadline_hours": deadline, "providers": provider or None, "untrusted_hosts": untrusted_hosts,
        "parameters": screen.parameters(param or []), "use_cache": not fresh, "licence": licence,
        "checkpoints": "store" if store_checkpoints else None,
    }  # fmt: skip
    place = where(home, host, port, lab)
    if dry_run:
        raise typer.Exit(run(quoted.quote(place, fields, as_json=as_json, console=console())))
    raise typer.Exit(run(screen.train(place, {**fields, "id": id}, detach=detach, as_json=as_json, console=console())))


@app.command()
def quote(
    data: Data,
    domain: Domain = None,
    text: Purpose = None,
    eval_data: EvalData = None,
    tier: TierName = None,
    base: Base = None,
    param: Parameters = None,
    profile: ProfileName = "edge",
    quantisation: Quantisation = None,
    budget: Budget = None,
    deadline: Deadline = None,
    provider: ProviderNames = None,
    untrusted_hosts: Untrusted = False,
    fresh: Fresh = False,
    store_checkpoints: StoreCheckpoints = False,
    home: Home = None,
    host: Host = None,
    port: Port = None,
    lab: LabName = None,
    as_json: Json = False,
) -> None:
    """Tell what a request would take and cost on each machine, which one it would get, and why; nothing is started."""
    train(
        data, domain, text, eval_data, tier, base, param=param, profile=profile, quantisation=quantisation, budget=budget,
        deadline=deadline, provider=provider, untrusted_hosts=untrusted_hosts, fresh=fresh, store_checkpoints=store_checkpoints,
        dry_run=True, home=home, host=host, port=port, lab=lab, as_json=as_json,
    )  # fmt: skip


@app.command()
def offers(
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Such as T4, A100 or RTX 4090.", show_default=False)] = None,
    max_price: Annotated[
        float | None, typer.Option("--max-price", metavar="USD", help="Most that an hour may cost.", show_default=False)
    ] = None,
    min_memory: Annotated[
        float | None, typer.Option("--min-memory", metavar="GB", help="Least memory of one GPU.", show_default=False)
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Only theirs.", show_default=False)] = None,
    region: Annotated[str | None, typer.Option("--region", help="A part of its name.", show_default=False)] = None,
    spot: Annotated[
        bool | None,
        typer.Option("--spot/--on-demand", help="Only machines that may be taken away, or only others.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is never chosen, and why.")] = False,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what machines are for sale now, cheapest first."""
    from meetara.screens.offers import offers as screen

    conditions = {
        "gpu": gpu, "max_price_usd": max_price, "min_gpu_memory_gb": min_memory, "provider": provider, "region": region,
        "spot": spot, "all": everything,
    }  # fmt: skip
    raise typer.Exit(run(screen(where(home, host, port, lab), conditions, as_json=as_json, console=console())))


@app.command()
def route(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A sentence in quotation marks.", show_default=False)],
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Tell which domain a sentence belongs to, and how sure that is; nothing is started."""
    from meetara.screens.route import route as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), text, as_json=as_json, console=console())))
