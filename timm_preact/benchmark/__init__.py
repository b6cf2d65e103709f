"""Our networks beside other people's on one machine.

`peers` says beside whom, `timing` is the clock, `measure` measures, `report` shows.
"""
from .measure import Setting, benchmark, benchmark_all, measure_operations, plan_settings
from .peers import PACKAGES, Peer, compare_logits, find_peers, select_installed
from .report import draw, draw_panel, find_fastest_peer, format_tables, write
from .timing import alternate, images_per_second, seconds_per_call, synchronize

__all__ = [
    'PACKAGES', 'Peer', 'Setting', 'alternate', 'benchmark', 'benchmark_all', 'compare_logits', 'draw', 'draw_panel',
    'find_fastest_peer', 'find_peers', 'format_tables', 'images_per_second', 'measure_operations', 'plan_settings',
    'seconds_per_call', 'select_installed', 'synchronize', 'write']
