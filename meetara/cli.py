"""The command line. Each command is one screen in `meetara.screens`; here are only its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meetara import complete
from meetara.commands import budget, data, keys, machine, models, user
from meetara.commands.options import Base, JobId, Parameters, where
from meetara.door import Door, Home, Host, Json, LabName, Port, console, run
from protocol.job import Profile

app = typer.Typer(
    cls=Door, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Train small language models: one request becomes a quantised model that is proven good.",
)  # fmt: skip
for name, group in (
    ("budget", budget), ("models", models), ("machine", machine), ("user", user), ("keys", keys), ("data", data),
):  # fmt: skip
    app.add_typer(group.app, name=name)

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
def up(
    home: Home = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Where the broker listens; 0: any free port.", show_default=False),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST[:PORT]", show_default=False,
            help="Take people from elsewhere there, over TLS and with a login (MEETARA_LISTEN).",
        ),
    ] = None,
    lab: LabName = None,
    factories: Annotated[int, typer.Option("--factories", min=1, max=64, help="How many factories to run.")] = 1,
    as_json: Json = False,
) -> None:
    """Start a lab and keep it alive until Ctrl-C; prints `ready` when requests are taken."""
    from meetara.screens.up import up as screen

    raise typer.Exit(run(screen({"home": home, "lab": lab, "listen": listen}, port=port, factories=factories, as_json=as_json)))


@app.command()
def down(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask when jobs are running.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the lab of a home; running jobs are checkpointed and go on at the next `up`."""
    from meetara.screens.up import down as screen

    raise typer.Exit(screen({"home": home}, yes=yes, as_json=as_json))


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
    from meetara.screens import quote as screen
    from meetara.screens.train import parameters, purpose

    purpose(domain, text)
    fields = {
        "domain": domain, "text": text, "dataset": data, "eval_dataset": eval_data, "tier": tier, "base": base,
        "profile": profile, "quantisation": quantisation, "budget_usd": budget, "deadline_hours": deadline,
        "providers": provider or None, "untrusted_hosts": untrusted_hosts, "parameters": parameters(param or []),
        "use_cache": not fresh, "checkpoints": "store" if store_checkpoints else None,
    }  # fmt: skip
    raise typer.Exit(run(screen.quote(where(home, host, port, lab), fields, as_json=as_json, console=console())))


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


@app.command()
def watch(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="One job; default: all.", show_default=False, autocompletion=complete.jobs),
    ] = None,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Watch one job until it ends, or the whole lab; --json gives one line per change."""
    from meetara.screens.watch import watch as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def jobs(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """List all jobs."""
    from meetara.screens.jobs import jobs as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def job(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Show one job: its state, numbers, gates and events."""
    from meetara.screens.jobs import job as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def cancel(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """End a job; what it has finished is kept."""
    from meetara.screens.jobs import cancel as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def approve(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB|budget", help="A job that waits, or the raised budgets.", autocompletion=complete.jobs),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Let a job spend what was quoted, or a budget be raised; signed by the home's key."""
    from meetara.screens.approve import approve as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, yes=yes, as_json=as_json, console=console())))


@app.command()
def refuse(
    job: JobId, home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """End a job that waits for approval; nothing of it was started."""
    from meetara.screens.approve import refuse as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), job, as_json=as_json, console=console())))


@app.command()
def agents(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Show which agents are here, with their slots and machines."""
    from meetara.screens.agents import agents as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def logs(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="[AGENT]", help="An agent's id or role, or broker; default: all.", show_default=False,
            autocompletion=complete.agents,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", help="Only lines about this job.", show_default=False, autocompletion=complete.jobs),
    ] = None,
    trace: Annotated[str | None, typer.Option("--trace", help="Only lines of this trace.", show_default=False)] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many lines; 0: all.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what the lab's processes have written, merged by time."""
    from meetara.screens import logs as screen

    wanted = screen.Wanted(agent=agent, job=job, trace=trace)
    show = screen.logs({"home": home}, wanted, last=last, follow=follow, as_json=as_json, console=console())
    raise typer.Exit(run(show))


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN|FILE", help="A .gguf file (a model or an adapter), or a domain or job whose model lies in the home.",
            autocompletion=complete.models,
        ),
    ],
    ask: Annotated[
        str | None, typer.Option("--ask", help="Answer this one question and end.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before the conversation.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=5, help="0: always the likeliest.")] = 0.7,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The model of an adapter's file; default: the home's.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The same seed draws the same answer.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Talk with a finished model; without a terminal each line of stdin is a question."""
    from meetara.screens import chat as screen

    conversation = screen.Conversation(system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
    talk = screen.chat({"home": home}, model, conversation, ask=ask, as_json=as_json, console=console(), base=base)
    raise typer.Exit(run(talk))


@app.command()
def say(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; - reads it from stdin.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a WAV file instead of playing.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="The voice, e.g. meditative; default: chosen.", show_default=False)
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain", help="The domain; default: found by the text.", show_default=False, autocompletion=complete.domains
        ),
    ] = None,
    emotion: Annotated[
        str | None, typer.Option("--emotion", help="The feeling; default: found by the text.", show_default=False)
    ] = None,
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Say a text in the voice that fits its domain and feeling; plays it, or writes a WAV file."""
    from meetara.screens import say as screen

    saying = screen.Saying(text, domain, profile, emotion)
    place = where(home, host, port, lab)
    raise typer.Exit(run(screen.say(place, saying, out=out, as_json=as_json, console=console())))


@app.command()
def doctor(
    home: Home = None, host: Host = None, port: Port = None, lab: LabName = None, as_json: Json = False
) -> None:
    """Check whether this machine can run a lab; exit code 1 and advice where it cannot."""
    from meetara.screens.doctor import doctor as screen

    raise typer.Exit(run(screen(where(home, host, port, lab), as_json=as_json, console=console())))


@app.command()
def validate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A GGUF, also one made elsewhere; or a domain or job of this lab.")],
    base: Annotated[str, typer.Option("--base", metavar="FOLDER_OR_NAME", help="The model that it was tuned from.")],
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="Rows that it was never trained on.")],
    train_data: Annotated[
        str | None,
        typer.Option("--train-data", metavar="FILE", help="Rows that it was trained on; for overfit_percent.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="FOLDER", show_default=False,
            help="The tuned model in transformers' format, or its adapter in peft's; for f16_kl and quant_kl.",
        ),
    ] = None,
    f16: Annotated[
        str | None, typer.Option("--f16", metavar="FILE", help="The tuned model as an F16 GGUF; for quant_kl.", show_default=False)
    ] = None,
    tier: Annotated[
        str | None, typer.Option("--tier", help="Whose thresholds count; default: the tier with this base.", show_default=False)
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="GATE,GATE", help="Measure these gates alone.", show_default=False)
    ] = None,
    home: Home = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Measure every gate on a GGUF: exit code 0 passed, 1 a gate was missed, 2 a file cannot be read. Needs no lab."""
    from meetara.screens.validate import validate as screen

    options = {
        "base": base, "data": data, "train-data": train_data, "model": model, "f16": f16, "tier": tier, "only": only,
    }  # fmt: skip
    raise typer.Exit(run(screen(file, options, home=home, as_json=as_json, console=console())))


@app.command()
def quantize(
    file: Annotated[
        str, typer.Argument(metavar="FILE|JOB", help="An F16 GGUF, a job, or a domain whose newest model is meant.")
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Measure what each type costs; nothing is kept.")] = False,
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE[,TYPE]", help="Such as Q5_K_M; with --compare several.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where the file goes.", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", show_default=False,
            help="Rows to compare on; also the importance matrix's text where --train-data is not given. Default: the job's.",
        ),
    ] = None,
    train_data: Annotated[
        str | None,
        typer.Option("--train-data", metavar="FILE", help="Text of the importance matrix; default: the job's.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="FILE", help="The untuned model as a GGUF, for quality; default: the job's.", show_default=False),
    ] = None,
    imatrix: Annotated[bool, typer.Option("--imatrix/--no-imatrix", help="Weigh the rounding by the text.")] = True,
    home: Home = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a model in another quantisation (--type, --out), or measure what each would cost (--compare). Needs no lab."""
    from meetara.screens.quantize import quantize as screen

    if compare == (out is not None) or (out is not None and (kind is None or "," in kind)):
        raise typer.BadParameter("give --compare, or one --type and --out")
    options = {
        "types": kind, "out": str(out.absolute()) if out else None, "data": data or ("" if compare else None),
        "train-data": train_data, "base": base,
    }  # fmt: skip
    flags = [] if imatrix else ["--no-imatrix"]
    raise typer.Exit(run(screen(file, options, flags=flags, home=home, as_json=as_json, console=console())))


@app.command()
def demo(home: Home = None, as_json: Json = False) -> None:
    """Start a lab, train a model on the project's own data, show it, and take the lab down."""
    from meetara.screens.demo import demo as screen

    raise typer.Exit(run(screen(home, as_json=as_json, console=console())))


@app.command()
def certs(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="A name or address of this machine; may be repeated.", show_default=False),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="ID", help="An agent that gets a certificate too; may be repeated.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make all anew, the authority too.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make the certificates for people from elsewhere; renew those that end soon."""
    from meetara.screens.access import certs as screen

    raise typer.Exit(screen({"home": home}, host or [], agent or [], force=force, as_json=as_json))


@app.command()
def worker(
    broker: Annotated[
        str, typer.Option("--broker", metavar="mqtts://HOST:PORT", envvar="MEETARA_BROKER", help="The lab.", show_default=False)
    ],
    token: Annotated[
        str | None,
        typer.Option("--token", help="As the lab gave it; better in MEETARA_TOKEN, which no list of processes shows.", show_default=False),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="The authority of the lab's certificate; default: the token's.", show_default=False),
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=64, help="Jobs at once; default: 1.", show_default=False)] = None,
    idle: Annotated[
        float | None,
        typer.Option("--idle", min=1, metavar="SECONDS", help="Without a job for so long it ends; default: 600.", show_default=False),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option("--wait", min=0, metavar="SECONDS", help="How long the lab may be silent at first; default: 60.", show_default=False),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Lend this machine to a lab: dial out, train what it leases to this token, end with the rental."""
    from meetara.screens.worker import worker as screen

    given = {"--ca": ca, "--slots": slots, "--idle": idle, "--wait": wait}
    options = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    raise typer.Exit(run(screen(broker, token, home=home, options=options, as_json=as_json, console=console())))


@app.command()
def gc(
    with_models: Annotated[
        bool, typer.Option("--models", help="Also offer finished models that no request would find, or that are too many.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove what no job or model needs; asks first, and without a terminal only lists."""
    from meetara.screens.gc import gc as screen

    raise typer.Exit(run(screen({"home": home}, models=with_models, yes=yes, as_json=as_json, console=console())))


if __name__ == "__main__":
    app()
