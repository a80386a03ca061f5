"""`python -m client ledger`: look at the privacy ledger, verify, back up and move it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client import chain, cohort, heads, known, ledger_copy, membership
from client.chain_lines import Contents, anchor_from
from client.ledger import FOLDER, NAME, state_of
from client.ledger_records import UNIT, LedgerError
from client.ledger_state import State
from client.options import JsonOption, SiteArgument, declared
from client.site import open_site
from common.guarantee import LIMITS, NOT_COVERED

app = typer.Typer(
    help="The site's privacy ledger: what was spent on its patients, and what is left.", no_args_is_help=True
)

AnchorOption = Annotated[
    str | None, typer.Option("--anchor", help="What somebody remembers of this ledger, as `show` prints it.")
]
NewFile = Annotated[Path, typer.Argument(help="New file.", metavar="FILE")]


@app.command()
def show(site: SiteArgument, as_json: JsonOption = False) -> None:
    """What each pool has spent and has left, and an anchor to write down. The client may be running."""
    contents, state = _read(site)
    values = _plain(contents, state)
    if as_json:
        print(json.dumps(values))
        return
    console = Console()
    console.print(f"{state.statement} {LIMITS}", soft_wrap=True, highlight=False, markup=False)
    table = Table(title=f"Shares of the lifetime limit (Renyi order {state.genesis.order:g})", title_justify="left")
    for column in ("pool", "spent", "set aside for open studies", "left"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for name, pool in values["pools"].items():
        table.add_row(name, *(f"{pool[key]:.2%}" for key in ("spent", "allocated", "left")))
    console.print(table)
    if state.moved:
        console.print("Closed: it was moved to another machine.")
    console.print(f"Write down: {values['anchor']}", soft_wrap=True, highlight=False)


@app.command()
def create(
    site: SiteArgument,
    epsilon: Annotated[float, typer.Option(help="Limit of all studies together, for good.")],
    nominal_patients: Annotated[
        int,
        typer.Option(
            callback=declared, help="About how many patients the site has, from what may be known anyway; one digit."
        ),
    ],
    delta: Annotated[float | None, typer.Option(help="At most 1 / (10 x patients), the default.")] = None,
    split: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of patients for training, validation, test.")
    ] = (0.7, 0.1, 0.2),
    as_json: JsonOption = False,
) -> None:
    """Make the ledger of the site's patients: their privacy budget, and the pools that no study can move.

    Both are for good. A second site folder for the same archive is given a budget for other patients where the folders
    name each other (`client index --other-cohort`). Where they don't, its ledger would promise the same patients what
    the first has spent, and nothing here could notice.
    """
    shares = dict(zip(cohort.POOLS, split, strict=True))
    made = cohort.found(site, epsilon=epsilon, delta=delta, nominal_patients=nominal_patients, shares=shares)
    from client.private import opened  # brings PyTorch, which no help waits for

    with opened(open_site(site)):  # writes down which studies have used the patients without privacy before
        _, state = _read(site)
    text = f"cohort {made}: {state.statement} {LIMITS} Back up {site / 'keys'} and this ledger, apart."
    _say(as_json, text, cohort=made, statement=state.statement, not_covered=list(NOT_COVERED))


@app.command()
def close(
    site: SiteArgument,
    study: Annotated[str, typer.Argument(help="Hash of the study.", metavar="HASH")],
    as_json: JsonOption = False,
) -> None:
    """End a study: what was set aside for it and never used is free again. Stop the client first."""
    from client.private import opened  # brings PyTorch, which no help waits for

    with opened(open_site(site)) as own:
        own.close_study(study)
    _say(as_json, f"{site}: study {study} is closed", closed=study)


@app.command()
def verify(site: SiteArgument, anchor: AnchorOption = None, as_json: JsonOption = False) -> None:
    """Read every record; exit code 1 where one was edited, is missing, or the anchor is not among them."""
    contents, _ = _read(site)
    if anchor is not None and not contents.contains(anchor_from(anchor)):
        raise LedgerError(f"{site}: the ledger does not contain record {anchor}: it is an older copy, or another's")
    torn = "; behind them a torn line, which the client mends when it starts" if contents.tail else ""
    records, last = len(contents.entries), str(contents.entries[-1].anchor)
    _say(as_json, f"ok: {records} records, the last is {last}{torn}", records=records, anchor=last, torn=bool(torn))


@app.command()
def backup(site: SiteArgument, file: NewFile, as_json: JsonOption = False) -> None:
    """Write a copy, with the list of known patients; it goes with the key in SITE/keys, which is not in it. The client
    may be running.
    """
    last = str(ledger_copy.backup(site / FOLDER, file, patient_key=open_site(site).patient_key))
    _say(as_json, f"{file}: {_bare(site)}ends with {last}", file=str(file), anchor=last)


@app.command()
def move(site: SiteArgument, file: NewFile, as_json: JsonOption = False) -> None:
    """Close this ledger for good and write the copy to restore on another machine, with the list of known patients.
    Stop the client first.
    """
    last = str(ledger_copy.move(site / FOLDER, file, patient_key=open_site(site).patient_key))
    _say(as_json, f"{file}: {_bare(site)}ends with {last}", file=str(file), anchor=last)


@app.command()
def restore(
    site: SiteArgument,
    file: Annotated[Path, typer.Argument(help="A file that `backup` or `move` wrote.", metavar="FILE")],
    anchor: AnchorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on from a copy, in a site folder that holds the patient key and no ledger. The list of known patients comes
    with it, or must be there as new.

    A backup needs --anchor: the newest that the audit log, your note or the coordinator (`server status`) remembers;
    where the site has heard of its own ledger in its federation, that is asked for too.
    """
    own, identity = open_site(site), membership.speaks_as(site)
    given = None if anchor is None else anchor_from(anchor)
    heard = () if identity is None else heads.own(own, identity.public)
    newest = max((one for one in (given, *heard) if one), key=lambda one: one.sequence, default=None)
    last = str(ledger_copy.restore(site / FOLDER, file, patient_key=own.patient_key, anchor=newest))
    _say(as_json, f"goes on at {last}", anchor=last)


def _bare(site: Path) -> str:
    return "" if known.exists(site) else "has no list of known patients, which `client index` makes; "


def _say(as_json: bool, text: str, **values: object) -> None:
    print(json.dumps({"schema": 1, **values}) if as_json else text)


def _read(site: Path) -> tuple[Contents, State]:
    key = open_site(site).patient_key
    contents = chain.read(site / FOLDER, NAME)
    return contents, state_of(contents.entries, patient_key=key)


def _plain(contents: Contents, state: State) -> dict[str, Any]:
    genesis, limit = state.genesis, state.genesis.limit
    pools = {
        pool: {
            "spent": reserved / limit,
            "allocated": (limit - reserved - state.available(pool)) / limit,
            "left": state.available(pool) / limit,
        }
        for pool, reserved in state.reserved.items()
    }
    return {
        "schema": 1,
        "cohort": genesis.cohort,
        "statement": state.statement,
        "not_covered": list(NOT_COVERED),
        "protected": not state.unprotected,
        "limit": {"epsilon": genesis.epsilon, "delta": genesis.delta, "order": genesis.order, "value": limit / UNIT},
        "pools": pools,
        "moved": state.moved,
        "records": len(contents.entries),
        "anchor": str(contents.entries[-1].anchor),
    }
