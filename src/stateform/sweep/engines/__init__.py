"""Engines, which compute the runs of a sweep: in processes of this machine, in this process, or on a Ray cluster.

An engine is given runs and reports what became of them; it knows neither the store nor the plan. A run is computed by a
*runner*, a function of a module, so that other processes can import it. It takes the experiment as plain values, a
folder and a progress callback, resumes from what it finds in the folder, and returns the outcome as plain values.
"""

from .cluster import Ray
from .engine import Engine, Event
from .here import Here
from .processes import WORKER, Processes
from .runner import Runner, note, trained

__all__ = ["WORKER", "Engine", "Event", "Here", "Processes", "Ray", "Runner", "note", "trained"]
