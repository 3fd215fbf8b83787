"""Prove and make GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meetara.door import Home, Json, console, run

app = typer.Typer()


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
