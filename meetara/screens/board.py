"""The picture of a lab: jobs, agents, money, and the newest event, in whatever room the terminal has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from meetara import show
from meetara.board import Board
from meetara.screens.joblines import JobLines
from protocol.money import BudgetReport, PeriodReport

WIDE = 120
"""Columns from which a running job fits one line, and agents stand beside the money."""
FACTORIES = 4
"""Factories that get a line of their own; of more the rest is counted."""
GAUGE = 12
"""Marks of a bar below which the word "reserved" gives way to it."""
BESIDE = 6 + 2 + 8
"""Columns of a line of money that are neither bar nor amounts: the period, a gap, the percentage."""
TONES = {"good": ("✓", "green"), "bad": ("✗", "red"), "warning": ("!", "yellow"), "plain": ("·", "cyan")}

@dataclass
class Picture:
    """A board as it is drawn now. Fits the console's width and height; what does not fit is counted.

    Args:
        board: what is known.
        place: lab and broker, for the head.
        now: the time to which ages are counted.
    """

    board: Board
    place: str
    now: datetime

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, (options.height or console.size.height) - 1
        wide = width >= WIDE
        side = (width - 1) // 2 if wide else width
        agents, money = self._agents(side - 4), self._money(side - 4)
        below = max(len(agents), len(money)) + 2 if wide else len(agents) + len(money) + 4
        room = max(3, height - below - 4)
        yield self._head(width)
        jobs = JobLines(self.board, self.now)
        yield _panel(Group(*jobs.lines(width - 4, room, wide)), "jobs", jobs.counts(), width)
        online = sum(self.board.online(agent) for agent in self.board.agents())
        told = f"{online} of {len(self.board.agents())} online"
        free = [f"{p.free} of {p.slots} slots free" for p in self.board.providers.values() if p.provider == "local"]
        one = _panel(Group(*agents), "agents", " · ".join([told, *free]), side)
        frozen = self.board.money is not None and self.board.money.frozen
        two = _panel(Group(*money), "money", "paid work is frozen" if frozen else "", side)
        if wide:
            beside = Table.grid(expand=True, padding=(0, 1, 0, 0))
            beside.add_row(one, two)
            yield Padding(beside, 0)
        else:
            yield one
            yield two
        yield self._foot(width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(40, options.max_width)

    # head and foot

    def _head(self, width: int) -> RenderableType:
        if self.board.lost is not None:
            since = show.ago((self.now - self.board.lost).total_seconds())
            state = Text(f"✗ connection lost ({since}); trying again", style="bold red")
        else:
            state = Text.assemble(("● ", "green"), (self.now.astimezone().strftime("%H:%M:%S"), "dim"))
        line = Table.grid(Column(ratio=1, no_wrap=True, overflow="ellipsis"), Column(justify="right", no_wrap=True), expand=True)
        line.add_row(Text.assemble((" meetara ", "bold cyan"), (self.place, "dim")), Text.assemble(state, " "))
        return line

    def _foot(self, width: int) -> RenderableType:
        event = self.board.event
        if event is None:
            return Text(" Ctrl-C ends the watching; jobs go on.", style="dim")
        mark, colour = TONES[event.tone]
        at = event.at.astimezone().strftime("%H:%M:%S")
        text = Text.assemble(
            (f" {mark} ", colour), (f"{at} ", "dim"), (" ".join(event.text.split()), colour if event.tone != "plain" else ""),
        )  # fmt: skip
        text.truncate(width, overflow="ellipsis")
        return text

    # agents

    def _agents(self, width: int) -> list[RenderableType]:
        known = self.board.agents()
        if not known:
            return [Text("No agent has announced itself; `meetara up` starts them.")]
        plain = [agent for agent in known if not self.board.slots(agent)]
        factories = [agent for agent in known if self.board.slots(agent)]
        lines: list[RenderableType] = []
        row = Text()
        for agent in plain:
            dot = self._dot(agent)
            if row and row.cell_len + dot.cell_len + 2 > width:
                lines.append(row)
                row = Text()
            row = row.append("  " if row else "").append_text(dot)
        if row:
            lines.append(row)
        shown = factories if len(factories) <= FACTORIES else factories[: FACTORIES - 1]
        for agent in shown:
            grid_row = Table.grid(
                Column(no_wrap=True), Column(no_wrap=True), Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                Column(no_wrap=True, justify="right"), expand=True, padding=(0, 1, 0, 0),
            )  # fmt: skip
            grid_row.add_row(self._dot(agent), *self._slots(agent))
            lines.append(grid_row)
        if len(factories) > len(shown):
            rest = factories[len(shown) :]
            here = sum(self.board.online(agent) for agent in rest)
            lines.append(Text(f"… and {len(rest)} factories more, {here} of them online", style="dim"))
        return lines

    def _dot(self, agent: str) -> Text:
        here = self.board.online(agent)
        return Text.assemble(("● ", "green" if here else "red"), (agent, "" if here else "red"))

    def _slots(self, agent: str) -> tuple[Text, Text, Text]:
        jobs, slots = self.board.works_on(agent), self.board.slots(agent)
        used = min(len(jobs), slots)
        few = slots <= 8
        blocks = Text.assemble(("■" * used if few else "", "cyan"), ("□" * (slots - used) if few else "", "bright_black"),
                               f" {used}/{slots}")  # fmt: skip
        names = ", ".join(show.shortened(job.job, 20) for job in jobs)
        work = Text(names or ("free" if self.board.online(agent) else "offline"), style="cyan" if names else "dim")
        device = self.board.cards[agent].device
        facts = "" if device is None else f"{device.cores} cores · {show.size(device.memory_bytes)}"
        if device is not None and device.gpu:
            facts = f"{device.gpu} {show.size(device.gpu_memory_bytes)} · {facts}"
        return blocks, work, Text(facts, style="dim")

    # money

    def _money(self, width: int) -> list[RenderableType]:
        money = self.board.money
        if money is None:
            return [Text("The cost monitor has not answered yet.", style="dim")]
        words = [_amounts(period, " reserved") for period in money.periods]
        if width - max(map(len, words)) - BESIDE < GAUGE:
            words = [_amounts(period, "") for period in money.periods]
        room = max(4, width - max(map(len, words)) - BESIDE)
        return [
            self._period(period, told.rjust(max(map(len, words))), money, room)
            for period, told in zip(money.periods, words, strict=True)
        ]

    def _period(self, period: PeriodReport, words: str, money: BudgetReport, room: int) -> Text:
        reached = [percent for percent in money.alert_percents if period.percent >= percent]
        colour = "green"
        if money.freeze_percent is not None and period.percent >= money.freeze_percent:
            colour = "red"
        elif reached:
            colour = "yellow" if reached[-1] < 80 else "dark_orange"
        line = Text(f"{period.period:<6}")
        line.append_text(_gauge(period, money.alert_percents, room, colour)).append(f"  {words}")
        line.append(f"{period.percent:6.1f} %", style=colour)
        line.no_wrap, line.overflow = True, "ellipsis"
        return line


def _amounts(period: PeriodReport, word: str) -> str:
    spent, cap = show.brief(period.spent_micros / 1e6), show.brief(period.cap_micros / 1e6)
    reserved = f" + {show.brief(period.reserved_micros / 1e6)}{word}" if period.reserved_micros else ""
    return f"{spent}{reserved} of {cap}"


def _gauge(period: PeriodReport, alerts: list[int], width: int, colour: str) -> Text:
    """Spent, reserved and free in one bar; a tick where an alert is due."""
    cap = max(period.cap_micros, 1)
    spent = min(width, -(-period.spent_micros * width // cap))
    used = min(width, max(spent, -(-(period.spent_micros + period.reserved_micros) * width // cap)))
    ticks = {min(width - 1, percent * width // 100) for percent in alerts}
    bar = Text("━" * spent, style=colour).append("━" * (used - spent), style=f"dim {colour}")
    for cell in range(used, width):
        bar.append("┼" if cell in ticks else "─", style="bright_black")
    return bar


def _panel(content: RenderableType, title: str, beside: str, width: int) -> Panel:
    head = Text.assemble((title, "bold"), (f" · {beside}" if beside else "", "red" if "frozen" in beside else "dim"))
    return Panel(content, title=head, title_align="left", border_style="bright_black", padding=(0, 1), width=width)
