"""Every way to compute a System, all equal. A form is one file; so is a readout in all its forms.

recurrent chunkwise scan matrix convolution      forms of the recurrence of a Core; newton, of nonlinear cells
linear softmax ridge                             what each readout makes of a form
"""

from __future__ import annotations

import importlib
import pkgutil

from ..loops.backend import backend
from .cost.predict import Choice, decide
from .form import FORMS, exists, in_order, known_form
from .run import blank_state, choose, compute, nothing_of, put_rows, run

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FORMS", "Choice", "backend", "blank_state", "choose", "compute", "decide", "exists", "in_order", "known_form",
    "nothing_of", "put_rows", "run",
]  # fmt: skip
