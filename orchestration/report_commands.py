"""`t2i report`: one page about a campaign."""

from pathlib import Path

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError

PAGE = "report.html"
FORMS = (".html", ".htm")


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "report")(report)


@click.argument("campaign", metavar="CAMPAIGN")
@click.option(
    "--out", metavar="FILE", type=click.Path(), help="Where the page is written  [default: report.html in its folder]"
)
def report(app: App, campaign: str, out: str | None) -> Result:
    """Write one HTML page about a campaign.

    Best trials with what they drew, every trial and why it ended, learning curves with intervals, what the values do,
    and the cost. The page needs no network and no other file. CAMPAIGN is a name in HOME/campaigns or a campaign's
    folder; one that still runs is shown as far as it is.

    \b
    Examples:
      t2i report xmcgan_scenes32-1a415cbaa832
      t2i report xmcgan_scenes32-1a415cbaa832 --out campaign.html
    """
    from orchestration.campaigns.campaign import find_campaign
    from orchestration.campaigns.live import trials_table
    from orchestration.campaigns.report import read_folder, write_report

    folder = find_campaign(app.home, campaign)
    page = checked_out(Path(out)) if out is not None else folder / PAGE
    write_report(folder, page)
    told = read_folder(folder)
    app.say(trials_table(told.trials, told.settings))
    app.say(f"wrote {page}")
    return {"report": str(page), "trials": len(told.trials), "bytes": page.stat().st_size}


def checked_out(out: Path) -> Path:
    """The file that --out names. Raises RequestError where no page can be written there."""
    if out.suffix.lower() not in FORMS:
        raise RequestError(f"--out {out} is no HTML file: end its name with .html")
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder: name a file in it")
    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: there is no folder {out.parent}; make it or name another")
    return out
