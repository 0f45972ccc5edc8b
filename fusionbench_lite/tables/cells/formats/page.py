"""A grid as a fragment of HTML that needs nothing else: a table, its legend and its notes."""

from __future__ import annotations

import functools

import jinja2

from fusionbench_lite.tables.cells.grid import Grid
from fusionbench_lite.tables.cells.shown import runs, view
from fusionbench_lite.tables.cells.widths import OURS, PAPER
from fusionbench_lite.tables.ranking import BEST, SECOND

_PAGE = """\
<div class="fusionbench-grid">
<style>
.fusionbench-grid { overflow-x: auto; font-family: system-ui, sans-serif; font-size: 0.85rem; color: #1f2933 }
.fusionbench-grid table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid }
.fusionbench-grid caption { text-align: left; font-weight: bold; padding: 0.4em }
.fusionbench-grid th, .fusionbench-grid td { text-align: left; vertical-align: top; padding: 0.15em 0.6em; white-space: nowrap }
.fusionbench-grid tbody { border-top: 1px solid #9aa5b1 }
.fusionbench-grid tbody th { font-weight: normal; white-space: normal; min-width: 12em }
.fusionbench-grid th.group { font-style: italic }
.fusionbench-grid th.over { border-bottom: 1px solid #9aa5b1 }
.fusionbench-grid small { color: #616e7c }
.fusionbench-grid .best { font-weight: bold }
.fusionbench-grid .second { text-decoration: underline }
</style>
<table>
<caption>{{ view.heading }}{% if view.grid.question %}<br><small>{{ view.grid.question }}</small>{% endif %}</caption>
<thead>
{%- if grouped %}
<tr><td></td>
{%- for group, places in over %}
<th class="{{ 'over' if group }}" colspan="{{ spans[places.start:places.stop] | sum }}">{{ group }}</th>
{%- endfor %}</tr>
{%- endif %}
<tr><td></td>
{%- for column in view.grid.columns %}<th colspan="{{ spans[loop.index0] }}">{{ column.name }}</th>{% endfor %}</tr>
{%- if 2 in spans %}
<tr><td></td>
{%- for span in spans %}
<td><small>{{ ours }}</small></td>{% if span == 2 %}<td><small>{{ paper }}</small></td>{% endif %}
{%- endfor %}</tr>
{%- endif %}
</thead>
{%- for group, places in down %}
<tbody>
{%- if group %}
<tr><th class="group" colspan="{{ 1 + spans | sum }}">{{ group }}</th></tr>
{%- endif %}
{%- for place in places %}
<tr><th>{{ view.grid.rows[place].name }}</th>
{%- for cell in view.cells[place] %}
<td><span class="{{ rank[cell.rank] }}">{{ cell.ours }}</span> {{ cell.tail }}<br><small>{{ cell.interval }}</small></td>
{%- if spans[loop.index0] == 2 %}<td>{{ cell.published }} {{ cell.beside }}<br><small>{{ cell.against }}</small></td>{% endif %}
{%- endfor %}</tr>
{%- endfor %}
</tbody>
{%- endfor %}
</table>
{%- for remark in remarks %}
<p><small>{{ remark }}</small></p>
{%- endfor %}
</div>
"""


def to_html(grid: Grid) -> str:
    """The table with its groups over rows and columns; everything that a grid says is escaped."""
    shown = view(grid)
    text: str = _template().render(
        view=shown, spans=[1 + paired for paired in shown.paired], over=runs(grid.columns), down=runs(grid.rows),
        grouped=any(column.group for column in grid.columns), ours=OURS, paper=PAPER,
        rank={BEST: "best", SECOND: "second", 0: ""}, remarks=shown.remarks("Bold is best, underlined second"),
    )  # fmt: skip
    return text


@functools.cache
def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
