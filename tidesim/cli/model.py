"""``tidesim model``: the models known by name, and what each takes of a GPU's memory."""

from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    Json,
    MemoryGb,
    integers,
    print_json,
    print_pairs,
    print_table,
    to_bytes,
)
from tidesim.engines import ENGINES, get_engine
from tidesim.errors import SettingError
from tidesim.known_models import KNOWN_MODELS
from tidesim.memory import MemoryPlan, budget_for, plan, request_extent
from tidesim.model_spec import DTYPE_BYTES, MODELS, ModelSpec, load_model_spec
from tidesim.trace.stats import default_budgets

GIB = 1 << 30
UNVERIFIED = {known.name: known.unverified for known in KNOWN_MODELS if known.unverified}
app = typer.Typer(
    help="Look into models; those with sizes that nobody here read in the model's own files are "
    f"{', '.join(UNVERIFIED)}.",
    no_args_is_help=True,
)


@app.command("list")
def list_models(*, json: Json = False) -> None:
    """List the models known by name, where their sizes come from and what is unverified.

    Example: tidesim model list

    JSON: models.
    """
    rows = [
        _sizes(MODELS[known.name]) | {"source": known.source, "unverified": known.unverified}
        for known in KNOWN_MODELS
    ]
    if json:
        print_json({"models": rows})
        return
    print_table(
        "Models (* unverified)",
        [
            "name",
            "mixture layers",
            "experts",
            "top-k",
            "GB an expert",
            "GB all experts",
            "GB others",
        ],
        [
            [
                row["name"] + ("*" if row["unverified"] else ""),
                *(str(row[key]) for key in ("moe_layers", "num_experts", "num_experts_per_tok")),
                f"{row['expert_bytes'] / 1e9:.4f}",
                f"{row['all_experts_bytes'] / 1e9:.2f}",
                f"{row['non_expert_bytes'] / 1e9:.2f}",
            ]
            for row in rows
        ],
    )
    print_pairs(
        "Where the sizes come from",
        [
            (row["name"], f"{row['source']}. Unverified: {row['unverified'] or 'nothing'}.")
            for row in rows
        ],
    )


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    keys = (
        "name", "moe_layers", "num_experts", "num_experts_per_tok", "expert_bytes",
        "all_experts_bytes", "non_expert_bytes", "kv_bytes_per_token",
    )  # fmt: skip
    return {key: getattr(spec, key) for key in keys}


@app.command("memory")
def memory(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{', '.join(MODELS)}, a bundled checkpoint, a directory or a config.json.",
        ),
    ],
    *,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Slots, with commas; by default 1/8, 1/4, 1/2 of the experts."
        ),
    ] = None,
    memory_gb: MemoryGb = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help=f"One of: {', '.join(DTYPE_BYTES)}.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help=f"One of: {', '.join(ENGINES)}.")
    ] = "tidesim",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of the prompt.")
    ] = 128,
    gen_length: Annotated[int, typer.Option("--gen-length", help="Tokens to generate.")] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Requests decoded in step.")] = 1,
    json: Json = False,
) -> None:
    """Say what a model takes of the GPU's memory, by purpose; with --memory-gb, what fits.

    Example: tidesim model memory llada2.0-mini --budget 64,128 --engine tide-reference

    JSON: model, unverified, dtype, engine, window, prompt_tokens, gen_length, batch,
    memory_bytes, rows.
    """
    spec = _with_dtype(load_model_spec(name), dtype)
    chosen = get_engine(engine)
    size = request_extent(
        spec, chosen.window, prompt_tokens=prompt_tokens, gen_length=gen_length, batch=batch
    )
    slots = integers(budgets, "--budget")
    memory_bytes = to_bytes(memory_gb)
    if memory_bytes is not None:
        if slots is not None:
            raise SettingError("--budget and --memory-gb contradict each other; give one of them")
        slots = (budget_for(spec, size, memory_bytes, free_percent=chosen.free_percent),)
    plans = {
        budget: plan(spec, size, slots=spec.moe_layers * budget)
        for budget in _checked(spec, slots or default_budgets(spec))
    }
    if json:
        rows = [
            {"budget": budget, "total_gib": item.total_bytes / GIB} | item.to_json()
            for budget, item in plans.items()
        ]
        about = {"model": spec.name, "unverified": UNVERIFIED.get(spec.name, "")}
        about |= {"dtype": spec.dtype, "engine": chosen.name, "window": str(chosen.window)}
        lengths = {"prompt_tokens": prompt_tokens, "gen_length": gen_length, "batch": batch}
        print_json(about | lengths | {"memory_bytes": memory_bytes, "rows": rows})
        return
    _print(spec, chosen.name, plans)


def _with_dtype(spec: ModelSpec, dtype: str | None) -> ModelSpec:
    if dtype is None:
        return spec
    if dtype not in DTYPE_BYTES:
        raise SettingError(f"--dtype {dtype}: not known; use one of: {', '.join(DTYPE_BYTES)}")
    return spec.model_copy(update={"dtype": dtype})


def _checked(spec: ModelSpec, budgets: tuple[int, ...]) -> tuple[int, ...]:
    for budget in budgets:
        if not spec.num_experts_per_tok <= budget <= spec.num_experts:
            raise SettingError(
                f"budget is {budget}, but {spec.name} needs a whole number from "
                f"{spec.num_experts_per_tok} (its top-k) to {spec.num_experts} (its experts)"
            )
    return tuple(dict.fromkeys(budgets))


def _print(spec: ModelSpec, engine: str, plans: dict[int, MemoryPlan]) -> None:
    unverified = UNVERIFIED.get(spec.name, "")
    print_table(
        f"{spec.name}{'*' if unverified else ''} in {spec.dtype}, engine {engine}, GB",
        ["slots a layer", "other weights", "slots", "keys, values", "workspace", "total", "in GiB"],
        [
            [
                str(budget),
                *(
                    f"{num_bytes / 1e9:.2f}"
                    for num_bytes in (
                        item.non_expert_bytes, item.slots_bytes, item.kv_bytes,
                        item.workspace_bytes, item.total_bytes,
                    )
                ),
                f"{item.total_bytes / GIB:.2f}",
            ]
            for budget, item in plans.items()
        ],
        caption=f"* unverified: {unverified}" if unverified else "",
    )  # fmt: skip
