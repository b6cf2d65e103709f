"""How the signal and the gradient travel through a residual network: the paper's analysis (section 2), measured.

With an identity shortcut and nothing after the addition, any unit's input is any earlier one's plus a sum (Eq. 4), and
any gradient is any later one plus a sum (Eq. 5):

    x_L = x_l + sum F(x_i),    dE/dx_l = dE/dx_L + dE/dx_L * d(sum F(x_i))/dx_l

The first term of the gradient came through the shortcuts alone, the second through branches. A merge that multiplies
the shortcut by a factor leaves the product of the factors before the first term (Eq. 8). `walk` goes back through a
network unit by unit with the gradient and with its first term, both exact: the first is what autograd gives with every
branch and every gate held constant. `measure` reduces each unit to numbers as it is passed, so that of the whole
network only the units' inputs are ever held.
"""
from .figure import compose, draw
from .paths import residual_units
from .results import Propagation, measure
from .steps import END, Step, walk
from .survey import survey, write
from .verdict import SAFE, Verdict, check

__all__ = [
    'END', 'SAFE', 'Propagation', 'Step', 'Verdict', 'check', 'compose', 'draw', 'measure', 'residual_units', 'survey',
    'walk', 'write']
