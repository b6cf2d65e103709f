"""What is measured of a network: every step of the way back reduced to numbers as it is passed."""
import csv
import dataclasses
import io
import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import nn

from ..files import write_atomically
from .paths import residual_units
from .steps import walk

__all__ = ['Propagation', 'measure']


@dataclasses.dataclass(frozen=True)
class Propagation:
    """What `measure` finds, from the first unit to the last.

    All arrays are float64 of shape (units + 1,): row i belongs to `units[i]`, its last row, `END`, to what leaves the
    last unit, where columns of a unit are NaN. Means and variances are over images, channels and positions; norms are
    L2, over the whole batch, of the gradient of its mean cross-entropy.

    Attributes:
        model: Name of the network, or its class.
        weights: What it held: 'initialisation', a tag, or whose weights.
        images: Number of images.
        training: Whether it ran as in training.
        loss: Mean cross-entropy.
        units: Names of the rows.
        stream_mean: Mean of a unit's input x.
        stream_var: Its variance.
        branch_mean: Mean of what the addition gets from the branch.
        branch_var: Its variance.
        shortcut_mean: Mean of what the addition gets from the shortcut.
        shortcut_var: Its variance.
        scaling: Mean of the factor that the merge puts on h(x): 1, lambda, 1 - g.
        scaling_product: Product of `scaling` from this unit to the last (Eq. 8); 1 at `END`.
        dead_relus: Share of the unit's ReLU channels that are zero at all positions of all images.
        gradient: Norm of dE/dx.
        gradient_shortcuts: Norm of its part that came through the shortcuts alone (the first term of Eq. 5 and 8).
        gradient_branches: Norm of the rest (the second term).
        gradient_cosine: Cosine of dE/dx with the one in the last row of the same shape (C, H, W): 1 there.
        eq4_deviation: Of that row's x from this x plus the branches between, over its norm: 0 where Eq. 4 holds.
        eq5_deviation: Of the first term of dE/dx from that row's, over its norm: 0 where Eq. 5 holds.
    """
    model: str
    weights: str
    images: int
    training: bool
    loss: float
    units: Tuple[str, ...]
    stream_mean: np.ndarray
    stream_var: np.ndarray
    branch_mean: np.ndarray
    branch_var: np.ndarray
    shortcut_mean: np.ndarray
    shortcut_var: np.ndarray
    scaling: np.ndarray
    scaling_product: np.ndarray
    dead_relus: np.ndarray
    gradient: np.ndarray
    gradient_shortcuts: np.ndarray
    gradient_branches: np.ndarray
    gradient_cosine: np.ndarray
    eq4_deviation: np.ndarray
    eq5_deviation: np.ndarray

    @property
    def signal(self) -> float:
        """How large the stream's standard deviation becomes, over that of the first unit's input."""
        return float((self.stream_var.max() / self.stream_var[0]) ** 0.5)

    @property
    def growth(self) -> float:
        """The gradient's norm at the first unit over that behind the last."""
        return float(self.gradient[0] / self.gradient[-1])

    @property
    def direct(self) -> float:
        """The gradient through the shortcuts alone at its weakest unit, over the gradient behind the last."""
        return float(self.gradient_shortcuts[:-1].min() / self.gradient[-1])

    @property
    def cosine(self) -> float:
        """The lowest `gradient_cosine`; NaN where there is none."""
        cosines = self.gradient_cosine[~np.isnan(self.gradient_cosine)]
        return float(cosines.min()) if cosines.size else math.nan

    @property
    def dead(self) -> float:
        """The mean of `dead_relus` over units that have a ReLU; NaN where none has."""
        shares = self.dead_relus[~np.isnan(self.dead_relus)]
        return float(shares.mean()) if shares.size else math.nan

    @classmethod
    def columns(cls) -> Tuple[str, ...]:
        """Names of the arrays."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.type is np.ndarray)

    def to_csv(self, path: Path) -> None:
        """A row a unit, a column an array, after the unit's name; NaN is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(['unit', *self.columns()])
        for name, *values in zip(self.units, *(getattr(self, column) for column in self.columns()), strict=True):
            writer.writerow([name, *('' if math.isnan(value) else repr(float(value)) for value in values)])
        write_atomically(Path(path), text.getvalue().encode())

    def to_dict(self) -> Dict[str, Any]:
        """The fields as plain data: NaN is None, infinities are 'inf' and '-inf'."""
        fields = dict(vars(self), units=list(self.units), loss=_plain(self.loss))
        return {**fields, **{column: [_plain(value) for value in fields[column].tolist()] for column in self.columns()}}

    @classmethod
    def from_dict(cls, fields: Dict[str, Any]) -> 'Propagation':
        """What `to_dict` made."""
        def number(value: Any) -> float:
            return math.nan if value is None else float(value)

        arrays = {column: np.array([number(value) for value in fields[column]]) for column in cls.columns()}
        return cls(**{**fields, **arrays, 'units': tuple(fields['units']), 'loss': number(fields['loss'])})

    def to_json(self, path: Path) -> None:
        """`to_dict` as a file."""
        write_atomically(Path(path), json.dumps(self.to_dict()).encode() + b'\n')

    @classmethod
    def from_json(cls, path: Path) -> 'Propagation':
        """What `to_json` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))


def _plain(value: float) -> Any:
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def measure(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        training: bool = True,
        seed: int = 0,
        name: Optional[str] = None,
        weights: str = 'initialisation',
        passed: Callable[[int, int], None] = lambda done, units: None,
) -> Propagation:
    """Mean, variance and gradient of every unit, see `Propagation`.

    Args:
        model: As for `walk`, as are `images`, `labels`, `training`, `seed` and the errors.
        name: What to call the network; its architecture if not given.
        weights: What to call its weights.
        passed: Called after each unit with how many were passed on the way back, and how many there are.
    """
    units = len(residual_units(model))
    rows: List[Dict[str, Any]] = []
    last, product = None, 1.
    with torch.inference_mode(False), closing(
            walk(model, images.clone(), labels.clone(), training, seed)) as steps:
        for step in steps:
            if last is None or not last.stream.shape == step.stream.shape == step.branch.shape:
                last, branches = step, torch.zeros_like(step.stream)
            else:
                branches = branches + step.branch
            if step.loss is not None:
                loss = step.loss
            row = dict(unit=step.name, **moments('stream', step.stream), dead_relus=step.dead)
            if step.factor is not None:
                row['scaling'] = torch.as_tensor(step.factor, dtype=torch.float64).mean().item()
                product *= row['scaling']
                row.update(moments('branch', step.branch), **moments('shortcut', step.shortcut))
            row.update(
                scaling_product=product,
                gradient=norm(step.gradient),
                gradient_shortcuts=norm(step.direct),
                gradient_branches=norm(step.gradient - step.direct),
                gradient_cosine=cosine(step.gradient, last.gradient),
                eq4_deviation=deviation(step.stream + branches, last.stream),
                eq5_deviation=deviation(step.direct, last.direct),
            )
            rows.append(row)
            passed(len(rows) - 1, units)
    rows.reverse()
    model = unwrap_model(model)
    name = name or getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__
    arrays = {column: np.array([row.get(column, math.nan) for row in rows]) for column in Propagation.columns()}
    return Propagation(name, weights, len(images), training, loss, tuple(row['unit'] for row in rows), **arrays)


def moments(name: str, x: torch.Tensor) -> Dict[str, float]:
    var, mean = torch.var_mean(x.double(), correction=0)
    return {f'{name}_mean': mean.item(), f'{name}_var': var.item()}


def norm(x: torch.Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()


def deviation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Norm of x - y over that of y, NaN where it is zero."""
    length = norm(y)
    return norm(x - y) / length if length else math.nan


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    """NaN where one of them is zero."""
    product = torch.dot(x.double().flatten(), y.double().flatten()).item()
    lengths = norm(x) * norm(y)
    return product / lengths if lengths else math.nan
